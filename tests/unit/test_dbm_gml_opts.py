"""Flags of the three GML programs: names, defaults, both spellings, and what is refused."""

import pytest

from common.training.errors import UsageError
from dbm_loss.GML import opts

PROGRAMS = ("cifar_main", "cifar_ce", "main")
NEEDED = {
    "cifar_main": ["--mark", "m", "--imb-factor", "0.01"],
    "cifar_ce": ["--mark", "m", "--imb-factor", "0.01"],
    "main": ["--mark", "m", "--aug", "randcls_sim"],
}
# num_classes and feat_dim follow from data and model, gpu is the first there is.
OURS = {"num_classes", "feat_dim", "gpu"}


def parse(program, *argv):
    return opts.parse_args([*NEEDED[program], *argv], program)[0]


def spellings(option):
    if not option.startswith("--"):
        return {option}
    return {option, "--" + option[2:].replace("-", "_"), "--" + option[2:].replace("_", "-")}


def test_flags_keep_names_and_defaults_in_both_spellings(golden):
    for program in PROGRAMS:
        actions = {s: a for a in opts.get_parser(program)._actions for s in a.option_strings}
        defaults = opts.get_parser(program).parse_args([])
        for flag in golden("dbm_loss_gml").facts["flags"][f"{program}.py"]:
            for option in flag["options"]:
                for spelling in spellings(option):
                    assert actions[spelling].dest == flag["dest"], spelling
            if flag["dest"] not in OURS:
                assert getattr(defaults, flag["dest"]) == flag["default"], flag["dest"]


def test_every_flag_of_ours_takes_both_spellings():
    for program in PROGRAMS:
        shared = {"--channels_last", "--no-channels_last", "--stretch_schedule", "--image_size"}
        shared |= {"--other_data", "--eval_every", "--val_fraction"}
        for action in opts.get_parser(program)._actions:
            for option in set(action.option_strings) - shared:  # those are as in the other papers
                assert spellings(option) <= set(action.option_strings)


def test_booleans():
    for text in ["yes", "True", "T", "y", "1"]:
        assert parse("main", "--cos", text).cos is True
        opposite = {"yes": "No", "True": "false", "T": "f", "y": "N", "1": "0"}[text]
        assert parse("main", "--cos", opposite).cos is False


def test_the_epoch_multiplier_lengthens_everything():
    args, schedule = opts.parse_args(
        [*NEEDED["cifar_main"], "--epoch-multiplier", "2"], "cifar_main"
    )
    assert args.epochs == schedule.epochs == 400
    assert schedule.warmup == 10 and schedule.steps == (320, 360)


def test_the_teacher_has_the_supervised_term_alone():
    args = parse("cifar_ce")
    assert (args.alpha, args.beta, args.gamma) == (0.0, 0.0, 1.0)
    assert parse("main").alpha == 0.0


def test_classes_follow_from_the_data():
    assert parse("cifar_main", "--dataset", "cifar10").num_classes == 10
    assert parse("main", "--dataset", "inat").num_classes == 8142
    assert parse("main", "--dataset", "inat", "--num_classes", "3").num_classes == 3  # of own lists
    assert parse("cifar_main", "--dataset", "imagefolder").num_classes is None
    fake = ["--dataset", "imagefolder", "--fake_data", "8", "--num_classes", "3"]
    assert parse("cifar_main", *fake).num_classes == 3


def test_what_cannot_mean_anything_is_refused_with_the_cure():
    cases = [
        ("cifar_main", ["--imb-factor", "0"], "--imb-factor 0.0"),
        ("cifar_main", ["--num-classes", "10"], "--num_classes 10: cifar100 has 100"),
        ("cifar_main", ["--schedule", "160"], "--schedule 160: give two epochs"),
        ("cifar_main", ["--aug-plus", "false"], "--aug_plus False"),
        ("cifar_main", ["--reload", "x"], "--reload x"),
        ("cifar_main", ["--path_t", "x", "--arch_t", "resnet18"], "--arch_t resnet18: one of"),
        ("cifar_main", ["--normalize", "no", "--use-dbm"], "--use_dbm: the margin is an angle"),
        ("cifar_main", ["--moco-t", "0"], "--moco-t 0: must be above 0"),
        ("cifar_main", ["--moco-m", "2"], "--moco-m 2.0"),
        ("cifar_main", ["--beta", "nan"], "--beta nan"),
        ("cifar_main", ["--epochs", "0"], "--epochs 0: must be at least 1"),
        ("cifar_main", ["--evaluate"], "--evaluate: name the checkpoint"),
        ("main", ["--mark", "a/b"], "--mark a/b: names a folder and the log in it, leave '/' out"),
        ("cifar_main", ["--dataset", "imagefolder", "--fake-data", "4"], "--num_classes C"),
        ("cifar_ce", ["--normalize", "no"], "--normalize false"),
        ("cifar_ce", ["--base_k", "2"], "--base_k 2: the teacher is trained alone"),
        ("cifar_ce", ["--path_t", "x"], "--path_t x: the teacher is trained alone"),
        ("main", ["--path_t", "x"], "--arch_t resnet32: one of resnet18"),
        ("main", ["--randaug_m", "-1"], "--randaug_m -1"),
    ]
    for program, argv, words in cases:
        with pytest.raises(UsageError, match=words):
            parse(program, *argv)


def test_flags_that_the_original_needed_without_saying_so():
    cases = [
        ("cifar_main", ["--imb-factor", "0.1"], "--mark"),
        ("cifar_main", ["--mark", "m"], "--imb-factor: say smallest / largest"),
        ("main", ["--mark", "m"], "--aug: choose the training views, randcls_randclsstack"),
    ]
    for program, argv, words in cases:
        with pytest.raises(UsageError, match=words):
            opts.parse_args(argv, program)


def test_notes_warn_of_what_the_run_will_not_do():
    args, schedule = opts.parse_args([*NEEDED["cifar_main"], "--epochs", "170"], "cifar_main")
    [note] = opts.notes(args, schedule)
    assert "epoch 181 is never reached" in note
    args, schedule = opts.parse_args(NEEDED["main"], "main")
    [note] = opts.notes(args, schedule)
    assert note.startswith("note: --base_k 0")


@pytest.mark.parametrize(
    ("flags", "rates", "late"),
    [
        ("--epochs 161", 1, ["161, 181"]),
        ("--epochs 162", 2, ["181"]),
        ("--epochs 181", 2, ["181"]),
        ("--epochs 182", 3, []),
        ("--epochs 10 --stretch_schedule", 2, ["10"]),
        ("--epochs 20 --stretch_schedule", 3, []),
    ],
)
def test_a_drop_of_the_rate_that_comes_after_the_run_is_said(flags, rates, late):
    """On CIFAR it comes in the epoch after the milestone."""
    args, schedule = opts.parse_args([*NEEDED["cifar_main"], *flags.split()], "cifar_main")
    after_warmup = range(schedule.warmup + 1, args.epochs)
    assert len({schedule(epoch) for epoch in after_warmup}) == rates
    notes = opts.notes(args, schedule)
    assert [note.split(" is never reached")[0] for note in notes] == [
        f"note: the schedule's step at epoch {epochs}" for epochs in late
    ]
