"""Pictures with any class names, and what happens where one cannot be drawn."""

import matplotlib.mathtext
import numpy as np
import torch

from common.evaluation import Tally
from common.training import pictures
from common.training.report import Outcome, versions, write_report
from common.training.selection import Selection


def write(figure, texts):
    """Each of the texts on an axis of its own length."""
    figure.subplots().set_yticks(np.arange(len(texts)), texts)


def caption(path, draw, *args):
    """What stands below the last figure that is rendered on the way to ``path``."""
    figures = []

    def watched(figure, *args):
        figures.append(figure)
        draw(figure, *args)

    pictures.save_picture(path, watched, *args)
    return figures[-1].get_supxlabel()


def test_names_are_drawn_as_they_are(tmp_path, monkeypatch, recwarn):
    for name in ["$", "$a$", "$x^2$ {", "\\alpha_$\\frac$", "50 % & #1", "a\nb"]:

        def refuse(*args, **kwargs):
            raise AssertionError("taken for a formula")

        monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", refuse)
        pictures.save_picture(tmp_path / "x.png", write, [pictures.literal(name), "b"])
        assert not recwarn.list


def test_a_report_of_any_names_is_drawn(tmp_path, capsys):
    tally = Tally(3)
    tally.update(torch.eye(3), torch.tensor([0, 1, 1]), 1.0)
    tally.reduce()
    classes = ["$1", "$x^{$", "caf\udce9"]
    about = {
        "classes": classes,
        "cls_num_list": [3, 2, 1],
        "method": "$CE$",
        "data": "$2",
        "network": {"arch": "resnet20"},
    }
    history = [{"epoch": 0, "lr": 0.1, "train_loss": 2.0, "top1": 1.0, "cls_acc": [0.5, 0.2, 0.1]}]
    write_report(tmp_path, history, Outcome(history[0], history[0], tally), about, Selection())
    assert all((tmp_path / f"{x}.png").is_file() for x in ("per_class", "confusion", "curves"))
    assert (tmp_path / "predictions.csv").read_bytes().count(b"caf\xe9") == 1
    assert capsys.readouterr() == ("", "")


def test_characters_come_from_any_installed_font(tmp_path, recwarn):
    assert caption(tmp_path / "x.png", write, ["ᶁ", "plain"]) == ""  # STIX, beside Matplotlib's
    assert not recwarn.list


def test_without_such_a_font_the_picture_says_so(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(pictures, "_fonts_with", lambda characters: ([], characters))
    assert caption(tmp_path / "x.png", write, ["犬", "plain"]) == pictures.BOXES
    assert caption(tmp_path / "x.png", write, ["dog", "plain"]) == ""
    assert not recwarn.list


def test_a_picture_that_fails_is_a_warning(tmp_path, capsys):
    def fail(figure):
        raise ValueError("no numbers\nto draw")

    pictures.picture(tmp_path / "x.png", fail)
    (tmp_path / "y.png").mkdir()
    pictures.picture(tmp_path / "y.png", write, ["a"])
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/x.png: no such picture is drawn (no numbers to draw)\n"
        f"warning: {tmp_path}/y.png: no such picture is drawn ({tmp_path}/y.png: cannot be "
        "written (Is a directory); fix that and start again, a training with --resume auto "
        "(arbloss: resume auto))\n"
    )


def test_a_run_on_the_cpu_names_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"name of {device}")
    assert "name of" not in versions(torch.device("cpu"))["device"]
    assert versions(torch.device("cuda", 1))["device"] == "name of cuda:1"
