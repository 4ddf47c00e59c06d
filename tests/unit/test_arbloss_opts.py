"""The configuration: schema and files of the original, and every way to get it wrong."""

import shlex
from pathlib import Path
from tempfile import mkdtemp

import pytest

from arbloss import trainer
from arbloss.data import load_data
from arbloss.opts import DEFAULTS, check, check_number, load_config, parse_args
from common.training.errors import UsageError

ROOT = Path(__file__).resolve().parents[2] / "arbloss"
CIFAR = ROOT / "config" / "cifar100" / "cifar100_imb001_arbloss.yaml"
ADDED = list(DEFAULTS)[list(DEFAULTS).index("train_stage2_instance") + 1 :]


def shipped(facts):
    """File name -> contents: 32 of the original, 6 of its README, 12 of MiSLAS."""
    readme = {
        entry["config"]: entry["contents_to_ship"]
        for entry in facts["readme_commands"]
        if not entry["exists_in_original"]
    }
    return facts["mislas_configs"] | readme | facts["configs"]


def test_schema_is_the_originals_plus_our_keys(golden):
    defaults = golden("arbloss").facts["schema_defaults"]
    assert {key: DEFAULTS[key] for key in defaults} == defaults
    assert set(DEFAULTS) - set(defaults) == set(ADDED)


def test_every_config_file_has_the_originals_values(golden):
    files = shipped(golden("arbloss").facts)
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("config/*/*")} == set(files)
    assert len(files) == 50
    for name, contents in files.items():
        config = load_config(ROOT / name)
        expected = DEFAULTS | contents
        assert dict(config) == expected, name
        kinds = {key: type(value) for key, value in config.items()}
        assert kinds == {key: type(value) for key, value in expected.items()}, name


def test_the_readmes_files_train_arb_loss_with_mixup():
    names = list(ROOT.glob("config/cifar*/*_stage1_mixup.yaml"))
    assert len(names) == 6
    for name in names:
        config = load_config(name)
        assert config.arbloss and config.mixup and config.alpha == 1.0
        assert config.name == name.stem


def test_values_are_read_leniently():
    cases = [
        ("lr", "1", 1.0),
        ("lr", "5e-2", 0.05),
        ("weight_decay", "0", 0.0),
        ("alpha", "none", None),
        ("arbloss", "true", True),
        ("arbloss", "False", False),
        ("imb_factor", "null", None),
        ("gpu", "1", 1),
        ("gpu", "None", None),
        ("resume", "a/b.pth.tar", "a/b.pth.tar"),
        ("resume", "123", "123"),
        ("name", "true", "true"),
        ("resume", "", ""),
        ("mode", "null", None),
        ("mode", "stage2", "stage2"),
        ("head_class_idx", "(0, 3)", [0, 3]),
        ("head_class_idx", "[0,3]", [0, 3]),
        ("rank", "-1", -1),
        ("milestones", "[160, 180]", [160, 180]),
    ]
    for key, word, value in cases:
        config = load_config(CIFAR, [key, word])
        assert config[key] == value
        assert type(config[key]) is type(value)


