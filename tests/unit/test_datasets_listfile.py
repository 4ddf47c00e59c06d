"""List files: parsing, checks, relabelling, images."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import arbloss.data
from arbloss.data import largest_first
from arbloss.opts import load_config
from common.training.errors import UsageError
from datasets import listfile
from datasets.assembly import load_lists
from datasets.listfile import ListFile, data_name, find_list, size_warning
from dbm_loss.large_scale import data as large_scale
from tests.programs.arbloss_data import CONFIG


@pytest.fixture
def make_list(tmp_path):
    """Write a list and 4x3 images of its paths; the red value of an image is its line."""

    def make(text, name="list.txt", images=True):
        (tmp_path / name).write_text(text)
        for line, row in enumerate(text.splitlines() if images else (), start=1):
            path = tmp_path / "images" / row.rpartition(" ")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3), (line, 0, 0)).save(path, "PNG")
        return tmp_path / name, tmp_path / "images"

    return make


def test_samples(make_list):
    data = ListFile(*make_list("train/b/x.jpg 1\ntrain/a/y.jpg 0\ntrain/b/z.jpg 1"))
    assert len(data) == 3
    assert data.num_classes == 2
    assert data.cls_num_list == [1, 2]
    assert data.targets.dtype == np.int64
    assert data.targets.tolist() == [1, 0, 1]
    image, label = data[2]
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (3, 0, 0))
    assert (label, type(label)) == (1, int)
    assert data.path(1) == str(data.root / "train/a/y.jpg")


def test_the_transform_sees_the_image(make_list):
    files = make_list("a 0\nb 0\n")
    assert ListFile(*files, transform=lambda image: image.getpixel((0, 0))[0])[1] == (2, 0)


def test_every_mode_becomes_rgb(make_list):
    list_file, root = make_list("grey 0\nrgba 0\npalette 0\n")
    Image.new("L", (4, 3), 7).save(root / "grey", "PNG")
    Image.new("RGBA", (4, 3), (7, 7, 7, 0)).save(root / "rgba", "PNG")
    Image.new("RGB", (4, 3), (7, 7, 7)).convert("P").save(root / "palette", "PNG")
    data = ListFile(list_file, root)
    assert [data[i][0].mode for i in range(3)] == ["RGB"] * 3
    assert data[0][0].getpixel((0, 0)) == (7, 7, 7)


def test_example_of_the_original_large_scale(golden, tmp_path):
    facts = golden("dbm_loss_large_scale").facts["listfile"]
    (tmp_path / "list.txt").write_text(facts["text"])
    for path in facts["paths"]:
        relative = path.removeprefix(facts["root"] + "/")
        (tmp_path / relative).parent.mkdir(parents=True)
        (tmp_path / relative).touch()
    data = ListFile(tmp_path / "list.txt", tmp_path)
    assert data.targets.tolist() == facts["targets"]
    data.root = facts["root"]
    assert [data.path(i) for i in range(len(data))] == facts["paths"]


def test_lines_of_all_kinds(make_list):
    cases = [
        ("a b/x 1.png 0\ny.png 1", "0 1"),
        ("\ufeffa b/x 1.png 0\r\n\r\ny.png\t1\r\n\n", "0 1"),
        (" a b/x 1.png   0\n./y.png\t\t1 more\n", "0 more"),
        ("a b/x 1.png 0 cat\ny.png 1 guide dog\n", "cat guide dog"),
        ("a b/x 1.png\t0\tcat 7\ny.png\t1\t2024\n", "cat 7 2024"),
        ("a b\\x 1.png 0\ny.png 1", "0 1"),
    ]
    for text, classes in cases:
        list_file, root = make_list("a b/x 1.png 0\ny.png 1\n")
        list_file.write_bytes(text.encode())
        data = ListFile(list_file, root)
        assert data.paths.tolist() == [b"a b/x 1.png", b"y.png"]
        assert data.targets.tolist() == [0, 1]
        assert " ".join(data.classes) == classes
        backslash = f"note: {list_file}: 1 paths with backslashes, read as slashes"
        assert data.notes == ([backslash] if "\\" in text else [])


def test_lines_are_counted_with_the_blank_ones(make_list):
    list_file, root = make_list("a 0\nb 0\n")
    list_file.write_text("\n\na 0\n\nb 0\n")
    (root / "b").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"images/b \(line 5 of .*list\.txt\): not a readable"):
        ListFile(list_file, root)[1]


def test_names_that_are_not_ascii(make_list):
    data = ListFile(*make_list("Plantae/Rosë_ñ.jpg 0\n#.jpg 0\nNA.jpg 0\n"))
    assert data[0][0].size == data[1][0].size == data[2][0].size == (4, 3)


def test_a_class_has_one_name(make_list):
    list_file, root = make_list("a 0\nb 1\nc 1\n")
    list_file.write_text("a 0 cat\nb 1\nc 1 dog\n")
    assert ListFile(list_file, root).classes == ["cat", "dog"]
    list_file.write_text("a 0 cat\nb 1 dog\nc 1 emu\n")
    with pytest.raises(UsageError) as error:
        ListFile(list_file, root)
    assert str(error.value) == (
        f"{list_file}: class 1 is called dog (line 2) and emu (line 3); a class has one name"
    )


def test_a_name_is_of_one_class(make_list, tmp_path):
    list_file, root = make_list("a 0\nb 1\nc 2\n")
    for text, name in (("a 0 cat\nb 1 dog\nc 2 cat\n", "cat"), ("a\t0\t1\nb\t1\nc\t2\n", "1")):
        list_file.write_text(text)
        for num_classes in (None, 3):
            with pytest.raises(UsageError) as error:
                ListFile(list_file, root, num_classes=num_classes)
            assert str(error.value) == (
                f"{list_file}: {name!r} names 2 classes; give each its own name"
            )
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    assert ListFile(list_file, root, names=tmp_path / "names.txt").classes == ["x", "y", "z"]
    list_file.write_text("a\t0\t1\nb\t2\t3\n")  # of images to test; class 1, called 2, has none
    assert ListFile(list_file, root, num_classes=3).classes[::2] == ["1", "3"]


def test_a_file_of_class_names(make_list, tmp_path):
    files = make_list("a 0\nb 2\nc 1\n")
    names = tmp_path / "names.txt"
    names.write_text("cat\nguide dog\n\nemu\n")
    data = ListFile(*files, names=names)
    assert data.classes == ["cat", "guide dog", "emu"]
    data.relabel(np.array([1, 2, 0]))  # cat is class 1 now
    assert data.classes == ["emu", "cat", "guide dog"] and data.targets.tolist() == [1, 0, 2]
    names.write_text("cat\n")
    with pytest.raises(
        UsageError, match=r"names\.txt: 1 class names, but .*list\.txt has labels of 3"
    ):
        ListFile(*files, names=names)


def test_an_image_has_one_label(make_list):
    list_file, root = make_list("a 0\nb 1\nc 1\n")
    list_file.write_text("a 0\nb 1\n./b 1\na 0\n")
    assert ListFile(list_file, root).notes == [
        f"note: {list_file}: 2 of 4 paths are those of images named before (such as b, line 3)"
    ]
    list_file.write_text("a 0\nb 1\nc 1\nb 0\n")
    with pytest.raises(UsageError) as error:
        ListFile(list_file, root)
    assert str(error.value) == (
        f"{list_file}: b has label 1 (line 2) and label 0 (line 4); an image has one class"
    )


def test_an_image_has_one_label_however_it_is_spelled(make_list):
    list_file, root = make_list("d/a 0\nb 1\n")
    for path in ("d//a", "d/./a", "e/../d/a", f"../{root.name}/d/a", f"{root}/d/a"):
        list_file.write_text(f"d/a 0\nb 1\n{path} 1\n")
        with pytest.raises(UsageError) as error:
            ListFile(list_file, root)
        assert str(error.value) == (
            f"{list_file}: {path} has label 0 (line 1) and label 1 (line 3); an image has one class"
        )


def test_paths_out_of_the_root_are_a_note(make_list, tmp_path):
    """Absolute paths and those with .. may well stay inside, also where the root is a link."""
    list_file, root = make_list("a 0\nb..c 0\nd/e 0\n../f 0\n")
    (tmp_path / "link").symlink_to(root)
    inside = f"b..c 0\nd/../a 0\n{root}/d/e 0\n"
    for where in (root, tmp_path / "link"):
        list_file.write_text(inside)
        data = ListFile(list_file, where)
        assert data.notes == []
        assert data[2][0].getpixel((0, 0)) == (3, 0, 0)
        list_file.write_text(f"{inside}../f 0\n{tmp_path}/f 0\n")
        assert ListFile(list_file, where).notes[-1] == (
            f"note: {list_file}: 2 of 5 paths lead out of {where} (such as ../f, line 4)"
        )


def test_malformed_line_is_named(make_list):
    cases = [
        ("a 0\n\nb\n", 3, "b"),
        ("a 0\nb one\n", 2, "b one"),
        ("a 0\nb 1.0\n", 2, "b 1.0"),
        ("a 0\nb -1\n", 2, "b -1"),
        ("a 0\nb 99999999999999999999\n", 2, "b 99999999999999999999"),
        ("0\n", 1, "0"),
        ("a,0\n", 1, f"a,0; {listfile.BLANKS}, not by a comma"),
        ("a 0\nb, 1, dog\n", 2, f"b, 1, dog; {listfile.BLANKS}, not by a comma"),
        ("path label\na 0\n", 1, "path label; if it is a header, remove it"),
        (
            "path,label\na,0\n",
            1,
            f"path,label; if it is a header, remove it, and {listfile.BLANKS}",
        ),
        ("a 0\npath label\n", 2, "path label"),  # no header
    ]
    for text, line, found in cases:
        list_file, root = make_list(text, images=False)
        with pytest.raises(UsageError) as error:
            ListFile(list_file, root)
        assert str(error.value).endswith(
            f"list.txt, line {line}: expected `relative/path label`, found {found}"
        )


def test_missing_and_empty_lists(tmp_path, make_list):
    with pytest.raises(UsageError, match=r"none\.txt: no such list file; .*LT benchmarks"):
        ListFile(tmp_path / "none.txt", tmp_path)
    with pytest.raises(UsageError, match=r"list\.txt: no lines in it"):
        ListFile(*make_list(""))


def test_labels_of_a_training_list_have_no_gaps(make_list):
    with pytest.raises(UsageError, match=r"go up to 3, but label 1 has no image"):
        ListFile(*make_list("a 0\nb 3\nc 2\n"))
    with pytest.raises(UsageError, match=r"go up to 2000000000, but label 0 has no image"):
        ListFile(*make_list("a 2000000000\n"))


def test_labels_of_an_evaluation_list(make_list):
    files = make_list("a 0\nb 3\n")
    data = ListFile(*files, num_classes=5)
    assert data.num_classes == 5
    assert data.cls_num_list == [1, 0, 0, 1, 0]
    assert data.notes == [
        f"note: {files[0]} has no image of 3 of the 5 classes (1, 2, 4): they have no accuracy"
    ]
    with pytest.raises(UsageError, match=r"list\.txt, line 2: label 3, but there are 3 classes"):
        ListFile(*files, num_classes=3)


def test_missing_files_are_counted_before_training(make_list, tmp_path):
    list_file, root = make_list("".join(f"train/{i}.png 0\n" for i in range(40)))
    with pytest.raises(UsageError) as error:
        ListFile(list_file, tmp_path)
    assert str(error.value) == (
        f"{list_file}: 40 of 40 files are missing, first {tmp_path}/train/0.png (line 1); "
        f"the image root must be the folder that holds train, not {tmp_path}"
    )
    (root / "train" / "17.png").unlink()
    (root / "train" / "39.png").unlink()
    with pytest.raises(UsageError) as error:
        ListFile(list_file, root)
    assert str(error.value) == (
        f"{list_file}: 2 of 40 files are missing, first {root}/train/17.png (line 18); "
        "restore them or remove their lines"
    )


def test_unreadable_image_is_named(make_list):
    for spoil in ["cut", "text", "gone"]:
        list_file, root = make_list("a 0\nb 0\n")
        data = ListFile(list_file, root)
        if spoil == "gone":
            (root / "b").unlink()
        else:
            content = (root / "b").read_bytes()
            (root / "b").write_bytes(content[: len(content) // 2] if spoil == "cut" else b"text")
        assert data[0][1] == 0
        with pytest.raises(
            UsageError, match=r"images/b \(line 2 of .*list\.txt\): not a readable im"
        ):
            data[1]


def test_relabelling_arbloss(golden, make_list):
    g = golden("arbloss")
    facts = g.facts["lt"]
    train = ListFile(*make_list(facts["train_list_text"], "train.txt"))
    test = ListFile(*make_list(facts["test_list_text"], "test.txt"), num_classes=train.num_classes)
    assert train.num_classes == facts["num_classes"]
    assert train.targets.tolist() == g["lt_train_labels"].tolist()
    assert test.targets.tolist() == g["lt_test_labels"].tolist()
    class_map = largest_first(train.cls_num_list)
    assert class_map.tolist() == g["lt_class_map"].tolist()
    train.relabel(class_map)
    test.relabel(class_map)
    assert train.targets.tolist() == g["lt_train_mapped"].tolist()
    assert test.targets.tolist() == g["lt_test_mapped"].tolist()
    assert train.cls_num_list == g["lt_cls_num_list"].tolist()
    assert train[0][1] == g["lt_train_mapped"][0]


def test_ties_keep_the_order_of_the_old_labels(golden):
    g = golden("arbloss")
    class_map = largest_first(g["x_lt_tie_counts"])
    assert class_map.tolist() == g["x_lt_tie_class_map"].tolist()
    old_counts = g["places_counts_sorted"][g["x_places_class_map"]]
    assert largest_first(old_counts.tolist()).tolist() == g["x_places_class_map"].tolist()


def test_relabelling_needs_a_label_for_every_class(make_list):
    data = ListFile(*make_list("a 0\nb 1\n"))
    with pytest.raises(ValueError, match="3 new labels for 2 classes"):
        data.relabel(np.arange(3))


def test_large_list_opens_small_and_asks_little(tmp_path, monkeypatch):
    """An eighth of iNaturalist 2018: no object an image is kept, no question an image is asked."""
    num_images, num_classes = 55_000, 1000
    labels = np.random.RandomState(0).permutation(np.arange(num_images) % num_classes)
    paths = [f"train_val2018/Plantae/{c}/{i:032x}.jpg" for i, c in enumerate(labels)]
    lines = [f"{path} {label}" for path, label in zip(paths, labels, strict=True)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    content = {}
    for path in paths:
        folder, _, name = f"{tmp_path}/{path}".encode().rpartition(b"/")
        content.setdefault(folder + b"/", []).append(name)
    asked = []
    monkeypatch.setattr(os, "listdir", lambda folder: content[folder])
    monkeypatch.setattr(os.path, "exists", asked.append)
    data = ListFile(tmp_path / "list.txt", tmp_path)
    assert not asked
    assert data.cls_num_list == [55] * num_classes
    assert data.path(num_images - 1) == str(tmp_path / paths[-1])
    assert data.paths.dtype.kind == "S"
    assert data.paths.nbytes + data.targets.nbytes < 100 * num_images


def red(image):
    return torch.tensor(image.getpixel((0, 0))[0])


def test_goes_through_worker_processes(make_list):
    data = ListFile(*make_list("a 0\nb 1\nc 0\n"), transform=red)
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=1)
    images, labels = next(iter(loader))
    assert images.tolist() == [1, 2, 3]
    assert labels.tolist() == [0, 1, 0]


def test_names_of_an_evaluation_list(make_list, tmp_path):
    """Those of classes that both lists name are the same; numbers are no names."""
    train_list, root = make_list("a 0\nb 1\nc 2\n", "train.txt")
    test_list = tmp_path / "test.txt"
    (tmp_path / "names").write_text("Katze\nHund\nMaus\n")
    for train_text, test_text, message in (
        ("a 0 cat\nb 1 dog\nc 2\n", "c 0 dog\na 1 cat\n", "class 0 is called dog, and cat in"),
        ("a 0 cat\nb 1 dog\nc 2\n", "c 0 cat\na 1 Dog\n", "class 1 is called Dog, and dog in"),
        ("a 0 cat\nb 1 dog\nc 2\n", "c 1 dog\na 0 7\nb 2 mouse\n", None),
        ("a 0 0\nb 1 1\nc 2\n", "c 0 dog\na 1 cat\n", None),
        ("a 0 cat\nb 1 dog\nc 2\n", "c 0\na 1\n", None),
    ):
        train_list.write_text(train_text.replace(" ", "\t"))
        test_list.write_text(test_text.replace(" ", "\t"))
        for names in (None, tmp_path / "names"):
            train = ListFile(train_list, root, names=names)
            test = ListFile(test_list, root, num_classes=3)
            if message is None:
                assert load_lists(train, test).test is test
                continue
            with pytest.raises(UsageError) as error:
                load_lists(train, test)
            assert str(error.value) == (
                f"{test_list}: {message} {train_list}; number the classes of all lists alike"
            )


def test_find_list(tmp_path):
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "x.txt").touch()
    folders = [tmp_path / "first", tmp_path / "second"]
    assert find_list("x.txt", folders, "--list F") == tmp_path / "second" / "x.txt"
    with pytest.raises(
        UsageError, match=r"no y\.txt in .*first or .*second; put it there, or give --list F; the"
    ):
        find_list("y.txt", folders, "--list F")


def test_own_lists_are_told_their_name(tmp_path):
    """That of ImageNet-LT, in every program: others have colours or a schedule of their own."""

    def large(dataset):
        large_scale.load_data(large_scale.Source(dataset, root=tmp_path), ())

    def arb(dataset):
        (config, *_) = sorted((CONFIG / dataset).glob("*.yaml"))
        arbloss.data.load_data(load_config(str(config), ["data_path", str(tmp_path)]))

    for load, dataset, name, flag, number in (
        (large, "imgnet", "ImageNet_LT", "--list_dir", "--num_classes"),
        (large, "inat", "iNaturalist18", "--list_dir", None),
        (arb, "imagenet", "ImageNet_LT", "list_path", "num_classes"),
        (arb, "ina2018", "iNaturalist18", "list_path", None),
        (arb, "places", "Places_LT", "list_path", None),
    ):
        with pytest.raises(UsageError) as error:
            load(dataset)
        message = str(error.value)
        assert message.startswith(f"no {name}_train.txt in {tmp_path} or ")
        own = f"; a list of your own takes this name as well, with {number} C" if number else ""
        assert message.endswith(f"; put it there, or give {flag} DIR{own}; {listfile.WHERE}")


@pytest.mark.parametrize("text", ["a, 0\nb, 1\n", "a,\t0\tcat\nb,\t1\tdog\n"])
def test_a_comma_separates_nothing(make_list, text):
    list_file, root = make_list(text, images=False)
    for must_exist in (True, False):
        with pytest.raises(UsageError) as error:
            ListFile(list_file, root, must_exist=must_exist)
        assert str(error.value) == (
            f"{list_file}, line 1: a comma behind the path, a,; separate "
            "path, label and name by a blank or a tab"
        )
    list_file.write_text("a, 0\nb 1\n")  # one such name is a name
    assert ListFile(list_file, root, must_exist=False).paths.tolist() == [b"a,", b"b"]


def test_size_warning(make_list):
    text = "a 0\nb 1\n"
    assert size_warning(ListFile(*make_list(text, "own.txt"))) is None
    warning = size_warning(ListFile(*make_list(text, "iNaturalist18_train.txt")))
    assert "2 images of 2 classes" in warning
    assert "437,513 of 8,142" in warning


def test_only_the_published_list_is_called_by_its_name(make_list, monkeypatch):
    """Own images go by their folder, whatever the program wants their list to be called."""
    listed = ListFile(*make_list("a 0\nb 1\n", "iNaturalist18_train.txt"))
    assert data_name(listed) == "images"
    assert load_lists(listed, listed).own
    monkeypatch.setitem(listfile.PUBLISHED, "iNaturalist18_train.txt", (2, 2))
    assert data_name(listed) == "iNaturalist 2018"
    assert not load_lists(listed, listed).own
    assert data_name(ListFile(*make_list("a 0\nb 1\n", "own.txt"))) == "images"


def test_a_published_list_may_lack_a_hundredth_of_its_images_but_no_class(make_list, monkeypatch):
    text = "".join(f"{line} {line % 2}\n" for line in range(100))
    listed = ListFile(*make_list(text, "iNaturalist18_train.txt"))
    for published, own in (
        ((99, 2), True), ((100, 2), False), ((101, 2), False), ((102, 2), True), ((100, 3), True)
    ):  # fmt: skip
        monkeypatch.setitem(listfile.PUBLISHED, "iNaturalist18_train.txt", published)
        data = load_lists(listed, listed)
        assert data.own is own, published
        assert data.name == ("images" if own else "iNaturalist 2018")
        assert bool(data.facts.get("warnings")) is (published != (100, 2))
