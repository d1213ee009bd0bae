"""The sandbox chat templates run in: Jinja's, with the helpers transformers offers and limits on time and output.

In: a template's source, then conversations. Out: texts. It belongs inside the child process of `template_worker`, whose
memory is limited: the sandbox of Jinja keeps templates away from Python, not from time and memory, and nested loops and
`'%999999999d' % 1` both get through it.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from fam_engine.data.turns import Tools

SECONDS_A_RENDER = 2.0
# A rendering may grow its input by this much: templates add role names and a system prompt, not books.
GROWTH_FACTOR = 8
GROWTH_BYTES = 64 << 10

EnvironmentT = TypeVar("EnvironmentT", bound=jinja2.sandbox.ImmutableSandboxedEnvironment)


@dataclass(frozen=True)
class TemplateSource:
    """A template and all it may name besides the conversation."""

    text: str
    constants: Mapping[str, Any]
    date: datetime


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote; for rendering it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - the attribute jinja2 reads

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Give the block's own statements."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def sandbox(kind: type[EnvironmentT], date: datetime) -> EnvironmentT:
    """Make an environment with the helpers transformers offers to a template."""
    environment = kind(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = date.strftime
    return environment


def compile_template(source: TemplateSource) -> jinja2.Template:
    """Compile a template for rendering.

    Raises:
        jinja2.TemplateError: It does not compile.
    """
    environment = sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment, source.date)
    return environment.from_string(source.text)


def names_read(source: TemplateSource, environment: jinja2.Environment) -> set[str]:
    """Give the names a template may look up besides those it sets itself."""
    return jinja2.meta.find_undeclared_variables(environment.parse(source.text))


def _to_json(
    value: Any,  # noqa: ANN401 - any JSON value
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which would change the text the model sees. The arguments are
    # in the order of transformers.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@contextlib.contextmanager
def time_limit(seconds: float = SECONDS_A_RENDER) -> Iterator[None]:
    """Raise a TimeoutError inside the block once it has computed for so long.

    Time of computing, not of waiting: what a record renders to must not depend on what else the machine does.
    """

    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"the template ran for more than {seconds:g} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def generate(
    template: jinja2.Template,
    constants: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    tools: Tools | None = None,
) -> Iterator[str]:
    """Run a template on a conversation, piece by piece."""
    return template.generate(
        **constants,
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        documents=None,
    )


def render(
    template: jinja2.Template,
    constants: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    tools: Tools | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Render one conversation, told `kwargs` beside the constants; the caller limits the time.

    Raises:
        jinja2.TemplateError: The template refused it or is wrong.
        MemoryError: It wrote too much.
    """
    told = {**constants, **(kwargs or {})}
    size = sum(map(_size, messages))
    size += sum(len(json.dumps(more)) for more in (tools, kwargs) if more)
    limit = GROWTH_BYTES + GROWTH_FACTOR * size
    parts, length = [], 0
    for part in generate(
        template, told, messages, add_generation_prompt=add_generation_prompt, tools=tools
    ):
        length += len(part)
        if length > limit:
            raise MemoryError(f"the template wrote more than {limit} characters")
        parts.append(part)
    return "".join(parts)


def _size(message: Mapping[str, Any]) -> int:
    if len(message) == 2 and isinstance(message.get("content"), str):
        return len(message["content"])
    return len(json.dumps(message))
