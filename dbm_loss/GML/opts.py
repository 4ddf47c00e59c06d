"""Flags of the three GML programs: the original's in both spellings, then ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.models.archs import CIFAR_RESNETS, IMAGENET_RESNETS
from common.training.errors import UsageError
from common.training.flags import (
    LARGEST,
    Parser,
    add_pretrained_flags,
    add_run_flags,
    check_pretrained,
    check_start_epoch,
)
from common.training.schedules import unreached
from dbm_loss.flags import add_margin_norm, no_effect
from dbm_loss.GML.schedule import Schedule, StepSchedule

IMAGENET_ARCHS = (
    *IMAGENET_RESNETS[1:], "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d",
    "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000, "inat": 8142}
AUGMENTATIONS = ("randcls_randclsstack", "randclsstack_randclsstack", "randcls_sim")

# What differs between the programs.
DEFAULTS = {
    "cifar_main": {
        "dataset": "cifar100", "arch": "resnet32", "workers": 32, "epochs": 200, "lr": 0.1,
        "schedule": [160, 180], "print_freq": 50, "moco_dim": 32, "moco_k": 4096, "base_k": 2,
        "moco_t": 0.1, "warmup_epochs": 5, "aug": "cifar100",
    },
    "cifar_ce": {
        "dataset": "cifar100", "arch": "resnet32", "workers": 8, "epochs": 200, "lr": 0.15,
        "schedule": [160, 180], "print_freq": 10, "moco_dim": 128, "moco_k": 1024, "base_k": 0,
        "moco_t": 0.1, "warmup_epochs": 5, "aug": "cifar100",
    },
    "main": {
        "dataset": "imagenet", "arch": "resnet50", "workers": 32, "epochs": 90, "lr": 0.1,
        "schedule": [120, 160], "print_freq": 50, "moco_dim": 1024, "moco_k": 8192, "base_k": 0,
        "moco_t": 0.07, "warmup_epochs": 0, "aug": None,
    },
}  # fmt: skip

# Flags that the original parsed and dropped: refused unless they stand at their default.
NO_QUEUE = "the teacher is trained alone, without queue or teacher; it is for cifar_main.py"
REFUSED = {
    "aug_plus": "there is one augmentation, AutoAugment and Cutout",
    "reload": "it never did anything; --resume goes on, --path_t names the teacher",
}
REFUSED_BY_TEACHER = REFUSED | dict.fromkeys(
    ("arch_t", "path_t", "moco_dim", "moco_k", "base_k", "moco_m", "moco_t", "mlp"), NO_QUEUE
)


def boolean(text: str) -> bool:
    """yes/true/t/y/1 or no/false/f/n/0, in any case."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: true or false")


