#!/usr/bin/env python
"""What a checkpoint of any program says of images.

    python tools/predict.py CHECKPOINT FILE|FOLDER|LIST|NPZ …

Network, classes and treatment of the images come from the checkpoint. DIR/predictions.csv has a row
an image: its path, the class, its probability and the next ones, or why it could not be read. Where
folders are named like the classes (in any case of the letters), or a list or npz file (its test
images) has labels, the figures of these images are shown, too, and stand with confusion matrix and
pictures in DIR; those of an earlier call are removed. Exit code 1 if no image could be read.

A checkpoint of an original says little of itself: name the --program whose task it had, its
--network and its --classes.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.evaluation import GROUPS, Tally
from common.training import checkpoint, drawings, launch, report
from common.training.errors import RunError, UsageError, writing
from common.training.flags import Parser
from common.training.logs import Progress, write_json
from common.training.pictures import picture
from datasets.augment.recipes import MAX_SIDE, from_description
from datasets.classes import read_names, require_distinct, some
from datasets.folder import ENDINGS, Skipped, image_files
from datasets.images import SUFFIXES, read_rgb
from datasets.listfile import ListFile, require_some
from datasets.npz import read_split
from tools import networks
from tools.runner import usable_cores

TOP = 5
# What is written of images with a label; the first, which no other program writes, goes last.
FIGURES = ("evaluation.json", "per_class.csv", "confusion.csv", "per_class.png", "confusion.png")
SHOWN = 20  # so many predictions are printed
MISTAKES = 5  # and so many of each class
# What a checkpoint says of itself, as far as it counts here.
ABOUT = {
    "program": str,
    "network": dict,
    "transform": dict | None,
    "scale": float | int,
    "classes": list | None,
    "cls_num_list": list | None,
}


def get_parser() -> argparse.ArgumentParser:
    """The parser of the program."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="of any program")
    add("images", nargs="+", metavar="IMAGES", help="image files, folders, lists, npz files")
    add("--root", metavar="DIR", help="what paths in lists start from (default: the list's folder)")
    add("--out", type=Path, default=Path("predictions"), metavar="DIR",
        help="folder of what is written (default: predictions)")  # fmt: skip
    add("--by_class", action="store_true", help="show the most confident mistakes of each class")
    add("--batch_size", type=int, default=100, metavar="N", help="images at a time (default: 100)")
    add("-j", "--workers", type=int, default=4, metavar="N",
        help="processes that read images (default: 4)")  # fmt: skip
    add("--gpu", type=int, help="use this GPU (default: the first; the CPU where there is none)")
    add = parser.add_argument_group("what a checkpoint of an original does not say").add_argument
    add("--program", choices=sorted(networks.KINDS), metavar="PROGRAM",
        help=f"one of {', '.join(sorted(networks.KINDS))}")  # fmt: skip
    add("--network", nargs="+", default=[], metavar="KEY=VALUE",
        help="arch=resnet32, use_norm=True (cosine classifier), loss_fn=bcl (dbm_loss), stage=2, "
        "places=True (arbloss)")  # fmt: skip
    add("--classes", metavar="FILE", help="their names, one a line; also of the labels in lists")
    add("--num_classes", type=int, metavar="C", help="instead of names")
    add("--image_size", type=int, metavar="PX", help="side of the images (default: the program's)")
    add("--scale", type=float, metavar="S",
        help="what the cosines of a cosine classifier are multiplied by for the probabilities "
        "(default: 1)")  # fmt: skip
    return parser


@dataclass(frozen=True)
class Model:
    """A trained network and what belongs to it.

    Attributes:
        network: images (N, 3, H, W) -> logits (N, C). scale: of the logits, for probabilities.
        transform: PIL image -> (3, H, W).
        classes: their names (C,). own_names: the checkpoint's own, or numbers (C,).
        cls_num_list: training images of each, None if not known.
        label_names: what --classes says, or None.
        folders: {folder of the program's own images: class}, where the two are named otherwise.
        title: what was trained, in words.
    """

    network: torch.nn.Module
    transform: Callable
    scale: float
    classes: list[str]
    own_names: list[str]
    cls_num_list: list[int] | None
    label_names: list[str] | None
    folders: dict[str, str]
    title: str

    @property
    def numbered(self) -> bool:
        """Whether the classes have no names."""
        return sorted(self.classes) == sorted(map(str, range(len(self.classes))))

    def labels(self) -> tuple[dict[str, int], dict[str, int]]:
        """{name of a folder: class}; the same in lower case, of names that mean one class alone."""
        place = {name: c for c, name in enumerate(self.classes)}
        exact = {f: place[name] for f, name in self.folders.items() if name in place}
        exact |= {name: c for c, name in enumerate(self.own_names)} | place
        alike: dict[str, set[int]] = {}
        for name, c in exact.items():
            alike.setdefault(name.lower(), set()).add(c)
        return exact, {name: c for name, (c, *others) in alike.items() if not others}


