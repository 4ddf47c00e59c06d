"""Options of ``pytest tests/regression --data-root DIR``, which trains rows of the table."""

import pytest

from common.training.errors import UsageError
from tests.regression import run
from tools.table import PAPERS

OPTIONS = ("data_root", "data", "paper", "dataset", "ratio", "seeds", "epochs", "jobs")


def pytest_addoption(parser):
    add = parser.getgroup("reported accuracies").addoption
    add("--data-root", metavar="DIR", help="folder of the data; without it nothing is trained")
    add("--data", default="", choices=run.DATA, help="train on this instead, as run.py's --data")
    add("--paper", nargs="+", default=[], choices=PAPERS, help="rows of these papers")
    add("--dataset", nargs="+", default=[], help="rows of these data sets: cifar10 …")
    add("--ratio", nargs="+", type=float, default=[], help="rows of these ratios: 100 …")
    add("--seeds", nargs="+", type=int, default=[0], help="seeds (default: 0)")
    add("--epochs", type=int, help="shortened runs: only the order of the methods is judged")
    add("--jobs", type=int, help="runs side by side")


def arguments(config):
    """run.py's arguments from pytest's options; its defaults where pytest did not see them."""
    args = run.get_parser().parse_args([])
    for name in OPTIONS:
        value = config.getoption(name, default=None)
        if value is not None:
            setattr(args, name, value)
    return args


def pytest_configure(config):
    """A condition that no row meets ends here, as in run.py; it would be a green run of nothing."""
    args = arguments(config)
    try:
        run.check(args)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    if not run.select_rows(args):
        raise pytest.UsageError(f"no row of reported.csv matches all conditions; {run.SEE}")
