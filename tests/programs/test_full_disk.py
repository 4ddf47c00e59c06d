"""A disk that fills up while a program trains: one line, no half-written checkpoint."""

import resource

import numpy as np
import pytest

from arbloss import train_stage1
from common.training.errors import RunError
from dbm_loss.cifar import main as dbm_cifar
from dbm_loss.GML import cifar_ce, cifar_main
from hmloss.cifar_implementation import train_cifar as hmloss_cifar
from ib_loss import cifar_train
from tests.programs.arbloss_data import CONFIG

SMALL = ["--dataset", "npz", "--imb_type", "none", "--image_size", "8", "--epochs", "1"]
GML = [*SMALL, "--mark", "m", "--arch", "resnet20", "--batch-size", "8", "--data"]
RUNS = {
    "ib_loss": (cifar_train, [*SMALL, "-a", "resnet20", "--root"]),
    "dbm_cifar": (dbm_cifar, [*SMALL, "--data_dir"]),
    "gml_teacher": (cifar_ce, GML),
    "gml_student": (cifar_main, ["--moco-k", "16", *GML]),
    "hmloss": (hmloss_cifar, [*SMALL, "-a", "resnet20", "--num_runs", "1", "--root"]),
    "arbloss": (train_stage1, [
        "--cfg", str(CONFIG / "cifar10/cifar10_imb001.yaml"), "dataset", "npz", "num_classes", "3",
        "imb_factor", "null", "head_class_idx", "[0, 1]", "med_class_idx", "[1, 2]",
        "tail_class_idx", "[2, 3]", "num_epochs", "1", "image_size", "8",
        "backbone", "resnet20_fe", "data_path",
    ]),
}  # fmt: skip


@pytest.fixture
def little_room(tmp_path, monkeypatch):
    """A folder of files of at most 200 kB: the logs fit, a checkpoint does not."""
    images, labels = np.zeros((9, 8, 8), np.uint8), np.arange(9) % 3
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_that_does_not_fit_is_one_line(name, little_room):
    program, argv = RUNS[name]
    with pytest.raises(RunError) as error:
        program.main([*argv, "set.npz"])
    assert str(error.value).endswith(
        ".pth.tar: cannot be written (File too large); fix that and start again, a training with "
        "--resume auto (arbloss: resume auto)"
    )
    left = [path.name for path in little_room.rglob("*")]
    assert not [name for name in left if name.endswith((".pth.tar", ".part"))]
