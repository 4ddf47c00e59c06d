"""Per-image training and evaluation transforms, one function per recipe.

Each function returns a ``torchvision.transforms.Compose`` from a PIL RGB image to a normalised
float32 tensor (3, h, w). The steps, their order and therefore the order of their random draws are
those of the original programs; they draw from the global generators of torch, ``random`` and numpy.
``datasets.augment.batch`` holds the same recipes for a whole batch on a device.
"""

from torchvision import transforms as T

from datasets.augment.colours import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Triple


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


def from_description(description: dict[str, object]) -> T.Compose:
    """The evaluation recipe that ``datasets.augment.described`` tells of."""
    kinds = {"resize": T.Resize, "crop": T.CenterCrop}
    steps = [kinds[kind](size) for kind, size in description["steps"]]
    return T.Compose([*steps, T.ToTensor(), T.Normalize(description["mean"], description["std"])])
