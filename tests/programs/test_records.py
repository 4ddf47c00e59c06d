"""What every program promises about its checkpoints: nothing that diverged is kept, no run is
replaced by mistake, a run goes on from wherever it was killed, on the data that it began with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.training import pictures, precision
from common.training.errors import NonFiniteLoss, RunError, UsageError
from common.training.record import Record
from dbm_loss.margin import DBMargin
from hmloss import repeats
from tests.programs import small_runs

NAMES = [
    "ib_cifar", "dbm_cifar", "dbm_large", "gml_teacher", "gml", "hml_cifar", "hml_inat", "hml_isic",
    "arb_stage1", "arb_stage2",
]  # fmt: skip
STEPS = 4  # of an epoch: 13 images, batches of 4 (the last has 5), GML and ISIC their own


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(name, *flags):
    """Flags as the program takes them: arbloss has keys."""
    if not name.startswith("arb"):
        return list(flags)
    return [word.removeprefix("--") for word in flags]


def checkpoints():
    """{path: contents} of all checkpoints of the run, without those that it started from."""
    files = [path for path in Path().rglob("*.pth*") if ".part" not in path.name]
    return {path: path.read_bytes() for path in files}


def change_data(here, name):
    """A training image gets another name, and so another place, a test image another name and
    other pixels; one of ISIC goes to another part.
    """
    if name == "hml_isic":
        (split,) = here.rglob("split.csv")
        split.write_text(split.read_text().replace(",train", ",val", 1))
        return
    data = here / "data"
    for split, part in (("train", "train"), ("test", "val")):
        folder = data / split / "class_000"
        (folder / "0000.jpg").rename(folder / "zzzz.jpg")
        images = data / f"iNaturalist18_{part}.txt"
        images.write_text(images.read_text().replace("class_000/0000", "class_000/zzzz"))
    other = (data / "test/class_001/0000.jpg").read_bytes()
    (data / "test/class_000/zzzz.jpg").write_bytes(other)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_diverges_keeps_the_last_good_files(here, name, monkeypatch):
    """The weights blow up in a step of the second epoch whose loss is finite still: the last."""
    program, argv = small_runs.command(name)
    before = checkpoints()
    saved, write, close = [], Record._write, precision.FiniteGuard.close

    def count(self, state, *paths):
        write(self, state, *paths)
        saved.append(checkpoints())

    def blow_up(self):
        if saved:
            self._optimizer.param_groups[0]["params"][0].data.fill_(float("inf"))
        close(self)

    monkeypatch.setattr(Record, "_write", count)
    monkeypatch.setattr(precision.FiniteGuard, "close", blow_up)
    with pytest.raises(NonFiniteLoss, match=r" is not finite after epoch \d, step \d+, learning"):
        program.main(argv)
    assert len(saved) == 1 and saved[0].keys() > before.keys()
    assert checkpoints() == saved[0]
    for path in saved[0]:
        state = torch.load(path, weights_only=True)
        assert precision.first_non_finite({k: v for k, v in state.items() if k != "run"}) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_before_its_report_is_refused_resumed_and_evaluated_again(
    here, name, monkeypatch
):
    program, argv = small_runs.command(name)
    with monkeypatch.context() as patch:
        patch.setattr(Record, "finish", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            program.main(argv)
    killed = checkpoints()
    if not name.startswith("arb"):  # it numbers its folders
        with pytest.raises(UsageError, match="holds a run already; go on with --resume auto, "):
            program.main(argv)
        assert checkpoints() == killed

    change_data(here, name)
    resume = words(name, "--resume", "auto")
    latest = resume
    if name.startswith("arb"):  # where `resume auto` passes over it
        latest = ["resume", str(max(here.glob("saved/*/ckps/current.pth.tar")))]
    with pytest.raises(UsageError, match=r"the data are not those of this run, \w+_sha256 was"):
        program.main([*argv, *latest])
    assert checkpoints() == killed

    drawn = []
    monkeypatch.setattr(pictures, "picture", lambda path, *_: drawn.append(path.name))
    accept = ["--other_data"] if not name.startswith("arb") else ["other_data", "True"]
    program.main([*argv, *resume, *accept])
    its_own = {"reliability.png"} if name.startswith("arb") else set()
    assert {"confusion.png", "per_class.png", "curves.png", *its_own} <= set(drawn)
    assert len(list(here.rglob("report.json"))) == 1 + (name == "arb_stage2")


@pytest.mark.parametrize("name", ["dbm_cifar", "dbm_large", "gml_teacher", "gml"])
def test_a_run_keeps_its_margin_where_the_default_is_another(here, name, monkeypatch, capsys):
    """One that began with ``last``, which for images of one's own was the default once."""
    program, argv = small_runs.command(name)
    margins, build = [], DBMargin.__init__

    def noted(self, *args, margin_norm, **options):
        margins.append(margin_norm)
        build(self, *args, margin_norm=margin_norm, **options)

    monkeypatch.setattr(DBMargin, "__init__", noted)
    program.main([*argv, "--use_dbm", "--epochs", "1", "--margin_norm", "last"])
    capsys.readouterr()
    program.main([*argv, "--use_dbm", "--epochs", "2", "--resume", "auto"])
    assert margins and set(margins) == {"last"}
    (report,) = here.rglob("report.json")
    assert json.loads(report.read_text())["settings"]["margin_norm"] == "last"
    assert "resuming with changed settings: epochs 1 -> 2\n" in capsys.readouterr().out