def get_parser(program: str) -> Parser:
    """The parser of ``cifar_main``, ``cifar_ce`` or ``main``.

    Every flag takes hyphens and underscores; the original's CIFAR programs took the one, its
    ``main.py`` the other.
    """
    cifar = program != "main"
    parser = Parser(
        description={
            "cifar_main": "GML on long-tailed CIFAR: the student",
            "cifar_ce": "Balanced softmax on long-tailed CIFAR: the teacher of cifar_main.py",
            "main": "GML on ImageNet-LT and iNaturalist 2018: teacher (--beta 0) and student",
        }[program],
    )
    archs = CIFAR_RESNETS if cifar else IMAGENET_ARCHS

    def add(*names: str, **options: object) -> None:
        spellings = dict.fromkeys(
            spelling
            for name in names
            for spelling in (
                (name, "--" + name[2:].replace("-", "_"), "--" + name[2:].replace("_", "-"))
                if name.startswith("--")
                else (name,)
            )
        )
        parser.add_argument(*spellings, **options)

    # fmt: off
    add("--dataset", choices=("cifar100", "cifar10", "digits", "imagefolder", "npz") if cifar
        else ("imagenet", "inat", "imagefolder"), help="data set (default: %(default)s)")
    add("--data", default="./data", metavar="DIR",
        help="folder of the data set, or FILE.npz; CIFAR is downloaded into it (default: ./data)"
        if cifar
        else "folder that the paths of the list files are relative to (default: ./data)")
    add("--root_path", default="./outputs", metavar="DIR",
        help="everything is written to DIR/<dataset>/<mark> (default: ./outputs)")
    add("--mark", metavar="NAME", help="name of the run; required")
    add("-a", "--arch", choices=archs, metavar="ARCH",
        help=f"model, one of {', '.join(archs)} (default: %(default)s)")
    add("-j", "--workers", type=int, metavar="N",
        help="worker processes, of --loader workers only (default: %(default)s)" if cifar
        else "worker processes of a machine, shared by its GPUs (default: %(default)s)")
    add("--epochs", type=int, metavar="N", help="epochs (default: %(default)s)")
    add("-b", "--batch-size", type=int, default=256, metavar="N",
        help=f"batch over all GPUs{'' if cifar else ' of a machine'} (default: 256)")
    add("--lr", "--learning-rate", dest="lr", type=float, metavar="LR",
        help="base learning rate (default: %(default)s)")
    add("--schedule", type=int, nargs="*", metavar="EPOCH",
        help="epochs (0-based) of the steps down" + (": the last one at the full rate, the last "
        "one at a tenth" if cifar else ", with --cos false") + " (default: %(default)s)")
    add("--momentum", type=float, default=0.9, metavar="M", help="SGD momentum (default: 0.9)")
    add("--wd", "--weight-decay", dest="weight_decay", type=float, default=5e-4, metavar="W",
        help="weight decay on all but the learned temperature (default: 5e-4)")
    add("--warmup_epochs", type=int, metavar="N", help="warm-up epochs (default: %(default)s)")
    add("-p", "--print-freq", type=int, metavar="N",
        help="a log line every N batches" + (", a checkpoint of its own every N epochs" if cifar
        else "") + " (default: %(default)s)")
    add("-e", "--evaluate", action="store_true", help="evaluate the --resume checkpoint and stop")
    add("--resume", default="", metavar="PATH",
        help="checkpoint to go on from; 'auto': this run's own, if there is one")
    add("--seed", type=int,
        help="seed everything and use deterministic kernels (default: a random seed, reported)")
    add("--arch_t", default="resnet32", metavar="ARCH", help="architecture of the teacher")
    add("--path_t", metavar="PATH", help="checkpoint of the teacher; without one a momentum copy "
        "of the model makes the keys")
    add("--moco-dim", type=int, metavar="D", help="size of the projection (default: %(default)s)")
    add("--moco-k", type=int, metavar="K", help="length of the queue (default: %(default)s)")
    add("--base_k", type=int, metavar="N", help="entries of the queue that each class has at "
        "least; 0: one ring for all classes (default: %(default)s)")
    add("--moco-m", type=float, default=0.999, metavar="M",
        help="momentum of the key encoder (default: 0.999)")
    add("--moco-t", type=float, metavar="T",
        help="contrastive temperature at the start, it is learned (default: %(default)s)")
    add("--mlp", type=boolean, default=True, metavar="BOOL",
        help="projection of two layers (default: true)")
    add("--normalize", type=boolean, default=True, metavar="BOOL",
        help="cosine classifier (default: true)")
    add("--num_classes", type=int, metavar="C",
        help="number of classes, checked against the data (default: that of the data)")
    add("--feat_dim", type=int, metavar="F",
        help="feature size, checked against --arch (default: that of --arch)")
    add("--aug", choices=("cifar100",) if cifar else AUGMENTATIONS, help="training views"
        + (": AutoAugment and Cutout" if cifar else ", of classifier and contrast; required"))
    if program != "cifar_ce":
        add("--feat_t", type=int, metavar="F",
            help="feature size of the teacher, checked against --arch_t (default: that of it)")
        add("--beta", type=float, default=1.0, help="weight of the contrastive terms (default: 1)")
        add("--gamma", type=float, default=1.0, help="weight of the supervised term (default: 1)")
    if program == "cifar_main":
        add("--alpha", type=float, default=1.0, help="weight of the distillation (default: 1)")
    if cifar:
        add("--imb-factor", type=float, metavar="F",
            help="smallest class / largest class, 0 < f <= 1; required")
        add("--start-epoch", type=int, default=0, metavar="N", help="first epoch (default: 0)")
        add("--gpu", type=int,
            help="use this GPU (default: the first; the CPU where there is none)")
        add("--epoch-multiplier", type=int, default=1, metavar="N",
            help="makes epochs, warm-up and schedule N times as long (default: 1)")
        add("--aug-plus", type=boolean, default=True, metavar="BOOL", help="only true")
        add("--reload", metavar="PATH", help="not to be given: use --resume")
    else:
        add("--cos", type=boolean, default=True, metavar="BOOL",
            help="cosine schedule (default: true)")
        add("--randaug_m", type=int, default=10, help="magnitude of RandAugment (default: 10)")
        add("--randaug_n", type=int, default=2, help="operations of RandAugment (default: 2)")
        add("--multiprocessing_distributed", action="store_true",
            help="one process per GPU; WORLD_SIZE and RANK, if set, count machines")
    # fmt: on
    parser.set_defaults(**DEFAULTS[program])
    _add_ours(parser, cifar)
    return parser


