"""The table of reported accuracies: complete, consistent, and every command still a command."""

from collections import Counter

import pytest

from datasets.long_tail import load_long_tailed
from tests.regression import originals
from tests.regression import results as results_module
from tests.regression.results import precision, read_fingerprints, read_results
from tools import table
from tools.programs import ROOT, fill, settings
from tools.table import PAPERS, commands, read_table, select

ROWS = read_table()
COMMANDS = {row.id: row for row in ROWS}
RESULTS = read_results()


def parse(words, seed=0):
    return settings(fill(words, seed=seed))


def test_every_command_parses_in_its_own_program():
    for paper in PAPERS:
        rows = [row for row in COMMANDS.values() if row.paper == paper]
        assert len(rows) >= 20
        for row in rows:
            for words in commands(row):
                assert words[0] == "python" and (ROOT / words[1]).is_file()
                found = parse(words, seed=3)
                assert found["seed"] == 3
                epochs = found.get("epochs", found.get("num_epochs"))
                assert epochs == row.epochs, row.id


def test_the_command_trains_what_the_row_says():
    for paper in PAPERS:
        names = {"imagenet_lt": {"imgnet", "imagenet"}, "inaturalist2018": {"inat", "ina2018"}}
        for row in (row for row in COMMANDS.values() if row.paper == paper):
            found = parse(commands(row)[-1])
            expected = {row.dataset} | names.get(row.dataset, set())
            assert found.get("dataset", row.dataset) in expected, row.id
            if row.imb_type in ("exp", "step"):
                ratio = found.get("imb_ratio") or 1 / (
                    found.get("imb_factor") or found["ir_list"][0]
                )
                assert ratio == pytest.approx(float(row.imb_ratio)), row.id
                assert found.get("imb_type", "exp") == row.imb_type, row.id
            if row.paper == "arbloss":  # CIFAR's stage1_mixup files train ARB-Loss, not a baseline
                assert found["arbloss"] == row.method.startswith("ARB"), row.id
            with_margin = "DBM" in row.method or row.id.endswith("_classwise")
            assert found.get("use_dbm", False) == with_margin, row.id


def test_cifar_from_npz_files_reaches_every_program():
    for dataset in ["cifar10", "cifar100"]:
        for row in select(list(COMMANDS.values()), datasets=[dataset]):
            for words in commands(row, table.NPZ):
                found = parse(fill(words, root="DIR"))
                root = next(
                    found[k] for k in ("root", "data_dir", "data_path", "data") if k in found
                )
                assert (found["dataset"], str(root)) == ("npz", f"DIR/{dataset}.npz"), row.id


def test_stand_ins_and_short_schedules_reach_the_program():
    for data in table.STAND_INS:
        for row in select(list(COMMANDS.values()), datasets=["cifar10"]):
            for words in commands(row, data, epochs=12):
                found = parse(fill(words, root="DIR"))
                root = next(
                    found[k] for k in ("root", "data_dir", "data_path", "data") if k in found
                )
                epochs = found.get("epochs", found.get("num_epochs"))
                assert (found["dataset"], found["image_size"]) == table.STAND_INS[data], row.id
                assert (root, epochs) == ("DIR", 12), row.id
                assert found["stretch_schedule"] is True


def test_a_stretched_ib_run_keeps_its_phases():
    row = COMMANDS["ib_loss-cifar10-exp100-ib"]
    assert parse(commands(row)[0])["start_ib_epoch"] == 100
    assert parse(commands(row, "digits", 12)[0])["start_ib_epoch"] == 6


def test_rows_are_unique_and_baselines_exist():
    cells = Counter((row.id, row.split, row.source) for row in ROWS)
    assert max(cells.values()) == 1
    for row in ROWS:
        assert row.better_than == "" or row.better_than in COMMANDS
        assert row.better_than != row.id
        assert COMMANDS[row.id].command == row.command and COMMANDS[row.id].epochs == row.epochs


def test_status_decides_what_is_judged():
    assert {row.status for row in ROWS} == {
        "tested", "misprint", "unverified", "no_published_number",
    }  # fmt: skip
    for row in ROWS:
        if row.status == "no_published_number":
            assert row.published is None and row.tolerance is None
        else:
            assert 0 < row.published < 100
        if row.status == "tested":
            assert row.tolerance > 0 and row.tolerance_reason and row.source
            assert row.confidence in ("published", "cited")
        if row.status == "misprint":
            assert row.note
    assert {row.status for row in ROWS if row.paper == "hmloss"} == {"no_published_number"}


