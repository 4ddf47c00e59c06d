"""dbm_loss.large_scale.schedule: the original's rates, and what happens at other run lengths."""

import pytest

from dbm_loss.large_scale.schedule import Schedule


def test_rates_are_the_originals(golden):
    for i in range(5):
        g = golden("dbm_loss_large_scale")
        case = g.facts["cases"]["lr"][i]
        schedule = Schedule(case["dataset"], case["lr"], case["epochs"], case["cos"])
        rates = [schedule(epoch) for epoch in range(case["epochs"])]
        assert rates == pytest.approx(g[f"lr{i}"].tolist(), rel=1e-12)


def test_cosine_peaks_at_epoch_4_and_does_not_warm_up():
    schedule = Schedule("imgnet", 0.1, 90, cos=True)
    assert schedule(4) == 0.1
    assert 0.099 < schedule(0) < schedule(3) < schedule(4) > schedule(5)


def test_short_cosine_falls_from_the_given_rate():
    for epochs in [1, 2, 3, 4]:
        schedule = Schedule("inat", 0.2, epochs, cos=True)
        rates = [schedule(epoch) for epoch in range(epochs)]
        assert rates[0] == 0.2
        assert rates == sorted(rates, reverse=True) and rates[-1] > 0


def test_stretching_keeps_the_published_run_and_scales_others():
    for dataset, epochs in (("imgnet", 90), ("inat", 100)):
        for cos in (True, False):
            plain = Schedule(dataset, 0.1, epochs, cos)
            stretched = Schedule(dataset, 0.1, epochs, cos, stretched=True)
            assert [stretched(e) for e in range(epochs)] == [plain(e) for e in range(epochs)]
    third = Schedule("imgnet", 0.1, 30, cos=False, stretched=True)
    assert third.milestones == (20, 27)
    assert third(19) == pytest.approx(0.1) and third(20) == pytest.approx(0.01)
    whole, third = (Schedule("imgnet", 0.1, e, cos=True, stretched=e == 30) for e in (90, 30))
    assert third(20) == pytest.approx(whole(60))


def test_class_weights_set_in_at_epoch_160_unless_stretched():
    assert Schedule("imgnet", 0.1, 90, cos=True).drw_epoch == 160
    assert Schedule("imgnet", 0.1, 90, cos=True, stretched=True).drw_epoch == 72
