"""Per-image views of the DBM programs, one function per recipe.

Each returns a ``torchvision.transforms.Compose`` from a PIL RGB image to a normalised float32
tensor (3, h, w). The steps, their order and therefore the order of their random draws are those of
the original programs; they draw from the global generators of torch, ``random`` and numpy.
``dbm_loss.augment.batch`` holds the CIFAR views for a whole batch on a device.
"""

from torchvision import transforms as T

from datasets.augment.colours import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Triple
from dbm_loss.augment.policies import policy_from_name
from dbm_loss.augment.randaugment import rand_augment
from dbm_loss.augment.transforms import Cutout, GaussianBlur


def view_a(
    *,
    aug_type: str = "none",
    cutout: bool = False,
    size: int = 32,
    mean: Triple = CIFAR_MEAN,
    std: Triple = CIFAR_STD,
) -> T.Compose:
    """Classification view of CIFAR: crop, flip, the named policy, optionally Cutout.

    The policy sees the PIL image. Cutout has half the side and comes before the normalisation, so
    its hole is black.
    Names of policies: ``dbm_loss.augment.policies.POLICY_NAMES``.
    """
    policy = policy_from_name(aug_type)
    return T.Compose(
        [
            T.RandomCrop(size, padding=4),
            T.RandomHorizontalFlip(),
            *([policy] if policy else []),
            T.ToTensor(),
            *([Cutout(size // 2)] if cutout else []),
            T.Normalize(mean, std),
        ]
    )


def view_s(*, size: int = 32, mean: Triple = CIFAR_MEAN, std: Triple = CIFAR_STD) -> T.Compose:
    """Contrastive view of CIFAR (SimCLR): resized crop, flip, jitter, greyscale, blur."""
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=(0.2, 1.0)),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([GaussianBlur((0.1, 2.0))], p=0.5),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def randcls(
    *,
    randaug: str = "rand-n2-m10-mstd0.5",
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> T.Compose:
    """Classification view of 224 pixels: resized crop, flip, jitter without hue, RandAugment."""
    return T.Compose(
        [
            T.RandomResizedCrop(224),
            T.RandomHorizontalFlip(),
            # p = 1 never skips, but draws a number as the original does.
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4)], p=1.0),
            rand_augment(randaug),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def randcls_stack(
    *,
    randaug: str = "rand-n2-m10-mstd0.5",
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> T.Compose:
    """:func:`randcls` with greyscale and blur before RandAugment (contrastive view of GML)."""
    return T.Compose(
        [
            T.RandomResizedCrop(224),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4)], p=1.0),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([GaussianBlur((0.1, 2.0))], p=0.5),
            rand_augment(randaug),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def sim(*, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> T.Compose:
    """Contrastive view of 224 pixels: resized crop, flip, jitter, greyscale; no blur."""
    return T.Compose(
        [
            T.RandomResizedCrop(224),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def sim_blur(*, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> T.Compose:
    """MoCo-like view of GML: resized crop, jitter without hue, greyscale, blur, then flip."""
    return T.Compose(
        [
            T.RandomResizedCrop(224),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4)], p=1.0),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([GaussianBlur((0.1, 2.0))], p=0.5),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )
