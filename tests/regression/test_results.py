"""Comparison of results with reported numbers."""

import json
import math
from dataclasses import replace
from itertools import product

import pytest

from common.training.errors import UsageError
from tests.regression.made_up import find, fingerprint, result
from tests.regression.results import (
    compare,
    from_report,
    other_code,
    read_results,
    text_table,
    write_result,
)
from tools.table import read_table

TABLE = read_table()
CE, IB = "ib_loss-cifar10-exp100-ce", "ib_loss-cifar10-exp100-ib"


def judge(results, id_=IB, split="all"):
    (comparison,) = compare([find(id_, split)], results, TABLE)
    return comparison


def test_mean_and_standard_deviation_over_seeds_of_best_and_last_epoch():
    runs = [result(IB, 78.0 + seed, last=77.0, seed=seed) for seed in range(3)]
    comparison = judge(runs)
    assert comparison.ours.seeds == (0, 1, 2)
    assert comparison.ours.text(comparison.ours.best) == "79.00 ± 1.00"
    assert comparison.ours.text(comparison.ours.last) == "77.00 ± 0.00"
    assert comparison.difference == pytest.approx(79.0 - 78.26)
    assert comparison.ours.text((1.234,)) == "1.23"


def test_published_data_at_full_length_is_judged_by_the_tolerance():
    cases = [
        (78.26 + 1.1, "within", True),
        (78.26 + 1.3, "above", False),
        (78.26 - 1.3, "below", False),
    ]
    for best, word, ok in cases:
        comparison = judge([result(IB, best)])
        assert comparison.verdict == f"{word} ± 1.2"
        assert comparison.ok is ok and comparison.full_length


def test_what_a_run_was_trained_on_is_said_and_decides_whether_it_is_judged():
    cases = [
        (
            result(IB, 77.9, data="npz", pixels=fingerprint("cifar10")),
            "CIFAR-10, 1 of 12,406 training images from a JPEG copy",
            "within ± 1.2",
        ),
        (
            result(IB, 77.9, data="imagefolder", pixels=fingerprint("cifar10_jpeg")),
            "CIFAR-10 re-encoded as JPEG",
            "not judged: other data",
        ),
        (
            # The original's files replaced by others, past the test of their checksums.
            result(IB, 77.9, data="cifar10", pixels=fingerprint("cifar10_jpeg")),
            "CIFAR-10 re-encoded as JPEG",
            "not judged: other data",
        ),
        (
            result(IB, 77.9, data="npz", pixels=fingerprint("cifar100")),
            "CIFAR-100",
            "not judged: other data",
        ),
        (
            result(IB, 77.9, data="npz", pixels="c0ffee00" + "0" * 56),
            "npz, unknown pixels c0ffee00",
            "not judged: other data",
        ),
        (
            result(IB, 77.9, data="cifar10", pixels="c0ffee00" + "0" * 56),
            "cifar10, unknown pixels c0ffee00",
            "within ± 1.2",
        ),
        (
            result(IB, 77.9, data="npz", pixels=fingerprint("cifar10"), amp="bf16"),
            "CIFAR-10, 1 of 12,406 training images from a JPEG copy",
            "not judged: bf16",
        ),
    ]
    for result_, words, verdict in cases:
        comparison = judge([result_])
        assert (comparison.data, comparison.verdict) == (words, verdict)
        judged = verdict == "within ± 1.2"
        assert comparison.ok is (True if judged else None)
        assert comparison.difference == (pytest.approx(77.9 - 78.26) if judged else None)


def test_another_long_tail_of_the_same_images_is_not_judged():
    for kind, ratio in (("exp", 10), ("exp", 200), ("step", 100)):
        stored = result(IB, 78.3, data="npz", pixels=fingerprint("cifar10", kind, ratio))
        comparison = judge([stored])
        assert comparison.data.startswith("CIFAR-10, ") and comparison.data.endswith(
            f" training images from a JPEG copy ({kind} {ratio})"
        )
        assert (comparison.verdict, comparison.ok) == ("not judged: other data", None)


