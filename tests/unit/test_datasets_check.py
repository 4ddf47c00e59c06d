"""python -m datasets.check reads every image and lists what is broken; the exit code says so."""

import numpy as np
import pytest
from PIL import Image

from common.training.errors import UsageError
from datasets import check
from tests.unit.test_datasets_folder import make


def checked(capsys, code, *argv):
    """Output lines of a run that ends with this exit code."""
    if code:
        with pytest.raises(SystemExit) as stop:
            check.main([*map(str, argv), "-j", "1"])
        assert stop.value.code == code
    else:
        check.main([*map(str, argv), "-j", "1"])
    return capsys.readouterr().out.splitlines()


def test_an_image_folder(tmp_path, capsys):
    make(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/.x.png",
         "val/a/1.png", "test/a/1.jpg", "test/b/1.png")  # fmt: skip
    Image.fromarray(np.full((4, 4), 999, np.uint16)).save(tmp_path / "train/a/1.png")
    Image.new("RGBA", (4, 4)).save(tmp_path / "test/b/1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 4)).save(tmp_path / "test/a/1.jpg", exif=exif)
    frames = {"save_all": True, "append_images": [Image.new("RGB", (4, 4), "red")]}
    Image.new("RGB", (4, 4)).save(tmp_path / "val/a/1.tif", **frames)
    lines = [
        f"{tmp_path}/train: 3 images of 2 classes",
        f"note: {tmp_path}/train: skipped hidden files and folders: 1 "
        f"(such as {tmp_path}/train/b/.x.png)",
        f"{tmp_path}/test: 2 images of 2 classes",
        f"{tmp_path}/val: 2 images of 2 classes",
        f"note: {tmp_path}/val has no image of 1 of the 2 classes (b): they have no accuracy",
    ]
    notes = [
        "note: 1 images have an EXIF orientation, which is not applied "
        f"(such as {tmp_path}/test/a/1.jpg)",
        "note: 1 images have more than 8 bits of grey, scaled to 8 "
        f"(such as {tmp_path}/train/a/1.png)",
        "note: 1 images have several frames, of which the first is taken "
        f"(such as {tmp_path}/val/a/1.tif)",
        f"note: 1 images have transparency, laid on white (such as {tmp_path}/test/b/1.png)",
        "note: 1 images use less than a tenth of their range of grey values, nearly black in 8 "
        f"bits (such as {tmp_path}/train/a/1.png)",
    ]
    assert checked(capsys, 0, tmp_path) == [*lines, *notes, "7 images read, 0 of them broken"]
    (tmp_path / "train/a/2.png").write_bytes(b"no image")
    (tmp_path / "val/a/1.png").write_bytes(b"")
    broken = [
        f"{path}: not a readable image (cannot identify image file '{path}'); repair or remove it"
        for path in (tmp_path / "train/a/2.png", tmp_path / "val/a/1.png")
    ]
    expected = [*lines, *broken, *notes, "7 images read, 2 of them broken"]
    assert checked(capsys, 1, tmp_path) == expected


def test_any_other_folder(tmp_path, capsys):
    make(tmp_path, "BEN/1.png", "MAL/deeper/1.jpg", "MAL/.hidden/1.jpg")
    for name in ("BEN/1.gif", "MAL/deeper/2.JXL"):
        (tmp_path / name).touch()
    assert checked(capsys, 0, tmp_path) == [
        f"{tmp_path}: 2 images",
        f"note: {tmp_path}: skipped hidden files and folders: 1 (such as {tmp_path}/MAL/.hidden), "
        f"files that are no images by their ending: 2 (such as {tmp_path}/BEN/1.gif)",
        "2 images read, 0 of them broken",
    ]


def test_lists(tmp_path, capsys, monkeypatch):
    make(tmp_path / "images", "a.png", "b c.png", "d.png")
    (tmp_path / "images/d.png").write_bytes(b"no image")
    (tmp_path / "train.txt").write_text("a.png 0\n\nb c.png 1\ngone.png 1\n")
    (tmp_path / "test.txt").write_text("d.png 1\n")
    monkeypatch.chdir(tmp_path)
    lines = checked(capsys, 1, "train.txt", "test.txt", "--root", "images")
    assert lines[:3] == [
        "train.txt: 3 images of 2 classes",
        "test.txt: 1 images of 2 classes",
        "note: test.txt has no image of 1 of the 2 classes (0): they have no accuracy",
    ]
    assert lines[3].startswith(
        "images/gone.png (line 4 of train.txt): not a readable image (No suc"
    )
    assert lines[4].startswith("images/d.png (line 1 of test.txt): not a readable image (cannot")
    assert lines[5:] == ["4 images read, 2 of them broken"]
    with pytest.raises(UsageError) as error:
        check.main(["train.txt"])
    assert str(error.value) == (
        "train.txt: none of its 3 images is in .; give by --root the folder that its paths start "
        "from"
    )
    (tmp_path / "named.txt").write_text("a.png 0 ant\nb c.png 1 bee\n")
    (tmp_path / "other.txt").write_text("d.png 1 ant\n")
    with pytest.raises(UsageError) as error:
        check.main(["named.txt", "other.txt", "--root", "images"])
    assert str(error.value) == (
        "other.txt: class 1 is called ant, and bee in named.txt; number the classes of all lists "
        "alike"
    )
    (tmp_path / "train.txt").rename(tmp_path / "images" / "train.txt")  # paths start there
    assert checked(capsys, 1, "images/train.txt")[-1] == "3 images read, 1 of them broken"


def test_an_npz_file(tmp_path, capsys):
    images, labels = np.zeros((3, 4, 4), np.uint8), np.array([0, 1, 1])
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": labels for split in ("train", "val", "test")}
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    assert checked(capsys, 0, path) == [
        f"{path}, {split}: 3 images of 2 classes" for split in ("train", "test", "val")
    ]
    np.savez(path, **{**arrays, "test_labels": 0 * labels, "x_test": images})
    assert checked(capsys, 0, path)[1:4] == [
        f"note: {path}: its arrays x_test are not read",
        f"{path}, test: 3 images of 2 classes",
        f"note: test of {path} has no image of 1 of the 2 classes (1): they have no accuracy",
    ]
    np.savez(path, **{**arrays, "val_labels": labels + 1})
    with pytest.raises(UsageError, match=r"val_labels is int64 .* it has the label 2"):
        check.main([str(path)])


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such folder, list or npz file"):
        check.main([str(tmp_path / "nowhere")])
    (tmp_path / "gif").mkdir()
    (tmp_path / "gif" / "1.gif").touch()
    with pytest.raises(UsageError, match=r"gif: no images in it, files whose names end in \.jpg, "):
        check.main([str(tmp_path / "gif")])
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="neither val/ nor test/"):
        check.main([str(tmp_path)])
