"""The gate of offline compilation, in a process of its own: here kernels are interpreted.

What has changed is compiled, and some of the rest; `make check-kernels` compiles all.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kernels import offline
from tests.kernels.compiling import WITHOUT_INTERPRETER


def test_every_shipped_kernel_is_as_recorded_on_every_gpu() -> None:
    command = [sys.executable, "-m", "tests.kernels.offline", "--anew", "24"]
    if not offline.BUDGETS.exists():
        pytest.skip(f"no budgets are kept for {offline.BUDGETS.stem}")
    ended = subprocess.run(
        command, env=WITHOUT_INTERPRETER, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