def load_model(args: argparse.Namespace) -> Model:
    """What the checkpoint and the flags say.

    Raises:
        UsageError: no checkpoint, or something is neither in it nor among the flags.
    """
    if Path(args.checkpoint).is_dir():
        found = sorted(map(str, Path(args.checkpoint).rglob("*.pth.tar")))
        cure = f"; give one of its files: {', '.join(found)}" if found else (
            ", with no checkpoint in it (*.pth.tar)"
        )  # fmt: skip
        raise UsageError(f"CHECKPOINT {args.checkpoint}: a folder{cure}")
    state = checkpoint.load(args.checkpoint, "CHECKPOINT")
    source = args.checkpoint
    about = _about(state, source)
    program = args.program or about.get("program")
    if program not in networks.KINDS:
        what = f"is of {program}" if program else "does not say which program it is of"
        known = ", ".join(networks.KINDS)
        raise UsageError(f"{source}: {what}; give --program, one of {known}")
    kind = networks.KINDS[program]
    names = read_names(args.classes) if args.classes else None
    classes = _class_names(about.get("classes"), names, args)
    network = dict(about.get("network", {})) | _network_flags(args.network)
    network["num_classes"] = len(classes)
    if "arch" in kind.needs and isinstance(state.get("arch"), str):
        network.setdefault("arch", state["arch"])
    if missing := [key for key in kind.needs if key not in network]:
        raise UsageError(f"{source}: does not say {missing[0]}; give --network {missing[0]}=…")
    transform = about.get("transform")
    if transform is None or args.image_size is not None:
        transform = networks.transform(program, network, args.image_size)
    try:
        recipe = from_description(transform)
    except ValueError as error:
        raise UsageError(
            f"{source}: 'transform' of its 'about': {error}; take another copy"
        ) from None
    about = {"method": program, "network": network, "data": "unknown data"} | about
    return Model(
        networks.load(program, network, state, source),
        recipe,
        float(about.get("scale", 1.0) if args.scale is None else args.scale),
        classes,
        about.get("classes") or [str(c) for c in range(len(classes))],
        about.get("cls_num_list"),
        names,
        kind.folders(),
        report.title_of(about | {"network": network}),
    )


def _about(state: Mapping[str, object], source: str) -> dict[str, object]:
    """What a checkpoint says of itself; nothing if it is an original's."""
    about = state.get("about") or {}
    if not isinstance(about, dict):
        raise UsageError(f"{source}: its 'about' is a {type(about).__name__}, not a dictionary")
    for key, value in about.items():
        if not isinstance(value, ABOUT.get(key, object)):
            kind = type(value).__name__
            raise UsageError(f"{source}: {key!r} of its 'about' is a {kind}; take another copy")
    classes, counts = about.get("classes"), about.get("cls_num_list")
    for key, wrong in (
        ("scale", not math.isfinite(about.get("scale", 1))),
        ("classes", not all(isinstance(name, str) for name in classes or [])),
        ("cls_num_list", not all(type(n) is int and n >= 0 for n in counts or [])),
        ("cls_num_list", None not in (classes, counts) and len(classes) != len(counts)),
    ):
        if wrong:
            raise UsageError(f"{source}: {key!r} of its 'about' is {about[key]}; take another copy")
    require_distinct(classes or [], f"{source}: 'classes' of its 'about'")
    return about