def test_known_misprints_are_marked():
    cases = [
        ("ib_loss-cifar100-exp10-ldam_drw", 57.99),
        ("ib_loss-tinyimagenet-exp10-ce", 36.62),
        ("ib_loss-tinyimagenet-step10-focal", 41.77),
        ("ib_loss-cifar10-exp50-ce", 78.22),
    ]
    for id_, published in cases:
        (row,) = [row for row in ROWS if row.id == id_ and row.published == published]
        assert row.status == "misprint"


def test_a_few_cells_copied_by_hand_from_the_papers():
    cases = [
        ("ib_loss-cifar10-exp100-ib", "all", 78.26),
        ("ib_loss-cifar100-step50-ib_focal", "all", 48.92),
        ("dbm_loss-cifar100-exp100-dbm_bs", "few", 33.23),
        ("dbm_loss-cifar10-exp100-dbm_ncl", "all", 87.53),
        ("arbloss-cifar100-exp100-arb_mixup", "all", 47.2),
    ]
    for id_, split, published in cases:
        values = [row.published for row in ROWS if row.id == id_ and row.split == split]
        assert published in values


def test_select_combines_its_conditions():
    chosen = select(ROWS, papers=["ib_loss"], datasets=["cifar10"], ratios=[100.0],
                    methods=["ib", "ce"], words="exp")  # fmt: skip
    assert {row.id for row in chosen} == {
        "ib_loss-cifar10-exp100-ce", "ib_loss-cifar10-exp100-ib",
    }  # fmt: skip
    assert len(select(ROWS)) == len(ROWS)


def test_every_subset_of_cifar_in_the_table_has_a_fingerprint():
    lines = read_fingerprints().values()
    assert all(len(line["pixels_sha256"]) == 64 for line in lines)
    known = {(line["dataset"], line["imb_type"], line["imb_ratio"]) for line in lines}
    rows = select(ROWS, datasets=["cifar10", "cifar100"])
    assert {(row.dataset, row.imb_type, row.imb_ratio) for row in rows} <= known


def test_fingerprints_are_those_that_the_programs_report():
    digits = [line for line in read_fingerprints().values() if line["dataset"] == "digits"]
    for line in (digits[0], digits[-1]):
        factor = 1 / float(line["imb_ratio"])
        data = load_long_tailed("digits", "", imb_type=line["imb_type"], imb_factor=factor)
        assert data.facts["pixels_sha256"] == line["pixels_sha256"]


def test_stored_results_still_parse_to_the_same_settings():
    for result in RESULTS:
        row, last = COMMANDS[result["id"]], result["settings"][-1]
        data = result["data"]["dataset"]
        data = data if data in (table.NPZ, *table.STAND_INS) else ""
        now = commands(row, data, result["epochs"], last["channels_last"], precision(result))
        now = [fill(words, seed=result["seed"]) for words in now]
        then = result["command"].replace("'", "").split(" && ")
        assert [" ".join(words) for words in now] == then, result["id"]
        for words, stored in zip(now, result["settings"], strict=True):
            found = settings(words)
            if "margin_norm" in stored and found["margin_norm"] is None:  # the data decided
                found["margin_norm"] = stored["margin_norm"]
            assert {key: found.get(key) for key in stored} == stored, result["id"]


def test_stored_results_are_whole():
    for result in [*RESULTS, *read_results(originals.FOLDER)]:
        if result["curves"]:
            assert len(result["curves"]["top1"]) == result["epochs"]
            assert result["best"]["top1"] == pytest.approx(max(result["curves"]["top1"]))
            assert result["final"]["top1"] == result["curves"]["top1"][-1]
        assert sum(result["cls_num_list"]) > 0 and result["wall_time_s"] > 0
        assert {"commit", "code_sha256", "versions"} <= result.keys()
        text = str(result)
        assert "/root/" not in text and "/work/" not in text and "/home/" not in text


def test_results_are_stored_under_the_name_of_their_run():
    for folder in (results_module.RESULTS, originals.FOLDER):
        for path, result in zip(sorted(folder.glob("*.json")), read_results(folder), strict=True):
            row, data = COMMANDS[result["id"]], result["data"]["dataset"]
            name = results_module.key(
                row, data, result["epochs"], result["seed"], precision(result)
            )
            assert path.stem == name
