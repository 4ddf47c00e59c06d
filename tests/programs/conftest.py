"""What a small run of a program need not do."""

import pytest

from common import report


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """A test's own runs draw nothing, in forked processes too: it takes longer than their epochs.

    Runs that the tests of a module share, and those of ``run_fresh``, draw all there is.
    """
    monkeypatch.setattr(report, "picture", lambda path, draw, *args: None)
