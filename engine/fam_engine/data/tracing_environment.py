"""The environment a template is traced in: it stands between the template and everything done with a value.

In: attributes, items, calls, operators, filters, tests and output, as Jinja's compiled code asks for them. Out: for
what cannot depend on a content, what Jinja does; for what can be followed, the same done with `TracedText`; for the
rest a refusal. It is a closed world: what is not named here is refused.
"""

from __future__ import annotations

import functools
import secrets
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import jinja2
import jinja2.runtime
import jinja2.sandbox

from fam_engine.data.traced_text import (
    METHOD_NAMES,
    Trace,
    TracedLength,
    TracedMethod,
    TracedText,
    contains,
    equals,
    strip,
)

# The name `a ~ b` is rewritten to, as a filter of a list.
CONCAT = "~"

_SCALARS = (int, float, bool, types.NoneType, jinja2.Undefined)
_CONTAINERS = (list, tuple, dict)
_DEPTH = 8  # of containers looked into; deeper ones count as holding contents

# Filters and tests that see of a container only what a shape fixes, and of its items nothing.
_CONTAINER_FILTERS = {
    *("count", "default", "d", "first", "items", "last", "length", "list"),
    *("map", "reject", "rejectattr", "reverse", "select", "selectattr"),
}
_TYPE_TESTS = {
    *("boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping"),
    *("none", "number", "sequence", "string", "true", "undefined"),
}
_EQUAL = {"eq": True, "==": True, "equalto": True, "ne": False, "!=": False}
# What comparing a length with a number says if the text is not empty.
_NOT_EMPTY = {
    **{(name, 0): True for name in ("gt", ">", "greaterthan", "ne", "!=")},
    **{(name, 1): True for name in ("ge", ">=")},
    **{(name, 0): False for name in ("eq", "==", "equalto", "le", "<=")},
    **{(name, 1): False for name in ("lt", "<", "lessthan")},
}
_DICT_METHODS = ("get", "items", "keys", "values")
# Other functions know more than their arguments: `lipsum` chances, `cycler` and `joiner` remember.
_FUNCTIONS = ("range", "raise_exception", "strftime_now")
_CONSTRUCTORS = ("dict", "namespace")


class TracingEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Stands between a template and its values; `trace` is the run it records."""

    intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)
    trace: Trace

    def watch(self) -> None:
        """Start to stand between, once the helpers of `sandbox` are in place."""
        self.marker = secrets.token_hex(16)
        self.trace = Trace(self.marker)
        self.filters[CONCAT] = str
        self.filters = self._mediated(self.filters, self._filter)
        self.tests = self._mediated(self.tests, self._test)
        self.finalize = self._written
        self.concat = self._concat  # type: ignore[method-assign]

    def _mediated(self, functions: Mapping[str, Any], decide: Callable[..., Any]) -> dict[str, Any]:
        return {name: self._mediate(name, one, decide) for name, one in functions.items()}

    def _mediate(
        self, name: str, function: Callable[..., Any], decide: Callable[..., Any]
    ) -> Callable[..., Any]:
        num_passed = int(hasattr(function, "jinja_pass_arg"))  # the context or its like goes first

        @functools.wraps(function)
        def mediated(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any filter or test
            original = functools.partial(function, *args[:num_passed])
            return decide(name, original, args[num_passed:], kwargs)

        return mediated

    # -- output --------------------------------------------------------------------------------

    def _written(self, value: object) -> str:
        """Give what is written of a value; the rest has texts that reveal contents or addresses."""
        if isinstance(value, TracedText):
            return value
        if type(value) is str:
            return self.trace.plain(value)
        if isinstance(value, _SCALARS):
            return str(value)
        self.trace.refuse(f"a {type(value).__name__} written as text")

    def _concat(self, parts: Iterable[str]) -> str:
        return self.trace.join(parts)

    def _join(self, parts: Iterable[object], d: object = "") -> str:
        """Do as the filter `join`, whose separator is called `d`."""
        texts: list[str] = []
        for part in parts:
            texts += [self._written(d), self._written(part)]
        return self.trace.join(texts[1:])

    def _str_join(self, separator: str, parts: Iterable[object]) -> str:
        parts = list(parts)
        if not all(isinstance(part, str) for part in parts):
            self.trace.refuse("`join` of something that is no text")
        return self._join(parts, separator)

    # -- attributes, calls, operators ----------------------------------------------------------

    def getattr(self, obj: Any, attribute: str) -> Any:  # noqa: ANN401 - any value
        """Give an attribute, of a content only the methods that can be followed."""
        if isinstance(obj, TracedText) and attribute in METHOD_NAMES:
            return TracedMethod(obj, attribute)
        if isinstance(obj, TracedText | TracedLength | TracedMethod):
            self.trace.refuse(f"`{attribute}` of a content")
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:  # noqa: ANN401 - any value
        """Give an item; a content is neither looked into nor looked up."""
        if isinstance(obj, TracedText | TracedLength | TracedMethod) or self._holds(argument):
            self.trace.refuse("an item of a content, or one named by a content")
        return super().getitem(obj, argument)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call what can be followed: macros, constructors, methods, and functions of constants."""
        given = {name: v for name, v in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
        if isinstance(obj, TracedMethod):
            return obj(*args, **given)
        if _is_method(obj, (str,)) and obj.__name__ == "join" and len(args) == 1 and not given:
            return self._str_join(obj.__self__, args[0])
        if not self._runs_template(obj) and not (
            self._is_plain_function(obj) and not self._holds([*args, *given.values()])
        ):
            self.trace.refuse(f"a call of {getattr(obj, '__name__', type(obj).__name__)}")
        return super().call(context, obj, *args, **kwargs)

    def _runs_template(self, obj: object) -> bool:
        """Whether a call runs nothing but more of the template, or keeps its arguments as they are."""
        if isinstance(obj, jinja2.runtime.Macro | jinja2.runtime.LoopContext):
            return True
        return any(obj is self.globals[name] for name in _CONSTRUCTORS)

    def _is_plain_function(self, function: Any) -> bool:  # noqa: ANN401 - any value
        """Whether a function of constants knows nothing else."""
        if any(function is self.globals[name] for name in _FUNCTIONS):
            return True
        if _is_method(function, (dict,)) and function.__name__ in _DICT_METHODS:
            return True
        return _is_method(function, (str, *_CONTAINERS)) and not self._holds(function.__self__)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Apply an operator; of contents only concatenation."""
        if not self._holds(left) and not self._holds(right):
            return super().call_binop(context, operator, left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self.trace.join([left, right])
        if operator == "+" and type(left) is type(right) and type(left) in (list, tuple):
            return left + right
        self.trace.refuse(f"operator `{operator}` on a content")

    def _holds(self, value: object, depth: int = _DEPTH) -> bool:
        """Whether a value may depend on a content."""
        if type(value) is str:
            self.trace.plain(value)
            return False
        if isinstance(value, (*_SCALARS, range)):
            return False
        if type(value) not in _CONTAINERS or depth == 0:
            return True
        items = value.items() if isinstance(value, dict) else cast("Iterable[object]", value)
        return any(self._holds(item, depth - 1) for item in items)

    # -- filters and tests ---------------------------------------------------------------------

    def _filter(
        self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401 - any value
        if name == CONCAT:
            return self._join(args[0])
        if name == "random":
            self.trace.refuse("chance")
        if not self._holds([*args, *kwargs.values()]):
            return original(*args, **kwargs)
        value = args[0]
        if isinstance(value, TracedText):
            return self._text_filter(name, original, args, kwargs)
        if name == "join":
            return self._join(*args, **kwargs)
        if name not in _CONTAINER_FILTERS or isinstance(value, TracedLength | TracedMethod):
            self.trace.refuse(f"filter `{name}` on a content")
        return original(*args, **kwargs)

    def _text_filter(
        self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401 - any value
        text = args[0]
        if name in ("default", "d"):
            return original(*args, **kwargs)
        if name == "string" and len(args) == 1:
            return text
        if name == "trim":
            return strip(*args, **kwargs)
        if name == "replace":
            return TracedMethod(text, name)(*args[1:], **kwargs)
        if name in ("length", "count"):
            return TracedLength(text)
        self.trace.refuse(f"filter `{name}` on a content")

    def _test(
        self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        value = args[0]
        if name in _TYPE_TESTS and not isinstance(value, TracedLength | TracedMethod):
            # To these tests one text is as good as another.
            seen = "" if isinstance(value, TracedText) else value
            return bool(original(seen, *args[1:], **kwargs))
        if not self._holds([*args, *kwargs.values()]):
            return bool(original(*args, **kwargs))
        if len(args) != 2 or kwargs:
            self.trace.refuse(f"test `{name}` of a content")
        if isinstance(value, TracedLength):
            return self._length_test(name, value, args[1])
        if name in _EQUAL:
            return self._equal(value, args[1]) is _EQUAL[name]
        if name == "in":
            return self._is_in(value, args[1])
        self.trace.refuse(f"test `{name}` of a content")

    def _length_test(self, name: str, length: TracedLength, number: object) -> bool:
        if type(number) is not int or (name, number) not in _NOT_EMPTY:
            self.trace.refuse(f"test `{name}` of a content's length")
        return _NOT_EMPTY[name, number] is bool(length)

    def _equal(self, left: object, right: object) -> bool:
        for value in (left, right):
            if not isinstance(value, (str, *_SCALARS, *_CONTAINERS)):
                self.trace.refuse(f"`==` of a {type(value).__name__}")
        if isinstance(left, TracedText):
            return equals(left, right)
        if isinstance(right, TracedText):
            return equals(right, left)
        if isinstance(left, _CONTAINERS) and isinstance(right, _CONTAINERS):
            self.trace.refuse("contents compared")
        # A list is never equal to a text, a number or none, whatever is in it.
        return bool(left == right)

    def _is_in(self, item: object, container: object) -> bool:
        if isinstance(container, TracedText):
            return contains(container, item)
        if type(container) in (list, tuple):
            return any(self._equal(one, item) for one in cast("list[object]", container))
        if type(container) is dict and not self._holds(item):
            return item in container
        self.trace.refuse("a content looked for")


def _is_method(function: object, owners: tuple[type, ...]) -> bool:
    """Whether it is a method written in C, of an object of just one of these types."""
    if not isinstance(function, types.BuiltinMethodType):
        return False
    return type(function.__self__) in owners
