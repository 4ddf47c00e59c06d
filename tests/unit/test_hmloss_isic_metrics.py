"""Metrics, score distribution, cyclic learning rate and frozen layers of the ISIC program."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.models import pretrained
from common.training.errors import UsageError
from common.training.pictures import save_picture
from hmloss.isic2019_implementation import metrics
from hmloss.isic2019_implementation.model import FROM_SCRATCH, build_model, freeze
from hmloss.isic2019_implementation.schedule import cyclic_lr


@pytest.fixture(scope="module")
def g(golden):
    return golden("hmloss")


def test_metrics_are_the_originals(g):
    scores = torch.softmax(g.tensor("metric_logits"), 1).numpy()
    np.testing.assert_allclose(scores, g["metric_scores"], rtol=1e-6)
    result = metrics.binary_metrics(g["metric_targets"], scores)
    np.testing.assert_allclose([result["bacc"], result["auc"]], g["metric_bacc_auc"], rtol=1e-8)
    text = metrics.report_text(g["metric_targets"], scores, ["nv", "mel"])
    assert text.splitlines() == g.facts["metric_classification_report"]


def test_metrics_by_counting():
    labels = np.array([0, 0, 0, 0, 1, 1])
    melanoma = np.array([0.1, 0.2, 0.6, 0.3, 0.4, 0.9])
    result = metrics.binary_metrics(labels, np.stack([1 - melanoma, melanoma], 1))
    assert result["sensitivity"] == 1 / 2 and result["specificity"] == 3 / 4
    assert result["bacc"] == 5 / 8 and result["accuracy"] == 4 / 6
    assert result["auc"] == 7 / 8  # 7 of the 8 pairs of a melanoma and a nevus are in order


def test_one_class_has_no_metrics():
    with pytest.raises(ValueError, match="two classes"):
        metrics.binary_metrics(np.zeros(3), np.full((3, 2), 0.5))


def test_metrics_of_more_classes_are_means_of_each_against_the_rest():
    """Of the class without an image there is none; with two classes the figures would be others."""
    labels = np.array([0, 0, 1, 1, 2])
    scores = np.array([
        [0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.1, 0.8, 0.1, 0.0], [0.3, 0.4, 0.3, 0.0],
        [0.5, 0.3, 0.2, 0.0],
    ])  # fmt: skip
    result = metrics.figures(labels, scores)
    assert result["sensitivity"] == result["bacc"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert result["specificity"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert result["accuracy"] == 3 / 5
    # Pairs in order, of class 0: 3 + 1 of 6; of 1: 3 + 2 of 6; of 2, ahead of all but one: 3 of 4.
    assert result["auc"] == pytest.approx((4 / 6 + 5 / 6 + 3 / 4) / 3)
    text = metrics.report_text(labels, scores, ["a", "b", "c", "none"])
    assert [line.split()[0] for line in text.splitlines()[2:6]] == ["a", "b", "c", "none"]
    (table,) = metrics.distributions(labels, scores, 7, melanoma=False).values()
    # Of the true classes: 0.7, 0.2, 0.8, 0.4, 0.2.
    assert table.to_numpy()[0].tolist() == [7, 0, 0, 0, 2, 0, 1, 0, 0, 1, 1, 0, 5]


def test_score_distribution_is_the_originals(g):
    tables = metrics.eval_distribution(g["metric_targets"], g["evaldist_scores"], epoch=7)
    columns = g.facts["evaldist_columns"]
    for table, name, expected in zip(tables, ("mel", "nev", "all"), columns, strict=True):
        assert table.columns.tolist() == expected
        np.testing.assert_array_equal(table.to_numpy()[0], g[f"evaldist_{name}"])


def test_learning_rate_is_the_originals(g):
    case = 0
    while f"lr_isic{case}" in g:
        expected = g[f"lr_isic{case}"]
        max_lr = float(g[f"lr_isic{case}_max_lr"])
        rates = [cyclic_lr(max_lr, epoch) for epoch in range(len(expected))]
        np.testing.assert_allclose(rates, expected, rtol=1e-12)
        case += 1
    assert case


def test_learning_rate_per_iteration_is_that_of_the_authors_callback(g):
    base, highest, step = g["keras_clr_params"]
    expected = g["keras_clr_triangular2"]
    shape = [cyclic_lr(1.0, it, int(step)) for it in range(len(expected))]
    rates = base + (highest - base) * (np.array(shape) - 0.01) / 0.99  # ours starts at 1 %
    np.testing.assert_allclose(rates, expected, rtol=1e-10)


def test_frozen_layers_are_the_originals(g):
    facts = g.facts["efficientnet_b3"]
    with torch.device("meta"):
        for ratio, count in facts["frozen_count"].items():
            model = build_model("efficientnet_b3")
            assert freeze(model, float(ratio)) == (count, facts["n_param_tensors"])
            if float(ratio) == 32:
                at_32 = model
    named = list(at_32.named_parameters())
    trainable = [p.numel() for _, p in named if p.requires_grad]
    assert sum(trainable) == facts["trainable_params_32"]
    assert sum(p.numel() for _, p in named) == facts["n_params"]
    frozen = facts["frozen_count"]["32"]
    assert named[frozen - 1][0] == facts["last_frozen_32"]
    assert named[frozen][0] == facts["first_trainable_32"]
    shapes = [[key, list(value.shape)] for key, value in at_32.state_dict().items()]
    assert shapes == facts["state_dict"]


def test_weights_from_a_file(tmp_path):
    """With the same random numbers as without: the new classifier is that of the seed."""
    torch.manual_seed(0)
    donor = build_model("resnet18", 3).state_dict()
    torch.save(donor | {"fc.weight": torch.zeros(9, 512)}, tmp_path / "resnet18.pth")
    torch.manual_seed(1)
    model = build_model("resnet18", 3)
    head = model.fc.weight.clone()
    line = pretrained.load(model, "resnet18", tmp_path / "resnet18.pth")
    assert line.endswith("its classifier, fc.weight (9, 512), is of other classes and left out")
    assert torch.equal(model.conv1.weight, donor["conv1.weight"])
    assert torch.equal(model.fc.weight, head) and head.shape == (3, 512)
    with pytest.raises(UsageError, match="does not fit the model"):
        pretrained.load(build_model("resnet50"), "resnet50", tmp_path / "resnet18.pth")
    with pytest.raises(UsageError, match=r"none\.pth: no such file; give a file that exists$"):
        pretrained.load(model, "resnet18", tmp_path / "none.pth")


def test_offline_message_names_the_cure(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        UsageError, match=r"https://.* as weights, or train from scratch with --random_init"
    ):
        pretrained.load(build_model("efficientnet_b0"), "efficientnet_b0", cure=FROM_SCRATCH)
    with pytest.raises(UsageError, match=r"^--arch resnet20: .*, or train from scratch with --"):
        pretrained.load(build_model("resnet20"), "resnet20", cure=FROM_SCRATCH)


def test_pictures_are_drawn(g, tmp_path):
    history = [
        {"epoch": e, "train_top1": 50, "train_loss": 1 / e, "top1": 40, "loss": 2 / e}
        for e in (1, 2, 3)
    ]
    save_picture(
        tmp_path / "roc.png",
        metrics.draw_roc,
        g["metric_targets"],
        g["metric_scores"],
        ["nv", "mel"],
        "CE",
    )
    save_picture(tmp_path / "curve.png", metrics.draw_learning_curve, history, "CE")
    for name in ("roc.png", "curve.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert pixels.std() > 5  # not blank