def _class_names(
    classes: list[str] | None, names: list[str] | None, args: argparse.Namespace
) -> list[str]:
    """Those of the checkpoint; if it has none, or numbers, those of --classes.

    Raises:
        UsageError: nothing says them, or the flags contradict the checkpoint or each other.
    """
    if classes is None and names is None and args.num_classes is None:
        raise UsageError(
            f"{args.checkpoint}: does not say its classes; give --classes FILE with their names, "
            "or --num_classes"
        )
    known = classes or names or [str(c) for c in range(args.num_classes)]
    if args.num_classes not in (None, len(known)):
        source = args.classes if classes is None else args.checkpoint
        raise UsageError(
            f"--num_classes {args.num_classes}: {source} has {len(known)} classes; leave it out"
        )
    if classes is None or names is None:
        return known
    if sorted(classes) == sorted(str(c) for c in range(len(classes))):
        if len(names) != len(classes):
            raise UsageError(
                f"--classes {args.classes}: {len(names)} names; {args.checkpoint} has "
                f"{len(classes)} classes"
            )
        return [names[int(c)] for c in classes]
    # They are those of the labels of a list, which may have other classes than the checkpoint.
    if set(names).isdisjoint(classes):
        raise UsageError(
            f"--classes {args.classes}: none of its names ({some(names)}) is a class of "
            f"{args.checkpoint} ({some(classes)})"
        )
    return classes


def _network_flags(words: Sequence[str]) -> dict[str, object]:
    found = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise UsageError(f"--network {word}: expected KEY=VALUE, such as arch=resnet32")
        plain = {"true": True, "false": False}.get(value.lower(), value)
        found[key] = int(plain) if isinstance(plain, str) and plain.isdigit() else plain
    return found


@dataclass
class Sample:
    """An image to be looked at.

    Attributes:
        path: its name in the results. label: its class, or None. image: the file, or its pixels.
    """

    path: str
    label: int | None
    image: str | np.ndarray


def find_samples(args: argparse.Namespace, model: Model) -> list[Sample]:
    """All images that the command line names.

    Raises:
        UsageError: no such file, or none that has images.
    """
    found = []
    for name in args.images:
        path = Path(name)
        if path.is_dir():
            found += _in_folder(path, model)
        elif not path.is_file():
            raise UsageError(f"{name}: no such file or folder")
        elif path.suffix == ".npz":
            found += _in_npz(path, model)
        elif path.suffix.lower() in SUFFIXES:
            found.append(Sample(name, None, name))
        else:
            found += _in_list(path, args, model)
    if not found:
        raise UsageError(f"{' '.join(args.images)}: no images, {ENDINGS}")
    return _once(found)


def _once(samples: Sequence[Sample]) -> list[Sample]:
    """Each image once, with its label if any of its places has one."""
    kept: dict[str, Sample] = {}
    for sample in samples:
        file = sample.image if isinstance(sample.image, str) else sample.path
        key = os.path.abspath(file)
        if key not in kept or kept[key].label is None:
            kept[key] = sample
    if again := len(samples) - len(kept):
        print(f"note: {again} image{'s' * (again > 1)} named more than once, counted once")
    return list(kept.values())


def _in_folder(folder: Path, model: Model) -> list[Sample]:
    """Images below; those below a folder that is named like a class are of it, others are noted."""
    skipped = Skipped()
    files = image_files(folder, skipped)
    for note in skipped.notes(folder):
        print(note)
    exact, alike = model.labels()

    def label(name: str) -> int | None:
        return exact.get(name, alike.get(name.lower()))

    parts = [Path(file).relative_to(folder).parts for file in files]
    tops = [path[0] if len(path) > 1 else None for path in parts]
    if odd := [top for top in tops if top is not None and label(top) is None]:
        holds = {path[0] for path in parts if len(path) > 2 and label(path[1]) is not None}
        cure = ""
        if meant := sorted(name for name in holds.intersection(odd) if name.lower() != "train"):
            cure = f"; give {folder / meant[0]} for the figures of those in it"
        elif model.numbered and model.label_names is None:
            cure = ", which are numbers; give --classes FILE with their names"
        print(
            f"note: {folder}: {len(odd)} image{'s' * (len(odd) > 1)} without a label: their "
            f"folders ({some(sorted(set(odd)))}) are named like none of the classes{cure}"
        )
    return [
        Sample(file, None if top is None else label(top), file)
        for file, top in zip(files, tops, strict=True)
    ]


def _in_npz(path: Path, model: Model) -> list[Sample]:
    pixels, targets, names = read_split(path, "test")
    labels = _classes_of(targets, names, model, path)
    return [
        Sample(f"{path}:{i}", label, image)
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]


