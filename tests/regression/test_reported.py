"""Train selected rows through their real command lines, and compare with the reported numbers.

    pytest tests/regression --data-root DIR --paper ib_loss --dataset cifar10 --ratio 100 \
        --seeds 0 1 2
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.regression import made_up, run
from tests.regression.conftest import arguments, pytest_configure
from tests.regression.results import write_result
from tools.programs import code_sha256
from tools.table import read_table


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
def trained(request):
    """Train every row that is still selected (-k included), several side by side.

    Returns: the comparisons, and what was kept of other code (``run.of_other_code``).
    """
    args = arguments(request.config)
    rows = [
        item.callspec.params["row"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_the_reported_accuracy_is_reached"
    ]
    root = Path(args.data_root).resolve()
    rows = [row for row in rows if run.missing_data([row], args.data, root) is None]
    comparisons, jobs = run.run(args, rows)
    return comparisons, run.of_other_code(jobs)


def test_the_reported_accuracy_is_reached(row, request, trained):
    args = arguments(request.config)
    if lacking := run.missing_data([row], args.data, Path(args.data_root).resolve()):
        pytest.skip(lacking)
    comparisons, of_other_code = trained
    for id_, note in of_other_code:
        if id_ in (row.id, row.better_than):
            pytest.skip(note)
    same = (row.id, row.split, row.source)
    found = [c for c in comparisons if (c.row.id, c.row.split, c.row.source) == same]
    assert found, "the run failed: see its output.txt in runs/regression"
    judged = "; ".join(f"{c.ours.text(c.ours.best)} on {c.data}: {c.verdict}" for c in found)
    if all(c.ok is None for c in found):
        pytest.skip(judged)
    assert all(c.ok is not False for c in found), (
        f"reported {row.published}, ours {judged} ({row.tolerance_reason})"
    )


def test_a_kept_result_of_other_code_does_not_pass(tmp_path):
    """Nor a method whose baseline is of other code."""
    (tmp_path / "cifar10").mkdir()
    options = {"data_root": str(tmp_path), "data": "", "epochs": 10}
    config = SimpleNamespace(getoption=lambda name, default: options.get(name, default))
    args = arguments(config)
    args.results = tmp_path / "results"
    row = made_up.find("ib_loss-cifar10-exp100-ib")
    rows = [made_up.find(row.better_than), row]
    ours = {"code_sha256": code_sha256(), "commit": "5678"}
    for paths_of_other_code in ([], [0], [1]):
        jobs = run.make_jobs(args, rows)
        for i, (job, top1) in enumerate(zip(jobs, (50.0, 60.0), strict=True)):
            code = {"code_sha256": "0" * 64, "commit": "1234"} if i in paths_of_other_code else ours
            write_result(job.result, made_up.result(rows[i].id, top1, epochs=10) | code)
        comparisons, jobs = run.run(args, rows)
        trained = comparisons, run.of_other_code(jobs)
        check = partial(
            test_the_reported_accuracy_is_reached, row, SimpleNamespace(config=config), trained
        )
        if not paths_of_other_code:
            check()
            continue
        with pytest.raises(pytest.skip.Exception) as skipped:
            check()
        path = jobs[paths_of_other_code[0]].result
        assert str(skipped.value) == (
            f"{path}: of other code (commit 1234); remove the file to train again"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": ["cifar1000"]}, "--dataset cifar1000: no row of reported.csv is of it"),
        ({"ratio": [101.0]}, "--ratio 101: no row of reported.csv is of it"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"paper": ["hmloss"], "data": "cifar100", "dataset": ["cifar10"]}, "no row of reported"),
    ],
)
def test_conditions_that_no_row_meets_are_told(options, message):
    config = SimpleNamespace(getoption=lambda name, default: options.get(name, default))
    with pytest.raises(pytest.UsageError) as error:
        pytest_configure(config)
    assert str(error.value).startswith(message)


def test_without_a_data_folder_nothing_would_be_trained(tmp_path):
    rows = [row for row in read_table() if row.dataset in ("cifar10", "cifar100")]
    assert run.missing_data(rows, "digits", tmp_path) is None
    assert run.missing_data(rows, "imagefolder", tmp_path) is None
    (tmp_path / "cifar10").mkdir()
    lacking = run.missing_data(rows, "", tmp_path)
    assert str(tmp_path / "cifar100") in lacking and str(tmp_path / "cifar10,") not in lacking
