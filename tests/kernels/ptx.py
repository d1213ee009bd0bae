"""A few instructions of PTX, run on words of 32 bits: what the interpreter leaves out."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]


def run_ptx(text: str, operands: Mapping[str, Words]) -> dict[str, Words]:
    """Run `and`, `shl`, `shr`, `prmt`, `lop3` and unpacking `mov` on operands "$0", "$1" ...; give all registers."""
    registers = dict(operands)

    def value(name: str) -> Words:
        return registers[name] if name in registers else np.uint32(int(name, 0))

    for line in text.strip("{} \n").split(";"):
        statement = line.strip()
        if not statement or statement.startswith(".reg"):
            continue
        name, rest = statement.split(maxsplit=1)
        if unpacked := re.fullmatch(r"\{(\S+), (\S+)\}, (\S+)", rest):
            assert name == "mov.b32"
            low, high, source = unpacked.groups()
            registers[low], registers[high] = value(source) & 0xFFFF, value(source) >> 16
            continue
        target, *sources = rest.split(", ")
        registers[target] = _OPERATIONS[name](*map(value, sources))
    return registers


def _permute(low: Words, high: Words, selectors: Words) -> Words:
    """`prmt`: bytes of the pair, or, where an index has its fourth bit, copies of a byte's sign."""
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    found = np.zeros(np.broadcast(both, selectors).shape, np.uint32)
    for place in range(4):
        index = (selectors >> np.uint32(4 * place)) & np.uint32(15)
        byte = (both >> (8 * (index & np.uint32(7))).astype(np.uint64)) & np.uint64(255)
        byte = np.where(index & 8, np.where(byte & np.uint64(128), 255, 0), byte)
        found |= byte.astype(np.uint32) << np.uint32(8 * place)
    return found


def _logic(a: Words, b: Words, c: Words, table: Words) -> Words:
    """`lop3`: bit by bit, what the table says of the three."""
    found = np.zeros_like(a)
    for case in range(8):
        if table >> case & 1:
            found |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
    return found


_OPERATIONS = {
    "and.b32": np.bitwise_and,
    "shl.b32": np.left_shift,
    "shr.u32": np.right_shift,
    "prmt.b32": _permute,
    "lop3.b32": _logic,
}