def test_wrong_words_are_one_line_errors():
    cases = [
        (["lr"], "pairs KEY VALUE, got 1"),
        (["learning_rate", "1"], "unknown key learning_rate"),
        (["arblos", "True"], "did you mean arbloss"),
        (["lr", "fast"], "lr must be a number, got 'fast'"),
        (["lr", "null"], "lr must be a number"),
        (["lr", "True"], "lr must be a number"),
        (["num_epochs", "2.0"], "num_epochs must be a whole number"),
        (["num_epochs", "0"], "command line: num_epochs 0: must be at least 1"),
        (["arbloss", "1"], "arbloss must be True or False"),
        (["smooth_head", "big"], "smooth_head must be a number"),
        (["head_class_idx", "3"], "head_class_idx must be two whole numbers"),
        (["head_class_idx", "[3, 0]"], "head_class_idx must be two whole numbers"),
        (["gpu", "cuda:0"], "gpu must be a whole number"),
        (["dataset", "mnist"], "dataset must be one of cifar10, cifar100, digits"),
        (["amp", "int8"], "amp must be one of none, bf16, fp16"),
        (["image_size", "4"], "command line: image_size 4: must be at least 8"),
    ]
    for words, message in cases:
        with pytest.raises(UsageError) as error:
            load_config(CIFAR, words)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_wrong_files_are_one_line_errors(tmp_path):
    cases = [
        ("lr: [1, 2\nmomentum: 3", "not YAML"),
        ("just a line", "holds no"),
        ("", "holds no"),
        ("nosuch: 1", "unknown key nosuch"),
        ("lr: fast", "lr must be a number"),
        ("name: 3", "name must be a word"),
        ("lr: 0.1\ncos: True\nlr: 0.2", "lr stands in lines 1 and 3; keep one"),
    ]
    for text, message in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        path = folder / "some.yaml"
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            load_config(path)
        assert message in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nosuch\.yaml: no such file"):
        load_config(tmp_path / "nosuch.yaml")


def test_yaml_spellings(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("weight_decay: 2e-4\nlr: 1\narbloss: true\nimb_factor: null\nmixup: 'False'\n")
    config = load_config(path)
    assert config.weight_decay == 2e-4
    assert config.lr == 1.0
    assert config.arbloss is True
    assert config.mixup is False
    assert config.imb_factor is None


def test_contradictions_are_one_line_errors():
    cases = [
        (1, ["multiprocessing_distributed", "True"], "torch.distributed.launch instead"),
        (1, ["imb_factor", "0"], "imb_factor 0.0"),
        (1, ["imb_factor", "100"], "imb_factor 100.0"),
        (1, ["tail_class_idx", "[71, 101]"], "tail_class_idx [71, 101]: num_classes is 100; give"),
        (
            1,
            ["num_classes", "70"],
            "med_class_idx [36, 71]: num_classes is 70; give head_class_idx",
        ),
        (  # the two rarest classes are in no range
            1,
            ["num_classes", "102"],
            "tail_class_idx [71, 100]: num_classes is 102; give head_class_idx, med_class_idx and "
            "tail_class_idx that follow one another from 0 to 102, such as head_class_idx [0,34] "
            "med_class_idx [34,68] tail_class_idx [68,102]",
        ),
        (None, ["head_class_idx", "[0, 40]"], "med_class_idx [36, 71]: num_classes is 100; give"),
        (1, ["head_class_idx", "[1, 36]"], "head_class_idx [1, 36]: num_classes is 100; give"),
        (1, ["mixup", "True", "alpha", "None"], "mixup True needs an alpha"),
        (
            1,
            ["weights", "r50.pth", "not_pretrained", "True"],
            "weights r50.pth and not_pretrained True exclude each other",
        ),
        (1, ["pretrained", "True", "not_pretrained", "True"], "pretrained True and not_pretr"),
        (1, ["LAS", "True"], "needs numbers for smooth_head"),
        (2, ["lr_factor", "0.5", "arbloss", "True"], "give resume CHECKPOINT"),
        (2, ["resume", "x", "arbloss", "True"], "needs lr_factor"),
        (2, ["resume", "x", "lr_factor", "0.5", "arbloss", "False"], "numbers for smooth_head"),
    ]
    for stage, words, message in cases:
        with pytest.raises(UsageError) as error:
            check(load_config(CIFAR, words), stage)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [2, 3, 5, 7, 10])
def test_the_groups_that_a_wrong_number_of_classes_proposes_are_taken(number):
    with pytest.raises(UsageError) as error:
        check_number(load_config(CIFAR), number, "DIR")
    words = str(error.value).partition("such as ")[2].split()
    check(load_config(CIFAR, ["num_classes", str(number), *words]), 1)


