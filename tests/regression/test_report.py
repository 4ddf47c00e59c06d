"""report.py on made-up results: what stands where, and twice is the same as once."""

import pytest

from tests.regression import report
from tests.regression.made_up import fingerprint, result
from tests.regression.results import compare, read_results
from tools.programs import ROOT
from tools.table import read_table

CE, IB = "ib_loss-cifar10-exp100-ce", "ib_loss-cifar10-exp100-ib"
DRW, DBM_DRW = "dbm_loss-cifar10-exp100-ce_drw", "dbm_loss-cifar10-exp100-dbm_drw"
WORDS = "CIFAR-10, 1 of 12,406 training images from a JPEG copy"
NAMES = ("results", "originals")
TEXT = "# Title\n\nbefore\n" + "".join(
    f"\n{begin}\nwhat was there\n{end}\n\nafter\n"
    for begin, end in ([mark.format(name=name) for mark in report.MARKS] for name in NAMES)
)


def readmes(root):
    for folder in (".", *report.PAPERS):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "README.md").write_text(TEXT)
    return root


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def npz(id_, best, **more):
    return result(id_, best, data="npz", pixels=fingerprint("cifar10"), **more)


TEST = fingerprint("cifar10", "test", "")
RESULTS = [
    *(npz(CE, 70.0 + seed, seed=seed, test=TEST) for seed in range(3)),
    *(npz(IB, 78.0 + seed, seed=seed) for seed in range(3)),
    npz(IB, 79.9, amp="bf16"),
    npz(CE, 60.0, epochs=30),
    npz(IB, 66.5, epochs=30),
    npz(DRW, 60.0, epochs=30),
    npz(DBM_DRW, 61.0, epochs=30),
    npz("arbloss-cifar10-exp100-ce_mixup", 60.0, epochs=30),
    npz("arbloss-cifar10-exp100-arb_mixup", 61.0, epochs=30),
    npz("hmloss-cifar10-exp100-ce", 61.0, epochs=30),
    npz("hmloss-cifar10-exp100-hml", 60.0, epochs=30),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """READMEs and pictures of these results."""
    root = readmes(tmp_path_factory.mktemp("root"))
    assert report.rebuild(root, RESULTS) == []
    return root


def test_twice_is_the_same_as_once(built):
    once = files(built)
    assert report.rebuild(built, RESULTS) == []
    assert files(built) == once


def test_the_front_page_shows_full_length_first_then_gains(built):
    text = (built / "README.md").read_text()
    assert text.startswith("# Title\n\nbefore\n\n") and text.endswith("\n\nafter\n")
    assert "what was there" not in text
    full, short = text.split("**Shortened runs: the gain over the baseline.**")
    assert (
        f"| IB | IB | CIFAR-10, long tail 100 | {WORDS} | 200 | 78.26 | 79.00 ± 1.00 | 78.50 ± "
        "1.00 | 3 | +0.74 | within ± 1.2; better than CE (+8.00, published +7.39) |" in full
    )
    assert f"| {WORDS} | 200, bf16 | 78.26 | 79.90 | 79.40 | 1 |  | not judged: bf16 |" in full
    assert full.count("| IB | IB") == 2  # each run once, though the paper prints three numbers
    assert "Not yet reproduced are 274 of the 278 published numbers" in full  # CE, IB's three
    assert (
        "report. Test images: CIFAR-10, 20 of 10,000 from a JPEG copy. No fingerprint of the test "
        "images was kept of IB (IB).\n" in full
    )
    assert f"trained on: {WORDS}; epochs: 30 of 200; seeds: 1." in short
    assert "| IB | IB | CE | +6.50 | +7.39 | as published |" in short
    assert "| DBM | DBM-DRW | CE-DRW | +1.00 | +0.58 | too small a gain to judge |" in short
    assert "| HMLoss | HML | CE | -1.00 | none found | not judged |" in short
    assert (
        "| ARB-Loss | ARB-Loss | CE + mixup | +1.00 | +10.50, baseline of MiSLAS README | as "
        "published |" in short
    )
    assert "A baseline of another source than the method's number is named" in short
    assert "66.50" not in short and "78.26" not in short  # gains, no accuracies
    assert "| CE | best | 43.52 ± 1.20 |" in short  # the authors' programs


def test_a_papers_page_has_all_its_numbers_and_a_picture(built):
    text = (built / "ib_loss" / "README.md").read_text()
    assert "| IB (eps=1e-3) | CIFAR-10, long tail 100 |" in text
    assert "(../tests/regression/pictures/ib_loss.png)" in text
    assert "there is no number to reproduce" in (built / "hmloss" / "README.md").read_text()
    assert sorted(p.stem for p in (built / report.PICTURES).iterdir()) == [
        "arbloss", "dbm_loss", "hmloss", "ib_loss", "originals",
    ]  # fmt: skip


def test_the_readmes_say_what_the_stored_results_do():
    """A figure changed by hand, or a result stored without report.py, is seen here."""
    for file, name, text in report.sections(read_results()):
        begin, end = (mark.format(name=name) for mark in report.MARKS)
        assert f"{begin}\n{text}\n{end}" in (ROOT / file).read_text(), f"{file}: run report.py"


def front_page(results):
    rows = read_table()
    return report.section(compare(rows, results, rows), rows, with_paper=True)


def test_gains_on_different_data_and_with_several_seeds():
    jpeg = {"data": "imagefolder", "pixels": fingerprint("cifar10_jpeg"), "epochs": 30}
    runs = [result(id_, top1 + seed, seed=seed, **jpeg) for id_, top1 in ((CE, 50.0), (IB, 49.0))
            for seed in (0, 1)]  # fmt: skip
    text = front_page([*RESULTS, *runs])
    start = "| IB | IB | CE | "
    assert f"{start}{WORDS} | 1 | +6.50 | +7.39 | as published |" in text
    assert (
        f"{start}CIFAR-10 re-encoded as JPEG | 2 | -1.00 ± 0.71 | +7.39 | not judged: other data |"
        in text
    )


def test_a_gain_tells_its_order_and_how_many_runs_it_is_of():
    more = [npz(CE, 67.0 + seed, seed=seed, epochs=30) for seed in (1, 2)]  # 60, 68, 69
    text = front_page([*RESULTS[:-8], npz(IB, 65.0, epochs=30), npz(CE, 60.0, epochs=30), *more])
    assert "; epochs: 30 of 200; seeds: 1, CE 3." in text
    assert "| IB | IB | CE | -0.67 | +7.39 | NOT as published |" in text


def test_a_missed_number_is_told_and_not_reproduced():
    text = front_page([npz(CE, 60.0)])
    assert "| -10.87 | below ± 1.2 |" in text
    assert "Not yet reproduced are 278 of the 278" in text
    assert "; 1 of them were trained at full length and missed." in text


def test_without_the_folder_of_results_everything_stays_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", readmes(tmp_path))
    before = files(tmp_path)
    monkeypatch.setattr("sys.argv", ["report.py", "--results", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as end:
        report.main()
    assert end.value.code == 2 and files(tmp_path) == before
    assert f"--results {tmp_path / 'nowhere'}: no such folder\n" in capsys.readouterr().err


def test_without_results_the_table_says_so_and_old_pictures_go(tmp_path):
    readmes(tmp_path)
    (tmp_path / report.PICTURES).mkdir(parents=True)
    (tmp_path / report.PICTURES / "ib_loss.png").write_bytes(b"old")
    (tmp_path / "hmloss" / "README.md").write_text("# no markers\n")
    (missing,) = report.rebuild(tmp_path, [])
    assert "hmloss" in missing and "<!-- results:begin -->" in missing
    assert (tmp_path / "hmloss" / "README.md").read_text() == "# no markers\n"
    assert report.NOTHING in (tmp_path / "ib_loss" / "README.md").read_text()
    assert [path.name for path in (tmp_path / report.PICTURES).iterdir()] == ["originals.png"]
