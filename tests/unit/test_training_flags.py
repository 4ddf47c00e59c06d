"""common.training.flags: the parser that all programs use."""

import re
from pathlib import Path

import pytest

import arbloss.opts
import datasets.check
import dbm_loss.cifar.opts
import dbm_loss.GML.opts
import dbm_loss.large_scale.opts
import hmloss.cifar_implementation.opts
import hmloss.flags
import hmloss.inat_implementation.opts
import hmloss.isic2019_implementation.opts
import hmloss.plot_loss
import ib_loss.opts
from arbloss.start import PLACE_KEYS
from common.training.changes import FREE_TO_CHANGE, changed_settings
from common.training.errors import UsageError
from common.training.flags import PLACES, check_numbers
from dbm_loss.large_scale.schedule import Schedule
from hmloss.isic2019_implementation.preprocessing import mean_std, preprocess, split
from ib_loss.schedule import CIFAR, TINY_IMAGENET

DBM_CIFAR = (
    "name network epochs batch-size update-epoch lr,learning-rate lr_decay momentum wd nesterov "
    "scheduler warmup aug_prob cutout cmo posthoc_la aug_type sim_type use_norm cos out data_dir "
    "workers seed gpu dataset num_max imb_ratio loss_fn num_experts ride_distill use_dbm cos_scale "
    "max_margin tau lambda_inst"
)
PARSERS = {
    "ib_loss": lambda: ib_loss.opts.get_parser(),
    "ib_loss/tiny": lambda: ib_loss.opts.get_parser("tiny"),
    "dbm_loss/cifar": lambda: dbm_loss.cifar.opts.get_parser(),
    "dbm_loss/large_scale": lambda: dbm_loss.large_scale.opts.get_parser(),
    "dbm_loss/GML/main": lambda: dbm_loss.GML.opts.get_parser("main"),
    "dbm_loss/GML/cifar_main": lambda: dbm_loss.GML.opts.get_parser("cifar_main"),
    "dbm_loss/GML/cifar_ce": lambda: dbm_loss.GML.opts.get_parser("cifar_ce"),
    "hmloss/cifar": lambda: hmloss.cifar_implementation.opts.get_parser(),
    "hmloss/inat": lambda: hmloss.inat_implementation.opts.get_parser(),
    "hmloss/isic2019": lambda: hmloss.isic2019_implementation.opts.get_parser(),
    "arbloss": lambda: arbloss.opts.get_parser("stage 1"),
}


def test_folders_may_change_on_resume():
    """A run that goes on from another place is the same run; so it is to `resume auto`."""
    names = {action.dest for make in PARSERS.values() for action in make()._actions}
    names |= arbloss.opts.DEFAULTS.keys()
    places = {name for name in names if re.search("_(dir|path)$|^(root|path)(_|$)|^out$", name)}
    places -= {"path_t"}  # without one there is another teacher, a momentum copy
    assert {"root", "data_path", "path_model", "list_dir", "result_dir"} <= places
    assert not changed_settings(dict.fromkeys(places, "here"), dict.fromkeys(places, "there"))
    assert places <= FREE_TO_CHANGE <= PLACE_KEYS


def test_bad_usage_is_one_line(capsys):
    for program in PARSERS:
        required = ["--cfg", "x.yaml"] if program == "arbloss" else []
        with pytest.raises(UsageError) as error:
            PARSERS[program]().parse_args([*required, "--no_such_flag"])
        assert str(error.value) == "unrecognized arguments: --no_such_flag"
        assert capsys.readouterr() == ("", "")


ROOT = Path(arbloss.opts.__file__).parents[1]
CONFIG = ROOT / "arbloss/config/cifar10/cifar10_imb001.yaml"
PARSE = {
    "ib_loss": lambda argv: ib_loss.opts.parse_args(argv, "cifar", CIFAR),
    "ib_loss/tiny": lambda argv: ib_loss.opts.parse_args(argv, "tiny", TINY_IMAGENET),
    "dbm_loss/cifar": dbm_loss.cifar.opts.parse_args,
    "dbm_loss/large_scale": lambda argv: dbm_loss.large_scale.opts.parse_args(
        ["--dataset", "inat", *argv]
    ),
    "dbm_loss/GML/main": lambda argv: dbm_loss.GML.opts.parse_args(
        ["--mark", "m", "--aug", "randcls_sim", *argv], "main"
    ),
    "dbm_loss/GML/cifar_main": lambda argv: dbm_loss.GML.opts.parse_args(
        ["--mark", "m", "--imb-factor", "0.1", *argv], "cifar_main"
    ),
    "dbm_loss/GML/cifar_ce": lambda argv: dbm_loss.GML.opts.parse_args(
        ["--mark", "m", "--imb-factor", "0.1", *argv], "cifar_ce"
    ),
    "hmloss/cifar": hmloss.cifar_implementation.opts.parse_args,
    "hmloss/inat": hmloss.inat_implementation.opts.parse_args,
    "hmloss/isic2019": hmloss.isic2019_implementation.opts.parse_args,
}
NUMBERS = [
    (program, flag, action)
    for program in PARSE
    for action in PARSERS[program]()._actions
    if action.type is not None and action.dest not in PLACES
    for flag in [name for name in action.option_strings if name.startswith("--")][:1]
    if getattr(action.type, "__name__", "") in ("int", "float", "_seed", "_ratio")
]


