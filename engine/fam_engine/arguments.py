"""Checks of what Python programs give, where no configuration's types stand before it: numbers and token ids.

In: a value of any kind. Out: whether it will do, what it is as an array, or an error that names the argument.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Final

import numpy as np
import numpy.typing as npt

from fam_engine.errors import UsageError

# Beyond any vocabulary: what int32, in which ids are computed with, cannot hold.
_ALL_IDS: Final = 1 << 31


def is_whole_number(value: object, *, least: int | None = None) -> bool:
    """Whether a value is a whole number, of at least `least` if given; numpy's are, True is not."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return is_whole and (least is None or int(value) >= least)  # type: ignore[call-overload]


def is_number(value: object) -> bool:
    """Whether a value is a real number; numpy's are, True is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole_number(name: str, value: object, *, least: int | None = None) -> None:
    """Refuse what is no whole number, of at least `least` if given.

    Raises:
        UsageError: It is none.
    """
    if not is_whole_number(value, least=least):
        bound = "" if least is None else f" of at least {least}"
        message = f"{name} is {value!r}, expected a whole number{bound}"
        raise UsageError(message, code="E_CONFIG_VALUE")


def checked_token_ids(
    name: str, given: object, *, vocab_size: int = _ALL_IDS, can_be_empty: bool = False
) -> npt.NDArray[np.int32]:
    """Give token ids as an array, int32 [T].

    Args:
        name: What they are, for the error.
        given: Whole numbers, in a list or an array of any such type.
        vocab_size: Ids are below it.
        can_be_empty: Whether there may be none.

    Raises:
        UsageError: They are none. numpy would take other ids for them: -1 is the last one, 2^32 + 5 is 5, 5.7 is 5.
    """
    try:
        ids = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"{name} cannot be read as token ids: {error}"
        raise UsageError(message, code="E_TOKEN_IDS") from None
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        found = f"{ids.ndim} dimensions of {ids.dtype}"
        message = f"{name} has {found}, expected a list of whole numbers"
        raise UsageError(message, code="E_TOKEN_IDS")
    if not len(ids) and not can_be_empty:
        raise UsageError(f"{name} is empty, expected at least one token id", code="E_TOKEN_IDS")
    for extreme in (int(ids.min()), int(ids.max())) if len(ids) else ():
        if not 0 <= extreme < vocab_size:
            message = f"{name} holds the token id {extreme}, expected 0 to {vocab_size - 1}"
            raise UsageError(message, code="E_TOKEN_IDS")
    return ids.astype(np.int32, copy=False)
