"""The process of the tests: runs them against proxies of what the code under test defines.

In: the code, the tests, and a channel to `candidate`. Out: `{"passed": true, false or null, "reason": ...}`. The tests
run here, the code there: asserts, comparisons and built-ins are this process's own, and passing takes right values.
Names the tests neither define nor import come from the code, whose process may answer with more: only what was asked
for is taken, and no `__builtins__` or other name of Python's own is ever asked for. The name of a built-in, or of a
module of the standard library the tests take something from (`math.isclose`), comes from the code only where it is the
one thing they take (a task may ask for a function called `sum`), so that code cannot replace the `abs` or the `math` it
is checked with. The genuine module of that name may come in any case: tests may count on the code's `import math`.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fam_engine.measure.answers.confined import wire

_REASON_CHARACTERS = 300
_T = TypeVar("_T")


class CodeGoneError(BaseException):
    """The code under test ended its process; not an `Exception`, which tests may expect of the code."""


class Remote:
    """An object of the code under test, used from afar; equal to itself only.

    Args:
        client: Who asks for it.
        index: Its number there.
    """

    def __init__(self, client: Client, index: int) -> None:
        object.__setattr__(self, "_remote", (client, index))

    def __call__(self, *args: object, **named: object) -> object:
        """Call it there."""
        return _ask(self, "call", *args, **named)

    def __getattr__(self, name: str) -> object:
        """Get an attribute."""
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute."""
        _ask(self, "set", name, value)

    def __iter__(self) -> Iterator[object]:
        """Iterate over it, one item a message: it may have no end."""
        iterator = _ask(self, "iterate")
        while True:
            try:
                item = _ask(iterator, "method", "__next__")
            except StopIteration:
                return
            yield item

    def __len__(self) -> int:
        """Give its length."""
        return _plain(int, _ask(self, "method", "__len__"))

    def __getitem__(self, key: object) -> object:
        """Give an item."""
        return _ask(self, "method", "__getitem__", key)

    def __contains__(self, item: object) -> bool:
        """Whether an item is in it."""
        return _plain(bool, _ask(self, "method", "__contains__", item))

    def __bool__(self) -> bool:
        """An object that is no plain value is true."""
        return True

    def __str__(self) -> str:
        """Give its text."""
        return _plain(str, _ask(self, "text"))

    def __eq__(self, other: object) -> bool:
        """Whether both are the same object there: its own `__eq__` could say anything."""
        return isinstance(other, Remote) and _index(self) == _index(other)

    def __hash__(self) -> int:
        """Agree with `__eq__`."""
        return hash(_index(self))


def _index(remote: Remote) -> int:
    index: int = object.__getattribute__(remote, "_remote")[1]
    return index


def _ask(remote: object, operation: str, *args: object, **named: object) -> Any:  # noqa: ANN401
    client: Client = object.__getattribute__(remote, "_remote")[0]
    return client.ask(operation, remote, *args, **named)


def _plain(kind: type[_T], value: object) -> _T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}")
    return value


class Client:
    """Asks the process of the code.

    Args:
        channel: To it.
    """

    def __init__(self, channel: wire.Channel) -> None:
        self._channel = channel
        self._gone = False

    def check(self) -> None:
        """Raise what a test has caught that catches everything.

        Raises:
            CodeGoneError: The process ended.
        """
        if self._gone:
            raise CodeGoneError

    def ask(self, operation: str, *args: object, **named: object) -> object:
        """Have an operation done there, and take over what it changed in its arguments.

        Raises:
            CodeGoneError: The process ended.
            Exception: What the code raised, as its closest built-in exception.
        """
        request = {
            "do": operation,
            "arguments": [wire.encode(argument, _handle) for argument in args],
            "named": {name: wire.encode(value, _handle) for name, value in named.items()},
        }
        try:
            self._channel.send(request)
            reply = self._channel.receive()
        except (EOFError, OSError, ValueError):
            self._gone = True
            raise CodeGoneError from None
        if "error" in reply:
            raise _exception(*reply["error"])
        for argument, data in zip(args, reply["arguments"], strict=True):
            _update(argument, data, self._take)
        return wire.decode(reply["value"], self._take)

    def _take(self, data: list[Any]) -> object:
        if data[0] == "module":
            # A genuine one, and only of the standard library: whatever the code made of its own.
            if data[1].partition(".")[0] in sys.stdlib_module_names:
                return importlib.import_module(data[1])
            raise wire.CannotSendError(f"module {data[1]}")
        return Remote(self, int(data[1]))


