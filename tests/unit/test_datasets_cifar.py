"""CIFAR from its archive: integrity, downloads, extractions cut short, several processes."""

import hashlib
import io
import multiprocessing
import pickle
import tarfile
from dataclasses import replace
from email.message import Message
from http.client import IncompleteRead

import numpy as np
import pytest
import torch
from torchvision import datasets as tv

from common.training import checkpoint
from common.training.errors import RunError, UsageError
from common.training.peers import part
from datasets import cifar
from datasets.sources import held_out, open_source
from tests.programs import tools

pytestmark = pytest.mark.usefixtures("no_gpu")
FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """CIFAR-10 with 3 images a batch, on a site that is a folder; returns its labels and pixels."""
    rng = np.random.RandomState(0)
    pixels, labels = rng.randint(0, 256, (18, 3072)).astype(np.uint8), rng.randint(0, 10, 18)
    known = cifar.SETS["cifar10"]
    contents = {"batches.meta": pickle.dumps({"label_names": list("abcdefghij")})}
    for i, file in enumerate([*known.splits["train"], "test_batch"]):
        part = slice(3 * i, 3 * i + 3)
        contents[file] = pickle.dumps({"data": pixels[part], "labels": labels[part].tolist()})
    site = tmp_path / "site"
    site.mkdir()
    with tarfile.open(site / ARCHIVE, "w:gz") as tar:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"{FOLDER}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    replaced = replace(
        known,
        md5=md5((site / ARCHIVE).read_bytes()),
        splits={
            split: {file: md5(contents[file]) for file in files}
            for split, files in known.splits.items()
        },
        meta=("batches.meta", md5(contents["batches.meta"])),
        site=f"{site.as_uri()}/",
    )
    monkeypatch.setitem(cifar.SETS, "cifar10", replaced)
    return labels, pixels


def test_what_is_known_of_the_files_is_torchvisions():
    for name, kind in (("cifar10", tv.CIFAR10), ("cifar100", tv.CIFAR100)):
        known = cifar.SETS[name]
        assert (known.site + known.archive, known.md5) == (kind.url, kind.tgz_md5)
        assert known.folder == kind.base_folder
        assert list(known.splits["train"].items()) == [tuple(file) for file in kind.train_list]
        assert list(known.splits["test"].items()) == [tuple(file) for file in kind.test_list]
        assert known.meta == (kind.meta["filename"], kind.meta["md5"])
        assert known.names == kind.meta["key"]


def test_it_is_downloaded_once_and_read_in_file_order(tmp_path, made_up, capsys):
    labels, pixels = made_up
    source = open_source("cifar10", tmp_path / "data", "train")
    assert capsys.readouterr().out.startswith("downloading file://")
    assert source.targets.tolist() == labels[:15].tolist()
    expected = pixels[[7, 3]].reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(source.pixels([7, 3]), expected)
    assert source.classes == list("abcdefghij")
    (tmp_path / "site" / ARCHIVE).unlink()  # no longer needed
    test = open_source("cifar10", tmp_path / "data", "test")
    assert test.targets.tolist() == labels[15:].tolist()
    assert capsys.readouterr().out == ""
    assert held_out("cifar10", tmp_path / "data") == ("test",)


@pytest.mark.parametrize("cut", ["gone", "damaged"])
def test_an_extraction_that_was_cut_short_is_completed(tmp_path, made_up, cut):
    open_source("cifar10", tmp_path / "data", "train")
    (tmp_path / "site" / ARCHIVE).unlink()
    batch = tmp_path / "data" / FOLDER / "data_batch_3"
    if cut == "gone":
        batch.unlink()
    else:
        batch.write_bytes(batch.read_bytes()[:-1])
    assert len(open_source("cifar10", tmp_path / "data", "train").targets) == 15


def test_a_damaged_archive_is_downloaded_again_or_named(tmp_path, made_up):
    data, site = tmp_path / "data", tmp_path / "site" / ARCHIVE
    data.mkdir()
    (data / ARCHIVE).write_bytes(site.read_bytes()[:100])
    site.rename(tmp_path / "hidden")
    with pytest.raises(UsageError) as error:
        open_source("cifar10", data, "train")
    found, right = md5((data / ARCHIVE).read_bytes()), cifar.SETS["cifar10"].md5
    assert str(error.value).startswith(
        f"dataset cifar10: {data / ARCHIVE} is damaged or cut short (100 bytes, MD5 {found} "
        f"instead of {right}), and the archive is not to be had from file://"
    )
    assert str(error.value).endswith(f"put that archive, or its folder {FOLDER}/, into {data}/")
    (tmp_path / "hidden").rename(site)
    assert len(open_source("cifar10", data, "train").targets) == 15


