"""report.py on made-up results: twice is the same as once, and lengths never share a table."""

import pytest

from tests.regression import report
from tests.regression.made_up import result

CE, IB = "ib_loss-cifar10-exp100-ce", "ib_loss-cifar10-exp100-ib"
TEXT = f"# Title\n\nbefore\n\n{report.BEGIN}\nwhat was there\n{report.END}\n\nafter\n"


@pytest.fixture
def root(tmp_path):
    for folder in (".", *report.PAPERS):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "README.md").write_text(TEXT)
    return tmp_path


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


RESULTS = [
    *(result(CE, 70.0 + seed, seed=seed) for seed in range(3)),
    *(result(IB, 78.0 + seed, seed=seed) for seed in range(3)),
    result(IB, 61.0, epochs=10, data="imagefolder", pixels="c0ffee00" + "0" * 56),
    result("hmloss-cifar10-exp100-hml", 75.0),
]


def test_twice_is_the_same_as_once(root):
    assert report.rebuild(root, RESULTS) == []
    once = files(root)
    assert report.rebuild(root, RESULTS) == []
    assert files(root) == once


def test_tables_and_pictures(root):
    report.rebuild(root, RESULTS)
    paper = (root / "ib_loss" / "README.md").read_text()
    assert paper.startswith("# Title\n\nbefore\n\n") and paper.endswith("\n\nafter\n")
    assert "what was there" not in paper
    full, short = paper.split("**Shortened runs.**")
    assert "| 78.26 | 79.00 ± 1.00 | 78.50 ± 1.00 | 3 | +0.74 |" in full
    assert "imagefolder" not in full
    assert "imagefolder c0ffee00 | 10 (of 200) | 78.26 | 61.00 |" in short
    assert "other data sets" in short
    overall = (root / "README.md").read_text()
    assert "| HMLoss | HML | CIFAR-10, long tail 100 | cifar10 00000000 | 200 | none found |" in (
        overall
    )
    assert "| IB | IB |" in overall
    pictures = root / "tests" / "regression" / "pictures"
    assert "(../tests/regression/pictures/ib_loss.png)" in (root / "ib_loss/README.md").read_text()
    assert sorted(p.name for p in pictures.iterdir()) == ["hmloss.png", "ib_loss.png"]


def test_without_results_the_table_says_so(root):
    report.rebuild(root, [])
    assert report.NOTHING in (root / "arbloss" / "README.md").read_text()
    assert not (root / "tests").exists()


def test_a_readme_without_markers_is_named_and_left_alone(root):
    (root / "hmloss" / "README.md").write_text("# no markers\n")
    (missing,) = report.rebuild(root, RESULTS)
    assert "hmloss" in missing and report.BEGIN in missing
    assert (root / "hmloss" / "README.md").read_text() == "# no markers\n"
