"""Learning rates of every shipped configuration against the original's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from arbloss import train_stage1, train_stage2
from arbloss.opts import load_config
from arbloss.schedules import cosine_lr, step_lr

CONFIG = Path(__file__).resolve().parents[2] / "arbloss" / "config"
MISLAS = (160, 180)


def rates(cos, num_epochs, lr, milestones=(160, 240)):
    if cos:
        return [cosine_lr(epoch, num_epochs, lr) for epoch in range(num_epochs)]
    return [step_lr(epoch, lr, milestones) for epoch in range(num_epochs)]


def stems(arrays, prefix):
    return [name.removeprefix(prefix) for name in arrays.files if name.startswith(prefix)]


def test_stage1_of_every_config(golden):
    arb = golden("arbloss")
    names = stems(arb.arrays, "lr_cfg__")
    assert len(names) == 32
    for name in names:
        dataset, stem = name.split("__")
        config = load_config(CONFIG / dataset / f"{stem}.yaml")
        drawn = rates(config.cos, config.num_epochs, config.lr, config.milestones)
        np.testing.assert_allclose(drawn, arb[f"lr_cfg__{name}"], rtol=1e-12, err_msg=name)


def test_mislas(golden):
    arb = golden("arbloss")
    names = stems(arb.arrays, "lr_mislas__")
    assert len(names) == 18
    for name in names:
        dataset, stem = name.split("__")
        config = load_config(CONFIG / dataset / f"{stem}.yaml")
        if config.mode == "stage2":
            lws = rates(True, config.num_epochs, config.lr)
            classifier = rates(True, config.num_epochs, config.lr * config.lr_factor)
            drawn = np.stack([classifier, lws], axis=1)
        else:
            drawn = rates(config.cos, config.num_epochs, config.lr, MISLAS)
        np.testing.assert_allclose(drawn, arb[f"lr_mislas__{name}"], rtol=1e-12, err_msg=name)


def test_cases(golden):
    for k in [0, 1, 2]:
        arb = golden("arbloss")
        case = arb.facts["lr_cases"][k]
        drawn = rates(case["cos"], case["num_epochs"], case["lr"])
        np.testing.assert_allclose(drawn, arb[f"lr_case{k}"], rtol=1e-12)
        drawn = rates(case["cos"], case["num_epochs"], case["lr"], MISLAS)
        np.testing.assert_allclose(drawn, arb[f"lr_case{k}_mislas"], rtol=1e-12)


def test_stage2_case(golden):
    arb = golden("arbloss")
    case = arb.facts["lr_s2_cases"][0]
    lws = rates(True, case["num_epochs"], case["lr"])
    np.testing.assert_allclose(arb["lr_s2_case0"][:, 1], lws, rtol=1e-12)
    classifier = rates(True, case["num_epochs"], case["lr"] * case["lr_factor"])
    np.testing.assert_allclose(arb["lr_s2_case0"][:, 0], classifier, rtol=1e-12)


def test_each_stage_takes_its_rates_from_the_keys():
    """For both parts of stage 1 the same; in stage 2 the classifier has a share of it."""
    keys = {"lr": 0.1, "num_epochs": 200, "milestones": [120, 160], "lr_factor": 0.3}
    cosine = SimpleNamespace(**keys, cos=True, stretch_schedule=False)
    steps = SimpleNamespace(**keys, cos=False, stretch_schedule=False)
    assert train_stage1.learning_rates(cosine, 100) == pytest.approx([0.05, 0.05])
    assert train_stage1.learning_rates(steps, 100) == [0.1, 0.1]
    assert train_stage1.learning_rates(steps, 120) == pytest.approx([0.01, 0.01])
    steps.num_epochs, steps.stretch_schedule = 20, True
    assert train_stage1.learning_rates(steps, 12) == pytest.approx([0.01, 0.01])
    assert train_stage2.learning_rates(cosine, 100) == pytest.approx([0.015, 0.05])


def test_the_second_drop_is_never_reached_in_200_epochs():
    assert min(step_lr(epoch, 0.1) for epoch in range(5, 200)) == pytest.approx(0.01)
    assert step_lr(240, 0.1) == pytest.approx(0.001)
