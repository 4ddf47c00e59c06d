"""Where images are large, and where an original has the flag, a run may start from weights."""

from pathlib import Path

import pytest
import torch

from common.models import pretrained, resnet, resnet_cifar
from common.training import pictures
from common.training.errors import UsageError
from dbm_loss.GML.engine import network
from dbm_loss.GML.moco import MoCo
from dbm_loss.large_scale.models import BCLModel
from tests.programs import small_runs

# The program's run with a rate of 0, and what its checkpoint calls the network.
STILL = {
    "ib_cifar": (["--lr", "0"], [""]),
    "ib_tiny": (["--lr", "0"], [""]),
    "dbm_large": (["--lr", "0"], [""]),
    "dbm_large_bcl": (["--lr", "0"], ["encoder."]),
    "gml": (["--lr", "0"], ["encoder_q.", "encoder_k."]),
    "hml_cifar": (["--lr", "0"], [""]),
    "hml_inat": (["--lr", "0"], [""]),
    "hml_isic": (["--max_lr", "0"], [""]),
    "arb_stage1": (["lr", "0"], [""]),
}
LATEST = ("ckpt.pth.tar", "current.pth.tar")


@pytest.mark.parametrize("name", STILL)
def test_a_run_starts_from_the_weights_of_a_file(tmp_path, monkeypatch, capsys, name):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.setattr(pictures, "picture", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    program, argv = small_runs.command(name)
    flags, prefixes = STILL[name]
    small = name in ("ib_cifar", "hml_cifar", "hml_isic", "arb_stage1")
    state = (resnet_cifar.resnet20 if small else resnet.resnet10)(9).state_dict()
    first = "conv1.weight" if small else "conv.weight"
    state[first] = torch.full_like(state[first], 0.25)
    torch.save({"state_dict": state}, "own.pth")
    epochs = "--num_epochs" if name.endswith(("isic", "stage1")) else "--epochs"
    argv = [word for word in argv if word not in ("--random_init", "--no-pretrained")]
    last = [epochs, "1", "--weights", "own.pth"]
    if name == "arb_stage1":  # it has keys
        last = [word.removeprefix("--") for word in last]
    program.main([*argv, *flags, *last])
    head = "linear.weight" if small else "fc.weight"
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("=> weights")]
    assert len(said) == 1 and said[0].startswith(f"=> weights of 'own.pth'; its classifier, {head}")
    path = next(p for p in Path().rglob("*.pth.tar") if p.name.endswith(LATEST))
    state = torch.load(path, weights_only=True)
    found = state.get("state_dict") or state["state_dict_model"]
    for prefix in prefixes:
        assert (found[prefix + first] == 0.25).all()


@pytest.mark.parametrize(("donor", "source", "left_out"), [
    (lambda: BCLModel("resnet10", 3), "encoder.", ""),
    (lambda: BCLModel("resnet10", 3, use_norm=True), "encoder.",
     "; its classifier, fc.weight (512, 3), is of another kind and left out"),
    (lambda: MoCo(network("resnet10"), 8, 16, normalize=False, num_classes=3), "encoder_q.", ""),
])  # fmt: skip
def test_a_checkpoint_of_bcl_or_moco_gives_its_encoder_and_classifier(
    tmp_path, donor, source, left_out
):
    weights = donor().state_dict()
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "own.pth")
    model = resnet.resnet10(3)
    own = model.fc.weight.clone()
    said = pretrained.load(model, "resnet10", tmp_path / "own.pth")
    assert said == f"=> weights of '{tmp_path / 'own.pth'}'{left_out}"
    head = weights.get("fc.weight", weights.get(f"{source}fc.weight"))
    assert torch.equal(model.fc.weight, own if left_out else head)
    for key, value in model.state_dict().items():
        assert key.startswith("fc.") or torch.equal(value, weights[source + key]), key


# A program, its flags for a network without published weights, and how it goes without them.
WITHOUT = [
    (small_runs.ib_cifar, ["--pretrained"], "start from random weights with --no-pretrained"),
    (small_runs.ib_tiny, ["-a", "resnet10"], "start from random weights with --no-pretrained"),
    (small_runs.dbm_large, ["--dataset", "imgnet", "-a", "resnext101", "--pretrained"],
     "leave --pretrained out"),
    (small_runs.gml, ["--mark", "x", "--aug", "randcls_sim", "-a", "resnext101_32x4d",
                      "--pretrained"], "leave --pretrained out"),
    (small_runs.hml_cifar, ["--pretrained"], "leave --pretrained out"),
    (small_runs.train_inat, ["-a", "resnet10", "--pretrained"], "leave --pretrained out"),
    (small_runs.train_isic, ["--arch", "resnet20"], "train from scratch with --random_init"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "argv", "cure"), WITHOUT)
def test_a_network_without_published_weights_is_refused_before_anything_is_read(
    program, argv, cure
):
    with pytest.raises(UsageError, match=r"^--arch resn\w+: no ImageNet weights exist for it, only "
                       f"for resnet18, .*; give a file of --weights, or {cure}$"):  # fmt: skip
        program.main(argv)