def _in_list(path: Path, args: argparse.Namespace, model: Model) -> list[Sample]:
    """A list of ``path label``, or of paths alone."""
    root = Path(args.root) if args.root else path.parent
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UsageError(
            f"{path}: neither a list, which is text, nor among the {ENDINGS}"
        ) from None
    lines = [line for line in lines if line]
    if all(line.lower().endswith(SUFFIXES) for line in lines):
        require_some(path, [str(root / line) for line in lines], root)
        return [Sample(line, None, str(root / line)) for line in lines]
    num_classes = max(len(model.classes), len(model.label_names or ()))
    images = ListFile(path, root, num_classes=num_classes, must_exist=False)
    require_some(path, images.files, root)
    labels = _classes_of(images.targets, images.classes, model, path)
    return [
        Sample(os.fsdecode(name), label, images.path(i))
        for i, (name, label) in enumerate(zip(images.paths, labels, strict=True))
    ]


def _classes_of(
    targets: np.ndarray, names: Sequence[str], model: Model, source: object
) -> list[int]:
    """The checkpoint's class of each label: that of the label's name.

    Raises:
        UsageError: a label has no name and the classes have, or another one.
    """
    place = {name: c for c, name in enumerate(model.classes)}
    used = sorted(set(targets.tolist()))
    if model.label_names is not None and all(names[c] == str(c) for c in used):
        names = model.label_names
    for label in used:
        if label >= len(names) or names[label] not in place:
            raise UsageError(
                f"{source}: label {label}, {names[label] if label < len(names) else 'unnamed'}, is "
                f"none of the checkpoint's classes ({some(model.classes)}); give "
                "--classes FILE with the names of the labels in their order"
            )
    return [place[names[label]] for label in targets.tolist()]


class Images(Dataset):
    """``dataset[i]`` is (transformed image, ""), or (None, the reason) where it cannot be read."""

    def __init__(self, samples: Sequence[Sample], transform: Callable) -> None:
        self.images = [sample.image for sample in samples]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        image = self.images[index]
        if isinstance(image, np.ndarray):
            return self.transform(Image.fromarray(image)), ""
        if not os.path.isfile(image):
            return None, "no such file"
        try:
            return self.transform(read_rgb(image)), ""
        except UsageError as error:
            return None, str(error).removeprefix(f"{image}: ")


@torch.inference_mode()
def predict(
    model: Model, samples: Sequence[Sample], args: argparse.Namespace, device: torch.device
) -> tuple[Tensor, list[str]]:
    """Logits of all images, (N, C) float32, NaN where the second, the reason, is not empty."""
    logits = torch.full((len(samples), len(model.classes)), math.nan)
    reasons = []
    network = model.network.to(device)
    loader = DataLoader(
        Images(samples, model.transform),
        args.batch_size,
        num_workers=min(args.workers, usable_cores()) if len(samples) > args.batch_size else 0,
        collate_fn=list,
    )
    progress = Progress("images", len(samples))
    for batch in loader:
        there = [i for i, (image, _) in enumerate(batch, len(reasons)) if image is not None]
        if there:
            images = torch.stack([image for image, _ in batch if image is not None])
            logits[there] = network(images.to(device)).cpu()
        reasons += [reason for _, reason in batch]
        progress.step(len(batch))
    progress.close()
    return logits, reasons


def remove_figures(out: Path) -> None:
    """Remove what an earlier call wrote of images with a label: this one may have none."""
    if (out / FIGURES[0]).is_file():
        for name in reversed(FIGURES):
            (out / name).unlink(missing_ok=True)


def write_predictions(
    path: Path, model: Model, samples: Sequence[Sample], logits: Tensor, reasons: Sequence[str]
) -> None:
    """A row an image: path, class, probability, the next classes, true class, reason."""
    top = min(TOP, len(model.classes))
    header = ["path", "class", "probability"]
    header += [f"{name}_{k}" for k in range(2, top + 1) for name in ("class", "probability")]
    rows = []
    best = (model.scale * logits).softmax(dim=1).topk(top, dim=1)
    for sample, probabilities, classes, reason in zip(
        samples, best.values.tolist(), best.indices.tolist(), reasons, strict=True
    ):
        pairs = zip(classes, probabilities, strict=True)
        said = [text for c, p in pairs for text in (model.classes[c], f"{p:.6f}")]
        true = "" if sample.label is None else model.classes[sample.label]
        rows.append([sample.path, *([""] * 2 * top if reason else said), true, reason])
    report.write_rows(path, [*header, "true", "reason"], rows)


