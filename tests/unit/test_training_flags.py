"""common.training.flags: the parser that all programs use."""

import pytest

import arbloss.opts
import dbm_loss.cifar.opts
import dbm_loss.GML.opts
import dbm_loss.large_scale.opts
import hmloss.cifar_implementation.opts
import hmloss.inat_implementation.opts
import hmloss.isic2019_implementation.opts
import ib_loss.opts

DBM_CIFAR = (
    "name network epochs batch-size update-epoch lr,learning-rate lr_decay momentum wd nesterov "
    "scheduler warmup aug_prob cutout cmo posthoc_la aug_type sim_type use_norm cos out data_dir "
    "workers seed gpu dataset num_max imb_ratio loss_fn num_experts ride_distill use_dbm cos_scale "
    "max_margin tau lambda_inst"
)
PARSERS = {
    "ib_loss": lambda: ib_loss.opts.get_parser(),
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


@pytest.mark.parametrize("program", PARSERS)
def test_bad_usage_is_one_line_and_exit_code_2(program, capsys):
    parser = PARSERS[program]()
    parser.prog = "program.py"
    required = ["--cfg", "x.yaml"] if program == "arbloss" else []
    with pytest.raises(SystemExit) as exit:
        parser.parse_args([*required, "--no_such_flag"])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "program.py: error: unrecognized arguments: --no_such_flag\n"


def original_flags(program, golden):
    """Spellings of each flag that the original program has."""
    if program == "arbloss":
        return [["--cfg"], ["--local_rank"]]
    if program == "dbm_loss/cifar":
        return [["--" + name for name in flag.split(",")] for flag in DBM_CIFAR.split()]
    if program == "ib_loss":
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
@pytest.mark.parametrize("program", [name for name in PARSERS if name != "hmloss/inat"])
def test_every_abbreviation_of_the_original_means_what_it_meant(program, golden, capsys):
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
                except SystemExit:
                    wrong.append(short)
    assert not wrong
