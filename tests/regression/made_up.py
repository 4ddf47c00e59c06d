"""Made-up results for the tests: nothing here was trained."""

from tests.regression.results import read_fingerprints
from tools.table import Row, read_table


def find(id_: str, split: str = "all") -> Row:
    """The first row of the table with this id and split."""
    return next(row for row in read_table() if row.id == id_ and row.split == split)


def fingerprint(dataset: str, imb_type: str = "exp", imb_ratio: int | str = 100) -> str:
    """The fingerprint of a subset, or of the test images ("test", ""), from the committed table."""
    subset = (dataset, imb_type, str(imb_ratio))
    return next(
        pixels
        for pixels, line in read_fingerprints().items()
        if (line["dataset"], line["imb_type"], line["imb_ratio"]) == subset
    )


def result(
    id_: str,
    best: float,
    *,
    last: float | None = None,
    seed: int = 0,
    epochs: int = 200,
    data: str = "cifar10",
    pixels: str = "0" * 64,
    amp: str = "none",
    test: str | None = None,
) -> dict:
    """A stored result with these accuracies, on images with this fingerprint.

    ``test``: the fingerprint of its test images; None: not kept.
    """
    final = {"epoch": epochs - 1, "top1": best - 0.5 if last is None else last}
    final |= {name: final["top1"] for name in ("many", "medium", "few")}
    return {
        "id": id_,
        "seed": seed,
        "epochs": epochs,
        "published_epochs": 200,
        "data": {"dataset": data, "pixels_sha256": pixels}
        | ({} if test is None else {"test_pixels_sha256": test}),
        "settings": [{"amp": amp}],
        "final": final,
        "best": {**final, "top1": best},
    }
