"""dbm_loss.large_scale.opts: the original's flags, both spellings of the README, and refusals."""

import shlex

import pytest

from common.training.errors import UsageError
from dbm_loss.large_scale.opts import get_parser, notes, parse_args
from dbm_loss.large_scale.schedule import Schedule

README = {
    "imgnet": "--dataset imgnet --num_classes 1000 --root datasets/imagenet-LT --epochs 90 "
    "--arch resnet50 --use_norm --use_dbm --wd 5e-4 --cos --lr 0.1 --batch_size 256 "
    "--loss_type BCL --exp_str dbm_bcl_resnet_m01 --max_margin 0.1",
    "inat": "--dataset inat --num_classes 8142 --root datasets/iNaturalist --epochs 100 "
    "--arch resnet50 --use_norm --use_dbm --wd 1e-4 --cos --lr 0.2 --batch_size 256 "
    "--loss_type BCL --exp_str dbm_bcl_resnet_m01 --max_margin 0.1",
}


def test_flags_have_the_originals_names_and_defaults(golden):
    parser = get_parser()
    actions = {action.dest: action for action in parser._actions}
    for flag in golden("dbm_loss_large_scale").facts["flags"]["main.py"]:
        action = actions[flag["dest"]]
        assert set(flag["options"]) <= set(action.option_strings)
        of_the_data = flag["dest"] in ("root", "num_classes")  # None: not given
        assert action.default == (None if of_the_data else flag["default"]), flag["dest"]
        if flag["type"] in ("int", "float"):
            assert action.type.__name__ == flag["type"], flag["dest"]
        if flag["choices"]:
            assert set(flag["choices"]) <= set(action.choices), flag["dest"]


def test_readme_commands_parse():
    for dataset in README:
        args = parse_args(shlex.split(README[dataset]))
        assert args.loss_fn == "bcl" and args.cos and args.use_dbm and args.use_norm
        assert (
            args.store_name == f"{dataset}_resnet50_bcl_None_vanilla_0.01_0_0.5_dbm_bcl_resnet_m01"
        )
        assert args.num_classes == {"imgnet": 1000, "inat": 8142}[dataset]
        assert (args.lr, args.weight_decay) == {"imgnet": (0.1, 5e-4), "inat": (0.2, 1e-4)}[dataset]
        assert args.cos_scale == 30.0


def test_the_loss_has_two_flags_and_any_case():
    for spelling in ["--loss_fn bcl", "--loss_type BCL", "--loss_fn Bcl"]:
        assert parse_args(shlex.split(f"--dataset inat {spelling}")).loss_fn == "bcl"


def test_root_and_num_classes_fall_back_to_the_data_set():
    args = parse_args(["--dataset", "imgnet"])
    assert (args.root, args.num_classes) == ("datasets/imagenet-LT", 1000)
    args = parse_args(["--dataset", "inat", "--root", "../datasets/", "--num_classes", "100"])
    assert (args.root, args.num_classes) == ("../datasets/", 100)
    args = parse_args(["--dataset", "imagefolder", "--root", "x"])
    assert (args.root, args.num_classes) == ("x", None)


def test_data_aug_cmo_switches_mixing_on():
    assert parse_args(["--dataset", "inat", "--data_aug", "CMO"]).cmo
    assert not parse_args(["--dataset", "inat"]).cmo


def test_refusals_name_the_flag_and_the_cure():
    cases = [
        ("", "cifar100"),
        ("--dataset cifar100", "dbm_loss/cifar/main.py"),
        ("--dataset imagefolder", "--root"),
        ("--dataset imagefolder --fake_data 9", "--num_classes"),
        ("--dataset inat --num_classes 1", "--num_classes"),
        ("--dataset inat --imb_factor 0.1", "--imb_factor"),
        ("--dataset inat --rand_number 1", "--rand_number"),
        ("--dataset inat --lr_steps 30 60", "--stretch_schedule"),
        ("--dataset inat --aug_prob 1", "--aug_prob"),
        ("--dataset inat --sim_type x", "--sim_type"),
        ("--dataset inat --data_aug CUDA", "CUDA"),
        ("--dataset inat --train_rule DRW", "ce_drw"),
        ("--dataset inat --train_rule CRT", "--cmo"),
        ("--dataset inat --use_dbm", "--use_norm"),
        ("--dataset inat --loss_fn bcl --use_norm --cmo", "--cmo"),
        ("--dataset inat --mixup_prob 0.3", "--cmo"),
        ("--dataset inat --cmo --mixup_prob 1.3", "--mixup_prob"),
        ("--dataset inat --cmo --beta 2", "--beta"),
        ("--dataset inat --evaluate", "--resume"),
        ("--dataset inat --nesterov --momentum 0", "--nesterov: needs --momentum above 0"),
        ("--dataset inat --epochs 0", "--epochs"),
        ("--dataset inat --batch_size 0", "--batch_size"),
        ("--dataset inat --lr nan", "--lr"),
        ("--dataset inat --max_margin -1", "--max_margin"),
        ("--dataset inat --epochs 5 --start-epoch 5", "--start-epoch"),
    ]
    for line, named in cases:
        with pytest.raises(UsageError, match=named):
            parse_args(shlex.split(line))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 90", []),
        ("--epochs 90 --cos", []),
        ("--epochs 90 --loss_fn ce_drw", ["epoch 160 is never reached"]),
        ("--epochs 2 --loss_fn ce_drw", ["epoch 60, 80, 160 is never reached"]),
        ("--epochs 2 --loss_fn ce_drw --cos", ["starts at its peak", "epoch 160 is"]),
        ("--epochs 4 --cos", ["made for 90, starts at its peak, epoch 4 of 90"]),
        ("--epochs 5 --cos", ["made for 90, swings"]),
        ("--epochs 2 --cos --stretch_schedule", []),
    ],
)
def test_what_of_the_schedule_does_not_fit_is_said_once(flags, words):
    args = parse_args(["--dataset", "imgnet", *flags.split()])
    schedule = Schedule(args.dataset, args.lr, args.epochs, args.cos, args.stretch_schedule)
    found = notes(args, schedule)
    assert len(found) == len(words)
    assert all(word in note for note, word in zip(found, words, strict=True))
    if args.cos and words and "swings" not in words[0]:
        rates = [schedule(epoch) for epoch in range(args.epochs)]
        assert rates == sorted(rates, reverse=True)


def test_losses_that_do_not_exist_here_are_named():
    for loss in ["NCL", "ride", "focal"]:
        with pytest.raises(UsageError, match=loss):
            parse_args(["--dataset", "inat", "--loss_fn", loss])
