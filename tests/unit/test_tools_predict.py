"""tools/predict.py: what it finds, writes and asks for; with a network that sees colours."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.models import resnet_cifar
from common.training.errors import RunError, UsageError
from tools import predict

pytestmark = pytest.mark.usefixtures("no_gpu")
CLASSES = ["red", "green", "blue"]
PROGRAM = "ib_loss/cifar_train.py"
ABOUT = {
    "program": PROGRAM,
    "method": "IB",
    "data": "colours",
    "network": {"arch": "resnet20", "num_classes": 3, "use_norm": False},
    "transform": {"steps": [["resize", 8], ["crop", 8]], "mean": [0.0] * 3, "std": [1.0] * 3},
    "scale": 2.0,
    "classes": CLASSES,
    "cls_num_list": [120, 50, 4],
}
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "teal": (0, 102, 153)}


class Colours(nn.Module):
    """Logits: how much there is of red, green and blue."""

    def __init__(self, num_classes, use_norm=False):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.one * x.mean(dim=(2, 3))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The checkpoint ``ckpt``, and images of each colour in folders named after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resnet_cifar, "resnet20", Colours)
    state = {"state_dict": Colours(3).state_dict(), "about": ABOUT}
    torch.save(state, "ckpt")
    torch.save({"state_dict": state["state_dict"]}, "original")
    for name, colour in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (9, 12), colour).save(tmp_path / "images" / name / "1.png")
    return tmp_path


def run(*words):
    predict.main([*map(str, words), "-j", "0"])
    with open("predictions/predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_an_image_and_a_reason_where_there_is_none(capsys):
    with open("broken.png", "wb") as file:
        file.write(b"no image")
    rows = run("ckpt", "images/red/1.png", "broken.png", "images/teal/1.png")
    assert [row["class"] for row in rows] == ["red", "", "blue"]
    e = np.exp(2.0)  # the scale, times a logit of 1
    assert float(rows[0]["probability"]) == pytest.approx(e / (e + 2), abs=1e-6)
    assert (rows[2]["class_2"], rows[2]["class_3"]) == ("green", "red")
    assert rows[1]["reason"].startswith("not a readable image (")
    assert rows[0]["reason"] == rows[0]["true"] == ""
    out = capsys.readouterr().out
    assert "images/red/1.png: red 78.7 %, green 10.7 %, blue 10.7 %\n" in out
    assert "broken.png: not a readable image" in out and "1 of 3 images could not be read" in out


def test_folders_named_like_classes_are_labels(capsys):
    Image.new("RGB", (8, 8), COLOURS["blue"]).save("images/red/2.png")
    rows = run("ckpt", "images", "--by_class")
    assert [(row["path"], row["true"]) for row in rows] == [
        ("images/blue/1.png", "blue"), ("images/green/1.png", "green"),
        ("images/red/1.png", "red"), ("images/red/2.png", "red"), ("images/teal/1.png", ""),
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "4 images with a label: top-1 75.00 %, balanced accuracy 83.33 %" in out
    assert "training images: many 50.00 %, medium 100.00 %, few 100.00 %\n" in out
    assert "red: 1 of 2 images are taken for another class\n   78.7 % blue: images/red/2.png" in out
    assert "green: 0 of 1 images" in out
    evaluation = json.loads(Path("predictions/evaluation.json").read_text())
    assert evaluation["images"] == 4 and evaluation["cls_acc"] == [50.0, 100.0, 100.0]
    with open("predictions/confusion.csv") as file:
        assert file.read() == "true class,red,green,blue\nred,1,0,1\ngreen,0,1,0\nblue,0,0,1\n"


def test_images_of_folders_that_are_no_class_are_counted(here, capsys):
    (here / "photos").mkdir()
    (here / "images" / "teal").rename(here / "images" / "crimson")
    Image.new("RGB", (8, 8)).save("images/crimson/2.png")
    Image.new("RGB", (8, 8)).save("images/loose.png")  # in no folder: nothing is expected of it
    note = (
        "note: {}: {} images without a label: their folders ({}) are named like none of the classes"
    )
    assert len(run("ckpt", "images")) == 6
    assert capsys.readouterr().out.startswith(note.format("images", 2, "crimson") + "\n")
    (here / "images").rename(here / "photos" / "test")
    (here / "photos" / "train").mkdir()
    run("ckpt", "photos")
    said = note.format("photos", 6, "test") + "; give photos/test for the figures of those in it\n"
    assert capsys.readouterr().out.startswith(said)
    for name in "abcd":
        (here / "many" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(here / "many" / name / "1.png")
    run("ckpt", "many")
    assert capsys.readouterr().out.startswith(note.format("many", 4, "a, b, c, …") + "\n")


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (["red", "green", "blue"], {"Red": 0, "red": 0, "BLUE": 2, "teal": None}),
        (["red", "Red", "RED"], {"Red": 1, "rED": None}),  # which of them?
        (["nv", "mel", "bcc"], {"BEN": 0, "MAL": 1, "NV": 0, "MEL": 1, "Bcc": 2, "AK": None}),
        (["BEN", "nv", "mel"], {"BEN": 0, "MAL": 2}),  # the class's own name goes first
    ],
)
def test_names_of_folders_in_any_case_and_of_the_programs_own(here, classes, labels):
    """preprocessing/preprocess.py sorts nv into BEN, mel into MAL; of eight classes into NV …"""
    kind = predict.networks.KINDS["hmloss/isic2019_implementation/train_isic.py"]
    folders = kind.folders() if "nv" in classes else {}
    model = predict.Model(Colours(3), None, 1.0, classes, classes, None, None, folders, "")
    for name in labels:
        (here / "own" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(here / "own" / name / "1.png")
    found = predict.find_samples(Namespace(images=["own"]), model)
    assert {Path(sample.path).parts[1]: sample.label for sample in found} == labels


def test_classes_that_are_numbers_want_names(here, capsys):
    state = torch.load("ckpt", weights_only=True)
    state["about"]["classes"] = ["0", "1", "2"]
    torch.save(state, "numbers")
    (here / "names").write_text("red\ngreen\nblue\n")
    run("numbers", "images")
    assert capsys.readouterr().out.startswith(
        "note: images: 4 images without a label: their folders (blue, green, red, …) are named "
        "like none of the classes, which are numbers; give --classes FILE with their names\n"
    )
    assert [row["true"] for row in run("numbers", "images", "--classes", "names")] == [
        "blue", "green", "red", ""
    ]  # fmt: skip


def test_what_an_earlier_call_wrote_of_labelled_images_is_removed(here):
    Path("predictions").mkdir()
    Path("predictions/per_class.csv").write_text("of a run, as long as there is no evaluation")
    run("ckpt", "images/red/1.png")
    assert Path("predictions/per_class.csv").is_file()
    run("ckpt", "images")
    assert {path.name for path in Path("predictions").iterdir()} == {
        "predictions.csv", *predict.FIGURES
    }  # fmt: skip
    run("ckpt", "images/red/1.png")
    assert [path.name for path in Path("predictions").iterdir()] == ["predictions.csv"]


def test_all_is_written_when_the_reader_goes_away(here, monkeypatch):
    (here / "images" / "teal" / "1.png").unlink()

    class Gone:
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(BrokenPipeError):
        predict.main(["ckpt", "images", "-j", "0"])
    assert len(Path("predictions/predictions.csv").read_text().splitlines()) == 4
    assert json.loads(Path("predictions/evaluation.json").read_text())["top1"] == 100.0


def test_nothing_could_be_read(here):
    (here / "list").write_text("red/1.png\nblue/1.png\n")
    (here / "labels").write_text("red/1.png\t0\tred\n")
    for name, number in (("list", 2), ("labels", 1)):
        with pytest.raises(UsageError) as error:
            run("ckpt", name)
        assert str(error.value) == (
            f"{name}: none of its {number} images is in .; give by --root the folder that its "
            "paths start from"
        )
        assert len(run("ckpt", name, "--root", "images")) == number
    for name in ("a.png", "b.png"):
        (here / name).write_text("no image")
    with pytest.raises(RunError) as error:
        run("ckpt", "a.png", "b.png")
    assert str(error.value) == (
        "none of the 2 images could be read; predictions/predictions.csv says why"
    )
    assert "not a readable image" in Path("predictions/predictions.csv").read_text()


def test_an_image_named_twice_counts_once(here, capsys):
    rows = run("ckpt", "images/red/1.png", "images", "./images", "images/blue")
    assert [row["true"] for row in rows] == ["red", "blue", "green", ""]
    said = capsys.readouterr().out
    assert said.count("without a label") == 2  # of teal, in both spellings of the folder
    assert "note: 6 images named more than once, counted once\n" in said
    assert "3 images with a label" in said


def test_a_class_without_a_test_image_is_not_one_without_mistakes(here, capsys):
    (here / "list.txt").write_text("red/1.png\t0\tred\nblue/none.png\t2\tblue\n")
    run("ckpt", "list.txt", "--root", "images", "--by_class")
    out = capsys.readouterr().out
    assert "\nred: 0 of 1 images are taken for another class\n" in out
    assert "\ngreen: no image\n\nblue: no image\n" in out  # the one of blue cannot be read


@pytest.mark.parametrize("names", ["blue red", "teal blue none red"])
def test_a_list_of_fewer_or_more_classes_than_the_checkpoint(here, names):
    names = names.split()
    (here / "names").write_text("\n".join(names))
    lines = [f"{name}/1.png {names.index(name)}\n" for name in ("blue", "red")]
    (here / "list.txt").write_text("".join(lines))
    rows = run("ckpt", "list.txt", "--root", "images", "--classes", "names")
    assert [(row["true"], row["class"]) for row in rows] == [("blue", "blue"), ("red", "red")]


def test_lists_with_and_without_labels(here, capsys):
    (here / "images" / "list.txt").write_text("red/1.png\n\nteal/1.png\nnone.png\n")
    rows = run("ckpt", "images/list.txt")
    assert [(row["path"], row["class"], row["true"]) for row in rows] == [
        ("red/1.png", "red", ""), ("teal/1.png", "blue", ""), ("none.png", "", ""),
    ]  # fmt: skip
    assert rows[2]["reason"] == "no such file"
    # Labels that lists and checkpoint number in different ways meet by their names.
    (here / "named.txt").write_text("red/1.png\t2\tred\nblue/1.png\t0\tblue\n")
    rows = run("ckpt", "named.txt", "--root", "images")
    assert [row["true"] for row in rows] == ["red", "blue"]
    (here / "names").write_text("blue\ngreen\nred\n")
    (here / "numbered.txt").write_text("red/1.png 2\nblue/1.png 0\n")
    rows = run("ckpt", "numbered.txt", "--root", "images", "--classes", "names")
    assert [row["true"] for row in rows] == ["red", "blue"]
    with pytest.raises(UsageError, match=r"^numbered.txt: label 0, 0, is none of the checkpoint's"):
        run("ckpt", "numbered.txt", "--root", "images")


def test_the_test_images_of_an_npz_file():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, ..., 1] = images[1, ..., 2] = 255
    labels = np.array([0, 1])
    np.savez("data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels,
             classes=np.array(["green", "blue"]))  # fmt: skip
    rows = run("ckpt", "data.npz")
    assert [(row["path"], row["class"], row["true"]) for row in rows] == [
        ("data.npz:0", "green", "green"), ("data.npz:1", "blue", "blue"),
    ]  # fmt: skip


def test_an_original_needs_to_be_told_what_it_is(here):
    words = ["original", "images/red/1.png"]
    for flags, message in (
        ((), "original: does not say which program it is of; give --program, one of ib_loss/"),
        (("--program", PROGRAM), "original: does not say its classes; give --classes FILE"),
        (("--num_classes", "3"), "original: does not say arch; give --network arch=…"),
    ):
        words += flags
        with pytest.raises(UsageError) as error:
            run(*words)
        assert str(error.value).startswith(message)
    words += ["--network", "arch=resnet20", "use_norm=True"]
    assert run(*words)[0]["class"] == "0"
    (here / "names").write_text("rot\ngrün\nblau\n")
    assert run(*words, "--classes", "names")[0]["class"] == "rot"
    odds = [
        np.log(float(row["probability"]) / float(row["probability_2"]))
        for row in (run(*words)[0], run(*words, "--scale", "2")[0])
    ]
    assert odds[1] == pytest.approx(2 * odds[0], abs=1e-3)


def test_a_checkpoint_that_says_odd_things_of_itself():
    for about, message in (
        ("x", "odd: its 'about' is a str, not a dictionary"),
        (ABOUT | {"program": "new.py"}, "odd: is of new.py; give --program, one of ib_loss/"),
        (ABOUT | {"classes": 3}, "odd: 'classes' of its 'about' is a int; take another copy"),
        (ABOUT | {"scale": "x"}, "odd: 'scale' of its 'about' is a str; take another copy"),
        (ABOUT | {"scale": float("nan")}, "odd: 'scale' of its 'about' is nan; take another copy"),
        (ABOUT | {"classes": ["a", 1, "b"]}, "odd: 'classes' of its 'about' is ['a', 1, 'b']; ta"),
        (
            ABOUT | {"classes": ["a", "a", "b"]},
            "odd: 'classes' of its 'about': 'a' names 2 classes",
        ),
        (ABOUT | {"cls_num_list": [5, 1]}, "odd: 'cls_num_list' of its 'about' is [5, 1]; take"),
        (ABOUT | {"cls_num_list": [5, 1, "x"]}, "odd: 'cls_num_list' of its 'about' is [5, 1, 'x"),
        (ABOUT | {"network": {"arch": ["x"]}}, "odd: ib_loss/cifar_train.py has no such network"),
        (ABOUT | {"transform": {}}, "odd: 'transform' of its 'about': 'steps' is None, not a list"),
    ):
        torch.save({"state_dict": Colours(3).state_dict(), "about": about}, "odd")
        with pytest.raises(UsageError) as error:
            run("odd", "images/red/1.png")
        assert str(error.value).startswith(message)


def test_names_for_a_checkpoint_that_has_numbers(here):
    numbered = ABOUT | {"classes": ["2", "0", "1"]}  # sorted by size, as arbloss has them
    torch.save({"state_dict": Colours(3).state_dict(), "about": numbered}, "ckpt")
    (here / "names").write_text("green\nblue\nred\n")
    assert run("ckpt", "images/red/1.png", "--classes", "names")[0]["class"] == "red"
    (here / "names").write_text("green\nblue\n")
    with pytest.raises(UsageError, match=r"^--classes names: 2 names; ckpt has 3 classes"):
        run("ckpt", "images/red/1.png", "--classes", "names")


def test_numbered_folders_keep_their_labels_when_numbers_get_names(here):
    numbered = ABOUT | {"classes": ["2", "0", "1"]}
    torch.save({"state_dict": Colours(3).state_dict(), "about": numbered}, "ckpt")
    (here / "names").write_text("green\nblue\nred\n")
    (here / "images" / "teal").rename(here / "images" / "1")
    for flags, expected in (
        (["--classes", "names"], ["blue", "blue", "green", "red"]),
        ([], ["1", "", "", ""]),
    ):
        assert [row["true"] for row in run("ckpt", "images", *flags)] == expected
    flags = ["--program", PROGRAM, "--network", "arch=resnet20", "use_norm=False"]
    rows = run("original", "images/1/1.png", "images", *flags, "--classes", "names")
    assert [row["true"] for row in rows] == ["blue", "blue", "green", "red"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ckpt", "--num_classes", "5"], "--num_classes 5: ckpt has 3 classes; leave it out"),
        (["ckpt", "--classes", "other"], "--classes other: none of its names (Green, Red) is a "
         "class of ckpt (red, green, blue)"),
        (["original", "--classes", "two", "--num_classes", "3", "--program", PROGRAM],
         "--num_classes 3: two has 2 classes; leave it out"),
    ],
)  # fmt: skip
def test_classes_that_contradict_the_checkpoint(here, words, message):
    (here / "two").write_text("green\nred\n")
    (here / "other").write_text("Green\nRed\n")
    with pytest.raises(UsageError) as error:
        run(words[0], "images", *words[1:])
    assert str(error.value) == message


def test_what_a_folder_has_beside_images_is_counted(here, capsys):
    (here / "images" / "red" / "1.gif").touch()
    assert len(run("ckpt", "images/red")) == 1
    assert capsys.readouterr().out.startswith(
        "note: images/red: skipped files that are no images by their ending: 1 (such as "
        "images/red/1.gif)\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "images"], "CHECKPOINT nothing: no such file"),
        (
            ["run", "images"],
            "CHECKPOINT run: a folder; give one of its files: run/a/best.pth.tar, run/last.pth.tar",
        ),
        (["empty", "images"], "CHECKPOINT empty: a folder, with no checkpoint in it (*.pth.tar)"),
        (["ckpt", "nothing"], "nothing: no such file or folder"),
        (["ckpt", "empty"], "empty: no images"),
        (["ckpt", "ckpt"], "ckpt: neither a list, which is text, nor among the files whose nam"),
        (["ckpt", "images", "--network", "resnet20"], "--network resnet20: expected KEY=VALUE"),
        (["ckpt", "images", "--program", "x.py"], "argument --program: invalid choice: 'x.py'"),
        (["ckpt", "images/teal", "--by_class"], "--by_class: none of the images has a label"),
        (["ckpt", "images", "--batch_size", "0"], "--batch_size 0: must be at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(here, words, message):
    (here / "empty").mkdir()
    (here / "run" / "a").mkdir(parents=True)
    for name in ("last.pth.tar", "a/best.pth.tar"):
        (here / "run" / name).touch()
    with pytest.raises(UsageError) as error:
        run(*words)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
