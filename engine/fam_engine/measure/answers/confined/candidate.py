"""The process of the code under test: loads it, and does with it what the tests ask.

In: messages of `tester`. Out: one reply to each, `{"value": ...}` or `{"error": [type, text]}`. It holds neither the
tests nor the file the verdict goes to, so the code here can only return values or end this process.
"""

from __future__ import annotations

import builtins
import linecache
import os
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from fam_engine.measure.answers.confined import wire

_MODULE = "solution"
_ERROR_CHARACTERS = 300


class Workshop:
    """The loaded code and the objects of it the tests hold handles to.

    Args:
        channel: To `tester`.
    """

    def __init__(self, channel: wire.Channel) -> None:
        self._channel = channel
        self._objects: list[object] = []
        self._indices: dict[int, int] = {}  # id -> place; what is kept keeps its id
        self._module = types.ModuleType(_MODULE)

    def serve(self) -> None:
        """Answer messages until the tests are over."""
        while True:
            try:
                request = self._channel.receive()
            except EOFError:
                return
            self._channel.send(self._answer(request))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation: Callable[..., object] = getattr(self, f"_do_{request['do']}")
        try:
            arguments = [wire.decode(a, self._resolve) for a in request.get("arguments", ())]
            named = {k: wire.decode(v, self._resolve) for k, v in request.get("named", {}).items()}
            value = wire.encode(operation(*arguments, **named), self._keep)
            # What the code changed in its arguments is changed for the tests too.
            changed = [
                wire.encode(a, self._keep) if isinstance(a, wire.CHANGEABLE) else None
                for a in arguments
            ]
            return {"value": value, "arguments": changed}
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            return {"error": ["RuntimeError", f"{type(error).__name__} raised"]}
        except BaseException as error:
            return {"error": [_builtin_name(type(error)), _text(error)]}

    def _keep(self, value: object) -> list[Any]:
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        index = self._indices.setdefault(id(value), len(self._objects))
        if index == len(self._objects):
            self._objects.append(value)
        return ["handle", index]

    def _resolve(self, data: list[Any]) -> object:
        return self._objects[data[1]]

    def _do_load(self, code: str, names: list[str]) -> dict[str, object]:
        sys.modules[_MODULE] = self._module
        vars(self._module).update({name: getattr(typing, name) for name in typing.__all__})
        linecache.cache[_MODULE] = (len(code), None, code.splitlines(keepends=True), _MODULE)
        exec(compile(code, _MODULE, "exec"), vars(self._module))  # what this process is for
        return {name: vars(self._module)[name] for name in names if name in vars(self._module)}

    def _do_call(self, function: Callable[..., object], *args: object, **named: object) -> object:
        return function(*args, **named)

    def _do_method(self, target: Any, name: str, *args: object) -> object:  # noqa: ANN401
        return getattr(target, name)(*args)

    def _do_get(self, target: object, name: str) -> object:
        return getattr(target, name)

    def _do_set(self, target: object, name: str, value: object) -> None:
        setattr(target, name, value)

    def _do_text(self, target: object) -> str:
        return str(target)

    def _do_iterate(self, target: Any) -> object:  # noqa: ANN401
        return _Iterator(iter(target))


class _Iterator:
    """Hides an iterator, so that it travels as a handle whatever it is."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401
        self._inner = inner

    def __next__(self) -> object:
        return next(self._inner)


def _builtin_name(kind: type[BaseException]) -> str:
    """Name the closest built-in exception."""
    for ancestor in kind.__mro__:
        if getattr(builtins, ancestor.__name__, None) is ancestor:
            return str(ancestor.__name__)
    return "Exception"


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_ERROR_CHARACTERS]
    except Exception:
        return ""


def close_files(reading: int, writing: int) -> None:
    """Close every file of the parent's but two, and point the standard ones at nothing."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    kept = sorted({0, 1, 2, reading, writing})
    for low, high in zip(kept, [*kept[1:], 65536], strict=True):
        os.closerange(low + 1, high)
