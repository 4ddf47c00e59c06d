"""The flags of the large-scale programs: the original's names, defaults and meaning."""

import argparse
from collections.abc import Sequence

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
from dbm_loss.flags import (
    LIST_FLAGS,
    add_margin_norm,
    check_nesterov,
    check_scale,
    no_effect,
    without_scale,
)
from dbm_loss.large_scale.models import ARCHITECTURES
from dbm_loss.large_scale.schedule import DESIGNED_FOR, PEAK, Schedule

LOSSES = ("ce", "ce_drw", "bs", "ldam", "ldam_drw", "bcl")
NUM_CLASSES = {"imgnet": 1000, "inat": 8142}
ROOTS = {"imgnet": "datasets/imagenet-LT", "inat": "datasets/iNaturalist"}

# Flags that the original parsed and dropped, and that nothing here could stand for.
REFUSED = {
    "imb_factor": "the list files and folders are used as they are, no subset is drawn",
    "rand_number": "the list files and folders are used as they are, no subset is drawn",
    "lr_steps": "the steps are at epochs 60 and 80; --stretch_schedule moves them with --epochs",
    "aug_prob": "it belongs to CUDA's curriculum, which this program does not have",
    "sim_type": "the two contrastive views are always the SimCLR recipe of BCL (sim-sim)",
    "beta": "the mixing ratio of CMO is always drawn from Beta(1, 1)",
}
CUTMIX_FLAGS = ("mixup_prob", "start_data_aug", "end_data_aug", "weighted_alpha")