def refusal(parse, words):
    """What is said against the words; an empty string if they are taken."""
    try:
        parse(words)
    except UsageError as error:
        return str(error)
    return ""


def test_every_number_is_checked_before_training():
    for program in PARSE:
        flags = {flag: action for name, flag, action in NUMBERS if name == program}
        assert {"--seed", "--momentum", "--workers"} <= flags.keys()
        for flag, action in flags.items():
            values = ["nan", "inf", "-inf", "-1"]
            if action.type is int:
                values += [str(2**63), str(10**30)]
            for value in values:
                said = refusal(PARSE[program], [f"{flag}={value}"])
                assert any(name in said for name in action.option_strings), (flag, value, said)
                assert "\n" not in said


def test_numbers_of_the_tools_are_checked():
    cases = [
        (datasets.check.main, "--workers", ["."]),
        (preprocess.main, "--workers", ["--images", ".", "--ground_truth", "x"]),
        (preprocess.main, "--quality", ["--images", ".", "--ground_truth", "x"]),
        (split.main, "--seed", []),
        (split.main, "--train_ratio", []),
        (mean_std.main, "--image_size", ["."]),
        (hmloss.plot_loss.main, "--delta", []),
    ]
    for main, flag, argv in cases:
        for value in ("-1", "nan", "inf"):
            assert flag in refusal(main, [*argv, f"{flag}={value}"]), value


def test_every_number_of_a_configuration_is_checked():
    def parse(words):
        arbloss.opts.check(arbloss.opts.load_config(CONFIG, words), 1)

    kinds = {key: type(default) for key, default in arbloss.opts.DEFAULTS.items()}
    for key, kind in (kinds | arbloss.opts.NULLABLE).items():
        if kind not in (int, float, list) or key in PLACES:
            continue
        for value in ("nan", "inf", "-inf", -1, *(() if kind is float else (2**63, 10**30))):
            said = refusal(parse, [key, f"[{value}, {value}]" if kind is list else str(value)])
            assert key in said and "\n" not in said, (key, value)


def test_messages_of_numbers():
    def said(flag, value, **limits):
        with pytest.raises(UsageError) as error:
            check_numbers({flag: value}, **limits)
        return str(error.value)

    assert said("--lr", -0.1) == "--lr -0.1: must be at least 0"
    assert said("--lr", float("nan")) == "--lr nan: must be a finite number, at least 0"
    assert said("--seed", 10**30).endswith(": must be at most 9223372036854775807")
    assert said("--image_size", 4) == "--image_size 4: must be at least 8"
    assert said("--batch-size", 1, batch_size=(2, 9)) == "--batch-size 1: must be at least 2"
    assert said("--schedule", [160, -1]) == "--schedule -1: must be at least 0"
    check_numbers({"--lr": 1e20, "--gpu": -1, "--cos": True, "--name": "x", "--seed": None})


def test_a_first_epoch_behind_the_last_is_refused():
    for program in ["ib_loss", "dbm_loss/large_scale", "dbm_loss/GML/cifar_main"]:
        with pytest.raises(UsageError, match="--start-epoch 5: the last of --epochs 5 is epoch 4"):
            PARSE[program](["--epochs", "5", "--start-epoch", "5"])


