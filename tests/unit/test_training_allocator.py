"""What a step frees is kept: glibc maps no large block of its own any more."""

import ctypes
import os
import subprocess
import sys

import pytest

from common.training import launch

# Bytes of blocks that glibc has mapped for themselves, with and without one of 100 MB: those go
# back to the system when they are freed. mallinfo2's sixth field.
SCRIPT = """
import ctypes, torch
from common.training import launch

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

info = ctypes.CDLL(None).mallinfo2
info.restype = Info
launch.start()
before = info().e
block = torch.zeros(100 * 2**20, dtype=torch.uint8)
print((info().e - before) // 2**20)
"""
HAS_MALLINFO = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")


@pytest.mark.skipif(not HAS_MALLINFO, reason="needs glibc 2.33")
@pytest.mark.parametrize(("environment", "mapped"), [
    ({}, 0),
    ({"MALLOC_TRIM_THRESHOLD_": "131072"}, 100),
    ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, 100),
])  # fmt: skip
def test_what_a_step_frees_is_kept_unless_the_user_says_otherwise(environment, mapped):
    mine = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    mine["CUDA_VISIBLE_DEVICES"] = ""
    root = launch.__file__.rpartition("/common/")[0]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env=mine | environment, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert int(run.stdout) == mapped
