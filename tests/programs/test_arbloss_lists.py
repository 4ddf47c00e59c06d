"""ImageNet-LT, iNaturalist 2018 and Places-LT from small made lists, one process."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from arbloss import eval as evaluation
from arbloss import train_stage1, train_stage2
from arbloss.data import load_data
from arbloss.opts import check, load_config
from common.models.resnet import resnet10
from common.training.errors import UsageError
from common.training.report import fingerprint
from datasets import folder, listfile
from dbm_loss.large_scale import data as large_scale
from hmloss.inat_implementation import data as inat
from hmloss.inat_implementation import opts as inat_opts
from tests.programs.arbloss_data import CONFIG, GROUPS, make_lists
from tests.programs.tools import make_image_folder
from tools import compare, predict

FILES = {
    "imagenet": ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt"),
    "ina2018": ("iNaturalist18_train.txt", "iNaturalist18_val.txt"),
    "places": ("Places_LT_train.txt", "Places_LT_test.txt"),
}
COUNTS = [3, 1, 6, 2, 3]  # not in order of size
TINY = ["num_classes", "5", "backbone", "resnet10_fe", "batch_size", "8", "workers", "0",
        "num_epochs", "1", *GROUPS]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    return {
        name: make_lists(tmp_path_factory.mktemp(name), *files, COUNTS)
        for name, files in FILES.items()
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet10.pth"
    torch.save(resnet10(1000).state_dict(), path)
    return path


def command(dataset, *words):
    name = f"{dataset}_resnet50_arbloss_ugcc_mixup.yaml"
    return ["--cfg", str(CONFIG / dataset / name), *TINY, *words]


def config(dataset, *words):
    _, cfg, *words = command(dataset, *words)
    return load_config(cfg, words)


def report(where):
    (path,) = where.glob("saved/*/logs/report.json")
    return json.loads(path.read_text())


def test_inaturalist_command_with_the_right_spelling(lists, here, capsys):
    """The configuration says ./data/iNaturelist2018."""
    (here / "data").mkdir()
    (here / "data" / "iNaturalist2018").symlink_to(lists["ina2018"])
    train_stage1.main(command("ina2018"))
    said = capsys.readouterr().out
    assert "world_size 8, but no launcher started this program" in said
    assert "iNaturalist18_train.txt: 15 images of 5 classes, the published list has 437,513" in said
    facts = report(here)
    assert facts["cls_num_list"] == [6, 3, 3, 2, 1]  # class 0 is the largest
    assert facts["settings"]["arb_loss_use_global_class_cnt"] is True


def test_lists_in_a_folder_of_their_own(lists, here):
    elsewhere = here / "lists"
    elsewhere.mkdir()
    for name in FILES["ina2018"]:
        (elsewhere / name).write_text((lists["ina2018"] / name).read_text())
    root = here / "images"
    root.mkdir()
    (root / "images").symlink_to(lists["ina2018"] / "images")
    with pytest.raises(UsageError, match=r"no iNaturalist18_train\.txt in .*data_txt"):
        load_data(config("ina2018", "data_path", str(root)))
    data = load_data(config("ina2018", "data_path", str(root), "list_path", str(elsewhere)))
    assert len(data.train) == 15
    image, label = data.train[0]
    assert image.shape == (3, 224, 224)
    assert label == 1  # the list's class 0 is the second largest


def test_a_part_of_the_list_may_choose(lists):
    words = ["data_path", str(lists["imagenet"]), "val_fraction", "0.4"]
    data = load_data(config("imagenet", *words))
    assert data.cls_num_list == np.bincount(data.train.targets).tolist() == [4, 2, 2, 1, 1]
    assert np.bincount(data.val.targets).tolist() == [2, 1, 1, 1]  # the only image of a class stays
    assert (data.chosen_on, data.split, data.facts["val_images"]) == ("held-out", "test", 5)
    assert len(data.test) == 10
    first, again = data.val[0][0], data.val[0][0]
    assert first.shape == (3, 224, 224) and first.equal(again)  # not augmented


def test_the_part_that_chooses_is_that_of_the_other_programs(tmp_path, monkeypatch):
    """Of a folder and of its lists, whatever the order of the classes."""
    root = make_image_folder(tmp_path / "birds", [4, 2, 12, 4, 6], test_per_class=1)
    compare.write_lists(compare.Images("imagefolder", str(root), 5, str(tmp_path), ("test",)))
    train, test = (str(tmp_path / name) for name in FILES["imagenet"])
    arb = ["data_path", str(root), "list_path", str(tmp_path), "val_fraction", "0.5"]
    hml = ["--dataset_dir", str(root), "--train_list", train, "--val_list", test]
    found = [
        load_data(config("imagenet", *arb)),
        inat.load_data(inat_opts.parse_args([*hml, "--val_fraction", "0.5"])[0]),
        *(large_scale.load_data(source, large_scale.train_recipes("ce")) for source in (
            large_scale.Source("imgnet", root, list_dir=tmp_path, val_fraction=0.5),
            large_scale.Source("imagefolder", root, val_fraction=0.5))),
    ]  # fmt: skip
    read = []
    for module in (folder, listfile):
        monkeypatch.setattr(module, "read_rgb", read_as(read, module.read_rgb))
    files = []
    for data in found:
        read.clear()
        assert len([data.val[i] for i in range(len(data.val))]) == 14
        files.append(list(read))
    assert files[1:] == files[:1] * 3
    assert found[0].cls_num_list == [6, 3, 2, 2, 1]


def read_as(read, real):
    """``read_rgb`` that notes the files."""
    return lambda file, *place: (read.append(file), real(file, *place))[1]


@pytest.mark.parametrize("key", ["test", "val"])
def test_a_class_is_called_alike_in_all_lists(lists, tmp_path, key):
    """The labels of the message are the list's, not their ranks."""
    rows = {name: (lists["imagenet"] / name).read_text().splitlines() for name in FILES["imagenet"]}
    for name, names in zip(rows, ("ABCDE", "ABCED"), strict=True):
        named = [f"{row} {names[int(row[-1])]}" for row in rows[name]]
        (tmp_path / name).write_text("\n".join(named))
    words = ["data_path", str(lists["imagenet"]), "list_path", str(tmp_path)]
    train, test = (tmp_path / name for name in FILES["imagenet"])
    if key == "val":
        test = test.rename(tmp_path / "val.txt")
        (tmp_path / FILES["imagenet"][1]).write_text("\n".join(rows[FILES["imagenet"][1]]))
        words += ["val_list", str(test)]
    with pytest.raises(UsageError) as error:
        load_data(config("imagenet", *words))
    assert str(error.value) == (
        f"{test}: class 3 is called E, and D in {train}; number the classes of all lists alike"
    )


