"""What a small run of a program need not do, and must not."""

import pytest

from common.training import pictures


@pytest.fixture(autouse=True, scope="module")
def all_on_the_cpu(no_gpu):
    """All programs here."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """A test's own runs draw nothing, in forked processes too: it takes longer than their epochs.

    Runs that the tests of a module share, and those of ``run_fresh``, draw all there is.
    """
    monkeypatch.setattr(pictures, "picture", lambda path, draw, *args: None)