def _add_ours(parser: argparse.ArgumentParser, cifar: bool) -> None:
    add_run_flags(parser, loader=cifar, image_size=cifar)
    # fmt: off
    add = parser.add_argument_group("also added").add_argument
    add("--use_dbm", "--use-dbm", action="store_true",
        help="margin in the supervised term: DBM-GML, as this repository reads it")
    add("--max_margin", "--max-margin", type=float, default=0.1,
        help="K, the margin of the class that --margin_norm says (default: 0.1)")
    add("--tau", type=float, default=1.0, help="exponent of the class margin (default: 1)")
    add("--lambda_inst", "--lambda-inst", type=float, default=1.0,
        help="weight of the instance margin (default: 1)")
    add_margin_norm(add, "--margin-norm")
    add("--fake_data", "--fake-data", type=int, default=0, metavar="N",
        help="N generated images instead of data, to try a set-up or a speed")
    if cifar:
        add("--imb_type", "--imb-type", default="exp", choices=["exp", "none"],
            help="exp: a long tail is cut out of the data; none: the data as they are, without "
            "--imb-factor (default: exp)")
        return
    add("--list_dir", "--list-dir", metavar="DIR",
        help="folder of the list files, if they are neither in imagenet_inat/data/ nor in --data")
    add("--classes", metavar="FILE",
        help="names of the lists' classes, one a line in the order of the labels (default: the "
        "third column of the training list, or numbers)")
    add("--save_every", "--save-every", type=int, default=0, metavar="N",
        help="also write the checkpoint every N steps of an epoch (default: after each epoch)")
    add_pretrained_flags(add)
    # fmt: on


def parse_args(
    argv: Sequence[str] | None, program: str
) -> tuple[argparse.Namespace, StepSchedule | Schedule]:
    """Parsed and checked flags, ``epochs`` multiplied; and the learning rates of the run.

    The teacher, which has no flags for the weights of the terms, gets alpha 0, beta 0, gamma 1.
    ``margin_norm`` stays None where the user does not say it.

    Raises:
        UsageError: flags that contradict each other or cannot mean anything.
    """
    parser = get_parser(program)
    args = parser.parse_args(argv)
    args.program = program
    if program == "cifar_ce":
        args.beta, args.gamma, args.feat_t = 0.0, 1.0, None
    if program != "cifar_main":
        args.alpha = 0.0
    if program == "main":
        args.gpu, args.start_epoch = None, 0
    else:
        args.save_every, args.pretrained, args.weights = 0, False, None
    refused = {"cifar_ce": REFUSED_BY_TEACHER, "cifar_main": REFUSED, "main": {}}[program]
    for name, reason in refused.items():
        if getattr(args, name) != parser.get_default(name):
            raise UsageError(f"--{name} {getattr(args, name)}: {reason}")
    check_pretrained(args, args.arch)
    _check_names(args, program)
    _check_numbers(parser, args)
    if program == "main":
        schedule = Schedule(
            args.lr, args.epochs, args.warmup_epochs, args.cos, tuple(args.schedule),
            args.stretch_schedule,
        )  # fmt: skip
        return args, schedule
    if len(args.schedule) != 2:
        raise UsageError(f"--schedule {' '.join(map(str, args.schedule))}: give two epochs")
    times = args.epoch_multiplier
    args.epochs *= times
    check_start_epoch(args.start_epoch, args.epochs)
    first, second = (step * times for step in args.schedule)
    schedule = StepSchedule(
        args.lr, args.epochs, args.warmup_epochs * times, (first, second), times,
        args.stretch_schedule,
    )  # fmt: skip
    return args, schedule


