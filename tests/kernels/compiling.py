"""Programs that let Triton compile, from tests whose own process interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

WITHOUT_INTERPRETER: Final = {
    name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
}


def printed_by_compiled(program: str) -> str:
    """Run a Python program in a process where kernels are compiled; give what it printed."""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=WITHOUT_INTERPRETER,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
