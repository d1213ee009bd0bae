"""Entries on their way to the spool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fam_engine.jobs.scoring.spooling import MAIN, EntryWriter


def test_an_end_of_turn_that_a_byte_cannot_count_is_refused(tmp_path: Path) -> None:
    """As Rust refuses it of records that it encodes itself; 256 as a byte would be none."""
    writer = EntryWriter(tmp_path, durable=False)
    one = np.array([1], np.int32)
    writer.add((0, MAIN), one, one, np.ones(255, np.int32))
    writer.flush()
    writer.add((1, MAIN), one, one, np.ones(256, np.int32))
    with pytest.raises(ValueError, match=r"num_eot\[0\]. is 256"):
        writer.flush()