CLASSES = [f"class_{c:03d}" for c in range(3)]
EVALUATE = ["--evaluate", "--resume", "other.pth"]
TEACH = ["--path_t", "other.pth", "--arch_t"]


@pytest.mark.parametrize(
    ("name", "flags", "classes"),
    [
        *((name, EVALUATE, CLASSES) for name in NAMES if name not in ("hml_inat", "hml_isic")
          and not name.startswith("arb")),
        ("hml_inat", EVALUATE, ["0", "1", "2"]),
        ("hml_isic", EVALUATE, ["nv", "mel"]),
        ("arb_stage1", ["resume", "other.pth", "other_data", "True"], CLASSES),
        ("gml_student", [*TEACH, "resnet20"], CLASSES),
        ("gml", [*TEACH, "resnet18"], CLASSES),
    ],
)  # fmt: skip
def test_a_checkpoint_whose_outputs_are_other_classes_is_refused(here, name, flags, classes):
    """Its figures would be wrong, and a teacher's lessons: by place, not by name."""
    program, argv = small_runs.PROGRAMS[name]
    if name == "hml_isic":
        files = sorted((here / "dataset").glob("*/*"))
        lines = [f"{f.name},{f.parent.name},{('test', 'train', 'val')[i % 3]}"
                 for i, f in enumerate(files)]  # fmt: skip
        (here / "dataset" / "split.csv").write_text("\n".join(["image,label,part", *lines]))
    state = {"epoch": 1, "state_dict": {}, "about": {"classes": classes[::-1]}}
    torch.save(state, "other.pth")
    with pytest.raises(UsageError) as error:
        program.main([*argv, *flags])
    flag = "--path_t " if "--path_t" in flags else ""
    assert str(error.value) == (
        f"{flag}other.pth: its class 0 is {classes[-1]!r}, and that of the data {classes[0]!r}; "
        "give data of the same classes in the same order"
    )


OTHERS = {
    "dbm_cifar": ["2026-01-31-23-59-59.txt"],
    "hml_isic": ["roc.png", "history_case_plot.png", "proba_distribution_MAL.csv"],
    "arb_stage1": ["reliability.png", "gradient_norms_003.npy"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_that_begins_removes_what_else_an_earlier_one_left(here, name, monkeypatch):
    program, argv = small_runs.command(name)
    names, left = [*OTHERS[name], "2026-notes.txt"], []

    def begin(self, seed, opened=Record.open):
        for file in names:
            (self.log_dir / file).touch()
        opened(self, seed)
        left.extend(file for file in names if (self.log_dir / file).exists())
        raise Killed

    monkeypatch.setattr(Record, "open", begin)
    with pytest.raises(Killed):
        program.main(argv)
    assert left == ["2026-notes.txt"]


READ_IN_TRAINING = ["dbm_large", "gml", "hml_inat", "hml_folder", "hml_isic"]


@pytest.mark.parametrize("name", READ_IN_TRAINING)
def test_an_image_that_proves_damaged_ends_the_run_not_the_command(here, name):
    """Exit code 1: the data are read as they are needed, and the flags are right."""
    program, argv = small_runs.command(name)
    folder = "dataset/BEN" if name == "hml_isic" else "data/train/class_000"
    for image in sorted((here / folder).iterdir()):
        image.write_bytes(b"no image")
    with pytest.raises(RunError, match=rf"{folder}/0\d+\.jpg.*: not a readable image \(cannot.+\); "
                       "repair or remove it$"):  # fmt: skip
        program.main(argv)


# Prints the files that another process can lock.
FREE = """
import fcntl, sys
for name in sys.argv[1:]:
    try:
        fcntl.lockf(open(name, "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
        print(name)
    except BlockingIOError:
        pass
"""


@pytest.mark.parametrize("name", ["hml_cifar", "hml_folder", "hml_isic"])
def test_the_folders_of_all_runs_are_locked_until_the_command_ends(here, name, monkeypatch):
    free = {}
    real = repeats.summary_line

    def spy(*args):
        locks = sorted(map(str, here.rglob(".lock")))
        done = subprocess.run(
            [sys.executable, "-c", FREE, *locks], capture_output=True, text=True, check=True
        )
        free[len(locks)] = done.stdout
        return real(*args)

    monkeypatch.setattr(repeats, "summary_line", spy)
    program, argv = small_runs.command(name)
    epochs = "--num_epochs" if name == "hml_isic" else "--epochs"
    program.main([*argv, epochs, "1", "--num_runs", "2"])
    assert free == {4: ""}  # logs and checkpoints of both runs
