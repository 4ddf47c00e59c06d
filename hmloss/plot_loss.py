"""Draw the hard mining loss against the true-class probability, beside cross-entropy and focal.

    python -m hmloss.plot_loss --delta 130 --out hml.png

The figure of the paper's abstract: outliers on the left, easy samples on the right. It is drawn
without the factor 10 of the code, and its peak belongs to a δ of 100 to 170.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

import numpy as np
import torch
import torch.nn.functional as F

from common.training.errors import UsageError
from common.training.flags import Parser
from common.training.launch import run
from common.training.pictures import save_picture
from hmloss.losses import FocalLoss, HMLoss


def curve(loss: Callable, p: np.ndarray) -> np.ndarray:
    """Loss of a single sample of two classes for each true-class probability p, (N,) float64."""
    p = torch.from_numpy(p)
    logits = torch.stack([p.logit(), torch.zeros_like(p)], dim=1)  # (N, 2)
    target = torch.zeros(1, dtype=torch.int64)
    return torch.stack([loss(row[None], target) for row in logits]).numpy()


def draw(figure, deltas: Sequence[float]) -> None:
    """All curves over p on a logarithmic axis, with the paper's three zones."""
    p = np.logspace(-6, 0, 500)[:-1]
    axes = figure.subplots()
    axes.plot(p, curve(F.cross_entropy, p), label="cross-entropy")
    axes.plot(p, curve(FocalLoss(gamma=1.0), p), label="focal, γ = 1")
    for delta in deltas:
        hml = curve(HMLoss(delta=delta), p) / 10
        axes.plot(p, hml, label=f"HML / 10, δ = {delta:g}, peak at p = {p[hml.argmax()]:.2g}")
    for left, right, name in (
        (p[0], 0.01, "outliers"),
        (0.01, 0.6, "informative"),
        (0.6, 1, "easy"),
    ):
        axes.axvspan(left, right, alpha=0.06, color="black" if name != "informative" else "white")
        axes.text((left * right) ** 0.5, 13.5, name, ha="center")
    axes.set(xscale="log", xlim=(p[0], 1), ylim=(0, 14.5))
    axes.set(xlabel="probability of the true class", ylabel="loss")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.92))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--delta",
        type=float,
        nargs="+",
        default=[130, 10000],
        help="one or more δ (default: 130, about the figure's, and 10000, the programs')",
    )
    parser.add_argument("--out", default="hml.png", help="file to write (default: hml.png)")
    args = parser.parse_args(argv)
    parser.check_numbers(args)
    if min(args.delta) <= 0:
        raise UsageError(f"--delta {min(args.delta):g}: must be above 0")
    save_picture(Path(args.out), draw, args.delta)
    print(args.out)


if __name__ == "__main__":
    run(main, trains=False)