def test_where_no_fingerprint_is_known_the_class_sizes_have_to_be_those_of_the_row():
    lists, npz = "dbm_loss-inaturalist2018-resnet50-bs", "ib_loss-cifar100-exp200-ib"
    other = [53] * 8142
    cases = [
        (IB, "cifar10", [5000, 600, 50], "cifar10, unknown pixels 00000000", True),
        (IB, "cifar10", [5000, 600, 500], "… (6,100 images of 3 classes, 5,000 to 500)", None),
        (npz, "cifar100", [500, 2], "cifar100, unknown pixels 00000000", True),  # 2.5 rounded
        (npz, "cifar100", [500, 5], "… (505 images of 2 classes, 500 to 5)", None),
        (lists, "inaturalist2018", [*other[1:], 6040], "inaturalist2018", True),
        (lists, "inaturalist2018", other, "… (431,526 images of 8,142 classes, 53 to 53)", None),
    ]
    for id_, dataset, counts, words, ok in cases:
        stored = result(id_, find(id_).published, data=dataset, epochs=find(id_).epochs)
        if dataset == "inaturalist2018":
            del stored["data"]["pixels_sha256"]
        comparison = judge([stored | {"cls_num_list": counts}], id_)
        assert comparison.ok is ok and comparison.data.endswith(words.removeprefix("…"))


def test_results_on_other_test_images_share_no_comparison():
    """Where none are told they may be any: they share, and the report says so."""
    one, other = fingerprint("cifar10", "test", ""), "b" * 64
    npz = {"data": "npz", "pixels": fingerprint("cifar10")}
    ib = result(IB, 78.0, test=one, **npz)
    assert judge([result(CE, 70.0, test=other, **npz), ib]).gain is None
    assert judge([result(CE, 70.0, test=one, **npz), ib]).gain.ours == 8.0
    first, second = compare(
        [find(IB)],
        [result(IB, 60.5, test=one, **npz), result(IB, 96.0, seed=1, test=other, **npz)],
        TABLE,
    )
    assert (first.ours.best, first.verdict) == ((60.5,), "below ± 1.2")
    assert (second.ours.best, second.verdict) == ((96.0,), "not judged: other data")
    assert second.data == f"{first.data}, unknown test images bbbbbbbb"
    untold = result(IB, 78.0, seed=1, **npz)
    assert judge([ib]).untold is False and judge([untold]).untold is True
    both = judge([ib, untold, result(CE, 70.0, **npz)])
    assert (both.ours.seeds, both.untold, both.gain.ours) == ((0, 1), True, 8.0)
    three = compare([find(IB)], [ib, untold, result(IB, 78.0, seed=2, test=other, **npz)], TABLE)
    assert [c.ours.seeds for c in three] == [(0,), (1,), (2,)]  # of which of the two, nobody knows


def test_cifar_100_from_an_npz_file_is_judged():
    id_ = "ib_loss-cifar100-step50-ib"
    stored = result(id_, 40.0, data="npz", pixels=fingerprint("cifar100", "step", 50))
    assert judge([stored], id_).data == "CIFAR-100"
    assert judge([stored], id_).difference == pytest.approx(40.0 - find(id_).published)


def test_shorter_runs_and_other_precisions_are_judged_by_the_order_alone():
    cases = [(60.0, True), (50.0, False), (49.0, False)]
    for (ib, ok), how in product(cases, [{"amp": "bf16"}, {"epochs": 10}]):
        runs = [result(CE, 50.0, **how), result(IB, ib, **how)]
        comparison = judge(runs)
        assert comparison.ok is ok and comparison.difference is None
        assert ("NOT better than CE" in comparison.verdict) is not ok
        assert "±" not in comparison.verdict
        gain = comparison.gain
        assert (gain.over, gain.ours) == ("CE", ib - 50.0)
        assert gain.published == pytest.approx(78.26 - 70.87)
        assert judge(runs, CE).ok is None


