"""The reference of the margin, in every program of the paper."""

import argparse

import pytest
import torch

import dbm_loss.cifar.engine
import dbm_loss.cifar.opts
import dbm_loss.GML.engine
import dbm_loss.GML.opts
import dbm_loss.GML.trainer
import dbm_loss.large_scale.engine
import dbm_loss.large_scale.opts
from dbm_loss.flags import about, margin_notes
from dbm_loss.margin import DBMargin

COUNTS = [40, 1280, 5, 64]  # 64 in the last class, 5 in the rarest


def cifar(dataset, *flags):
    args, schedule = dbm_loss.cifar.opts.parse_args(
        ["--dataset", dataset, "--use_norm", "--use_dbm", *flags]
    )
    loss = dbm_loss.cifar.engine.build_criterion(args, COUNTS, schedule)
    return args, getattr(loss, "margin", None)


def large_scale(dataset, *flags):
    dataset = {"cifar100": "imgnet", "npz": "imagefolder"}.get(dataset, dataset)
    args = dbm_loss.large_scale.opts.parse_args(
        ["--dataset", dataset, "--root", ".", "--use_norm", "--use_dbm", *flags]
    )
    loss = dbm_loss.large_scale.engine.build_criterion(args, COUNTS, 160)
    return args, getattr(loss, "margin", None)


def gml(program, dataset, *flags):
    own = ["--aug", "randcls_sim"] if program == "main" else ["--imb-factor", "0.1"]
    if program == "main":
        dataset = {"cifar100": "inat", "npz": "imagefolder"}.get(dataset, dataset)
    args, _ = dbm_loss.GML.opts.parse_args(
        ["--dataset", dataset, "--mark", "m", "--use_dbm", *own, *flags], program
    )
    return args, dbm_loss.GML.engine.build_criterion(args, COUNTS).margin


PROGRAMS = {
    "cifar": cifar,
    "large_scale": large_scale,
    "cifar_ce": lambda *words: gml("cifar_ce", *words),
    "cifar_main": lambda *words: gml("cifar_main", *words),
    "main": lambda *words: gml("main", *words),
}


def test_the_paper_s_data_keep_the_last_class_others_take_the_rarest():
    for program in PROGRAMS.values():
        for words, reference in (
            (["cifar100"], 3),
            (["imagefolder"], 2),
            (["npz"], 2),
            (["cifar100", "--margin_norm", "rarest"], 2),
            (["imagefolder", "--margin_norm", "last"], 3),
        ):
            _, margin = program(*words)
            expected = 0.1 * COUNTS[reference] / torch.tensor(COUNTS, dtype=torch.float32)
            torch.testing.assert_close(margin.class_margin, expected)


def test_no_margin_is_above_that_of_the_rarest_class():
    for tau in [0.5, 1.0]:
        last = DBMargin(COUNTS, tau=tau).class_margin
        rarest = DBMargin(COUNTS, tau=tau, margin_norm="rarest").class_margin
        assert last[3] == pytest.approx(0.1) and last.max() == pytest.approx(0.1 * (64 / 5) ** tau)
        assert rarest.max() == rarest[2] == pytest.approx(0.1)
        with pytest.raises(ValueError, match="margin_norm must be last or rarest, got 'least'"):
            DBMargin(COUNTS, margin_norm="least")


def test_on_sorted_data_both_are_the_same_bits():
    counts = [int(500 * 0.01 ** (c / 99)) for c in range(100)]
    last, rarest = (DBMargin(counts, margin_norm=norm) for norm in ("last", "rarest"))
    assert torch.equal(last.class_margin, rarest.class_margin)


def test_what_the_order_of_the_classes_does_is_said():
    classes = ["ant", "bee", "cat", "dog"]
    args, _ = cifar("imagefolder")
    assert margin_notes(args, COUNTS, classes) == [
        "note: --margin_norm rarest: class cat, the rarest, has --max_margin; in the original the "
        "last one, dog, has it"
    ]
    args, _ = large_scale("imgnet")
    assert margin_notes(args, COUNTS, classes) == [
        "note: class cat is rarer than the last class, the reference of the margin: its margin is "
        "12.8 ** tau times --max_margin; --margin_norm rarest keeps it below"
    ]
    assert margin_notes(args, [9, 5, 5], classes) == []
    args.use_dbm = False
    assert margin_notes(args, COUNTS, classes) == []


def test_a_method_is_called_dbm_if_the_margin_is_in_its_loss():
    data = argparse.Namespace(name="digits", classes=["ant", "bee"], cls_num_list=[1, 2])
    for program, flag, method in (
        ("cifar", "--loss_fn bcl", "BCL with DBM"),
        ("cifar", "--loss_fn ldam", "LDAM"),
        ("large_scale", "--loss_fn ce_drw", "CE-DRW with DBM"),
        ("large_scale", "--loss_fn ldam_drw", "LDAM-DRW"),
        ("main", "--gamma 1", "GML with DBM"),
        ("main", "--gamma 0", "GML"),
        ("cifar_ce", "--lr 1", "balanced softmax with DBM"),
    ):
        args, _ = PROGRAMS[program]("imagefolder", *flag.split())
        if hasattr(args, "loss_fn"):
            found = about(args, "main.py", "resnet32", data, {})
        else:
            found = dbm_loss.GML.trainer.about(args, data, lambda args, data: {})
        assert found["method"] == method
        assert bool(margin_notes(args, [1, 2], ["ant", "bee"])) == ("DBM" in method)
