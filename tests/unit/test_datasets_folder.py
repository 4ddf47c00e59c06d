"""Image folders: what is listed in which order, what is skipped, which split is evaluated."""

from itertools import product
from pathlib import Path
from tempfile import mkdtemp

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from common.training.errors import UsageError
from datasets.folder import read_folder
from datasets.long_tail import load_long_tailed
from dbm_loss.large_scale import data as large_scale


def make(root, *files):
    """Images of 4x4 pixels, by their paths."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / file)
    return root


def files(split, root):
    return [path.removeprefix(f"{root}/") for path in split.files]


def long_tailed(root):
    """split, classes, counts, notes of the programs that hold images in memory."""
    data = load_long_tailed("imagefolder", root, imb_type="none", imb_factor=1.0, image_size=8)
    assert data.own
    return data.split, data.classes, data.cls_num_list, data.notes


def large(root):
    """The same of the programs that read them as they go."""
    source = large_scale.Source("imagefolder", root)
    data = large_scale.load_data(source, large_scale.train_recipes("ce"))
    assert data.own
    return data.split, data.classes, data.cls_num_list, data.notes


def test_files_come_in_torchvisions_order(tmp_path):
    make(tmp_path, "train/b/z.jpg", "train/b/2/x.PNG", "train/b/10/x.webp", "train/b-1/y.tif",
         "train/b-1/a/1.bmp", "train/a/b.c/1.ppm", "train/a/b/1.pgm", "train/a/B/1.jpeg",
         "train/10/x.png", "train/9/x.png")  # fmt: skip
    (tmp_path / "train/a/notes.txt").touch()
    for name in ("2.png", "1.png", ".0.png", "labels.csv"):  # no class folder holds them
        (tmp_path / "train" / name).touch()
    split = read_folder(tmp_path, "train")
    expected = ImageFolder(tmp_path / "train")
    assert list(zip(split.files, split.targets, strict=True)) == expected.samples
    assert split.classes == expected.classes == ["10", "9", "a", "b", "b-1"]
    folder = tmp_path / "train"
    assert split.notes == [
        f"note: {folder}: skipped files that are no images by their ending: 1 "
        f"(such as {folder}/a/notes.txt), images beside the class folders: 2 "
        f"(such as {folder}/1.png)"
    ]


def test_hidden_files_and_folders_are_skipped_and_counted(tmp_path):
    make(tmp_path, "train/a/1.png", "train/a/.x.png", "train/a/._1.png", "train/b/1.png",
         "train/b/@eaDir/1.png", "train/.ipynb_checkpoints/1.png",
         "train/__MACOSX/a/1.png")  # fmt: skip
    (tmp_path / "train/a/.DS_Store").touch()  # no image by its name
    split = read_folder(tmp_path, "train")
    assert files(split, tmp_path) == ["train/a/1.png", "train/b/1.png"]
    folder = tmp_path / "train"
    assert split.notes == [
        f"note: {folder}: skipped hidden files and folders: 5 (such as {folder}/.ipynb_checkpoints)"
    ]


def test_folders_beside_the_splits_are_named(tmp_path):
    make(tmp_path, "train/a/1.png", "test/a/1.png", "valid/a/1.png", ".git/a/1.png")
    note = f"note: {tmp_path}: its folders valid are not read"
    assert long_tailed(tmp_path)[3].count(note) == large(tmp_path)[3].count(note) == 1
    make(tmp_path, "b/1.png", "c/1.png", "d/1.png")
    assert read_folder(tmp_path, "train").notes == [
        f"note: {tmp_path}: its folders b, c, d, … are not read"
    ]


def test_link_loops_multiply_nothing(tmp_path):
    make(tmp_path, "train/a/1.png", "train/a/x/1.png", "train/b/1.png", "elsewhere/1.png")
    folder = tmp_path / "train"
    (folder / "a" / "loop").symlink_to(folder / "a")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "other").symlink_to(folder / "b")
    (folder / "a" / "more").symlink_to(tmp_path / "elsewhere")  # a folder like any other
    (folder / "c").symlink_to(make(tmp_path, "store/1.png") / "store")
    split = read_folder(tmp_path, "train")
    assert files(split, folder) == ["a/1.png", "a/more/1.png", "a/x/1.png", "b/1.png", "c/1.png"]
    assert split.notes == [
        f"note: {folder}: skipped links to folders that are read already: 3 "
        f"(such as {folder}/a/loop)",
        f"note: {tmp_path}: its folders elsewhere, store are not read",
    ]
    (folder / "d").symlink_to(folder / "b")
    with pytest.raises(UsageError, match=r"train/d: the same folder as .*train/b; an image has"):
        read_folder(tmp_path, "train")


def test_what_is_evaluated_is_said(tmp_path):
    cases = [
        (
            ["test"],
            "test",
            ["evaluated on ROOT/test, 2 images; the best epoch is chosen on it, too"],
        ),
        (
            ["val"],
            "val",
            [
                "evaluated on ROOT/val, 2 images; the best epoch is chosen on it, too",
                "note: what is called test below is the val split",
            ],
        ),
        (
            ["val", "test"],
            "test",
            [
                "evaluated on ROOT/test, 2 images; the best epoch is chosen on ROOT/val, 2 images",
                "note: in training, epochs are evaluated on the validation set, the test set "
                "at the end",
            ],
        ),
    ]
    for load, (splits, evaluated, notes) in product([long_tailed, large], cases):
        folder = Path(mkdtemp(dir=tmp_path))
        for split in ("train", *splits):
            make(folder, f"{split}/a/1.png", f"{split}/b/1.png")
        notes = [note.replace("ROOT", str(folder)) for note in notes]
        assert load(folder) == (evaluated, ["a", "b"], [1, 1], notes)


def test_a_test_split_may_lack_classes(tmp_path):
    for load in [long_tailed, large]:
        folder = Path(mkdtemp(dir=tmp_path))
        make(folder, *(f"train/{name}/1.png" for name in "abcde"), "test/b/1.png")
        (folder / "test/c").mkdir()
        assert load(folder)[3][0] == (
            f"note: {folder}/test has no image of 4 of the 5 classes (a, c, d, …): "
            "they have no accuracy"
        )


def test_other_layouts_are_refused(tmp_path):
    cases = [
        ([], r"image folder .*/root: no such folder; expected DIR/train/<class>"),
        (["train/1.png"], r"root/train: no class folders in it; expected DIR/train/<class>"),
        (["test/a/1.png"], r"root/train: no such folder; expected DIR/train/<class>"),
        (["train/a/1.png"], r"root: neither val/ nor test/ in it; expected DIR/train/<class>"),
        (["train/a/1.png", "train/b/.1.png", "test/a/1.png"], r"root/train/b: no images in this"),
        (
            ["train/a/1.png", "test/a/.1.png"],
            r"root/test: no images in it, files whose names end in \.jpg, ",
        ),
        (
            ["train/a/1.png", "test/a/1.png", "test/b/1.png"],
            r"root/test: other classes than in train/ \(differs in 'b'\)",
        ),
    ]
    for load, (files, message) in product([long_tailed, large], cases):
        folder = Path(mkdtemp(dir=tmp_path))
        make(folder / "root", *files)
        with pytest.raises(UsageError, match=message):
            load(folder / "root")


def test_classes_txt_gives_the_order(tmp_path):
    for load in [long_tailed, large]:
        folder = Path(mkdtemp(dir=tmp_path))
        make(folder, "train/10/1.png", "train/2/1.png", "train/2/2.png", "train/ü/1.png",
             "train/ü/2.png", "train/ü/3.png", "test/2/1.png", "test/10/1.png",
             "test/ü/1.png")  # fmt: skip
        (folder / "classes.txt").write_text("\ufeff2\r\n\n 10 \nü\n", encoding="utf-8")
        assert load(folder)[:3] == ("test", ["2", "10", "ü"], [2, 1, 3])
        assert read_folder(folder, "test").targets.tolist() == [0, 1, 2]


def test_a_classes_txt_that_does_not_fit_is_refused(tmp_path):
    cases = [
        ("a\nc\n", "differs from the class folders in 'b'; expected the name of each of them"),
        ("a\n", "differs from the class folders in 'b'"),
        ("a\nb\na\n", "'a' names 2 classes; give each its own name"),
        ("\n", "no names in it; expected a class name a line"),
        (b"\xff\xfea\0", "not readable ("),
    ]
    for content, message in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        make(folder, "train/a/1.png", "train/b/1.png")
        content = content if isinstance(content, bytes) else content.encode()
        (folder / "classes.txt").write_bytes(content)
        with pytest.raises(UsageError) as error:
            read_folder(folder, "train")
        assert str(error.value).startswith(f"{folder / 'classes.txt'}: {message}")
