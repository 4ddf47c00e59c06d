"""Options of ``pytest tests/regression --data-root DIR``, which trains rows of the table."""

from tests.regression.run import DATA
from tools.table import PAPERS

OPTIONS = ("data_root", "data", "paper", "dataset", "ratio", "seeds", "epochs", "jobs")


def pytest_addoption(parser):
    add = parser.getgroup("reported accuracies").addoption
    add("--data-root", metavar="DIR", help="folder of the data; without it nothing is trained")
    add("--data", default="", choices=DATA, help="train on this instead, as run.py's --data")
    add("--paper", nargs="+", default=[], choices=PAPERS, help="rows of these papers")
    add("--dataset", nargs="+", default=[], help="rows of these data sets: cifar10 …")
    add("--ratio", nargs="+", type=float, default=[], help="rows of these ratios: 100 …")
    add("--seeds", nargs="+", type=int, default=[0], help="seeds (default: 0)")
    add("--epochs", type=int, help="shortened runs: only the order of the methods is judged")
    add("--jobs", type=int, help="runs side by side")
