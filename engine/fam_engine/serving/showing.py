"""Errors that are shown where the server runs.

In: an error. Out: its traceback on stderr; nothing where stderr is closed, as after `serve 2>&1 | head`: what cannot be
told must not keep the server from answering.
"""

from __future__ import annotations

import contextlib
import sys
import traceback


def show(error: Exception) -> None:
    """Write an error and where it came from, if anybody can read it."""
    # A pipe nobody reads; a file that was closed.
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exception(error, file=sys.stderr)