def _handle(value: object) -> list[Any]:
    if isinstance(value, Remote):
        return ["handle", _index(value)]
    raise wire.CannotSendError(f"a value of type {type(value).__name__}")


def _exception(kind: str, text: str) -> Exception:
    found = getattr(builtins, kind, None)
    if isinstance(found, type) and issubclass(found, Exception) and found is not UnicodeError:
        try:
            return found(text)
        except TypeError:  # UnicodeDecodeError and its like want more than a text
            pass
    return Exception(text)


def _update(argument: object, data: Any, take: Any) -> None:  # noqa: ANN401
    """Give a container the content it has after the call."""
    if not isinstance(argument, wire.CHANGEABLE):
        return
    new: Any = wire.decode(data, take)
    if new == argument:
        return
    if isinstance(argument, list | bytearray):
        argument[:] = new
    else:
        argument.clear()
        argument.update(new)


def names_in_tests(tests: list[str]) -> tuple[set[str], set[str]]:
    """Collect the names tests use (some may be their own), and those of them that code may not replace.

    Names such as `__name__` and `__builtins__` belong to the namespace of the tests.
    """
    nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    names = {name for name in used if not name.startswith("__") or not name.endswith("__")}
    owners = {
        node.value.id
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return names, names & set(dir(builtins)) | owners & sys.stdlib_module_names


def run(
    channel: wire.Channel, code: str, tests: list[str], how_it_ended: Callable[[], str]
) -> dict[str, Any]:
    """Run the tests against the code; never raises.

    Args:
        channel: To the process of the code.
        code: A module's text.
        tests: Modules' texts, run one after the other in one namespace.
        how_it_ended: Says how that process ended, once it has.

    Returns:
        `passed` (None: the tests themselves cannot be run) and `reason`.
    """
    warnings.simplefilter("ignore")
    try:
        names, protected = names_in_tests(tests)
        programs = [compile(test, f"test {i + 1}", "exec") for i, test in enumerate(tests)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return _result(None, f"the tests do not compile: {_say(error)}")
    client = Client(channel)
    try:
        defined = _plain(dict, client.ask("load", code, sorted(names)))
    except CodeGoneError:
        return _result(False, f"the code {how_it_ended()} while it was loaded")
    except Exception as error:
        return _result(False, f"the code does not load: {_say(error)}")
    space = _namespace({n: v for n, v in defined.items() if n in names}, protected)
    for index, program in enumerate(programs):
        where = f"test {index + 1} of {len(programs)}"
        try:
            exec(program, space)  # the tests are what this process is for
            client.check()
        except CodeGoneError:
            return _result(False, f"{where}: the code {how_it_ended()}")
        except wire.CannotSendError as error:
            return _result(None, f"{where} passes the code what cannot be passed: {error}")
        except BaseException as error:
            return _result(False, f"{where} failed: {_say(error)}{_line(error, tests[index])}")
    return _result(True, f"passed {len(programs)} test{'s' if len(programs) > 1 else ''}")


def _namespace(defined: dict[str, object], protected: set[str]) -> dict[str, object]:
    """Choose what the tests get of the names they asked for; modules among them are genuine (`Client._take`)."""
    modules = {n: v for n, v in defined.items() if _is_module(v, n)}
    others = {n: v for n, v in defined.items() if n not in modules}
    free = {n: v for n, v in others.items() if n not in protected}
    only = others if len(others) == 1 else {}
    return {"__name__": "tests"} | modules | (free or only)


def _is_module(value: object, name: str) -> bool:
    """Whether it is the module of that name: under another's name even a genuine one misleads."""
    return isinstance(value, types.ModuleType) and value.__name__ == name


def _result(passed: bool | None, reason: str) -> dict[str, Any]:
    return {"passed": passed, "reason": reason[:_REASON_CHARACTERS]}


def _say(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(error: BaseException, test: str) -> str:
    """Quote the line of a test at which it failed."""
    number, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith("test "):
            number = trace.tb_lineno
        trace = trace.tb_next
    lines = test.splitlines()
    return f" at `{lines[number - 1].strip()}`" if 0 < number <= len(lines) else ""