def test_a_checkpoint_to_go_on_from_needs_no_published_weights():
    for parse, argv in [
        (PARSE["ib_loss/tiny"], ["-a", "resnet20"]),
        (PARSE["ib_loss"], ["--pretrained"]),
        (PARSE["dbm_loss/large_scale"], ["-a", "resnext101", "--pretrained"]),
        (PARSE["dbm_loss/GML/main"], ["-a", "resnext101_32x4d", "--pretrained"]),
        (PARSE["hmloss/cifar"], ["--pretrained"]),
        (PARSE["hmloss/inat"], ["-a", "resnet10", "--pretrained"]),
        (PARSE["hmloss/isic2019"], ["--arch", "resnet20"]),
    ]:
        assert "no ImageNet weights exist for it" in refusal(parse, argv)
        assert refusal(parse, [*argv, "--resume", "auto"]) == ""


def notes(program, words):
    """What a program says of the words before it trains."""
    parsed = PARSE[program](words)
    if program == "hmloss/inat":
        return hmloss.flags.notes(*parsed)
    if program == "hmloss/isic2019":
        return hmloss.isic2019_implementation.opts.notes(parsed)
    if program == "dbm_loss/large_scale":
        steps = Schedule(parsed.dataset, 0.1, parsed.epochs, parsed.cos, parsed.stretch_schedule)
        return dbm_loss.large_scale.opts.notes(parsed, steps)
    opts = {
        "ib_loss": ib_loss.opts,
        "ib_loss/tiny": ib_loss.opts,
        "dbm_loss/cifar": dbm_loss.cifar.opts,
        "hmloss/cifar": hmloss.cifar_implementation.opts,
    }
    return opts.get(program, dbm_loss.GML.opts).notes(*parsed)


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("ib_loss", []),
        ("ib_loss", ["--train_rule", "DRW"]),
        ("ib_loss", ["--loss_type", "IB"]),
        ("ib_loss", ["--loss_type", "IB", "--start_ib_epoch", "100"]),
        ("dbm_loss/cifar", ["--loss_fn", "ce_drw"]),
        ("dbm_loss/large_scale", []),
        ("dbm_loss/large_scale", ["--loss_fn", "ce_drw"]),
        ("dbm_loss/GML/cifar_main", []),
        ("hmloss/cifar", ["--loss_type", "HML"]),
        ("hmloss/cifar", ["--loss_type", "HML", "--start_hm_epoch", "100"]),
        ("hmloss/inat", []),
    ],
)
def test_a_stretched_schedule_is_not_advised_again(program, flags):
    """What begins in epoch 1 at the earliest is never reached in a run of one epoch."""
    words = ["--epochs", "1", *flags]
    said = " ".join(notes(program, words))
    assert "--stretch_schedule" in said and "note: note" not in said
    stretched = " ".join(notes(program, [*words, "--stretch_schedule"]))
    assert "--stretch_schedule" not in stretched


@pytest.mark.parametrize(
    ("program", "flag"),
    [
        ("ib_loss", "--imb_factor"),
        ("ib_loss/tiny", "--imb_factor"),
        ("dbm_loss/cifar", "--imb_ratio"),
        ("hmloss/cifar", "--imb_factor"),
        ("hmloss/cifar", "--imb_ratio"),
    ],
)
def test_an_imbalance_of_no_effect_is_noted(program, flag):
    value = "0.5" if program != "dbm_loss/cifar" else "2"
    note = f"note: {flag} has no effect with --imb_type none"
    assert note in notes(program, ["--imb_type", "none", flag, value])
    assert note not in notes(program, ["--imb_type", "none"])
    assert note not in notes(program, [flag, value])


@pytest.mark.parametrize(
    ("program", "words", "unused"),
    [
        ("ib_loss", "--loss_type CE --start_ib_epoch 30", "start_ib_epoch"),
        ("ib_loss/tiny", "--loss_type LDAM --start_ib_epoch 50", "start_ib_epoch"),
        ("ib_loss", "--loss_type Focal --stretch_schedule", ""),
        ("ib_loss", "--loss_type IBFocal --start_ib_epoch 30", ""),
        ("hmloss/cifar", "--loss_type CE --gamma 2", "gamma"),
        ("hmloss/inat", "--loss_type HML --gamma 2", "gamma"),
        ("hmloss/isic2019", "--loss_type LDAM --gamma 2", "gamma"),
        ("hmloss/cifar", "--loss_type Focal --gamma 2", ""),
        ("hmloss/isic2019", "--loss_type CE --gamma 1", ""),
        ("hmloss/cifar", "--loss_type LDAM --delta 50", "delta"),
        ("hmloss/inat", "--loss_type CE --start_hm_epoch 7", "start_hm_epoch"),
        ("hmloss/isic2019", "--loss_type Focal --delta 50 --start_hm_epoch 7",
         "delta start_hm_epoch"),
        ("hmloss/cifar", "--loss_type CE --stretch_schedule", ""),
        ("hmloss/cifar", "--loss_type HML2 --start_hm_epoch 7", ""),
        ("hmloss/isic2019", "--loss_type CE --stretch_schedule", "stretch_schedule"),
        ("hmloss/isic2019", "--num_epochs 20 --stretch_schedule", ""),
    ],
)  # fmt: skip
def test_flags_that_the_loss_does_not_look_at_are_noted(program, words, unused):
    its = re.search(r"--loss_type (\w+)", words + " --loss_type HML").group(1)
    found = [note for note in notes(program, words.split()) if "has no effect" in note]
    assert found == [
        f"note: --{flag} has no effect with --loss_type {its}" for flag in unused.split()
    ]


