"""State dicts, optimisers and scalers are taken where they fit, else refused by name."""

import hashlib
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.training import restore
from common.training.errors import UsageError


def test_a_state_dict_of_something_else_is_named(tmp_path):
    cases = [
        ([1], "its state dict is a list, not a dictionary of tensors"),
        ({"w": [1.0]}, "entry 'w' of its state dict is no tensor, but list"),
        (
            {"w": torch.tensor([1, float("inf")])},
            "w holds values that are not finite, the run that",
        ),
        ({"w": torch.ones(2) + 0j}, "entry 'w' of its state dict is of torch.complex64, torch.str"),
        ({"w": torch.eye(2).to_sparse()}, "entry 'w' .* is of torch.float32, torch.sparse_coo; "),
    ]
    for state, words in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        torch.save({"state_dict": state}, folder / "w.pth")
        with pytest.raises(UsageError, match=rf"w\.pth: {words}"):
            restore.load_state_dict(folder / "w.pth")


def test_classes_are_the_same_in_the_same_order():
    def check(its, classes, **about):
        return restore.check_classes({"about": {"classes": its, **about}}, classes, "C")

    assert restore.check_classes({"epoch": 1}, ["a", "b"], "C") == []  # the originals say nothing
    assert restore.check_classes({"about": "?"}, ["a", "b"], "C") == []
    assert check(["a", "b"], ("a", "b")) == check(None, ["a"]) == check([[0], 1], ["a"]) == []
    for its, classes, named in (
        (["0", "1"], ["a", "b"], "the data name"),
        (["a", "b"], ["0", "1"], "the checkpoint names"),
        (["1", "0"], ["a", "b"], "the data name"),  # numbers of a list, by size
        (["1", "2"], ["0", "1"], "the checkpoint names"),  # of folders
    ):
        assert check(its, classes) == [
            f"note: C: only {named} the classes; they are taken to be in the same order"
        ]
    same = "give data of the same classes"
    for its, classes, words in (
        (["a", "b"], ["b", "a"], f"its class 0 is 'a', and that of the data 'b'; {same} in the "),
        (["a", "b"], ["a", "c"], f"its class 1 is 'b', and that of the data 'c'; {same} in the "),
        (["0", "1"], ["1", "0"], f"its class 0 is '0', and that of the data '1'; {same} in the "),
        (["0", "1"], ["a", "b", "c"], f"has 2 classes, and the data 3; {same}"),
    ):
        with pytest.raises(UsageError, match=f"^C: {words}"):
            check(its, classes)


def test_a_damaged_file_in_the_download_cache_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    content = b"weights"
    prefix = hashlib.sha256(content).hexdigest()[:8]
    path = tmp_path / "checkpoints" / f"net-{prefix}.pth"
    path.write_bytes(content)
    url = f"https://host.example/{path.name}"
    assert restore.download(url, "walk") == path
    path.write_bytes(b"wEights")
    with pytest.raises(UsageError) as error:
        restore.download(url, "walk")
    assert str(error.value) == f"{path}: damaged, its SHA-256 is not {prefix}…; delete it"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_download_that_others_wait_for_says_so(tmp_path, monkeypatch, capsys, processes):
    path, url = tmp_path / "checkpoints" / "net.pth", "https://host.example/net.pth"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: path.touch())
    monkeypatch.setattr(restore.launch, "in_main", lambda action: action())
    monkeypatch.setattr(dist, "is_initialized", lambda: processes > 1)
    assert restore.download(url, "walk") == path
    waited_for = "; should the other processes give up waiting, fetch it with one process first"
    assert capsys.readouterr().out == (
        f"downloading {url} to {path}{waited_for if processes > 1 else ''}\n"
    )
    assert restore.download(url, "walk") == path and capsys.readouterr().out == ""


def test_weights_load_with_either_prefix_and_without_counters():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.nn.init.ones_(model[0].weight)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    del state["module.1.num_batches_tracked"]
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    restore.load_weights(other, state, "file")
    assert torch.equal(other[0].weight, torch.ones(3, 2))


def test_another_architecture_is_refused_with_the_difference():
    cases = [
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "it lacks 1.bias and 1 more"),
        (nn.Sequential(), "it has besides 0.bias and 1 more"),
        (nn.Sequential(nn.Linear(2, 4)), r"it differs: 0.bias is \(3,\), the model's \(4,\)"),
    ]
    for model, words in cases:
        state = nn.Sequential(nn.Linear(2, 3)).state_dict()
        with pytest.raises(UsageError, match=words):
            restore.load_weights(model, state, "file")


def network(width=3):
    return nn.Linear(2, width)


def trained(kind, model=None):
    model = network() if model is None else model
    optimizer = kind(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


def sgd(parameters, lr=0.1, momentum=0.9):
    return torch.optim.SGD(parameters, lr, momentum=momentum)


def test_an_optimizer_takes_the_momentum_and_keeps_its_settings():
    before, optimizer = trained(sgd), sgd(network().parameters(), lr=0.5, momentum=0.8)
    restore.load_optimizer(optimizer, before.state_dict(), "file")
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["momentum"] == 0.8
    (weight, _) = optimizer.param_groups[0]["params"]
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.ones(3, 2))


def test_another_optimizer_is_refused():
    cases = [
        (trained(torch.optim.Adam).state_dict(), "another kind, 'momentum' is in only one of them"),
        (
            trained(sgd, network(4)).state_dict(),
            r"momentum_buffer of parameter 0 is \(4, 2\), not \(3, 2\)",
        ),
        (
            trained(sgd, nn.Linear(2, 3, bias=False)).state_dict(),
            r"it has groups of \[1\] parameters, here are \[2\]",
        ),
        ({"state": {}}, "KeyError: 'param_groups'"),
        ([1, 2], "TypeError"),
        ("text", "TypeError"),
        (
            {"state": {9: {}}, "param_groups": trained(sgd).state_dict()["param_groups"]},
            "IndexError",
        ),
        (
            trained(sgd).state_dict() | {"state": {0: {"momentum_buffer": "x"}}},
            "momentum_buffer of parameter 0 is a str",
        ),
    ]
    for state, words in cases:
        with pytest.raises(
            UsageError, match=f"file: its 'optimizer' is not SGD's of this .*{words}"
        ):
            restore.load_optimizer(sgd(network().parameters()), state, "file")


def test_another_scaler_is_refused():
    for state in [{"scale": 1.0}, [1.0], {"scale": "high"}, {"scale": -1.0}]:
        scaler = torch.amp.GradScaler("cpu", enabled=True)
        with pytest.raises(UsageError, match="file: its 'scaler' is not that of amp fp16"):
            restore.load_scaler(scaler, state, "file")
