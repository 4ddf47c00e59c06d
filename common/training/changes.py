"""What has changed between the start of a run and its resume: data, settings."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

from common.training.errors import UsageError
from common.training.flags import spelled

# Settings whose change on resume is not noted: where files and processes are, how often something
# is printed, and the first epoch, which the checkpoint decides.
FREE_TO_CHANGE = {
    "resume", "overwrite", "other_data", "workers", "gpu", "local_rank", "print_freq", "evaluate",
    "start_epoch", "save_every",
    "root", "root_log", "root_model", "root_path", "out", "log_dir", "model_dir", "path_history",
    "path_model", "history_path", "model_path", "result_dir", "data", "data_dir", "data_path",
    "dataset_dir", "list_dir", "list_path",
    "world_size", "rank", "dist_url", "dist_backend", "distributed",
    "multiprocessing_distributed",
}  # fmt: skip

# Settings that a run keeps where the user leaves them open, as None.
KEPT = {"seed", "margin_norm"}


def changed_data(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Facts about the data that identify them, ending in ``sha256``, and are not what they were.

    What was not noted ``before`` counts as the same.
    """
    prints = [key for key in now if key.endswith("sha256")]
    return [key for key in prints if before.get(key, now[key]) != now[key]]


def changed_choice(
    before: Mapping[str, object], now: Mapping[str, object], validated: bool
) -> bool:
    """Whether the images on which the best epoch is chosen are others, see ``changed_data``.

    ``validated``: they are not those of the report, ``test_…``, but ``val_…``.
    """
    prefix = "val_" if validated else "test_"
    return any(key.startswith(prefix) for key in changed_data(before, now))


def chosen_alike(run: Mapping[str, object], facts: Mapping[str, object], score: str) -> bool:
    """Whether the best epoch of a ``run`` was chosen by this ``score``: top-1 on the test set and
    the balanced accuracy on validation images cannot be compared.
    """
    if not run:  # an original, which knows no balanced accuracy
        return score != "balanced_acc"
    return ("val_set" in run.get("facts", facts)) == ("val_set" in facts)


def changed_settings(
    before: Mapping[str, object],
    now: Mapping[str, object],
    free: Container[str] = frozenset(FREE_TO_CHANGE),
) -> list[str]:
    """``key old -> new`` of each setting that is another now, but for those ``free`` to change."""
    return [
        f"{key} {before[key]} -> {value}"
        for key, value in now.items()
        if key in before and before[key] != value and key not in free
    ]


def compare(
    run: Mapping[str, object],
    now: Mapping[str, object],
    source: Path,
    dashes: str = "--",
    another: str = "",
) -> list[str]:
    """Refuse, or note, other data than those of a ``run`` that goes on; note other settings.

    Args:
        run, now: "settings", "facts" and "processes", as far as they are known.
        source: the checkpoint that holds the record of the run.
        dashes: see ``flags.spelled``. another: ", or …", what may be done besides.

    Returns: the notes.
    Raises:
        UsageError: the data are others, and the settings do not accept that.
    """
    notes, before = [], run.get("facts", {})
    changed = [
        f"{key} was {str(before[key])[:12]}… and is {str(now['facts'][key])[:12]}…"
        for key in changed_data(before, now["facts"])
    ]
    if changed:
        differ = f"{source}: the data are not those of this run, {'; '.join(changed)}"
        if not now["settings"].get("other_data"):
            accept = f"accept these with {spelled('other_data', dashes)}"
            raise UsageError(f"{differ}. Bring them back, or {accept}{another}")
        notes.append(f"note: {differ}")
    free = FREE_TO_CHANGE | {key for key in KEPT if now["settings"].get(key) is None}
    before, settings = run.get("settings", {}), now["settings"]
    if "processes" in run:
        before = before | {"processes": run["processes"]}
        settings = settings | {"processes": now["processes"]}
    if changed := changed_settings(before, settings, free):
        notes.append(f"note: resuming with changed settings: {', '.join(changed)}")
    return notes
