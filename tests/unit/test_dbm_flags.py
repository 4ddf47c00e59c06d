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
from common.training.errors import UsageError
from common.training.files import Files
from common.training.launch import Process
from common.training.record import Record
from dbm_loss.flags import LIST_FLAGS, MARGIN_FLAGS, about, margin_norm, margin_notes
from dbm_loss.large_scale.schedule import Schedule
from dbm_loss.margin import DBMargin

COUNTS = [40, 1280, 5, 64]  # 64 in the last class, 5 in the rarest


def settled(args, dataset):
    """The margin's reference, once the programs have opened data and record."""
    data = argparse.Namespace(own=dataset in ("imagefolder", "npz", "own lists"))
    process = Process(torch.device("cpu"))
    return margin_norm(Record(Files("log", "model"), process, vars(args)), data)


def cifar(dataset, *flags):
    args, schedule = dbm_loss.cifar.opts.parse_args(
        ["--dataset", dataset, "--use_norm", "--use_dbm", *flags]
    )
    args.margin_norm = settled(args, dataset)
    loss = dbm_loss.cifar.engine.build_criterion(args, COUNTS, schedule)
    return args, getattr(loss, "margin", None)


def large_scale(name, *flags):
    dataset = {"cifar100": "imgnet", "own lists": "imgnet", "npz": "imagefolder"}.get(name, name)
    args = dbm_loss.large_scale.opts.parse_args(
        ["--dataset", dataset, "--root", ".", "--use_norm", "--use_dbm", *flags]
    )
    args.margin_norm = settled(args, name)
    loss = dbm_loss.large_scale.engine.build_criterion(args, COUNTS, 160)
    return args, getattr(loss, "margin", None)


def test_plain_ldam_weighs_its_classes_from_epoch_999_on_in_both_halves():
    logits, target = torch.eye(4)[:, [1, 0, 3, 2]] * 0.5, torch.arange(4)
    args, schedule = dbm_loss.cifar.opts.parse_args(["--loss_fn", "ldam"])
    large = dbm_loss.large_scale.opts.parse_args(["--dataset", "inat", "--loss_fn", "ldam"])
    for ldam in (
        dbm_loss.cifar.engine.build_criterion(args, COUNTS, schedule),
        dbm_loss.large_scale.engine.build_criterion(large, COUNTS, drw_epoch=160),
    ):
        first, before, weighed = (ldam(logits, target, epoch) for epoch in (0, 998, 999))
        assert first == before != weighed


def gml(program, name, *flags):
    own = ["--aug", "randcls_sim"] if program == "main" else ["--imb-factor", "0.1"]
    dataset = name
    if program == "main":
        dataset = {"cifar100": "inat", "own lists": "inat", "npz": "imagefolder"}.get(name, name)
    args, _ = dbm_loss.GML.opts.parse_args(
        ["--dataset", dataset, "--mark", "m", "--use_dbm", *own, *flags], program
    )
    args.margin_norm = settled(args, name)
    return args, dbm_loss.GML.engine.build_criterion(args, COUNTS).margin


PROGRAMS = {
    "cifar": cifar,
    "large_scale": large_scale,
    "cifar_ce": lambda *words: gml("cifar_ce", *words),
    "cifar_main": lambda *words: gml("cifar_main", *words),
    "main": lambda *words: gml("main", *words),
}


def test_a_scale_of_zero_is_refused():
    for program in (cifar, large_scale):
        for wrong in ("0", "-1", "nan"):
            with pytest.raises(UsageError, match=r"^--cos_scale .*: must be"):
                program("imagefolder", "--cos_scale", wrong)


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


def test_own_lists_take_the_rarest_under_any_name():
    for program in (large_scale, PROGRAMS["main"]):
        assert program("own lists")[0].margin_norm == "rarest"
        assert program("own lists", "--margin_norm", "last")[0].margin_norm == "last"


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