def test_another_list_may_choose(lists):
    lines = (lists["imagenet"] / FILES["imagenet"][1]).read_text().splitlines()
    chosen = lists["imagenet"] / "mine.txt"
    chosen.write_text("\n".join(lines[::2]))
    words = ["data_path", str(lists["imagenet"]), "val_list", str(chosen)]
    data = load_data(config("imagenet", *words))
    assert data.val.targets.tolist() == data.test.targets.tolist()[::2]
    assert (data.chosen_on, data.split) == ("val", "test")
    assert data.notes[-2:] == [
        f"evaluated on {data.facts['test_set']}, 10 images; the best epoch is chosen on {chosen}, "
        "5 images",
        "note: in training, epochs are evaluated on the validation set, the test set at the end",
    ]
    assert data.facts["val_list_sha256"] == fingerprint(data.val.paths)
    with pytest.raises(UsageError, match=r"mine\.txt is for validation already"):
        load_data(config("imagenet", *words, "val_fraction", "0.4"))


@pytest.mark.parametrize("dataset", ["imagenet", "places"])
def test_labels_are_ranks_in_both_lists(lists, dataset):
    data = load_data(config(dataset, "data_path", str(lists[dataset])))
    assert np.bincount(data.train.targets).tolist() == data.cls_num_list == [6, 3, 3, 2, 1]
    assert data.test.targets.tolist() == [1, 1, 4, 4, 0, 0, 3, 3, 2, 2]


