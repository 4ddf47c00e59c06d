"""One reader for all programs: every mode as 8-bit RGB, everything else refused by name."""

import io
import struct
import zlib
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import functional as F

from common.training.errors import UsageError
from datasets import images


def saved(tmp_path, image, name):
    image.save(tmp_path / name)
    return tmp_path / name


def grey(dtype, *values):
    return Image.fromarray(np.tile(np.array(values, dtype=dtype), (4, 1)))


def first_row(image):
    assert image.mode == "RGB"
    rows = np.asarray(image)
    assert (rows == rows[:1]).all()
    return rows[0].tolist()


def test_grey_of_any_depth_is_scaled(tmp_path):
    cases = [
        (grey("u2", 0, 255, 256, 20000, 65535), "16.png", [0, 0, 1, 78, 255]),
        (grey("u2", 0, 255, 256, 20000, 65535), "16.tif", [0, 0, 1, 78, 255]),
        (grey(">u2", 0, 20000, 65535), "big_endian.tif", [0, 78, 255]),
        (grey("i4", 0, 20000, 65535), "16_in_32.tif", [0, 78, 255]),
        (grey("i4", 0, 7, 255), "8_in_32.tif", [0, 7, 255]),
        (grey("i4", 0, 1 << 23, 1 << 30, (1 << 31) - 1), "32.tif", [0, 1, 128, 255]),
        (grey("f4", 0, 0.1, 0.5, 1), "float.tif", [0, 26, 128, 255]),
        (grey("u1", 0, 7, 255), "8.png", [0, 7, 255]),
        (grey("u1", 0, 255).convert("1"), "1.png", [0, 255]),
    ]
    for image, name, expected in cases:
        row = first_row(images.read_rgb(saved(tmp_path, image, name)))
        assert row == [[value] * 3 for value in expected]


def test_16_bit_pgm_has_one_scale_whatever_its_values(tmp_path):
    """Binary and plain; the largest value is said by the file."""
    for largest, values, expected in (
        (65535, (0, 248, 255), [0, 0, 0]),
        (65535, (0, 256, 63736), [0, 1, 248]),
        (1023, (0, 3, 512), [0, 0, 128]),
    ):
        header = f"3 1 {largest}\n".encode()
        binary = b"P5\n" + header + struct.pack(">3H", *values)
        plain = b"P2\n" + header + " ".join(map(str, values)).encode() + b"\n"
        for content in (binary, plain):
            (tmp_path / "x.pgm").write_bytes(content)
            row = np.asarray(images.read_rgb(tmp_path / "x.pgm"))[0]
            assert row.tolist() == [[value] * 3 for value in expected]


def test_what_is_transparent_in_16_bits_is_white(tmp_path):
    for transparent, expected in ((0, [255, 1, 78]), (20000, [0, 1, 255]), (1, [0, 1, 78])):
        grey("u2", 0, 256, 20000).save(tmp_path / "x.png", transparency=transparent)
        row = first_row(images.read_rgb(tmp_path / "x.png"))
        assert row == [[value] * 3 for value in expected]
        assert "have transparency, laid on white" in images.remarks(tmp_path / "x.png")


def test_deep_grey_that_comes_out_nearly_black_is_remarked(tmp_path):
    deep = "have more than 8 bits of grey, scaled to 8"
    dark = "use less than a tenth of their range of grey values, nearly black in 8 bits"
    for image, name, expected in (
        (grey("u2", 0, 4095), "12_in_16.png", [deep, dark]),
        (grey("u2", 0, 6400), "x.png", [deep, dark]),
        (grey("u2", 0, 6700), "x.png", [deep]),
        (grey("i4", 0, 4095), "x.tif", [deep, dark]),
        (grey("f4", 0, 0.09), "x.tif", [deep, dark]),
        (grey("f4", 0, 0.11), "x.tif", [deep]),
        (grey("u1", 0, 9), "8.png", []),
    ):
        assert images.remarks(saved(tmp_path, image, name)) == expected


