"""``pip install .``: what lands in site-packages, and that it computes the golden numbers there."""

import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution

import pytest

from tests.conftest import GOLDEN
from tests.test_house import LOSSES, PAPERS, ROOT

CHECK = """
import sys
from pathlib import Path
site, golden = sys.argv[1:]
sys.path.insert(0, site)
import numpy as np
import torch
before = set(sys.modules)

from arbloss.losses import ARBLoss
from dbm_loss.GML.losses import GMLLoss
from dbm_loss.losses import BalancedSoftmax
from dbm_loss.margin import DBMargin
from hmloss.losses import HMLoss
from ib_loss.losses import IBLoss

new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new == {"arbloss", "dbm_loss", "hmloss", "ib_loss"}, new
for name in new:
    assert Path(sys.modules[name].__file__).is_relative_to(site), sys.modules[name]

def close(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=1e-5, atol=1e-7)

g = {path.stem: np.load(path) for path in Path(golden).glob("*.npz")}
def tensors(paper, *names):
    return [torch.as_tensor(g[paper][name]) for name in names]

logits, target, features, weight = tensors(
    "ib_loss", "loss1_logits", "loss1_target", "loss1_features", "loss1_weight")
alpha = float(g["ib_loss"]["loss1_hyper"][0])
loss = IBLoss(weight, alpha)(logits.double(), target, features.double())
close(loss, g["ib_loss"]["loss1_ib_value_f64"])

cosine, target, counts = tensors(
    "dbm_loss_cifar", "loss.c10.cos", "loss.c10.target", "loss.c10.counts")
max_margin, tau, lambda_inst, scale = g["dbm_loss_cifar"]["loss.c10.hparams"]
margin = DBMargin(counts, max_margin, tau, scale, lambda_inst)
close(BalancedSoftmax(counts, margin=margin)(cosine, target),
      g["dbm_loss_cifar"]["loss.c10.bs.norm1_dbm1.ep0.value"])

cosine, target = tensors("dbm_loss_gml", "gml0_sup_logits", "gml0_target")
close(GMLLoss(g["dbm_loss_gml"]["gml0_counts"], beta=0.0)(cosine.float(), target),
      g["dbm_loss_gml"]["gml0_loss_sup_f32"])

logits, target, weight = tensors("hmloss", "loss0_logits", "loss0_targets", "loss0_w_cs")
loss = HMLoss(weight.double(), float(g["hmloss"]["hml_deltas"][0]))(logits.double(), target)
close(loss, g["hmloss"]["loss0_hml_val_f64"][0, 1])

logits, target, counts = tensors("arbloss", "arb0_logits_f64", "arb0_labels", "arb0_class_cnt")
close(ARBLoss()(logits, target, counts), g["arbloss"]["arb0_loss_mean_f64"])
"""


def run(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], text=True, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the losses as pip installs them, from a copy: pip builds beside the source."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for package in ROOT.glob("*/__init__.py"):
        for path in package.parent.rglob("*.py"):
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(
        "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--no-index",
        "--no-deps", "--no-build-isolation", "--target", site, source,
    )  # fmt: skip
    return site


def test_the_losses_are_installed_and_nothing_else(site):
    expected = set()
    for path in LOSSES:
        parts = path.relative_to(ROOT).parts
        expected |= {"/".join(parts)}
        expected |= {"/".join((*parts[:n], "__init__.py")) for n in range(1, len(parts))}
    assert {path.relative_to(site).as_posix() for path in site.rglob("*.py")} == expected
    folders = {path.name for path in site.iterdir()}
    assert folders == {*PAPERS, "long_tailed_losses-1.0.0.dist-info"}


def test_installed_losses_import_torch_alone_and_give_the_golden_numbers(site):
    example = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "IBLoss(weight" in example
    run("-I", "-c", CHECK + example, site, GOLDEN)


def test_metadata(site):
    metadata = PathDistribution(next(site.glob("*.dist-info"))).metadata
    torch = [line for line in (ROOT / "requirements.txt").read_text().split() if "torch>" in line]
    assert metadata.get_all("Requires-Dist") == torch
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT" and metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
