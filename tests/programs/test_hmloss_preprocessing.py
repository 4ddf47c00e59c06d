"""preprocess.py and split.py, from a made download in the official layout to a split."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from common.training.errors import UsageError
from hmloss.isic2019_implementation.preprocessing import mean_std, preprocess, split
from hmloss.isic2019_implementation.preprocessing.color_constancy import (
    center_crop,
    color_constancy,
)
from tests.programs.tools import ROOT, run

HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """14 nevi, 10 melanomas and 3 others as JPEGs of two sizes, one broken, one absent; two csv."""
    folder = tmp_path_factory.mktemp("download")
    images = folder / "ISIC_2019_Training_Input"
    images.mkdir()
    rng = np.random.RandomState(0)
    truth, metadata = [HEADER], ["image,age_approx,anatom_site_general,lesion_id,sex"]
    kinds = ["NV"] * 14 + ["MEL"] * 10 + ["BCC"] * 3
    for i, kind in enumerate(kinds):
        name = f"ISIC_{i:07d}" + ("_downsampled" if i % 5 == 0 else "")
        one_hot = [f"{float(kind == column)}" for column in HEADER.split(",")[1:]]
        truth.append(",".join([name, *one_hot]))
        metadata.append(f"{name},50,torso,{f'BCN_{kind}_{i // 2}' if i % 7 else ''},male")
        pixels = rng.randint(20, 180, (30, 40 if i % 2 else 30, 3)) // [1, 2, 3]
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{name}.jpg", quality=90)
    (images / "ISIC_0000001.jpg").write_bytes(b"broken")
    (images / "ISIC_0000016.jpg").unlink()
    (folder / "truth.csv").write_text("\n".join(truth) + "\n")
    (folder / "metadata.csv").write_text("\n".join(metadata) + "\n")
    return folder


def arguments(download, output, *more):
    return [
        "--images", str(download / "ISIC_2019_Training_Input"),
        "--ground_truth", str(download / "truth.csv"),
        "--output", str(output), "-j", "2", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def processed(download, tmp_path_factory):
    output = tmp_path_factory.mktemp("processed") / "dataset"
    preprocess.main(arguments(download, output))
    return output


def test_images_are_cropped_corrected_and_sorted(download, processed):
    assert len(list((processed / "BEN").iterdir())) == 13
    assert len(list((processed / "MAL").iterdir())) == 9
    for path in processed.glob("*/*.jpg"):
        original = Image.open(download / "ISIC_2019_Training_Input" / path.name).convert("RGB")
        expected = color_constancy(center_crop(original))
        written = Image.open(path)
        assert written.size == expected.size == (30, 30)
        difference = np.abs(np.asarray(written, float) - np.asarray(expected, float))
        assert difference.mean() < 25  # JPEG of noise; uncorrected pixels are further off
        mean = np.asarray(written, float).mean((0, 1))
        assert np.ptp(mean) < 6  # grey on average, the originals' channels differ threefold


def test_unreadable_files_are_named_and_passed_over(processed):
    complaints = (processed / "unreadable.txt").read_text().splitlines()
    assert len(complaints) == 2
    assert "ISIC_0000001.jpg" in complaints[0] and "ISIC_0000016.jpg" in complaints[1]


def test_goes_on_where_it_stopped(download, processed, capsys):
    files = sorted(processed.glob("*/*.jpg"))
    kept, lost = files[3], files[5]
    before = kept.stat().st_mtime_ns
    content = lost.read_bytes()
    lost.unlink()
    lost.with_name(f"{lost.name}.part").write_bytes(b"left by a kill")
    preprocess.main(arguments(download, processed))
    assert "2 images to convert, 21 done already" in capsys.readouterr().out
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == before
    assert not list(processed.rglob("*.part"))


def test_nothing_is_overwritten(download, processed, tmp_path):
    with pytest.raises(UsageError, match="made with quality = 75, not 90"):
        preprocess.main(arguments(download, processed, "--quality", "90"))
    (tmp_path / "BEN").mkdir()
    (tmp_path / "BEN" / "mine.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="did not make"):
        preprocess.main(arguments(download, tmp_path))


@pytest.mark.parametrize("text", ["half {", "[1]"])
def test_settings_that_are_none_are_named(tmp_path, text):
    (tmp_path / "preprocess.json").write_text(text)
    with pytest.raises(UsageError, match=r"preprocess\.json: not readable \(.+\); choose another"):
        preprocess.prepare_output(tmp_path, {"quality": 75}, "melanoma")


def test_bad_input_is_named(download, tmp_path):
    cases = [
        (["--algorithm", "shades of gray", "--p", "5"], "p = 5"),
        (["--quality", "0"], "--quality 0"),
        (["--images", "/nowhere"], "no such folder"),
        (["--ground_truth", "/nowhere.csv"], "not a readable csv"),
    ]
    for more, text in cases:
        with pytest.raises(UsageError, match=text):
            preprocess.main(arguments(download, tmp_path / "out", *more))
        assert not (tmp_path / "out").exists()


def test_wrong_folder_is_named(download, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"none of the 24 images of .* is there; give the folder"):
        preprocess.main(arguments(download, tmp_path / "out", "--images", str(empty)))


def test_literal_behaviour_of_the_original(download, tmp_path):
    preprocess.main(arguments(download, tmp_path, "--no_crop", "--algorithm", "none"))
    sizes = {Image.open(path).size for path in tmp_path.glob("*/*.jpg")}
    assert sizes == {(30, 30), (40, 30)}


def test_split_is_seeded_and_saved(processed, tmp_path, capsys):
    for name in ("a.csv", "b.csv"):
        split.main(
            ["--dataset_dir", str(processed), "--seed", "4", "--output", str(tmp_path / name)]
        )
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "BEN", "Total images:  13", "Training:  10", "Validation:  1", "Testing:  2",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="not overwritten"):
        split.main(["--dataset_dir", str(processed), "--output", str(tmp_path / "a.csv")])


def test_split_keeps_lesions_together_and_copies_a_tree(download, processed, tmp_path):
    split.main(
        [
            "--dataset_dir", str(processed), "--output", str(tmp_path / "split.csv"),
            "--seed", "0", "--metadata", str(download / "metadata.csv"),
            "--train_ratio", "0.6", "--val_ratio", "0.2", "--tree", str(tmp_path / "tree"),
        ]
    )  # fmt: skip
    table = pd.read_csv(tmp_path / "split.csv", comment="#")
    metadata = pd.read_csv(download / "metadata.csv")
    table["image"] = table["image"].str.removesuffix(".jpg")
    joined = table.merge(metadata, on="image").dropna(subset="lesion_id")
    assert (joined.groupby("lesion_id")["part"].nunique() == 1).all()
    assert joined["lesion_id"].duplicated().any()
    assert len(list((tmp_path / "tree").rglob("*.jpg"))) == len(table) == 22


def test_bad_splits_are_named(processed, tmp_path):
    cases = [
        (["--train_ratio", "0.9", "--val_ratio", "0.1"], "below 1"),
        (["--train_ratio", "0.95", "--val_ratio", "0.04"], "no BEN image in the val part"),
        (["--metadata", "/nowhere.csv"], "not a readable csv"),
    ]
    for more, text in cases:
        with pytest.raises(UsageError, match=text):
            split.main(
                ["--dataset_dir", str(processed), "--output", str(tmp_path / "s.csv"), *more]
            )
        assert not (tmp_path / "s.csv").exists()


def test_mean_and_std_program(processed, capsys):
    mean_std.main([str(processed), "--image_size", "16"])
    out = capsys.readouterr().out
    assert "mean [" in out and "std  [" in out


def test_command_line_from_another_folder(download, tmp_path):
    """As the README prints it: no PYTHONPATH, bad usage is one line and exit code 2."""
    script = ROOT / "hmloss/isic2019_implementation/preprocessing/preprocess.py"
    command = [script, *arguments(download, "dataset")]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "BEN: 13 images" in done.stdout
    assert len(list((tmp_path / "dataset" / "MAL").iterdir())) == 9
    done = run([*command, "--no_crop"], tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "made with crop" in done.stderr


def test_all_classes_get_folders_of_their_names(download, tmp_path):
    """From the same download: what is neither nevus nor melanoma is left out no more."""
    output = tmp_path / "all"
    preprocess.main(arguments(download, output, "--task", "all"))
    found = {folder.name: len(list(folder.iterdir())) for folder in output.iterdir() if
             folder.is_dir()}  # fmt: skip
    assert found == {"MEL": 9, "NV": 13, "BCC": 3} | dict.fromkeys(
        ("AK", "BKL", "DF", "VASC", "SCC"), 0
    )
    with pytest.raises(UsageError, match=r"AK: no image in it"):
        split.main(["--dataset_dir", str(output), "--task", "all"])
    for name in ("AK", "BKL", "DF", "VASC", "SCC"):
        for i in range(10):
            Image.new("RGB", (8, 8)).save(output / name / f"{name}{i}.jpg")
    with pytest.raises(UsageError, match="no MEL image in the train part; training needs"):
        split.main(["--dataset_dir", str(output), "--task", "all", "--train_ratio", "0.1"])
    split.main(["--dataset_dir", str(output), "--task", "all", "--seed", "0"])
    parts = pd.read_csv(output / "split.csv", comment="#").groupby("label")["part"].value_counts()
    assert parts["AK"].to_dict() == {"train": 8, "val": 1, "test": 1}
    assert parts["BCC"].to_dict() == {"train": 2, "test": 1}
