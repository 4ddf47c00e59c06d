"""The summary over several runs of one setting."""

from argparse import Namespace

import torch

from common.training.files import Files
from common.training.launch import Process
from hmloss import repeats

NAN = float("nan")
ROWS = [
    {"run": 0, "seed": 5, "best_epoch": 3, "top1": 71.23456789, "medium": NAN, "few": 3.25},
    {"run": 1, "seed": 6, "best_epoch": 4, "top1": 1 / 3, "medium": NAN, "few": NAN},
]


def test_a_summary_has_a_row_a_run_then_mean_and_standard_deviation(tmp_path):
    repeats.write_summary(tmp_path / "summary.csv", ROWS)
    assert (tmp_path / "summary.csv").read_text() == (
        "run,seed,best_epoch,top1,medium,few\n"
        "0,5,3,71.2346,,3.25\n"
        "1,6,4,0.333333,,\n"
        "mean,,3.5,35.784,,3.25\n"
        "std,,0.5,35.4506,,0\n"
    )


def test_the_line_of_a_summary_leaves_out_what_no_run_has():
    line = repeats.summary_line(ROWS, ("top1", "medium", "few"))
    assert line == "2 runs: top1 35.78 ± 35.45, few 3.25 ± 0.00"
    assert repeats.summary_line(ROWS[:1], ("top1",), digits=4) == "1 run: top1 71.2346 ± 0.0000"


def test_what_a_kill_left_of_the_own_summary_alone_is_removed(tmp_path):
    for name in (".a_summary.csv.x1.part", ".b_summary.csv.x1.part", "a_summary.csv"):
        (tmp_path / name).touch()
    process, args = Process(torch.device("cpu")), Namespace(overwrite=False)
    files = [Files(tmp_path / "run0", tmp_path / "run0")]
    claims = repeats.claim(files, [""], args, process, [tmp_path / "a_summary.csv"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".b_summary.csv.x1.part", "a_summary.csv", "run0"
    ]  # fmt: skip
    claims[0].close()