def test_12_bit_tiff_is_scaled(tmp_path):
    """Pillow reads it, but cannot write it: two pixels, 0xFFF and 0x800, in one strip."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1),
            (279, 3)]  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0"
    content += struct.pack("<H", len(tags)) + entries + b"\0" * 4
    (tmp_path / "x.tif").write_bytes(content)
    assert first_row(images.read_rgb(tmp_path / "x.tif")) == [[255] * 3, [128] * 3]


def test_grey_of_an_unknown_range_is_refused(tmp_path):
    cases = [
        (grey("f4", 0, 7), "floating-point grey values from 0 to 7, expected 0 to 1: save it as"),
        (grey("f4", 0, np.nan), "floating-point grey values from nan to nan, expected 0 to 1"),
        (grey("i4", -3, 9), "grey values down to -3: save it as 8- or 16-bit grey"),
        (grey("i4", 0, 70000), "grey values up to 70000 use neither 16 nor 31 bits: save it as 16"),
    ]
    for image, message in cases:
        path = saved(tmp_path, image, "x.tif")
        with pytest.raises(UsageError) as error:
            images.read_rgb(path)
        assert str(error.value).startswith(f"{path}: not a readable image ({message}")
        assert str(error.value).endswith("); repair or remove it")


def palette(transparency=None):
    image = Image.new("P", (2, 4))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.paste(1, (1, 0, 2, 4))
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def two_columns(mode, left, right):
    image = Image.new(mode, (2, 4), left)
    image.paste(right, (1, 0, 2, 4))
    return image


def test_what_is_transparent_shows_a_white_ground(tmp_path):
    cases = [
        (two_columns("RGBA", (9, 8, 7, 255), (9, 8, 7, 0)), "rgba.png", [9, 8, 7]),
        (two_columns("LA", (9, 255), (9, 0)), "la.png", [9, 9, 9]),
        (two_columns("RGBA", (9, 8, 7, 255), (9, 8, 7, 0)), "rgba.tif", [9, 8, 7]),
        (palette(transparency=1), "p.png", [10, 20, 30]),
        (palette(transparency=1), "p.gif", [10, 20, 30]),
        (palette(), "opaque.png", [10, 20, 30]),
    ]
    for image, name, expected in cases:
        left, right = first_row(images.read_rgb(saved(tmp_path, image, name)))
        assert left == expected
        assert right == ([200, 100, 0] if name.startswith("opaque") else [255, 255, 255])


def test_8_bit_colours_are_torchvisions(tmp_path):
    for name in ["x.jpg", "x.png", "x.bmp", "x.webp"]:
        noise = np.random.RandomState(0).randint(0, 256, (9, 7, 3)).astype(np.uint8)
        path = saved(tmp_path, Image.fromarray(noise), name)
        np.testing.assert_array_equal(images.read_rgb(path), Image.open(path).convert("RGB"))


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (4, 2)).save(tmp_path / "x.jpg", exif=exif)
    assert images.read_rgb(tmp_path / "x.jpg").size == (4, 2)


def test_too_large_images_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 11)
    path = saved(tmp_path, Image.new("L", (4, 3)), "x.png")
    with pytest.raises(UsageError, match=r"x\.png: not .* \(4 x 3 pixels, more than 11: shrink"):
        images.read_rgb(path)
    assert Image.MAX_IMAGE_PIXELS is None  # so that no warning without a name comes before


def test_errors_of_every_decoder_are_named(monkeypatch):
    cases = [
        (OSError("image file is truncated"), "image file is truncated"),
        (PermissionError(13, "Permission denied", "a/x.png"), "Permission denied"),
        (SyntaxError("broken PNG file"), "broken PNG file"),
        (ValueError("bad\nmode"), "bad mode"),
        (struct.error("unpack requires 4 bytes"), "unpack requires 4 bytes"),
        (zlib.error("Error -3"), "Error -3"),
        (IndexError("index out of range"), "index out of range"),
        (EOFError(), "EOFError"),
        (MemoryError(), "MemoryError"),
    ]
    for error, reason in cases:

        def refuse(file):
            raise error

        monkeypatch.setattr(Image, "open", refuse)
        with pytest.raises(UsageError) as raised:
            images.read_rgb("a/x.png")
        assert str(raised.value) == f"a/x.png: not a readable image ({reason}); repair or remove it"
        with pytest.raises(UsageError, match=r"^a/x\.png \(line 3 of list\.txt\): not a readable"):
            images.read_rgb("a/x.png", "line 3 of list.txt")


def test_damaged_files_are_named(tmp_path):
    for content in [b"", b"no image", "half a JPEG", None]:
        folder = Path(mkdtemp(dir=tmp_path))
        if content == "half a JPEG":
            file = io.BytesIO()
            Image.effect_noise((64, 64), 50).save(file, "JPEG")
            content = file.getvalue()[:900]
        if content is not None:
            (folder / "x.jpg").write_bytes(content)
        with pytest.raises(
            UsageError, match=r"x\.jpg: not a readable image \(.+\); repair or remove"
        ):
            images.read_rgb(folder / "x.jpg")


def test_square_is_torchvisions_resize_and_centre_crop():
    for size in [(40, 30), (30, 41), (24, 24), (24, 31), (7, 5), (97, 24)]:
        noise = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        image = Image.fromarray(noise)
        expected = F.center_crop(F.resize(image, 24), 24)
        np.testing.assert_array_equal(images.square(image, 24), expected)


def test_suffixes_are_torchvisions():
    assert images.SUFFIXES == IMG_EXTENSIONS