def _check_names(args: argparse.Namespace, program: str) -> None:
    if not args.mark:
        raise UsageError("--mark: give the run a name, it is the folder that it writes to")
    if "/" in args.mark:
        raise UsageError(
            f"--mark {args.mark}: names a folder and the log in it, leave '/' out; --root_path "
            "says where the folder is"
        )
    if args.evaluate and not args.resume:
        raise UsageError("--evaluate: name the checkpoint to evaluate with --resume")
    if args.aug is None:
        raise UsageError(f"--aug: choose the training views, {', '.join(AUGMENTATIONS)}")
    archs = IMAGENET_ARCHS if program == "main" else CIFAR_RESNETS
    if args.path_t and args.arch_t not in archs:
        raise UsageError(f"--arch_t {args.arch_t}: one of {', '.join(archs)}")
    expected = NUM_CLASSES.get(args.dataset)
    if args.num_classes is None:
        args.num_classes = expected
    elif program != "main" and expected not in (None, args.num_classes) and not args.fake_data:
        # Lists may be one's own, with other classes: there the data are asked.
        raise UsageError(
            f"--num_classes {args.num_classes}: {args.dataset} has {expected} classes; "
            f"give {expected} or leave the flag out"
        )
    if args.fake_data and args.num_classes is None:
        raise UsageError(f"--fake_data with {args.dataset}: say how many classes, --num_classes C")
    if program != "main" and args.imb_type == "exp" and not args.fake_data:
        if args.imb_factor is None:
            raise UsageError("--imb-factor: say smallest / largest class, 0.01 for a ratio of 100")
        if not 0 < args.imb_factor <= 1:
            raise UsageError(
                f"--imb-factor {args.imb_factor}: smallest / largest class, 0 < f <= 1"
            )
    if program == "cifar_ce" and not args.normalize:
        raise UsageError("--normalize false: the teacher's classifier is a cosine in any case")
    if args.use_dbm and not args.normalize:
        raise UsageError("--use_dbm: the margin is an angle and needs --normalize true")


def _check_numbers(parser: Parser, args: argparse.Namespace) -> None:
    parser.check_numbers(
        args,
        batch_size=(2, LARGEST),
        epoch_multiplier=(1, 1000),
        feat_dim=(1, LARGEST),
        feat_t=(1, LARGEST),
        moco_dim=(1, 65_536),
        moco_k=(1, 100_000_000),
        moco_m=(0, 1),
    )
    if args.moco_t == 0:
        raise UsageError("--moco-t 0: must be above 0")


def _reasons(args: argparse.Namespace) -> dict[str, str]:
    """{flag: why it has no effect} beside the others."""
    reasons = {}
    if args.path_t:
        reasons["moco_m"] = "with --path_t"
    else:
        reasons["arch_t"] = "without --path_t"
    if args.beta == 0:
        queue = ("moco_dim", "moco_k", "base_k", "moco_t", "mlp")
        reasons |= dict.fromkeys(queue, "with --beta 0")
    if args.alpha == args.beta == 0:
        zero = "with --beta 0" if args.program == "main" else "with --alpha 0 and --beta 0"
        reasons |= dict.fromkeys(("path_t", "arch_t", "moco_m"), zero)
    if args.program == "main":
        if args.cos:
            reasons |= dict.fromkeys(("schedule", "stretch_schedule"), "with --cos true")
        if args.fake_data:
            reasons |= dict.fromkeys(("list_dir", "classes"), "with --fake_data")
    elif args.imb_type == "none":
        reasons["imb_factor"] = "with --imb_type none"
    return reasons


def notes(args: argparse.Namespace, schedule: StepSchedule | Schedule) -> list[str]:
    """What the user should know before the run."""
    parser = get_parser(args.program)
    found = [f"note: {note}" for note in no_effect(args, parser, _reasons(args))]
    if args.fake_data and args.program != "main":  # there the data itself says so
        found.append(
            f"note: --fake_data {args.fake_data}: generated images, the accuracy means nothing"
        )
    if args.beta > 0 and args.base_k == 0:
        found.append(
            "note: --base_k 0: a class that has no entry in the queue is left out of the "
            "contrastive terms; --base_k 1 or more gives every class a share"
        )
    if note := unreached(sorted(set(schedule.drops)), args.epochs, args.stretch_schedule):
        found.append(note)
    return found
