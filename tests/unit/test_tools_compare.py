"""tools/compare.py: which recipes it takes, how the programs are told, and what it refuses."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.models import resnet
from common.training.errors import RunError, UsageError
from tests.programs.tools import make_image_folder
from tools import compare
from tools.comparison import PLACES
from tools.programs import PROGRAMS, ROOT, fill, settings
from tools.table import PAPERS

SMALL, LARGE = (compare.all_methods(large) for large in (False, True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp("my images"), [3, 2, 1, 2], test_per_class=1)


def jobs(*words):
    args = compare.get_parser().parse_args([str(word) for word in words])
    compare.check(args)
    rows, images = compare.find_methods(args.methods, args.large), compare.find_images(args)
    return compare.make_jobs(rows, images, args)


def told_at_the_start(command):
    """What a program makes of its command line and of what the runner adds."""
    return settings([*command, *fill(shlex.split(PROGRAMS[command[1]].workers), workers=3)])


def test_every_method_of_the_tables_for_small_images_is_there():
    names = {row.method for row in SMALL.values()}
    assert {"CE", "IB", "IB+CB", "DBM-BS", "GML", "DBM-NCL", "HML", "HML + CS", "ARB-Loss"} <= names
    assert {paper for paper, _ in SMALL} == set(PAPERS)
    assert {paper for paper, _ in LARGE} == {"dbm_loss", "hmloss", "arbloss"}
    # CIFAR-10 at ratio 100 where the method has it.
    assert SMALL["ib_loss", "ib"].id == "ib_loss-cifar10-exp100-ib"
    assert LARGE["arbloss", "arb-loss"].dataset == "imagenet_lt"


def test_names_of_methods():
    def ids(*names):
        return [row.id for row in compare.find_methods(names, large=False)]

    assert ids("ce", "ARB", "dbm_loss/CE", "CE") == [
        "ib_loss-cifar10-exp100-ce", "arbloss-cifar10-exp100-arb_mixup",
        "dbm_loss-cifar10-exp100-ce",
    ]  # fmt: skip
    with_weights = "hmloss-cifar10-exp100-hml_cs"
    assert ids("HML+CS", "hmloss/hml + cs", "HML") == [with_weights, "hmloss-cifar10-exp100-hml"]
    with pytest.raises(UsageError) as error:
        ids("IB", "focus")
    start = "--methods focus: no method for small images; there are\n  ib_loss: CE; Focal; "
    assert str(error.value).startswith(start)


def test_methods_are_listed_without_images(capsys):
    for flags, line in (([], "  ib_loss: CE; Focal; "), (["--large"], "  dbm_loss: CE; ")):
        compare.main(["--methods", "?", *flags])
        assert capsys.readouterr().out.startswith(line)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_program_is_told_data_length_and_the_rest(paper, folder, tmp_path):
    names = [f"{p}/{row.method}" for (p, _), row in SMALL.items() if p == paper]
    found = jobs(
        "--root", folder, "--out", tmp_path, "--epochs", 12, "--image_size", 16, "--seeds", 3,
        "--val_fraction", 0.2, "--batch_size", 32, "--amp", "bf16", "--methods", *names,
    )  # fmt: skip
    assert len(found) == len(names)
    for row, job in found:
        for command in job.commands:
            told = told_at_the_start(command)
            assert told["workers"] == 3
            root = next(told[k] for k in ("root", "data_dir", "data_path", "data") if k in told)
            assert (told["dataset"], root) == ("imagefolder", str(folder)), row.id
            assert (told.get("epochs", told.get("num_epochs")), told["seed"]) == (12, 3), row.id
            assert told["stretch_schedule"] and told["image_size"] == 16, row.id
            assert (told["batch_size"], told["val_fraction"], told["amp"]) == (32, 0.2, "bf16")
            assert told.get("imb_type", "none") == "none"
            if paper == "arbloss":
                assert told["imb_factor"] is None and told["num_classes"] == 4
                assert told["tail_class_idx"] == [3, 4]


@pytest.mark.parametrize("paper", PAPERS)
def test_a_long_tail_of_the_digits(paper, tmp_path):
    names = [f"{p}/{row.method}" for (p, _), row in SMALL.items() if p == paper]
    for row, job in jobs("--digits", "--imb_factor", 0.02, "--out", tmp_path, "--methods", *names):
        told = settings(job.commands[-1])
        assert told["dataset"] == "digits" and told.get("imb_type", "exp") == "exp", row.id
        factor = told.get("imb_factor") or told.get("ir_list", [0])[0]
        assert factor == 0.02 or told["imb_ratio"] == 50, row.id


def test_large_images_go_to_the_programs_for_them(folder, tmp_path):
    names = [f"{p}/{row.method}" for (p, _), row in LARGE.items()]
    found = jobs("--root", folder, "--large", "--epochs", 5, "--out", tmp_path, "--methods", *names)
    assert len(found) == len(LARGE)
    for _, job in found:
        for command in job.commands:
            told = told_at_the_start(command)
            assert (told.get("epochs", told.get("num_epochs")), told["workers"]) == (5, 3)
            places = [told.get(key) for key in ("root", "data", "dataset_dir", "data_path")]
            assert str(folder) in places
    images = compare.Images("imagefolder", str(folder), 4, str(tmp_path / "lists"))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "ImageNet_LT_val.txt").write_text("of an earlier start")
    compare.write_lists(images)
    assert len(list((tmp_path / "lists").iterdir())) == 2
    lines = (tmp_path / "lists" / "ImageNet_LT_train.txt").read_text().splitlines()
    assert len(lines) == 8
    assert lines[3] == "train/class_001/0000.jpg\t1\tclass_001"
    lines = (tmp_path / "lists" / "ImageNet_LT_test.txt").read_text().splitlines()
    assert lines[0] == "test/class_000/0000.jpg\t0\tclass_000" and len(lines) == 4


def test_a_list_that_another_start_reads_is_always_there(folder, tmp_path, monkeypatch):
    images = compare.Images("imagefolder", str(folder), 4, str(tmp_path / "lists"))
    compare.write_lists(images)
    there = []

    def look(*_):
        there.append(sorted(path.name for path in (tmp_path / "lists").iterdir()))

    monkeypatch.setattr(compare, "write_text", look)
    compare.write_lists(images)
    assert there == [["ImageNet_LT_test.txt", "ImageNet_LT_train.txt"]] * 2


@pytest.mark.parametrize("large", [False, True])
def test_a_student_finds_its_teacher_where_that_is_written(large, folder, tmp_path):
    flags = ["--root", folder, "--out", tmp_path, "--methods", "GML", "DBM-GML"]
    for _, job in jobs(*flags, *["--large"] * large):
        teacher, student = map(settings, job.commands)
        written = Path(teacher["root_path"], teacher["dataset"], teacher["mark"])
        assert student["path_t"] == str(written / "moco_ckpt.pth.tar")


@pytest.mark.parametrize("large", [False, True])
def test_runs_of_a_method_differ_in_seed_and_places_alone(large, folder, tmp_path):
    """Else they are no line of the table with a mean."""
    names = [f"{p}/{row.method}" for (p, _), row in (LARGE if large else SMALL).items()]
    root = shutil.copytree(folder, tmp_path / "birds")
    shutil.copytree(root / "test", root / "val")
    flags = ["--root", root, "--methods", *names, *["--large"] * large]
    told = []
    for seed in (0, 1):
        found = [
            settings(fill(job.commands[-1], out=job.folder))
            for _, job in jobs(*flags, "--seeds", seed, "--out", tmp_path / f"out{seed}")
        ]
        told.append([{k: v for k, v in run.items() if k not in PLACES} for run in found])
    assert len(told[0]) == len(names)
    for name, *runs in zip(names, *told, strict=True):
        assert runs[0] == runs[1], name


def test_a_seed_that_is_named_twice_is_trained_once(folder, tmp_path):
    found = jobs("--root", folder, "--out", tmp_path, "--methods", "IB", "--seeds", 1, 0, 1)
    assert [job.seed for _, job in found] == [1, 0]


def test_validation_images_choose_for_arbloss_as_well(folder, tmp_path):
    both = tmp_path / "both"
    for split in ("train", "test"):
        shutil.copytree(folder / split, both / split)
    shutil.copytree(folder / "test", both / "val")
    flags = ["--root", both, "--large", "--out", tmp_path, "--methods", "ARB"]
    ((_, job),) = jobs(*flags)
    lists = tmp_path / "lists"
    assert settings(job.commands[-1])["val_list"] == str(lists / "ImageNet_LT_val.txt")
    compare.write_lists(compare.Images("imagefolder", str(both), 4, str(lists), ("test", "val")))
    assert (lists / "ImageNet_LT_val.txt").read_text().startswith("val/class_000/0000.jpg\t0")


def test_one_network_for_all_methods_of_large_images(folder, tmp_path):
    names = [f"{p}/{row.method}" for (p, _), row in LARGE.items()]
    flags = ["--root", folder, "--large", "--out", tmp_path, "--methods", *names]
    for row, job in jobs(*flags, "--arch", "resnet34", "--pretrained"):
        for command in job.commands:
            told = settings(command)
            assert told["pretrained"] is True, row.id
            assert told.get("arch", told.get("backbone")) in ("resnet34", "resnet34_fe"), row.id
            if "--arch_t" in row.command and "student" in command:
                assert (told["arch_t"], told["feat_t"]) == ("resnet34", 512)
    for row, job in jobs(*flags, "--weights", "w.pth"):
        told = settings(job.commands[-1])
        assert told["weights"] == str(Path("w.pth").resolve()), row.id
    with pytest.raises(UsageError, match=r"^dbm_loss/GML: argument -a/--arch: invalid choice"):
        compare.check_commands(jobs(*flags, "--arch", "resnet10"))


@pytest.mark.parametrize(
    ("words", "batch", "number"),
    [
        (["DBM-GML"], 128, 8),
        (["DBM-NCL"], 64, 8),
        (["GML", "--large"], 128, 8),
        (["GML", "--batch_size", 8, "--val_fraction", 0.2], 8, 5),
        (["NCL", "--batch_size", 8, "--imb_factor", 1], 8, 4),
    ],
)
def test_a_batch_of_more_images_than_there_are_is_refused_before_any_is_trained(
    words, batch, number, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(compare, "train", None)
    root = folder
    if "--imb_factor" in words:
        root = make_image_folder(tmp_path / "balanced", [1, 1, 1, 1], size=8, test_per_class=1)
    flags = ["--root", root, "--out", tmp_path / "out", "--methods", "dbm_loss/CE"]
    with pytest.raises(UsageError) as error:
        compare.main([str(word) for word in (*flags, *words)])
    assert str(error.value) == (
        f"dbm_loss/{words[0]}: --batch_size {batch}: there are {number} training images, and it "
        "takes full batches only; give a smaller one"
    )
    assert not (tmp_path / "out").exists()
    enough = jobs(*flags, words[0], *["--large"] * ("--large" in words))
    compare.check_batches(enough, 128)


def test_weights_are_read_before_any_run_is_started(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    torch.save(resnet.resnet18(9).state_dict(), "resnet18.pth")
    Path("damaged.pth").write_bytes(Path("resnet18.pth").read_bytes()[:9999])
    flags = ["--root", str(folder), "--large", "--methods", "HML", "ARB"]
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    for words, message in (
        (["--weights", "none.pth"], "hmloss/HML: weights none.pth: no such file"),
        (["--weights", "damaged.pth"], "hmloss/HML: damaged.pth: not a complete checkpoint, cut "
         "short? ("),
        (["--weights", "resnet18.pth"], "hmloss/HML: resnet18.pth does not fit the model "
         "(layer1.0.conv3.weight is missing): give the weights of resnet50, or name their network"),
        (["--pretrained", "--arch", "resnet18"], f"hmloss/HML: cannot download {url} (no network): "
         "fetch it elsewhere and give the file as weights, or leave --pretrained out"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as error:
            compare.main([*flags, *words])
        assert str(error.value).replace(f"{tmp_path}/", "").startswith(message)
        assert "\n" not in str(error.value) and not Path("runs").exists()


def no_network(*args, **kwargs):
    raise OSError("no network")


def test_the_demo_trains_one_method_of_each_paper(tmp_path):
    """The Makefile's command, which README shows as well."""
    (line,) = (x for x in (ROOT / "Makefile").read_text().splitlines() if "compare.py" in x)
    command = line.strip().removeprefix("$(BIN)/python ")
    assert f".venv/bin/python {command}\n" in (ROOT / "README.md").read_text()
    found = jobs(*shlex.split(command)[1:], "--out", tmp_path)
    compare.check_commands(found)
    assert [row.method for row, _ in found] == ["CE", "IB", "DBM-BS", "HML + CS", "ARB-Loss"]
    assert settings(found[3][1].commands[0])["weighting_type"] == "CS"