def test_a_stretched_schedule_without_effect_on_isic_is_noted():
    words = ["--stretch_schedule", "--start_hm_epoch", "7"]
    said = "note: --stretch_schedule has no effect with --start_hm_epoch"
    assert notes("hmloss/isic2019", words) == [said]
    assert notes("hmloss/isic2019", [*words, "--num_epochs", "14"]) == []  # 7 either way


@pytest.mark.parametrize("program", [name for name in PARSERS if name != "arbloss"])
def test_every_added_flag_is_in_the_readme(program):
    """Of its folder or its paper's."""
    paper, *folder = program.split("/")
    readmes = [ROOT / paper / "README.md", ROOT / paper / "/".join(folder[:1]) / "README.md"]
    text = "".join(file.read_text() for file in readmes if file.is_file())
    parser = PARSERS[program]()
    original = parser._optionals._group_actions
    for action in [action for action in parser._actions if action not in original]:
        found = [re.search(rf"{flag}(?![\w-])", text) for flag in action.option_strings]
        assert any(found), action.option_strings


def original_flags(program, golden):
    """Spellings of each flag that the original program has."""
    if program == "arbloss":
        return [["--cfg"], ["--local_rank"]]
    if program == "dbm_loss/cifar":
        return [["--" + name for name in flag.split(",")] for flag in DBM_CIFAR.split()]
    if program.startswith("ib_loss"):
        return [flag["flags"] for flag in golden("ib_loss").facts["cli"]]
    if program.startswith("hmloss"):
        key = {"hmloss/cifar": "cli_cifar", "hmloss/isic2019": "cli_isic"}[program]
        return [flag["flags"] for flag in golden("hmloss").facts[key]]
    name, file = {
        "dbm_loss/large_scale": ("dbm_loss_large_scale", "main.py"),
        "dbm_loss/GML/main": ("dbm_loss_gml", "main.py"),
        "dbm_loss/GML/cifar_main": ("dbm_loss_gml", "cifar_main.py"),
        "dbm_loss/GML/cifar_ce": ("dbm_loss_gml", "cifar_ce.py"),
    }[program]
    return [flag["options"] for flag in golden(name).facts["flags"][file]]


def value_for(action):
    """Words that a flag takes, other than its default."""
    if action.nargs == 0:
        return []
    if action.choices:
        return [str(list(action.choices)[-1])]
    if isinstance(action.default, bool):
        return [str(not action.default)]
    if isinstance(action.default, (int, float)):
        return [str(action.default + 1)]
    return [action.default if isinstance(action.default, str) else "1"]


# The iNaturalist program has no original: it was never published.
def test_every_abbreviation_of_the_original_means_what_it_meant(golden, capsys):
    for program in [name for name in PARSERS if name != "hmloss/inat"]:
        parser = PARSERS[program]()
        required = ["--cfg", "x"] if program == "arbloss" else []
        flags = [["-h", "--help"], *original_flags(program, golden)]
        spellings = {spelling for flag in flags for spelling in flag}
        for action in parser._optionals._group_actions:
            assert spellings & set(action.option_strings), f"{action.dest}: not in a group of ours"
        wrong = []
        for flag in flags[1:]:
            action = parser._option_string_actions[flag[-1]]
            value = value_for(action)
            for full in flag:
                expected = parser.parse_args([*required, full, *value])
                for length in range(3, len(full)):
                    short = full[:length]
                    meant = [other for other in flags if any(x.startswith(short) for x in other)]
                    if len(meant) > 1 or any(short in other for other in flags):
                        continue  # ambiguous there, or another flag in full
                    try:
                        if parser.parse_args([*required, short, *value]) != expected:
                            wrong.append(short)
                    except UsageError:
                        wrong.append(short)
        assert not wrong
