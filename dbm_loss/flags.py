"""What the flags mean in all programs: the margin's reference, the scale, what is trained."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence

from common.training.errors import UsageError
from common.training.record import Record
from datasets.data import Data

LDAM_SCALE = 30.0  # the default of dbm_loss.losses.LDAM
LDAM_STAGE = 999  # epoch (0-based) from which plain LDAM weighs its classes; no run is that long
MARGIN_FLAGS = ("use_dbm", "tau", "lambda_inst", "margin_norm")
LIST_FLAGS = ("list_dir", "eval_list", "classes")  # of list files


def add_margin_norm(add: Callable[..., object], *spellings: str) -> None:
    """Add ``--margin_norm`` with the ``add_argument`` of a parser or group."""
    add(
        "--margin_norm",
        *spellings,
        choices=["last", "rarest"],
        help="class that has --max_margin: the one of the highest index, as in the original, or "
        "the rarest, so that no margin is larger (default: last; rarest for images of your own: a "
        "folder, an npz file, a list of another number of classes than the published one, or of "
        "over 1 %% more or fewer images; a resumed run keeps its own)",
    )


def margin_norm(record: Record, data: Data) -> str:
    """``--margin_norm``; by default that of the run that goes on, else by whose the images are.

    The paper's are taken as the authors' code does, though not all end with the rarest class.
    """
    return record.settle("margin_norm", "rarest" if data.own else "last")


def without_dbm(args: Namespace) -> str:
    """Why DBM is not in the loss; empty if it is. LDAM takes none, GML's supervised term does."""
    if not args.use_dbm:
        return "without --use_dbm"
    if getattr(args, "loss_fn", "").startswith("ldam"):
        return f"with --loss_fn {args.loss_fn}, a margin of its own"
    return "" if getattr(args, "gamma", 1) > 0 else "with --gamma 0"


def check_nesterov(args: Namespace) -> None:
    """Refuse Nesterov's momentum without any, which torch does in an error of its own.

    Raises:
        UsageError: names the flag.
    """
    if args.nesterov and not args.momentum:
        raise UsageError("--nesterov: needs --momentum above 0")


def check_scale(args: Namespace) -> None:
    """Refuse a ``--cos_scale`` of 0, with which all logits are the same.

    Raises:
        UsageError: names the flag.
    """
    if args.cos_scale == 0:
        raise UsageError(f"--cos_scale {args.cos_scale}: must be above 0")


def without_scale(args: Namespace) -> str:
    """Why ``--cos_scale`` is not in the loss; empty if it is. NCL scales with the margin alone."""
    if args.loss_fn.startswith("ldam"):
        return f"with --loss_fn {args.loss_fn}, a scale of its own"
    if args.loss_fn == "ncl":
        return without_dbm(args)
    return "" if args.use_norm else "without --use_norm"


def no_effect(args: Namespace, parser: ArgumentParser, reasons: Mapping[str, str]) -> list[str]:
    """A sentence on each flag that is not at its default and changes nothing.

    Args:
        parser: knows the defaults.
        reasons: {flag: why it has no effect, empty if it has one}; the margin's are added here.
    """
    dbm = without_dbm(args)
    ldam = getattr(args, "loss_fn", "").startswith("ldam")
    reasons = dict.fromkeys(MARGIN_FLAGS, dbm) | {"max_margin": "" if ldam else dbm} | reasons
    return [
        f"--{name} has no effect {why}"
        for name, why in reasons.items()
        if why and getattr(args, name) not in (None, parser.get_default(name))
    ]


def require_classes(args: Namespace, classes: Sequence[str]) -> None:
    """Refuse a single class with ``bcl``, whose batch norm goes over the class centres.

    Raises:
        UsageError: names the class.
    """
    if args.loss_fn == "bcl" and len(classes) < 2:
        raise UsageError(
            f"--loss_fn bcl: it contrasts classes, and the images are of one, {classes[0]}; take "
            "another loss, or images of two classes or more"
        )


def margin_notes(args: Namespace, cls_num_list: Sequence[int], classes: Sequence[str]) -> list[str]:
    """What the order of the classes does to the margins, if the last one is not the rarest."""
    rarest, last = min(cls_num_list), cls_num_list[-1]
    if without_dbm(args) or rarest == last:
        return []
    name = classes[cls_num_list.index(rarest)]
    if args.margin_norm == "rarest":
        return [
            f"note: --margin_norm rarest: class {name}, the rarest, has --max_margin; in the "
            f"original the last one, {classes[-1]}, has it"
        ]
    return [
        f"note: class {name} is rarer than the last class, the reference of the margin: its margin "
        f"is {last / rarest:.3g} ** tau times --max_margin; --margin_norm rarest keeps it below"
    ]


def logit_scale(args: Namespace) -> float:
    """What the loss multiplies the logits by: ``--cos_scale`` behind a cosine classifier.

    LDAM has its own 30.
    """
    if args.loss_fn.startswith("ldam"):
        return LDAM_SCALE
    return 1.0 if without_scale(args) else args.cos_scale


def about(
    args: Namespace, program: str, arch: str, data: Data, transform: Mapping[str, object]
) -> dict[str, object]:
    """What is trained, for the report and the checkpoints: see ``Record``.

    ``transform``: of an image to evaluate.
    """
    method = args.loss_fn.upper().replace("_", "-")
    return {
        "program": program,
        "method": method if without_dbm(args) else f"{method} with DBM",
        "data": data.name,
        "network": {
            "arch": arch,
            "loss_fn": args.loss_fn,
            "num_classes": len(data.classes),
            "use_norm": args.use_norm,
        },
        "transform": transform,
        "scale": logit_scale(args),
        "classes": data.classes,
        "cls_num_list": data.cls_num_list,
    }
