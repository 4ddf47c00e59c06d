"""ISIC 2019: official csv, split, transforms and statistics give the numbers of the original."""

import io
import os
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from common.training.errors import UsageError
from datasets.folder import Skipped
from hmloss.isic2019_implementation import data as isic
from hmloss.isic2019_implementation.preprocessing.mean_std import channel_mean_std

TRAINER = ("train", "test", "val")  # the order in which the authors' trainer cuts


@pytest.fixture(scope="module")
def g(golden):
    return golden("hmloss")


def rows_by_class(files):
    """(image_id, label) of paths such as dataset/BEN/x.JPG, by class in the order given."""
    ids = {name: [] for name in isic.CLASSES}
    for file in files:
        _, label, name = file.split("/")
        ids[label].append(name)
    return ids


def test_split_is_the_trainers(g):
    for case in g.facts["isic_splits"]:
        rng = np.random.RandomState(case["seed"])
        ids = rows_by_class(case["files"])
        part_of = isic.split_images(ids, rng, order=TRAINER)
        for part in isic.PARTS:
            rows = [
                [name, label, isic.CLASSES.index(label)]
                for label in isic.CLASSES
                for name in ids[label]
                if part_of[name] == part
            ]
            assert rows == case[part]
        counts = [sum(part_of[name] == "train" for name in ids[label]) for label in isic.CLASSES]
        assert counts == case["cls_num_list"]
        assert rng.rand() == case["next_rand"]


def test_split_is_the_splitting_scripts(g):
    for case in g.facts["isic_split_script"]:
        rng = np.random.RandomState(case["seed"])
        folder = {"NEV": "BEN", "MEL": "MAL"}
        ids = {folder[name]: sorted(files) for name, files in case["listing"].items()}
        part_of = isic.split_images(ids, rng)
        label_of = {name: label for label, names in ids.items() for name in names}
        copies = [[name, f"{isic.TREE[part]}/{label_of[name]}"] for name, part in part_of.items()]
        assert copies == case["copies_in_order"]
        assert rng.rand() == case["next_rand"]


def test_official_csv(g, tmp_path):
    case = g.facts["isic_csv_split"]
    path = tmp_path / "truth.csv"
    path.write_text(case["csv"])
    ids = {k: [f"{name}.JPG" for name in v] for k, v in isic.read_ground_truth(path).items()}
    assert ids == {"BEN": case["BEN"], "MAL": case["MAL"]}
    part_of = isic.split_images(ids, np.random.RandomState(case["seed"]), order=TRAINER)
    for part in isic.PARTS:
        in_order = [n for names in ids.values() for n in names if part_of[n] == part]
        assert in_order == case[part]


def test_cut_points(g):
    for bounds in ("split_get_data_bounds", "split_script_bounds"):
        ours = [isic.cut_points(int(n)) for n in g["split_n"]]
        np.testing.assert_array_equal(ours, g[bounds])


def test_lesions_stay_together():
    ids = {name: [f"{name}_{i:03d}.jpg" for i in range(60)] for name in isic.CLASSES}
    lesion_of = {f"{name}_{i:03d}": f"{name}-lesion-{i // 4}" for name in ids for i in range(40)}
    lesion_of["MAL_041"] = "BEN-lesion-0"  # one lesion with images in both classes
    for seed in range(10):
        part_of = isic.split_images(ids, np.random.RandomState(seed), lesion_of=lesion_of)
        assert len(part_of) == 120
        parts = {}
        for name, lesion in lesion_of.items():
            parts.setdefault(lesion, set()).add(part_of[f"{name}.jpg"])
        assert all(len(found) == 1 for found in parts.values())
        sizes = pd.Series(part_of).value_counts()
        assert abs(sizes["train"] - 96) <= 8 and sizes["val"] >= 4 and sizes["test"] >= 4


def test_single_lesions_split_like_images():
    ids = {name: [f"{name}_{i}.jpg" for i in range(23)] for name in isic.CLASSES}
    own = {f"{name}_{i}": f"{name}_{i}.jpg" for name in ids for i in range(23)}
    plain = isic.split_images(ids, np.random.RandomState(1))
    assert isic.split_images(ids, np.random.RandomState(1), lesion_of=own) == plain


