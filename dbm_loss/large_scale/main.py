#!/usr/bin/env python
"""The same program as ``train.py``: the original's file name (its README says ``train.py``)."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("train.py")), run_name="__main__")