def get_parser() -> Parser:
    """The argument parser; every original flag with its alias and default, then ours."""
    parser = Parser(
        description="Difficulty-aware Balancing Margin on ImageNet-LT and iNaturalist 2018"
    )
    add = parser.add_argument
    add(
        "--root",
        help="image folder; paths in the list files are relative to it "
        f"(default: {ROOTS['imgnet']} or {ROOTS['inat']})",
    )
    add(
        "--dataset",
        default="cifar100",
        choices=["cifar100", "imgnet", "inat", "imagefolder"],
        help="imgnet and inat read list files, imagefolder DIR/train/<class>/* and "
        "DIR/{val,test}/<class>/*; cifar100 is for dbm_loss/cifar/main.py",
    )
    add("-a", "--arch", default="resnet50", choices=list(ARCHITECTURES))
    add(
        "--num_classes",
        type=int,
        help="number of classes, checked against the data (default: 1000 for imgnet, 8142 for "
        "inat, whatever is there for imagefolder)",
    )
    add("--imb_factor", type=float, default=0.01, help="part of the run name; not to be changed")
    add("--rand_number", type=int, default=0, help="part of the run name; not to be changed")
    add(
        "--loss_fn",
        "--loss_type",
        type=_loss,
        default="ce",
        metavar="{" + ",".join(LOSSES) + "}",
        help="loss, in upper or lower case",
    )
    add(
        "--train_rule",
        default="None",
        choices=["None", "CBReweight", "DRW", "CRT"],
        help="only None: re-weighting is chosen by --loss_fn ce_drw and ldam_drw",
    )
    add("--epochs", type=int, default=200)
    add("--lr", "--learning-rate", type=float, default=0.1, help="initial learning rate")
    add("--lr_steps", nargs="*", type=int, default=[120, 160], help="not to be changed")
    add("--cos", action="store_true", help="cosine schedule, else steps after a warm-up")
    add("-b", "--batch_size", type=int, default=128, help="over all GPUs, training and test")
    add(
        "--test_epoch",
        "--eval_every",
        type=int,
        default=1,
        help="evaluate every so many epochs, and at the end",
    )
    add("--momentum", type=float, default=0.9)
    add("--wd", "--weight-decay", dest="weight_decay", type=float, default=2e-4)
    add("--nesterov", action="store_true")
    add(
        "--cutout",
        action="store_true",
        default=True,
        help="accepted; no recipe of this program cuts out, as in the original",
    )
    add(
        "--cmo",
        action="store_true",
        help="CutMix of class-balanced images into the batch; not with bcl",
    )
    add(
        "--data_aug",
        default="vanilla",
        choices=["vanilla", "CMO", "CUDA", "CUDA_CMO"],
        help="CMO is the same as --cmo; CUDA is refused",
    )
    add("--aug_prob", type=float, default=0.5, help="not to be changed")
    add("--sim_type", default="none", help="not to be changed")
    add("--mixup_prob", type=float, default=0.5, help="CMO: probability of mixing a batch")
    add("--start_data_aug", type=int, default=3, help="CMO: mix after this epoch (0-based)")
    add("--end_data_aug", type=int, default=3, help="CMO: do not mix in the last so many epochs")
    add(
        "--weighted_alpha",
        type=float,
        default=1,
        help="CMO: images are drawn with probability 1 / class size ** alpha",
    )
    add("--beta", type=float, default=1, help="not to be changed")
    add(
        "--use_randaug",
        action="store_true",
        help="accepted; RandAugment is always part of the classification view",
    )
    add("--exp_str", default="0", help="end of the run name")
    add("-j", "--workers", type=int, default=4, help="loading processes of each GPU")
    add("--start-epoch", dest="start_epoch", type=int, default=0, help="first epoch, 0-based")
    add("-p", "--print_freq", type=int, default=100, help="print a line every so many steps")
    add("--resume", help="checkpoint to go on from; auto: this run's own, if there is one")
    add("--seed", type=int, help="seed; also switches to deterministic GPU kernels")
    add("--gpu", type=int, help="this GPU only; default: all visible ones")
    add("--root_log", default="log", help="folder of the run folders with logs and reports")
    add("--root_model", default="checkpoint", help="folder of the run folders with checkpoints")
    add("--use_norm", action="store_true", help="cosine classifier")
    add("--use_dbm", action="store_true", help="the margin; needs --use_norm")
    add("--cos_scale", type=float, default=30.0, help="s, the scale of the cosines")
    add(
        "--max_margin",
        type=float,
        default=0.1,
        help="K, the margin of the class that --margin_norm says; LDAM: its largest margin",
    )
    add("--tau", type=float, default=1.0, help="exponent of the class margin")
    add("--lambda_inst", type=float, default=1.0, help="weight of the instance margin")

    add_run_flags(parser, loader=False, image_size=False, eval_every=False)
    ours = parser.add_argument_group("also added").add_argument
    ours("--list_dir", help="folder of the list files, if they are not under --root or config/")
    ours("--eval_list", help="list file to evaluate on, instead of the original's test list")
    ours(
        "--classes",
        metavar="FILE",
        help="names of the lists' classes, one a line in the order of the labels (default: the "
        "third column of the training list, or numbers)",
    )
    ours(
        "--fake_data",
        type=int,
        default=0,
        metavar="N",
        help="N generated images instead of data, to try a set-up or a speed",
    )
    ours(
        "--save_every",
        type=int,
        default=0,
        metavar="N",
        help="also write the checkpoint every N steps of an epoch (default: after each epoch)",
    )
    add_margin_norm(ours)
    add_pretrained_flags(ours)
    ours("--evaluate", action="store_true", help="evaluate the checkpoint of --resume and stop")
    return parser