def test_keys_without_effect_are_said():
    assert check(load_config(CIFAR), 1) == []
    said = check(load_config(CIFAR, ["warbloss", "True", "arbloss_fl", "True"]), 1)
    assert said == [
        "note: warbloss True has no effect in stage 1",
        "note: arbloss_fl True has no effect in stage 1",
    ]
    (said,) = check(load_config(CIFAR, ["num_epochs", "20"]), 1)
    assert "step at epoch 160 is never reached" in said
    assert check(load_config(CIFAR, ["num_epochs", "20", "stretch_schedule", "True"]), 1) == []


STAGE1 = "arbloss False num_epochs 200 "
STAGE2 = "resume x lr_factor 0.5 smooth_head 0.3 smooth_tail 0.0 arbloss False "


@pytest.mark.parametrize(
    ("stage", "words", "idle"),
    [
        (1, "arbloss True arb_loss_use_global_class_cnt True", []),
        (1, STAGE1 + "arb_loss_use_global_class_cnt True",
         ["arb_loss_use_global_class_cnt True has no effect with a loss without class counts"]),
        (1, STAGE1 + "LAS True smooth_head 0.3 smooth_tail 0.1", []),
        (1, STAGE1 + "smooth_head 0.3 smooth_tail 0.1",
         ["smooth_head 0.3 has no effect without label-aware smoothing",
          "smooth_tail 0.1 has no effect without label-aware smoothing"]),
        (1, "mixup True alpha 0.2", []),
        (1, "mixup False alpha 0.2", ["alpha 0.2 has no effect with mixup False"]),
        (1, "milestones [1,2]", []),
        (1, "cos True milestones [1,2] stretch_schedule True",
         ["milestones [1, 2] has no effect with cos True",
          "stretch_schedule True has no effect with cos True"]),
        (1, "not_pretrained True", ["not_pretrained True has no effect with dataset cifar100"]),
        (1, "dataset places not_pretrained True", ["not_pretrained True: the frozen backbone"]),
        (1, "dataset imagenet imb_factor null", []),
        (1, "dataset imagenet imb_factor 0.1 loader workers",
         ["imb_factor 0.1 has no effect with dataset imagenet",
          "loader workers has no effect with dataset imagenet"]),
        (2, STAGE2, []),
        (2, STAGE2 + "cos True milestones [1,2] stretch_schedule True",
         ["cos True has no effect in stage 2", "milestones [1, 2] has no effect in stage 2",
          "stretch_schedule True has no effect in stage 2"]),
        (2, STAGE2 + "arb_loss_use_global_class_cnt True",
         ["arb_loss_use_global_class_cnt True has no effect with a loss without class counts"]),
        (2, STAGE2 + "warbloss True arb_loss_use_global_class_cnt True",
         ["smooth_head 0.3 has no effect without label-aware smoothing",
          "smooth_tail 0.0 has no effect without label-aware smoothing"]),
        (2, "resume x lr_factor 0.5 arbloss_fl True warbloss True",
         ["arbloss_fl True has no effect with arbloss True",
          "warbloss True has no effect with arbloss True"]),
        (2, "resume x lr_factor 0.5 arbloss False arbloss_fl True warbloss True",
         ["warbloss True has no effect with arbloss_fl True"]),
    ],
)  # fmt: skip
def test_a_key_without_effect_in_its_company_is_said(stage, words, idle):
    said = check(load_config(CIFAR, words.split()), stage)
    assert [note[: len("note: ") + len(key)] for note, key in zip(said, idle, strict=True)] == [
        f"note: {key}" for key in idle
    ]


def test_of_the_shipped_configurations_only_an_alpha_has_no_effect():
    for path in ROOT.glob("config/*/*.yaml"):
        config = load_config(path)
        said = check(config, 2 if path.stem.endswith("stage2_mislas") else 1)
        idle = config.alpha == 0.2 and not config.mixup
        assert said == ["note: alpha 0.2 has no effect with mixup False"] * idle, path


