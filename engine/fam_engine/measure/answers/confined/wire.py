"""Values on their way between the process of the tests and the process of the code under test.

In: Python values. Out: JSON lines, and back. Only plain values travel, exactly: numbers, strings, bytes, containers,
ranges, fractions, decimals, built-in types. What is a subclass of one arrives as that one (a Counter as a dict),
so no method of the code under test, `__eq__` least of all, ever runs among the tests. Anything else stays where it is
and travels as a handle.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, BinaryIO

MAX_MESSAGE_BYTES = 32 << 20
# What a call may change in place.
CHANGEABLE = (list, dict, set, bytearray)


class CannotSendError(Exception):
    """A value that has no plain form and may not stay behind a handle."""


def encode(value: Any, handle: Callable[[object], Any]) -> Any:  # noqa: ANN401 - any value
    """Turn a value into JSON values; `handle` gives those of what does not travel."""
    if value is None or value is True or value is False:
        return value
    for kind, (tag, pack) in _PACKED.items():
        if isinstance(value, kind):
            return [tag, pack(value)]
    for kind, tag in _CONTAINERS.items():
        if isinstance(value, kind):
            return [tag, [encode(item, handle) for item in kind.__iter__(value)]]
    if isinstance(value, dict):
        pairs = [[encode(k, handle), encode(v, handle)] for k, v in dict.items(value)]
        return ["dict", pairs]
    if isinstance(value, type) and _builtin_type(value.__name__) is value:
        return ["type", value.__name__]
    return handle(value)


def decode(data: Any, handle: Callable[[list[Any]], object]) -> object:  # noqa: ANN401
    """Turn JSON values back into the value; `handle` gives that of a handle."""
    if not isinstance(data, list):
        return data
    tag, content = data
    if tag in _UNPACKED:
        return _UNPACKED[tag](content)
    if tag in _BUILT:
        return _BUILT[tag](decode(item, handle) for item in content)
    if tag == "dict":
        return {decode(k, handle): decode(v, handle) for k, v in content}
    if tag == "type":
        return _builtin_type(content)
    return handle(data)


def _builtin_type(name: str) -> type | None:
    found = getattr(builtins, name, None)
    return found if isinstance(found, type) else None


# Integers go in base 16, which has no limit on digits and no cost that grows with their square.
_PACKED: dict[Any, tuple[str, Callable[[Any], object]]] = {
    int: ("int", lambda v: int.__format__(v, "x")),
    float: ("float", lambda v: float.hex(v)),
    str: ("str", lambda v: str.__str__(v)),
    complex: ("complex", lambda v: [float.hex(v.real), float.hex(v.imag)]),
    bytes: ("bytes", lambda v: bytes.hex(v)),
    bytearray: ("bytearray", lambda v: bytearray.hex(v)),
    range: ("range", lambda v: [hex(v.start), hex(v.stop), hex(v.step)]),
    Fraction: ("fraction", lambda v: [hex(v.numerator), hex(v.denominator)]),
    Decimal: ("decimal", lambda v: Decimal.__str__(v)),
}
_UNPACKED: dict[str, Callable[[Any], object]] = {
    "int": lambda c: int(c, 16),
    "float": float.fromhex,
    "str": str,
    "complex": lambda c: complex(float.fromhex(c[0]), float.fromhex(c[1])),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda c: range(*(int(part, 16) for part in c)),
    "fraction": lambda c: Fraction(int(c[0], 16), int(c[1], 16)),
    "decimal": Decimal,
}
_CONTAINERS: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_BUILT: dict[str, Callable[[Any], object]] = {tag: kind for kind, tag in _CONTAINERS.items()}


class Channel:
    """Messages, one JSON line each, over a pair of pipes.

    Args:
        reading: File descriptor to read from.
        writing: File descriptor to write to.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reader: BinaryIO = os.fdopen(reading, "rb")
        self._writing = writing

    def send(self, message: Any) -> None:  # noqa: ANN401 - any JSON value
        """Send a message.

        Raises:
            CannotSendError: It is longer than `MAX_MESSAGE_BYTES`.
        """
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MAX_MESSAGE_BYTES:
            raise CannotSendError(f"a value of more than {MAX_MESSAGE_BYTES >> 20} MiB")
        while line:
            line = line[os.write(self._writing, line) :]

    def receive(self) -> Any:  # noqa: ANN401
        """Wait for a message.

        Raises:
            EOFError: The other side is gone, or sent no message.
        """
        line = self._reader.readline(MAX_MESSAGE_BYTES + 1)
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)
