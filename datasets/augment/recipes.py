"""Per-image training and evaluation transforms, one function per recipe.

Each function returns a ``torchvision.transforms.Compose`` from a PIL RGB image to a normalised
float32 tensor (3, h, w). The steps, their order and therefore the order of their random draws are
those of the original programs; they draw from the global generators of torch, ``random`` and numpy.
``datasets.augment.batch`` holds the same recipes for a whole batch on a device.
"""

from torchvision import transforms as T

from datasets.augment.policies import policy_from_name
from datasets.augment.randaugment import rand_augment
from datasets.augment.transforms import Cutout, GaussianBlur

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INAT_MEAN, INAT_STD = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)

Triple = tuple[float, float, float]


def cifar_train(*, size: int = 32, mean: Triple = CIFAR_MEAN, std: Triple = CIFAR_STD) -> T.Compose:
    """Random crop of ``size`` after zero padding by 4, flip, normalise: the CIFAR baseline."""
    return T.Compose(
        [
            T.RandomCrop(size, padding=4),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def cifar_eval(*, mean: Triple = CIFAR_MEAN, std: Triple = CIFAR_STD) -> T.Compose:
    """Normalise only."""
    return T.Compose([T.ToTensor(), T.Normalize(mean, std)])


def imagenet_train(
    *,
    size: int = 224,
    jitter: float = 0.0,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> T.Compose:
    """Random resized crop, flip, optional colour jitter (brightness = contrast = saturation)."""
    colour = [T.ColorJitter(jitter, jitter, jitter)] if jitter else []
    return T.Compose(
        [
            T.RandomResizedCrop(size),
            T.RandomHorizontalFlip(),
            *colour,
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def imagenet_eval(
    *,
    resize: int = 256,
    size: int = 224,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> T.Compose:
    """Shorter side to ``resize`` (bilinear), centre crop of ``size``, normalise."""
    return T.Compose([T.Resize(resize), T.CenterCrop(size), T.ToTensor(), T.Normalize(mean, std)])


def view_a(
    *,
    aug_type: str = "none",
    cutout: bool = False,
    size: int = 32,
    mean: Triple = CIFAR_MEAN,
    std: Triple = CIFAR_STD,
) -> T.Compose:
    """Classification view of CIFAR: crop, flip, the named policy, optionally Cutout(16).

    The policy sees the PIL image; Cutout comes before the normalisation, so its hole is black.
    Names of policies: ``datasets.augment.policies.POLICY_NAMES``.
    """
    policy = policy_from_name(aug_type)
    return T.Compose(
        [
            T.RandomCrop(size, padding=4),
            T.RandomHorizontalFlip(),
            *([policy] if policy else []),
            T.ToTensor(),
            *([Cutout(16)] if cutout else []),
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
