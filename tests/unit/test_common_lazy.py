"""Packages whose submodules are imported when they are used."""

import sys

import pytest

from common import lazy


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a submodule, and one that lacks something."""
    folder = tmp_path / "late"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from common import lazy\n__getattr__ = lazy.submodules(__name__)\n"
    )
    (folder / "heavy.py").write_text("WEIGHT = 3\n")
    (folder / "broken.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("late")
    for name in [name for name in sys.modules if name.split(".")[0] == "late"]:
        del sys.modules[name]


def test_a_submodule_is_imported_when_it_is_used(package):
    assert "late.heavy" not in sys.modules
    assert package.heavy.WEIGHT == 3
    assert "late.heavy" in sys.modules


def test_what_is_no_submodule_is_no_attribute(package):
    with pytest.raises(AttributeError, match="module 'late' has no attribute 'light'"):
        _ = package.light
    assert not hasattr(package, "__wrapped__")


def test_an_import_that_fails_says_why(package):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = package.broken


def test_a_module_is_imported_when_something_of_it_is_used(package, monkeypatch):
    heavy = lazy.module("late.heavy")
    assert "late.heavy" not in sys.modules
    assert heavy.WEIGHT == 3
    monkeypatch.setattr("late.heavy.WEIGHT", 4)
    assert heavy.WEIGHT == 4
    with pytest.raises(AttributeError, match=r"module 'late\.heavy' has no attribute 'HEIGHT'"):
        _ = heavy.HEIGHT


def test_from_import_works_as_ever():
    from datasets.augment import colours

    assert lazy.submodules("datasets.augment")("colours") is colours
