"""What has changed between the start of a run and its resume: data, settings."""

from __future__ import annotations

from collections.abc import Container, Mapping

# Settings whose change on resume is not noted: where files and processes are, how often something
# is printed, and the first epoch, which the checkpoint decides.
FREE_TO_CHANGE = {
    "resume", "overwrite", "other_data", "workers", "gpu", "local_rank", "print_freq", "evaluate",
    "start_epoch", "root_log", "root_model", "out", "root_path", "root", "data", "data_dir",
    "save_every",
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