def test_places_trains_the_block_on_frozen_features_then_stage_2(lists, weights, here):
    data = ["data_path", str(lists["places"])]
    start = torch.load(weights, weights_only=True)
    train_stage1.main(command("places", *data, "weights", str(weights)))
    (path,) = here.glob("saved/*/ckps/current.pth.tar")
    state = torch.load(path, weights_only=True)
    assert all(torch.equal(value, start[key]) for key, value in state["state_dict_model"].items())
    assert state["state_dict_block"]["bn1.num_batches_tracked"] == 2
    assert len(state["optimizer"]["param_groups"][0]["params"]) == 9  # of the block

    again = train_stage1.main(command("places", *data, "resume", str(path), "num_epochs", "2"))
    assert again["epoch"] == 1
    stage2 = ["--cfg", str(CONFIG / "places" / "places_resnet152_stage2_mislas.yaml"), *TINY]
    row = train_stage2.main([*stage2, *data, "resume", str(path)])
    (second,) = here.glob("saved/*stage2*/ckps/current.pth.tar")
    after = torch.load(second, weights_only=True)
    before = torch.load(path, weights_only=True)
    for name, value in before["state_dict_block"].items():
        statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, after["state_dict_block"][name]) != statistic, name
    assert evaluation.main([*stage2, *data, "resume", str(second)])["top1"] == row["top1"]

    # The checkpoints alone predict what the reports say, of classes that the lists call 0 to 4.
    test_list = lists["places"] / FILES["places"][1]
    for checkpoint in (path, second):
        predict.main([str(checkpoint), str(test_list), "--out", "out", "-j", "0"])
        said = pd.read_csv("out/predictions.csv")
        reported = pd.read_csv(checkpoint.parents[1] / "logs" / "predictions.csv")
        files = [str(lists["places"] / name) for name in said["path"]]
        assert files == reported["image"].tolist()
        assert said["true"].tolist() == reported["true"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert said["class"].tolist() == reported["predicted"].tolist()
        np.testing.assert_allclose(said["probability"], reported["probability"], atol=1e-5)


def test_places_without_weights_says_so(lists, here):
    words = ["data_path", str(lists["places"])]
    for resume in ("", "auto"):  # which finds nothing
        with pytest.raises(UsageError, match=r"^backbone resnet10_fe: no ImageNet weights exist"):
            train_stage1.main(command("places", *words, "resume", resume))
    assert not list(here.iterdir())
    with pytest.raises(UsageError, match=r"weights gone\.pth: no such file"):
        train_stage1.main(command("places", *words, "weights", "gone.pth"))
    notes = check(config("places", "not_pretrained", "True"), stage=1)
    assert "note: not_pretrained True: the frozen backbone keeps its random weights" in notes


def test_a_validation_list_where_there_is_no_test_list(lists, here):
    (here / "lists").mkdir()
    for name, own in (("train", "train"), ("test", "val")):
        text = (lists["imagenet"] / f"ImageNet_LT_{name}.txt").read_text()
        (here / "lists" / f"ImageNet_LT_{own}.txt").write_text(text)
    words = ["data_path", str(lists["imagenet"]), "list_path"]
    assert load_data(config("imagenet", *words, str(here / "lists"))).split == "val"
    assert load_data(config("imagenet", *words, str(lists["imagenet"]))).split == "test"


def test_wrong_number_of_classes_is_named(lists):
    words = ["data_path", str(lists["imagenet"]), "num_classes", "6"]
    with pytest.raises(UsageError, match=r"num_classes 6: .*train\.txt has 5 classes"):
        load_data(config("imagenet", *words))