def evaluate(
    model: Model, samples: Sequence[Sample], logits: Tensor, reasons: Sequence[str], out: Path
) -> dict[str, object] | None:
    """Write the figures of the images with a label, and return them; None if there are none."""
    known = [i for i, sample in enumerate(samples) if sample.label is not None and not reasons[i]]
    if not known:
        return None
    labels = torch.tensor([samples[i].label for i in known])
    tally = Tally(len(model.classes), scale=model.scale)
    tally.update(logits[known], labels, loss=0.0)
    tally.reduce()
    counts = model.cls_num_list
    figures = {"images": len(known)} | tally.result(counts)
    del figures["loss"]  # which was not computed
    write_json(out / FIGURES[0], report.in_percent(figures))
    table = report.class_table(tally, counts or [0] * len(model.classes), model.classes)
    report.write_class_tables(out, tally, table)
    title = f"{model.title}\n{len(known)} images"
    if counts is not None:
        recall = tally.precision_recall_f1()[1].tolist()
        picture(out / "per_class.png", drawings.per_class, recall, counts, model.classes, "", title)
    if tally.confusion is not None:
        picture(
            out / "confusion.png", drawings.confusion, tally.confusion.numpy(),
            counts or tally.total.tolist(), model.classes, title,
        )  # fmt: skip
    return figures


def show_figures(model: Model, figures: Mapping[str, object]) -> None:
    """Print what ``evaluate`` returned."""
    print(
        f"\n{figures['images']} images with a label: top-1 {figures['top1']:.2f} %, balanced "
        f"accuracy {figures['balanced_acc']:.2f} %, macro F1 {figures['macro_f1']:.2f} %"
    )
    if model.cls_num_list is not None:
        print("accuracy of the classes with many (> 100), medium and few (< 20) training images: "
              + ", ".join(f"{name} {figures[name]:.2f} %" for name in GROUPS
                          if not math.isnan(figures[name])))  # fmt: skip


def show(model: Model, samples: Sequence[Sample], logits: Tensor, reasons: Sequence[str]) -> None:
    """Print what the network says of the first images."""
    best = (model.scale * logits).softmax(dim=1).topk(min(3, len(model.classes)), dim=1)
    for i, sample in enumerate(samples[:SHOWN]):
        said = reasons[i] or ", ".join(
            f"{model.classes[c]} {100 * p:.1f} %"
            for c, p in zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True)
        )
        print(f"{sample.path}: {said}")
    if len(samples) > SHOWN:
        print(f"… and {len(samples) - SHOWN} more")


def show_mistakes(
    model: Model, samples: Sequence[Sample], logits: Tensor, reasons: Sequence[str]
) -> None:
    """Print the most confident mistakes of each class."""
    probability, predicted = (model.scale * logits).softmax(dim=1).max(dim=1)
    for c, name in enumerate(model.classes):
        of_class = [i for i, s in enumerate(samples) if s.label == c and not reasons[i]]
        if not of_class:
            print(f"\n{name}: no image")
            continue
        wrong = [i for i in of_class if predicted[i] != c]
        wrong.sort(key=lambda i: -float(probability[i]))
        print(f"\n{name}: {len(wrong)} of {len(of_class)} images are taken for another class")
        for i in wrong[:MISTAKES]:
            other = model.classes[int(predicted[i])]
            print(f"  {100 * float(probability[i]):5.1f} % {other}: {samples[i].path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program.

    Raises:
        UsageError: flags, checkpoint or images that cannot be. RunError: no image can be read, or
            nothing written.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    parser.check_numbers(args, image_size=(1, MAX_SIDE))
    model = load_model(args)
    samples = find_samples(args, model)
    device = launch.start(args.gpu).device
    with writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    logits, reasons = predict(model, samples, args, device)

    # All is written before a word is printed: a reader may go away.
    with writing(args.out):
        remove_figures(args.out)
    predictions = args.out / "predictions.csv"
    write_predictions(predictions, model, samples, logits, reasons)
    figures = evaluate(model, samples, logits, reasons, args.out)

    print(model.title)
    if not args.by_class:
        show(model, samples, logits, reasons)
    unreadable = sum(map(bool, reasons))
    if unreadable == len(samples):
        raise RunError(f"none of the {len(samples)} images could be read; {predictions} says why")
    if figures is not None:
        show_figures(model, figures)
    if args.by_class:
        if figures is None:
            raise UsageError(
                "--by_class: none of the images has a label; give folders that are named like the "
                "classes, or a list with labels"
            )
        show_mistakes(model, samples, logits, reasons)
    if unreadable:
        print(f"\n{unreadable} of {len(samples)} images could not be read")
    print(f"\n{predictions}", flush=True)


if __name__ == "__main__":
    launch.run(main, trains=False)