@pytest.mark.parametrize(
    ("file", "words", "name"),
    [
        ("", "", "CE"),
        ("_arbloss", "", "ARB-Loss"),
        ("_arbloss_mixup", "", "ARB-Loss with mixup"),
        ("_arbloss_ugcc", "", "ARB-Loss, counts of the training set"),
        ("_arbloss_ugcc", "mixup True", "ARB-Loss with mixup, counts of the training set"),
        ("_arbloss_ugcc", "arbloss False", "CE"),
        ("_arbloss", "LAS True", "ARB-Loss with LAS"),
        ("", "LAS True mixup True", "LAS with mixup"),
        ("_stage2_mislas", "", "stage 2 by LAS"),
        ("_stage2_mislas", "arbloss_fl True mixup True", "stage 2 by ARB-Focal with mixup"),
        ("_stage2_mislas", "warbloss True arb_loss_use_global_class_cnt True",
         "stage 2 by WARB-Loss, counts of the training set"),
    ],
)  # fmt: skip
def test_the_name_of_a_method_tells_the_variants_apart(file, words, name):
    config = load_config(ROOT / f"config/cifar10/cifar10_imb001{file}.yaml", words.split())
    assert trainer.method(config, 2 if "stage2" in file else 1) == name


def test_keys_of_other_data_are_refused():
    for_lists = "for list files, not for digits"
    cases = [
        (["dataset", "digits", "list_path", "DIR"], f"list_path DIR: {for_lists}"),
        (["dataset", "digits", "classes", "names.txt"], f"classes names.txt: {for_lists}"),
        (["dataset", "digits", "val_list", "val.txt"], f"val_list val.txt: {for_lists}"),
        (
            ["dataset", "imagenet", "image_size", "64"],
            "image_size 64: images of imagenet are cut to 224x224 pixels; imagefolder, npz and "
            "digits can be brought to another size",
        ),
    ]
    for words, message in cases:
        with pytest.raises(UsageError) as error:
            load_data(load_config(CIFAR, words))
        assert str(error.value) == message


def test_config_is_frozen_and_never_shared():
    config = load_config(CIFAR, ["head_class_idx", "[0, 9]"])
    with pytest.raises(AttributeError):
        config.lr = 1.0
    config.head_class_idx.append(5)
    assert load_config(CIFAR).head_class_idx == [0, 36]
    assert DEFAULTS["head_class_idx"] == [0, 1]


def test_flags_and_words_in_any_order():
    cfg = ["--cfg", str(CIFAR)]
    cases = (
        [*cfg, "lr", "0.5", "--local_rank", "1"],
        ["--local-rank=1", *cfg, "lr", "0.5"],
        ["lr", "0.5", *cfg, "--local-rank", "1"],
    )
    for argv in cases:
        args, config = parse_args("test", argv)
        assert args.local_rank == 1
        assert config.lr == 0.5
    args, config = parse_args("test", cfg)
    assert args.local_rank is None
    assert config.lr == 0.1


def test_the_readmes_commands_are_valid(monkeypatch):
    """Every ``train_stage1.py``, ``train_stage2.py`` and ``eval.py`` line, as printed."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "--cfg" in line and line.startswith("python ")]
    assert len(lines) == 10 + 3 + 2
    for line in lines:
        words = shlex.split(line)
        program = next(i for i, word in enumerate(words) if word.endswith(".py"))
        stage = {"train_stage1.py": 1, "train_stage2.py": 2, "eval.py": None}[words[program]]
        assert (ROOT / words[program]).is_file()
        _, config = parse_args("test", words[program + 1 :])
        assert not [note for note in check(config, stage) if "no effect" in note], line


def test_every_added_key_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for key in ADDED:
        assert f"`{key}`" in text, key


def test_cfg_is_required():
    with pytest.raises(UsageError, match="--cfg"):
        parse_args("test", ["lr", "1"])
