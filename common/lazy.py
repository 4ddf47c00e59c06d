"""Modules that are imported when they are first used, as SciPy does it.

Torchvision takes as long to import as torch, scikit-learn and pandas come on top: a program shall
wait for what its flags ask for, and for nothing before a wrong flag is reported.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType


def submodules(package: str) -> Callable[[str], ModuleType]:
    """The ``__getattr__`` of a package: ``package.name`` imports the submodule ``name``.

    ``from package import name`` imports it at once, as ever.
    """

    def getattr_(name: str) -> ModuleType:
        full_name = f"{package}.{name}"
        if importlib.util.find_spec(full_name) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(full_name)

    return getattr_


def module(name: str) -> ModuleType:
    """A stand-in for the module ``name``, which is imported when something of it is first used."""
    stand_in = ModuleType(name)
    stand_in.__getattr__ = lambda attribute: getattr(importlib.import_module(name), attribute)
    return stand_in
