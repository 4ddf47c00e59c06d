#!/usr/bin/env python
"""The same program as ``train.py``: the original's file name (its README says ``train.py``)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from common.training import launch
from dbm_loss.large_scale.train import main

if __name__ == "__main__":
    launch.run(main)
