"""Learning rates of the GML programs against the original's."""

import numpy as np

from dbm_loss.GML.schedule import Schedule, StepSchedule


def test_cifar_rates_are_the_originals(golden):
    for i in range(2):
        g = golden("dbm_loss_gml")
        case = g.facts["cases"]["lr_cifar"][
            i
        ]  # epochs and warm-up are multiplied, the steps are not
        times = case["epoch_multiplier"]
        first, second = (step * times for step in case["schedule"])
        schedule = StepSchedule(case["lr"], case["epochs"], case["warmup_epochs"], (first, second))
        rates = [schedule(epoch) for epoch in range(case["epochs"])]
        np.testing.assert_allclose(rates, g[f"lr_cifar{i}"], rtol=1e-12)


def test_imagenet_rates_are_the_originals(golden):
    for i in range(3):
        g = golden("dbm_loss_gml")
        case = g.facts["cases"]["lr_main"][i]
        schedule = Schedule(
            case["lr"], case["epochs"], case["warmup_epochs"], case["cos"], tuple(case["schedule"])
        )
        rates = [schedule(epoch) for epoch in range(case["epochs"])]
        np.testing.assert_allclose(rates, g[f"lr_main{i}"], rtol=1e-12)


def test_without_warmup_the_cifar_run_starts_at_the_full_rate():
    assert StepSchedule(0.1, 200, warmup=0)(0) == 0.1


def test_a_stretched_schedule_is_a_miniature():
    small = StepSchedule(0.1, 20, stretched=True)
    assert small.steps == (16, 18)
    assert [round(small(e), 6) for e in (15, 16, 17, 18, 19)] == [0.1, 0.1, 0.01, 0.01, 0.001]
    doubled = StepSchedule(0.1, 40, milestones=(320, 360), multiplier=2, stretched=True)
    assert doubled.steps == (32, 36)
    steps = Schedule(0.1, 20, cos=False, stretched=True)
    assert steps.drops == (12, 16)
    assert [round(steps(e), 6) for e in (11, 12, 16)] == [0.1, 0.01, 0.001]
    assert Schedule(0.1, 20, stretched=True).drops == ()