def test_on_other_data_nothing_is_judged_and_the_gain_is_shown():
    for data, epochs in product(
        [{"data": "digits"}, {"data": "npz", "pixels": "b" * 64}], (10, 200)
    ):
        comparison = judge(
            [result(id_, top1, epochs=epochs, **data) for id_, top1 in ((CE, 50.0), (IB, 60.0))]
        )
        assert comparison.gain.ours == 10.0
        assert (comparison.verdict, comparison.ok) == ("not judged: other data", None)


def test_the_gain_has_the_standard_error_of_a_difference_of_means():
    runs = [result(CE, 70.0 + seed, seed=seed) for seed in range(3)]
    runs += [result(IB, 78.0 + 2 * seed, seed=seed) for seed in range(3)]
    gain = judge(runs).gain
    assert gain.seeds == 3 and gain.ours == pytest.approx(9.0)
    assert gain.error == pytest.approx(math.sqrt(5 / 3))
    assert math.isnan(judge([runs[0], runs[3]]).gain.error)


def test_only_runs_on_the_same_pixels_of_the_same_length_and_precision_are_compared():
    for other in [{"pixels": "b" * 64}, {"epochs": 10}, {"amp": "bf16"}, {"data": "npz"}]:
        same = {"data": "cifar10", "pixels": "a" * 64}
        runs = [result(IB, 60.0, **same), result(CE, 50.0, **same | other)]
        assert judge(runs[:1]).gain is None and judge(runs).gain is None
        (one, another) = compare([find(IB)], [runs[0], result(IB, 50.0, **same | other)], TABLE)
        assert one.ours.best == (60.0,) and another.ours.best == (50.0,)


def test_a_claim_smaller_than_the_spread_is_not_judged():
    # DBM-DRW 82.82 against CE-DRW 82.24: half a point.
    drw, dbm = "dbm_loss-cifar10-exp100-ce_drw", "dbm_loss-cifar10-exp100-dbm_drw"
    runs = [result(drw, 60.0, epochs=10), result(dbm, 50.0, epochs=10)]
    assert judge(runs, dbm).ok is None


def test_a_baseline_of_another_source_is_named():
    """ARB-Loss of a paper less the baseline of a README: nobody publishes that gain."""
    arb, ce = "arbloss-cifar10-exp100-arb_mixup", "arbloss-cifar10-exp100-ce_mixup"
    gain = judge([result(arb, 60.0, epochs=10), result(ce, 50.0, epochs=10)], arb)
    assert gain.verdict == (
        "better than CE + mixup (+10.00, published +10.50, baseline of MiSLAS README)"
    )
    # Tables of one paper, some numbers of which are copied: one source.
    gain = judge([result(IB, 60.0, epochs=10), result(CE, 50.0, epochs=10)]).gain
    assert gain.source == ""


def test_a_gain_is_judged_by_the_larger_tolerance_of_the_two_numbers():
    arb, ce = (find(f"arbloss-cifar10-exp10-{name}") for name in ("arb_mixup", "ce_mixup"))
    runs = [result(arb.id, 60.0, epochs=10), result(ce.id, 50.0, epochs=10)]
    for tolerance, ok in ((2.2, True), (5.1, True), (5.3, None)):  # of a gain of 2.6
        (comparison,) = compare([arb], runs, [arb, replace(ce, tolerance=tolerance)])
        assert comparison.ok is ok


def test_misprints_and_missing_numbers_are_never_judged():
    misprint = "ib_loss-cifar10-exp50-ce"
    assert find(misprint).status == "misprint"
    assert judge([result(misprint, 5.0)], misprint).ok is None
    hml = "hmloss-cifar10-exp100-hml"
    comparison = judge([result(hml, 5.0), result("hmloss-cifar10-exp100-ce", 50.0)], hml)
    assert comparison.ok is None and comparison.difference is None
    assert comparison.verdict == "recorded, not judged"
    memory = "arbloss-cifar10-exp50-arb_mixup"
    assert judge([result(memory, 5.0)], memory).ok is None


