"""Checks of numbers that Python programs give, where no configuration's types stand before them.

In: a value of any kind. Out: whether it will do, or an error that names the argument.
"""

from __future__ import annotations

from numbers import Integral, Real

from fam_engine.errors import UsageError


def is_whole_number(value: object, *, least: int) -> bool:
    """Whether a value is a whole number of at least `least`; numpy's are, True is not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object) -> bool:
    """Whether a value is a real number; numpy's are, True is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole_number(name: str, value: object, *, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        UsageError: It is none.
    """
    if not is_whole_number(value, least=least):
        message = f"{name} is {value!r}, expected a whole number of at least {least}"
        raise UsageError(message, code="E_CONFIG_VALUE")
