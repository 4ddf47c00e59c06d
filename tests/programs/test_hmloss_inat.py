"""train_inat.py on made-up list files, and plot_loss."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from common.training.errors import RunError, UsageError
from hmloss import plot_loss
from hmloss.inat_implementation import train_inat
from tests.programs import tools
from tools import predict

SCRIPT = tools.ROOT / "hmloss/inat_implementation/train_inat.py"
RUN = "inat2018_resnet10_HML_W_CB_D_10000_run0"
COUNTS = [12, 6, 4, 3, 2]
SMALL = ["-a", "resnet10", "--image_size", "32", "-b", "8", "-p", "2", "--weighting_type", "CB"]
ARGV = [*SMALL, "--epochs", "2", "--start_hm_epoch", "1", "--seed", "1", "-j", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """data/iNaturalist18 with images and both lists."""
    folder = tmp_path_factory.mktemp("inat") / "iNaturalist18"
    tools.make_image_folder(folder, COUNTS, test_per_class=2, size=40)
    for part, split in (("train", "train"), ("val", "test")):
        lines = [
            f"{path.relative_to(folder)} {int(path.parent.name[-3:])}"
            for path in sorted((folder / split).rglob("*.jpg"))
        ]
        (folder / f"iNaturalist18_{part}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def here(data, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "iNaturalist18").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    where = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        rows = train_inat.main([*ARGV, "--dataset_dir", str(data)])
    return where, rows


def test_a_run_leaves_logs_report_and_checkpoints(finished):
    where, rows = finished
    report = json.loads((where / "history" / RUN / "report.json").read_text())
    assert report["cls_num_list"] == COUNTS
    assert report["final"]["top1"] == rows[0]["top1"]
    metrics = pd.read_csv(where / "history" / RUN / "metrics.csv")
    assert metrics["lr"].tolist() == pytest.approx([0.02, 0.001])
    assert (where / "checkpoint" / RUN / "ckpt.best.pth.tar").is_file()
    assert (where / "history" / f"{RUN.removesuffix('_run0')}_summary.csv").is_file()


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


def test_resumed_run_ends_the_same(finished, here, monkeypatch):
    """With worker processes; killed after the first epoch's checkpoint."""
    where, rows = finished
    end_epoch = train_inat.Record.end_epoch

    def end_or_die(self, row, **more):
        if row["epoch"] == 1:
            raise Killed
        end_epoch(self, row, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_inat.Record, "end_epoch", end_or_die)
        with pytest.raises(Killed):
            train_inat.main(ARGV)
    resumed = train_inat.main([*ARGV, "--resume", "auto"])
    pd.testing.assert_frame_equal(pd.DataFrame(resumed), pd.DataFrame(rows))
    name = f"checkpoint/{RUN}/ckpt.pth.tar"
    tools.assert_same_weights(where / name, here / name)


def test_evaluate(finished, here):
    where, rows = finished
    path = str(where / "checkpoint" / RUN / "ckpt.pth.tar")
    (result,) = train_inat.main([*ARGV, "--evaluate", "--resume", path])
    assert result["top1"] == rows[0]["top1"]


def test_bad_input_is_one_line(here):
    cases = [
        (["--dataset_dir", "nowhere"], "iNaturalist18_train.txt"),
        (["--train_list", "nowhere.txt"], "nowhere.txt"),
        (["--pretrained", "-a", "resnet50", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["--resume", "nowhere"], "no such file"),
    ]
    for change, text in cases:
        with pytest.raises(UsageError, match=text) as caught:
            train_inat.main([*ARGV, *change])
        assert "\n" not in str(caught.value)


def test_a_folder_needs_its_root_and_no_lists():
    folder = ["--dataset", "imagefolder"]
    for flags, message in (
        ([], "--dataset imagefolder: say where the images are, --root DIR"),
        (["--root", "x", "--classes", "y"], "--classes y: for list files; an image folder"),
        (["--root", "x", "--val_list", "y"], "--val_list y: for list files; "),
        (
            ["--root", "nowhere"],
            "image folder nowhere: no such folder; expected DIR/train/<class>/*",
        ),
    ):
        with pytest.raises(UsageError) as error:
            train_inat.main([*ARGV, *folder, *flags])
        assert str(error.value).startswith(message)


def test_the_checkpoint_alone_predicts_the_images_of_a_list(finished, data, monkeypatch):
    where, rows = finished
    monkeypatch.chdir(where)
    names = [f"class_{c:03d}" for c in range(len(COUNTS))]
    (where / "names").write_text("\n".join(names))
    path = f"checkpoint/{RUN}/ckpt.pth.tar"
    predict.main([path, str(data / "iNaturalist18_val.txt"), "--classes", "names", "-j", "0"])
    said = pd.read_csv("predictions/predictions.csv")
    assert (said["true"] == said["path"].str.split("/").str[1]).all()
    assert 100 * (said["true"] == said["class"]).mean() == pytest.approx(rows[0]["top1"])
    ours = pd.read_csv(f"history/{RUN}/predictions.csv")
    assert said["class"].tolist() == [names[c] for c in ours["predicted"]]
    np.testing.assert_allclose(said["probability"], ours["probability"], atol=1e-5)


def test_readme_command(here):
    """As printed; what shortens it comes after."""
    done = tools.run_fresh([SCRIPT, "--loss_type", "HML", "--delta", "10000", *ARGV], here)
    assert done.returncode == 0, done.stderr
    assert "27 training and 10 validation images, 5 classes" in done.stdout
    assert "WARNING" in done.stdout  # the published list has 437,513 images
    assert "1 run: best_top1 " in done.stdout


def test_plot_loss_writes_a_picture(here):
    plot_loss.main(["--delta", "130", "--out", "hml.png"])
    pixels = np.asarray(Image.open(here / "hml.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 20 and pixels.std() > 10
    with pytest.raises(UsageError, match="above 0"):
        plot_loss.main(["--delta", "0"])
    with pytest.raises(RunError, match=r"no/such/folder\.png: cannot be written"):
        plot_loss.main(["--out", "no/such/folder.png"])


def test_plot_loss_as_a_module(tmp_path):
    done = tools.run_fresh(
        ["-m", "hmloss.plot_loss", "--delta", "200", "--out", tmp_path / "x.png"], tools.ROOT
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").stat().st_size > 10_000