def test_the_commands_are_shown(folder, tmp_path, capsys):
    compare.main(["--root", str(folder), "--methods", "IB", "--seeds", "0", "1", "--list",
                  "--out", str(tmp_path / "out")])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ib_loss_ib_e200_s0" and lines[2] == "ib_loss_ib_e200_s1"
    words = shlex.split(lines[1])
    assert words[1] in PROGRAMS and words[-6:] == [
        "--dataset", "imagefolder", "--root", str(folder), "--imb_type", "none",
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()
    assert fill(words, out="X")[words.index("--root_log") + 1] == "X/log"


def test_a_folder_of_another_command_is_not_gone_on_with(folder, tmp_path):
    flags = ["--root", folder, "--out", tmp_path, "--epochs", 2, "--methods", "IB", "HML"]
    images = compare.Images("imagefolder", str(folder), 4)
    compare.claim([job for _, job in jobs(*flags)], images)
    compare.claim([job for _, job in jobs(*flags)], images)
    compare.claim([job for _, job in jobs(*flags, "--image_size", 8)], images)  # nothing to lose
    (tmp_path / "ib_loss_ib_e2_s0" / "ckpt.pth.tar").write_bytes(b"")
    with pytest.raises(UsageError, match="ib_loss_ib_e2_s0: holds a run of other flags or images"):
        compare.claim([job for _, job in jobs(*flags, "--image_size", 16)], images)
    (tmp_path / "file").write_text("")
    digits = compare.Images("digits", "", 10)
    with pytest.raises(RunError, match="cannot be written"):
        compare.claim([job for _, job in jobs("--digits", "--out", tmp_path / "file")], digits)


def test_finished_runs_of_other_images_are_said(folder, tmp_path, capsys):
    """Images removed, added or of another size; of an npz file any other byte."""
    root, out = shutil.copytree(folder, tmp_path / "birds"), tmp_path / "out"
    flags = ["--root", root, "--out", out, "--epochs", 2, "--methods", "IB", "HML"]
    ib, hml = (job for _, job in jobs(*flags))
    images = compare.Images("imagefolder", str(root), 4)
    note = (
        "note: {} changed since these runs were trained: {}; to train them again, delete their "
        f"folders in {out}, or give another --out\n"
    )

    def said():
        compare.claim([ib, hml], images)
        return capsys.readouterr().out

    assert said() == ""
    ib.result.write_text("{}")
    assert said() == ""
    (root / "test" / "class_002" / "0000.jpg").unlink()
    assert said() == note.format(root, ib.folder.name)
    hml.result.write_text("{}")
    assert said() == note.format(root, ib.folder.name)  # the other has seen these
    with open(root / "train" / "class_001" / "0000.jpg", "ab") as file:
        file.write(b"\0")
    assert said() == note.format(root, f"{ib.folder.name}, {hml.folder.name}")
    for job in (ib, hml):
        (job.folder / "images.sha256").unlink()  # of an earlier version: not known
    assert said() == ""

    file = tmp_path / "birds.npz"
    file.write_bytes(b"one")
    images = compare.Images("npz", str(file), 4)
    ib.result.unlink()
    assert said() == ""
    ib.result.write_text("{}")
    file.write_bytes(b"two")
    assert said() == note.format(file, ib.folder.name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["val", "--val_fraction", 0.2], "val_fraction 0.2: {}/val is for validation already; "
         "leave it out"),
        (["val", "--large", "--val_fraction", 0.2], "val_fraction 0.2: {}/val is for validation "
         "already; leave it out"),
        (["val.npz", "--val_fraction", 0.2], "val_fraction 0.2: val of {}.npz is for validation "
         "already; leave it out"),
        (["one", "--val_fraction", 0.2], "val_fraction 0.2: no class has the two images that it "
         "takes to give one away; leave it out"),
        (["tail", "--imb_factor", 0.5], "imbalance exp 0.5 on imagefolder: class 1 has 1 images, "
         "but 2 are asked for; it is cut out of a balanced set; with no --imb_factor the images "
         "are taken as they are"),
        (["tail.npz", "--imb_factor", 0.5], "imbalance exp 0.5 on npz: class 1 has 1 images, but 2 "
         "are asked for; it is cut out of a balanced set; with no --imb_factor the images are "
         "taken as they are"),
        (["val", "--imb_factor", 0.1], "imbalance exp 0.1 on imagefolder: no image of class_001 is "
         "left; use a milder one, or no --imb_factor, which takes the images as they are"),
    ],
)  # fmt: skip
def test_images_that_every_program_would_refuse(words, message, tmp_path, monkeypatch):
    """Before any is started, and before a folder is that of a wrong command."""
    name, *flags = words
    root = tmp_path / name.removesuffix(".npz")
    make_image_folder(root, {"val": [2, 2], "one": [1, 1]}.get(root.name, [8, 1]), size=8)
    if root.name == "val":
        shutil.copytree(root / "test", root / "val")
    if name.endswith(".npz"):
        labels = np.array([0, 0, 1] if root.name == "val" else [0] * 8 + [1])
        splits = ("train", "test", *["val"] * (root.name == "val"))
        arrays = {f"{s}_images": np.zeros((len(labels), 8, 8), np.uint8) for s in splits}
        np.savez(tmp_path / name, **arrays, **{f"{s}_labels": labels for s in splits})
    monkeypatch.setattr(compare, "train", None)
    for more in ([], ["--list"]):
        with pytest.raises(UsageError) as error:
            compare.main([*map(str, ["--root", tmp_path / name, *flags, "--out", tmp_path / "out"]),
                          *more])  # fmt: skip
        assert str(error.value) == message.format(root)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --root DIR or FILE.npz with your images, or --digits to try without"),
        (["--digits", "--root", "x"], "give --root DIR"),
        (["--root", "nowhere"], "image folder .*nowhere: no such folder"),
        (["--root", "x.npz"], "npz file .*x.npz: no such file"),
        (["--root", "x.npz", "--large"], "--root x.npz: --large takes a folder of images"),
        (["--digits", "--large"], "--large: takes the images of a folder as they are"),
        (["--digits", "--arch", "resnet10"], "--arch: says with what network --large starts; add"),
        (["--runs", "x", "--digits"], "--runs: shows runs that exist; leave"),
        (["--digits", "--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--digits", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--digits", "--imb_factor", "2"], "--imb_factor 2.0: smallest / largest class"),
        (["--digits", "--val_fraction", "1"], "--val_fraction: '1': a number from 0 to below 1"),
    ],
)
def test_what_cannot_be_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        compare.main(words)
