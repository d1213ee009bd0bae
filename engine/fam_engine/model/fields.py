"""Strict reading of the JSON objects that describe models and adapters.

In: the object in a JSON file. Out: checked values, through a `Fields` reader that remembers which
names were asked for, so that in the end every name was *used*, is *known harmless*, or is refused:
a field nobody understood may change what the model computes, and a wrong score looks as plausible
as a right one. Types are strict: no bool for an int, no infinity.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from fam_engine.errors import ModelRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Json: TypeAlias = Any  # whatever a JSON file may hold
_MISSING: Final = object()


class Fields:
    """Reads the fields of one JSON object and refuses what does not fit, by name."""

    def __init__(
        self, values: dict[str, Json], *, where: str | None, code: str, prefix: str = ""
    ) -> None:
        """Begin to read.

        Args:
            values: The object.
            where: File it came from, for messages.
            code: Code of the errors raised.
            prefix: Put before names in messages, such as `rope_scaling.`.
        """
        self.values = values
        self.where = where
        self.code = code
        self.prefix = prefix
        self._used: set[str] = set()

    def get(self, name: str, default: Json = _MISSING) -> Json:
        """Return a raw value, its name now used; refuse a missing one without a default."""
        self._used.add(name)
        value = self.values.get(name, default)
        if value is _MISSING:
            message = f"`{self.prefix}{name}` is missing"
            raise ModelRefusedError(message, code=self.code, where=self.where)
        return value

    def integer(self, name: str, default: Json = _MISSING, *, low: int, high: int) -> int:
        """Return an int in [low, high]. A default is returned as it is; null is refused."""
        value = self.get(name, default)
        if value is default:
            return int(value)
        if type(value) is not int or not low <= value <= high:
            self.refuse(name, f"an integer from {low} to {high}")
        return int(value)

    def number(self, name: str, default: Json = _MISSING, *, low: float, high: float) -> float:
        """Return a finite number in [low, high] as a float. A default is returned as it is."""
        value = self.get(name, default)
        if value is default:
            return float(value)
        # isfinite comes after the range: an int of 400 digits does not fit a float.
        if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
            self.refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str, default: Json = _MISSING) -> bool:
        """Return a bool. A default is returned as it is."""
        value = self.get(name, default)
        if value is not default and type(value) is not bool:
            self.refuse(name, "true or false")
        return bool(value)

    def only(self, name: str, supported: Sequence[Json]) -> None:
        """Refuse a field that is there with any but the supported values."""
        if name not in self.values:
            return
        value = self.get(name)
        if not any(type(value) is type(good) and value == good for good in supported):
            self.refuse(name, " or ".join(json.dumps(good) for good in supported))

    def is_null(self, name: str) -> bool:
        """Whether a field is absent or null."""
        return self.get(name, None) is None

    def finish(self, harmless: Iterable[str]) -> None:
        """Refuse any field that nothing asked for and that is not known to be harmless."""
        unknown = sorted(self.values.keys() - self._used - set(harmless))
        if unknown:
            self.refuse(
                unknown[0], "only fields whose meaning is known: this one may change results"
            )

    def refuse(self, name: str, supported: str) -> NoReturn:
        """Raise for one field: its name, its value, what is supported."""
        shown = json.dumps(self.values.get(name), default=str)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        message = f"`{self.prefix}{name}` is {shown}; supported: {supported}"
        raise ModelRefusedError(message, code=self.code, where=self.where)