def _loss(name: str) -> str:
    loss_fn = name.lower()
    if loss_fn in ("ncl", "ride"):
        raise argparse.ArgumentTypeError(
            f"{name} was never available at large scale; NCL runs in dbm_loss/cifar/main.py"
        )
    if loss_fn not in LOSSES:
        raise argparse.ArgumentTypeError(f"{name!r}: choose one of {', '.join(LOSSES)}")
    return loss_fn


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parsed and checked flags, plus ``store_name``, the name of the run folder.

    ``root`` and ``num_classes`` stay None where neither the user nor the data set says them, and
    ``margin_norm`` where the user does not.

    Raises:
        UsageError: flags that contradict each other or cannot mean anything here.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.root is None:
        args.root = ROOTS.get(args.dataset)
    if args.num_classes is None:
        args.num_classes = NUM_CLASSES.get(args.dataset)
    for name, reason in REFUSED.items():
        if getattr(args, name) != parser.get_default(name):
            raise UsageError(f"--{name} {getattr(args, name)}: {reason}; leave the flag out")
    _check_data(args)
    args.cmo = args.cmo or args.data_aug == "CMO"
    _check_loss(args, parser)
    parser.check_numbers(args, test_epoch=(1, LARGEST), mixup_prob=(0, 1))
    check_nesterov(args)
    check_scale(args)
    check_start_epoch(args.start_epoch, args.epochs)
    check_pretrained(args, ARCHITECTURES[args.arch])
    args.store_name = "_".join(
        str(part)
        for part in (
            args.dataset,
            args.arch,
            args.loss_fn,
            args.train_rule,
            args.data_aug,
            args.imb_factor,
            args.rand_number,
            args.mixup_prob,
            args.exp_str,
        )
    )
    return args


def notes(args: argparse.Namespace, schedule: Schedule) -> list[str]:
    """What a user may not expect of these flags, one sentence each."""
    reasons = {"cos_scale": without_scale(args)}
    if args.epochs < args.start_data_aug + args.end_data_aug + 2:
        reasons["cmo"] = (
            f"with --epochs {args.epochs}: the first {args.start_data_aug + 1} and the last "
            f"{args.end_data_aug} are not mixed"
        )
    if args.fake_data:
        reasons |= dict.fromkeys(LIST_FLAGS, "with --fake_data")
    found = [f"note: {note}" for note in no_effect(args, get_parser(), reasons)]
    if args.cos and not args.stretch_schedule and args.epochs < 20:
        published = DESIGNED_FOR[args.dataset]
        does = "swings"
        if args.epochs <= PEAK:
            does = f"starts at its peak, epoch {PEAK} of {published}"
        found.append(
            f"note: --cos: with {args.epochs} epochs the original's cosine, made for {published}, "
            f"{does}; --stretch_schedule fits it into the run"
        )
    steps = set() if args.cos else {*schedule.milestones}
    if args.loss_fn.endswith("_drw"):
        steps.add(schedule.drw_epoch)
    if note := unreached(sorted(steps), args.epochs, args.stretch_schedule):
        found.append(note)
    return found


def _check_data(args: argparse.Namespace) -> None:
    if args.dataset == "cifar100":
        raise UsageError(
            "--dataset cifar100: choose imgnet, inat or imagefolder; "
            "CIFAR is trained by dbm_loss/cifar/main.py"
        )
    if args.dataset == "imagefolder" and args.root is None and not args.fake_data:
        raise UsageError("--dataset imagefolder: say where the images are, --root DIR")
    if args.fake_data and args.num_classes is None:
        raise UsageError("--fake_data with imagefolder: say how many classes, --num_classes C")
    if args.data_aug.startswith("CUDA"):
        raise UsageError(
            f"--data_aug {args.data_aug}: CUDA's curriculum is not part of this program; "
            "leave the flag out, or --data_aug CMO"
        )
    if args.num_classes is not None and args.num_classes < 2:
        raise UsageError(f"--num_classes {args.num_classes}: two classes or more")


def _check_loss(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.train_rule != "None":
        raise UsageError(
            f"--train_rule {args.train_rule}: it never reached the loss; use --loss_fn ce_drw or "
            "ldam_drw for re-weighting, --cmo for class-balanced images"
        )
    if args.use_dbm and not args.use_norm:
        raise UsageError("--use_dbm: the margin is added to cosines; give --use_norm as well")
    if args.loss_fn == "bcl" and args.cmo:
        raise UsageError("--cmo: bcl has three views and no mixing; choose another --loss_fn")
    if not args.cmo:
        for name in CUTMIX_FLAGS:
            if getattr(args, name) != parser.get_default(name):
                raise UsageError(f"--{name}: it belongs to CMO; add --cmo or leave it out")
    if args.evaluate and not args.resume:
        raise UsageError("--evaluate: say which checkpoint, --resume CKPT")
