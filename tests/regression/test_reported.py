"""Train selected rows through their real command lines, and compare with the reported numbers.

    pytest tests/regression --data-root DIR --paper ib_loss --dataset cifar10 --ratio 100 \
        --seeds 0 1 2
"""

from pathlib import Path

import pytest

from tests.regression import run
from tests.regression.conftest import OPTIONS
from tools.table import read_table


def arguments(config):
    """run.py's arguments from pytest's options; its defaults where pytest did not see them."""
    args = run.get_parser().parse_args([])
    for name in OPTIONS:
        value = config.getoption(name, default=None)
        if value is not None:
            setattr(args, name, value)
    return args


def pytest_generate_tests(metafunc):
    if "row" not in metafunc.fixturenames:
        return
    config = metafunc.config
    rows = [row for row in run.select_rows(arguments(config)) if row.status != "misprint"]
    if config.getoption("data_root", default=None) is None:
        reason = f"needs --data-root DIR: {len(rows)} rows of reported.csv can be trained then"
        metafunc.parametrize("row", [pytest.param(None, marks=pytest.mark.skip(reason=reason))])
    else:
        names = [f"{row.id}-{row.split}" for row in rows]
        names = [f"{name}-{names[:i].count(name)}" for i, name in enumerate(names)]
        metafunc.parametrize("row", rows, ids=names)


@pytest.fixture(scope="module")
def comparisons(request):
    """Train every row that is still selected (-k included), several side by side."""
    args = arguments(request.config)
    rows = [
        item.callspec.params["row"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_the_reported_accuracy_is_reached"
    ]
    root = Path(args.data_root).resolve()
    rows = [row for row in rows if run.missing_data([row], args.data, root) is None]
    return {(c.row.id, c.row.split, c.row.source): c for c in run.run(args, rows)[0]}


def test_the_reported_accuracy_is_reached(row, request, comparisons):
    args = arguments(request.config)
    if lacking := run.missing_data([row], args.data, Path(args.data_root).resolve()):
        pytest.skip(lacking)
    comparison = comparisons.get((row.id, row.split, row.source))
    assert comparison is not None, "the run failed: see its output.txt in runs/regression"
    if comparison.ok is None:
        ours = comparison.ours.text(comparison.ours.best)
        pytest.skip(f"{comparison.data}: {comparison.verdict}: {ours}")
    assert comparison.ok, (
        f"reported {row.published}, ours {comparison.ours.text(comparison.ours.best)}: "
        f"{comparison.verdict} ({row.tolerance_reason}); trained on {comparison.data}"
    )


def test_without_a_data_folder_nothing_would_be_trained(tmp_path):
    rows = [row for row in read_table() if row.dataset in ("cifar10", "cifar100")]
    assert run.missing_data(rows, "digits", tmp_path) is None
    assert run.missing_data(rows, "imagefolder", tmp_path) is None
    (tmp_path / "cifar10").mkdir()
    lacking = run.missing_data(rows, "", tmp_path)
    assert str(tmp_path / "cifar100") in lacking and str(tmp_path / "cifar10,") not in lacking