SAID = {
    "cifar": [
        ("", []),
        ("--use_norm --use_dbm --tau 3 --lambda_inst 9 --max_margin 1 --cos_scale 9", []),
        ("--margin_norm last", ["--margin_norm has no effect without --use_dbm"]),
        ("--tau 3 --lambda_inst 9 --margin_norm rarest",
         [f"--{name} has no effect without --use_dbm" for name in MARGIN_FLAGS[1:]]),
        ("--max_margin 0.9", ["--max_margin has no effect without --use_dbm"]),
        ("--cos_scale 64", ["--cos_scale has no effect without --use_norm"]),
        ("--use_norm --cos_scale 64", []),
        ("--loss_fn ncl --use_norm --cos_scale 64 --epochs 400",
         ["--cos_scale has no effect without --use_dbm",
          "--loss_fn ncl with --use_norm, without --use_dbm: the cosines are not scaled"]),
        ("--loss_fn ldam --max_margin 0.9", []),
        ("--loss_fn ldam --use_norm --use_dbm --tau 3 --cos_scale 64",
         ["--use_dbm has no effect with --loss_fn ldam, a margin of its own",
          "--tau has no effect with --loss_fn ldam, a margin of its own",
          "--cos_scale has no effect with --loss_fn ldam, a scale of its own"]),
        ("--imb_type none --imb_ratio 7", ["--imb_ratio has no effect with --imb_type none"]),
        ("--scheduler cosine --warmup 20 --stretch_schedule",
         ["--warmup has no effect with --scheduler cosine",
          "--stretch_schedule has no effect with --scheduler cosine"]),
        ("--scheduler cosine --stretch_schedule --loss_fn ce_drw", []),  # of the second stage
        ("--cmo --stretch_schedule --epochs 7",
         ["--cmo has no effect with --epochs 7: the first four and the last three are not mixed"]),
        ("--cmo --stretch_schedule --epochs 8", []),
    ],
    "large_scale": [
        ("--epochs 90", []),
        ("--epochs 90 --max_margin 0.9 --tau 3 --cos_scale 99",
         ["--tau has no effect without --use_dbm", "--max_margin has no effect without --use_dbm",
          "--cos_scale has no effect without --use_norm"]),
        ("--epochs 90 --loss_fn ldam --use_norm --use_dbm",
         ["--use_dbm has no effect with --loss_fn ldam, a margin of its own"]),
        ("--epochs 7 --stretch_schedule --cmo",
         ["--cmo has no effect with --epochs 7: the first 4 and the last 3 are not mixed"]),
        ("--epochs 8 --stretch_schedule --cmo", []),
        ("--epochs 90 --fake_data 9 --list_dir a --eval_list b --classes c",
         [f"--{name} has no effect with --fake_data" for name in LIST_FLAGS]),
    ],
    "cifar_ce": [
        ("--max_margin 1 --tau 3", [f"--{name} has no effect without --use_dbm"
                                    for name in ("tau", "max_margin")]),
        ("--imb_type none", ["--imb_factor has no effect with --imb_type none"]),
    ],
    "cifar_main": [
        ("", []),
        ("--gamma 0 --use_dbm", ["--use_dbm has no effect with --gamma 0"]),
        ("--beta 0 --moco-k 77 --base_k 9 --moco-t 9 --moco-m 0.9 --alpha 1",
         [f"--{name} has no effect with --beta 0" for name in ("moco_k", "base_k", "moco_t")]),
        ("--beta 0 --alpha 0 --moco-m 0.9 --path_t x",
         [f"--{name} has no effect with --alpha 0 and --beta 0" for name in ("path_t", "moco_m")]),
        ("--path_t x --arch_t resnet56 --moco-m 0.9",
         ["--moco_m has no effect with --path_t"]),
        ("--arch_t resnet56", ["--arch_t has no effect without --path_t"]),
    ],
    "main": [
        ("--base_k 1 --schedule 30 60 --stretch_schedule",
         [f"--{name} has no effect with --cos true" for name in ("schedule", "stretch_schedule")]),
        ("--base_k 1 --schedule 30 60 --cos false", []),
        ("--beta 0 --moco_k 77 --path_t x --arch_t resnet18",
         [f"--{name} has no effect with --beta 0" for name in ("path_t", "arch_t", "moco_k")]),
        ("--base_k 1 --fake_data 9 --list_dir a", ["--list_dir has no effect with --fake_data"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("program", "flags", "said"),
    [(program, *case) for program, cases in SAID.items() for case in cases],
)
def test_flags_without_effect_are_said(program, flags, said):
    if program == "cifar":
        found = dbm_loss.cifar.opts.notes(*dbm_loss.cifar.opts.parse_args(flags.split()))
    elif program == "large_scale":
        args = dbm_loss.large_scale.opts.parse_args(["--dataset", "imgnet", *flags.split()])
        schedule = Schedule("imgnet", 0.1, args.epochs, args.cos, args.stretch_schedule)
        found = dbm_loss.large_scale.opts.notes(args, schedule)
    else:
        own = ["--aug", "randcls_sim"] if program == "main" else ["--imb-factor", "0.1"]
        argv = ["--mark", "m", *own, *flags.split()]
        found = dbm_loss.GML.opts.notes(*dbm_loss.GML.opts.parse_args(argv, program))
    assert sorted(found) == sorted(f"note: {note}" for note in said)


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