def test_missing_lesions_stand_alone(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text("image,age_approx,lesion_id\nA,40,L1\nB,50,\nC,,L1\n")
    assert isic.read_lesions(path) == {"A": "L1", "C": "L1"}


def make_images(folder, counts=(6, 6), suffix=".JPG"):
    for name, number in zip(isic.CLASSES, counts, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(
                folder / name / f"{name}{i}{suffix}", format="JPEG"
            )


def test_saved_split_is_read_back(tmp_path):
    make_images(tmp_path)
    table = isic.find_images(tmp_path)
    assert table["image_id"].tolist() == [
        f"{name}{i}.JPG" for name in isic.CLASSES for i in range(6)
    ]
    table["part"] = (list(isic.PARTS) * 2) * 2
    isic.save_split(tmp_path / "split.csv", table, "seed 7")
    assert (tmp_path / "split.csv").read_text().startswith("# seed 7\nimage,label,part\n")
    again = isic.load_split(tmp_path / "split.csv", isic.find_images(tmp_path))
    pd.testing.assert_frame_equal(again, table)


def test_names_that_are_no_utf8_are_split_saved_and_read(tmp_path):
    make_images(tmp_path)
    os.rename(tmp_path / "BEN" / "BEN0.JPG", os.fsencode(tmp_path / "BEN") + b"/\xff#.JPG")
    table = isic.find_images(tmp_path).assign(part=(list(isic.PARTS) * 2) * 2)
    isic.save_split(tmp_path / "split.csv", table, "seed 7")
    again = isic.load_split(tmp_path / "split.csv", isic.find_images(tmp_path))
    pd.testing.assert_frame_equal(again, table)
    assert isic.fingerprints(again) == isic.fingerprints(table)


def test_hidden_images_are_skipped_and_counted(tmp_path):
    make_images(tmp_path, (2, 1))
    (tmp_path / "MAL" / "._MAL0.JPG").write_bytes(b"of an archive")
    skipped = Skipped()
    assert isic.find_images(tmp_path, skipped=skipped)["image_id"].tolist() == [
        "BEN0.JPG", "BEN1.JPG", "MAL0.JPG"
    ]  # fmt: skip
    assert skipped.hidden == [str(tmp_path / "MAL" / "._MAL0.JPG")]


def test_images_of_all_kinds_are_taken_and_folders_counted(tmp_path):
    make_images(tmp_path, (2, 1))
    for suffix in (".bmp", ".webp", ".tiff", ".PNG"):
        Image.new("RGB", (8, 8)).save(tmp_path / "BEN" / f"of{suffix.lower()}{suffix}")
    (tmp_path / "BEN" / "more").mkdir()
    (tmp_path / "BEN" / "a.gif").touch()
    skipped = Skipped()
    assert isic.find_images(tmp_path, skipped=skipped)["image_id"].tolist() == [
        "BEN0.JPG", "BEN1.JPG", "of.bmp.bmp", "of.png.PNG", "of.tiff.tiff", "of.webp.webp",
        "MAL0.JPG",
    ]  # fmt: skip
    assert skipped.notes(tmp_path) == [
        f"note: {tmp_path}: skipped files that are no images by their ending: 1 (such as "
        f"{tmp_path / 'BEN' / 'a.gif'}), folders, as the images are expected beside them: 1 (such "
        f"as {tmp_path / 'BEN' / 'more'})"
    ]
    Image.new("RGB", (8, 8)).save(tmp_path / "BEN" / "BEN1.png")
    with pytest.raises(UsageError, match=r"BEN1\.png: BEN1\.JPG is there, too; keep one of them"):
        isic.find_images(tmp_path)


def test_a_class_that_a_part_lacks_is_noted_once(tmp_path):
    for part in isic.PARTS:
        for name in ("a", "b", "c")[: 2 if part == "val" else 3]:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    (tmp_path / "val" / "a" / ".0.png").write_bytes(b"")
    images = isic.open_task(isic.FOLDER, tmp_path)
    notes = [*images.notes, *isic.check_parts(images.table, tmp_path, images.folders)]
    assert [note.partition(": ")[2] for note in notes] == [
        f"{tmp_path}/val: skipped hidden files and folders: 1 (such as {tmp_path}/val/a/.0.png)",
        f"the val part of {tmp_path} has no image of 1 of the 3 classes (c): they have no accuracy",
    ]


def test_tree_is_read(tmp_path):
    for part, folder in isic.TREE.items():
        make_images(tmp_path / folder, (2, 1))
        for file in sorted((tmp_path / folder).rglob("*.JPG")):
            file.rename(file.with_name(f"{part}-{file.name}"))
    table = isic.find_images(tmp_path)
    assert table.groupby("part").size().to_dict() == {"test": 3, "train": 3, "val": 3}
    assert all(row.image_id.startswith(row.part) for row in table.itertuples())
    isic.check_parts(table, tmp_path)


def test_bad_folders_are_named(tmp_path):
    cases = [
        (lambda d: (d / "BEN" / "BEN0.JPG").rename(d / "MAL" / "BEN1.JPG"), "occurs twice"),
        (lambda d: [f.unlink() for f in (d / "MAL").iterdir()], "no image"),
        (lambda d: (d / "MAL").rename(d / "MEL"), "no such folder"),
    ]
    for spoil, text in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        make_images(folder)
        spoil(folder)
        with pytest.raises(UsageError, match=text):
            isic.find_images(folder)


def test_bad_splits_are_named(tmp_path):
    cases = [
        ("image,label\nBEN0.JPG,BEN\n", "not a split"),
        ("image,label,part\nBEN0.JPG,BEN,trein\n", "trein"),
        ("image,label,part\nBEN0.JPG,BEN,train\n", "lacks images"),
        ("image,label,part\nBEN9.JPG,BEN,train\n", "not there"),
        (None, "No such file"),
    ]
    for content, text in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        make_images(folder)
        path = folder / "split.csv"
        if content:
            path.write_text(content)
        with pytest.raises(UsageError, match=text):
            isic.load_split(path, isic.find_images(folder))


def test_one_class_parts_are_named(tmp_path):
    make_images(tmp_path)
    table = isic.find_images(tmp_path)
    table["part"] = list(isic.PARTS) * 4
    isic.check_parts(table, "here")
    table.loc[(table["part"] == "val") & (table["label"] == "MAL"), "part"] = "train"
    with pytest.raises(UsageError, match="no MAL image in the val part"):
        isic.check_parts(table, "here")


def test_wrong_csv_is_named(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("image,NV\nA,1\n")
    with pytest.raises(UsageError, match="'MEL'"):
        isic.read_ground_truth(path)
    with pytest.raises(UsageError, match=r"none\.csv"):
        isic.read_ground_truth(tmp_path / "none.csv")


def test_evaluation_transform(g):
    image = Image.fromarray(g["isic_tf_image"])
    out = isic.eval_transform()(image)
    assert out.shape == (3, 300, 300)
    np.testing.assert_allclose(out[:, ::15, ::15], g["isic_tf_out_stride15"], atol=0.05)


def test_dataset_converts_to_rgb(tmp_path):
    Image.new("L", (9, 5), 100).save(tmp_path / "grey.png")
    table = pd.DataFrame({"path": [str(tmp_path / "grey.png")], "label_idx": [1]})
    image, label = isic.ISIC2019(table, isic.train_transform(12))[0]
    assert image.shape == (3, 12, 12) and label == 1


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"not a JPEG")
    table = pd.DataFrame({"path": [str(tmp_path / "x.jpg")], "label_idx": [0]})
    with pytest.raises(UsageError, match=r"x\.jpg"):
        isic.ISIC2019(table, isic.eval_transform(12))[0]


def test_mean_and_std(g):
    images = []
    while f"meanstd_rgb{len(images)}" in g:
        images.append(Image.fromarray(g[f"meanstd_rgb{len(images)}"]))
    mean, std = channel_mean_std(images)
    np.testing.assert_allclose(mean, g["meanstd_mean_rgb"], atol=1e-3)
    np.testing.assert_allclose(std, g["meanstd_std_rgb"], atol=1e-3)


def test_truncated_image_is_named(tmp_path):
    data = io.BytesIO()
    noise = np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(data, format="JPEG")
    (tmp_path / "cut.jpg").write_bytes(data.getvalue()[:500])
    table = pd.DataFrame({"path": [str(tmp_path / "cut.jpg")], "label_idx": [0]})
    with pytest.raises(UsageError, match=r"cut\.jpg"):
        isic.ISIC2019(table, isic.eval_transform(12))[0]
