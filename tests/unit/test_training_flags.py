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

PARSERS = {
    "ib_loss": lambda: ib_loss.opts.get_parser(),
    "dbm_loss/cifar": lambda: dbm_loss.cifar.opts.get_parser(),
    "dbm_loss/large_scale": lambda: dbm_loss.large_scale.opts.get_parser(),
    "dbm_loss/GML": lambda: dbm_loss.GML.opts.get_parser("main"),
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