def test_a_misprinted_baseline_makes_way_for_the_value_that_is_right():
    # IB 81.70; CE 78.22 is a misprint for 75.65, so the claim is 6.05.
    ib, ce = "ib_loss-cifar10-exp50-ib", "ib_loss-cifar10-exp50-ce"
    comparison = judge([result(ib, 80.0), result(ce, 70.0)], ib)
    assert "published +6.05" in comparison.verdict


def test_groups_of_classes_are_compared_with_their_own_cells():
    id_ = "dbm_loss-cifar100-exp100-dbm_bs"
    run = result(id_, 51.0, data="cifar100")
    run["best"]["few"] = 33.0
    comparison = judge([run], id_, "few")
    assert comparison.difference == pytest.approx(33.0 - 33.23)
    run["best"]["few"] = None  # no class has so few images
    assert compare([find(id_, "few")], [run], TABLE) == []


def test_the_terminal_table_says_what_was_trained():
    short = result(IB, 70.0, epochs=10, data="npz", pixels=fingerprint("cifar10"), amp="bf16")
    text = text_table([judge([short])])
    assert "10 of 200, bf16" in text and "1 of 12,406 training images from a JPEG copy" in text
    assert "78.26" not in text  # a number after 200 epochs
    assert "78.26" in text_table([judge([result(IB, 70.0)])])


def test_a_result_is_what_the_program_reported(tmp_path):
    figures = {"epoch": 1, "top1": 12.3456789, "few": None, "cls_acc": [0.123456, None]}
    report = {
        "final": figures, "best": figures, "epochs": 2, "wall_time_s": 3.21,
        "cls_num_list": [4, 2], "pixels_sha256": "ab", "subset_sha256": "cd",
        "versions": {"commit": "1234", "torch": "2"}, "command": "python /home/x/y.py",
        "settings": {"root": "/home/x", "margin_norm": "rarest"},
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "metrics.csv").write_text("epoch,top1,few\n0,10.0,\n1,12.3456789,\n")
    stored = from_report(
        tmp_path / "report.json", find(IB), data="imagefolder", epochs=2, seed=7,
        command="python x --root {root}",
        settings=[{"lr": 0.1}, {"root": None, "margin_norm": None}], code="c0de",
    )  # fmt: skip
    write_result(tmp_path / "results" / "a.json", stored)
    (read,) = read_results(tmp_path / "results")
    assert read == stored
    assert read["data"] == {"dataset": "imagefolder", "pixels_sha256": "ab", "subset_sha256": "cd"}
    assert read["curves"] == {"top1": [10.0, 12.346]}
    assert read["commit"] == "1234" and read["seed"] == 7 and read["code_sha256"] == "c0de"
    assert math.isclose(read["final"]["top1"], 12.346)
    assert read["settings"] == [{"lr": 0.1}, {"root": None, "margin_norm": "rarest"}]
    assert read["final"]["cls_acc"] == [0.1235, None]  # a class without test images
    assert "/home" not in json.dumps(read)


def test_a_result_of_other_code_says_so():
    """Also one that went on with other code than it began with, and one that does not say."""
    same = result(IB, 78.0) | {"code_sha256": "1" * 64, "commit": "1234"}
    assert other_code(same, "1" * 64) is None
    for differs, words in [
        ({"code_sha256": "0" * 64}, "of other code (commit 1234)"),
        ({"commit": "1234, 5678"}, "of other code (commit 1234, 5678)"),
    ]:
        assert other_code(same | differs, "1" * 64) == words
    assert other_code(result(IB, 78.0), "1" * 64) == "of other code (commit unknown)"


def test_a_file_that_is_no_result_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: no such folder$"):
        read_results(tmp_path / "nowhere")
    for content, message in (("{", "not a result (Expecting"), ('{"id": 1}', "without seed;")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(UsageError) as error:
            read_results(tmp_path)
        assert str(error.value).startswith(f"{tmp_path / 'a.json'}: ")
        assert message in str(error.value)
