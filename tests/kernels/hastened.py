"""Triton's interpreter without the work whose result nobody sees, which is most of its time.

As it comes, every call of a function such as `tl.max` or `tl.cdiv` inside a kernel looks through all of
`triton.language` for what is to be replaced, though its launch has replaced it; every sum of integers is made again in
64 bits and held against the limits, and what is found goes to an assertion that is only made in debugging; and numpy's
names of types are put into a new table for every look-up. Values are computed as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def hasten_interpreter() -> None:
    """Let the interpreter be so in this process."""
    replaced: set[str] = set()
    interpreter._patch_lang = _once(interpreter._patch_lang, replaced)
    interpreter.GridExecutor.__call__ = _launch(interpreter.GridExecutor.__call__, replaced)
    builder = interpreter.interpreter_builder
    assert not builder.options.debug, "overflows would be told"
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = _looked_up_once(interpreter._get_np_dtype)


def _once(patch: Callable[[Any], Any], replaced: set[str]) -> Callable[[Any], Any]:
    """Give a `_patch_lang` that does nothing where a launch has replaced all that a function sees."""

    def patch_once(function: Any) -> Any:  # noqa: ANN401 - of Triton's
        seen = _languages(function)
        if seen <= replaced:
            return interpreter._LangPatchScope()
        replaced.update(seen)
        return patch(function)

    return patch_once


@cache
def _languages(function: Any) -> frozenset[str]:  # noqa: ANN401
    """Name which of Triton's two modules of operations a function sees."""
    seen = function.__globals__.values()
    modules = [module for module in (tl, tl.core) if any(value is module for value in seen)]
    return frozenset(module.__name__ for module in modules)


def _launch(execute: Callable[..., None], replaced: set[str]) -> Callable[..., None]:
    """Give a launch that begins and ends with nothing replaced."""

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        replaced.clear()
        try:
            execute(self, *args, **kwargs)
        finally:
            replaced.clear()

    return launch


def _looked_up_once(look_up: Callable[[tl.dtype], Any]) -> Callable[[tl.dtype], Any]:
    known = cache(look_up)
    # Types of pointers and of blocks cannot be keys.
    return lambda of: look_up(of) if of.scalar.is_ptr() else known(of.scalar)