def test_a_damaged_download_leaves_nothing_behind(tmp_path, made_up):
    (tmp_path / "site" / ARCHIVE).write_bytes(b"<html>sorry</html>")
    with pytest.raises(
        UsageError, match=r"not to be had .*\(what comes from there has the MD5 [0-9a-f]{32}\)"
    ):
        open_source("cifar10", tmp_path / "data", "train")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_damaged_file_without_archive_is_named(tmp_path, made_up):
    folder = tmp_path / "data" / FOLDER
    open_source("cifar10", tmp_path / "data", "test")
    (tmp_path / "data" / ARCHIVE).unlink()
    (tmp_path / "site" / ARCHIVE).unlink()
    (folder / "test_batch").write_bytes(b"")
    with pytest.raises(UsageError, match=r"batches-py/test_batch is missing or damaged, and the"):
        open_source("cifar10", tmp_path / "data", "test")


@pytest.mark.parametrize("reason", [
    ConnectionResetError(104, "Connection reset by peer"), TimeoutError("timed out"),
    IncompleteRead(b"half"),
])  # fmt: skip
def test_a_download_that_breaks_off_names_the_cure(tmp_path, made_up, monkeypatch, reason):
    class Response(io.BytesIO):
        headers = Message()

        def read(self, size):
            if part := super().read(size):
                return part
            raise reason

    monkeypatch.setattr(cifar.urllib.request, "urlopen", lambda *_, **__: Response(b"half"))
    with pytest.raises(UsageError) as error:
        open_source("cifar10", tmp_path / "data", "train")
    assert str(error.value) == (
        f"dataset cifar10: neither {ARCHIVE} nor {FOLDER}/ is in {tmp_path / 'data'}, and the "
        f"archive is not to be had from {(tmp_path / 'site').as_uri()}/{ARCHIVE} ({reason}); "
        f"put that archive, or its folder {FOLDER}/, into {tmp_path / 'data'}/"
    )
    assert list((tmp_path / "data").iterdir()) == []


def test_a_disk_that_the_download_fills_is_named(tmp_path, made_up, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(RunError) as error:
        open_source("cifar10", tmp_path / "data", "train")
    assert str(error.value).startswith(
        f"{tmp_path / 'data' / ARCHIVE}: cannot be written (No space left on device); fix that"
    )
    assert list((tmp_path / "data").iterdir()) == []


def test_what_to_do_on_a_slow_line_where_other_processes_wait(
    tmp_path, made_up, monkeypatch, capsys
):
    monkeypatch.setattr(cifar.dist, "is_initialized", lambda: True)
    url, path = (tmp_path / "site" / ARCHIVE).as_uri(), tmp_path / ARCHIVE
    cifar._download(url, path, cifar.SETS["cifar10"].md5)
    assert capsys.readouterr().out == (
        f"downloading {url} to {path}; should the other processes give up waiting, fetch it with "
        "one process first\n"
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_offline_names_url_folder_and_cure(tmp_path, monkeypatch, name):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(cifar.urllib.request, "urlopen", offline)
    with pytest.raises(UsageError) as error:
        open_source(name, tmp_path, "train")
    known = cifar.SETS[name]
    assert str(error.value) == (
        f"dataset {name}: neither {known.archive} nor {known.folder}/ is in {tmp_path}, "
        f"and the archive is not to be had from https://www.cs.toronto.edu/~kriz/{known.archive} "
        f"(no network); put that archive, or its folder {known.folder}/, into {tmp_path}/"
    )


def _open(rank, port, data, results):
    """One of two processes; only the first may touch the archive."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    if rank:
        cifar._provide = None
    try:
        results.put((rank, open_source("cifar10", data, "train").targets.tolist()))
        open_source("cifar10", data / "data_batch_1", "train")
    except UsageError as error:
        results.put((rank, str(error)))
    part(failed=False)


def test_of_several_processes_the_first_alone_downloads_and_all_hear_of_an_error(tmp_path, made_up):
    context = multiprocessing.get_context("fork")
    results, port = context.Queue(), tools.free_port()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data_batch_1").touch()
    processes = [
        context.Process(target=_open, args=(rank, port, tmp_path / "data", results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    got = sorted((results.get(timeout=tools.TIMEOUT) for _ in range(4)), key=str)
    for process in processes:
        process.join()
    message = got[0][1]
    assert message.startswith("dataset cifar10: neither ") and "not to be had" in message
    labels = made_up[0][:15].tolist()
    assert got == [(0, message), (0, labels), (1, message), (1, labels)]
