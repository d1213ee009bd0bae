"""The child process that renders chat templates: a model's template is somebody else's program.

In (standard input): a JSON line with the template and its constants, then one JSON line a rendering. Out (standard
output): one JSON line each, `{"text": ...}` or `{"error": ...}`. The sandbox of Jinja keeps templates away from Python;
this process keeps them from time and memory, which the sandbox does not: nested loops and `'%999999999d' % 1` both get
through it. A child was chosen over threads because nothing in-process can take memory back.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

SECONDS_A_RENDER = 2.0
MEMORY_BYTES = 512 << 20
# A rendering may grow its input by this much: templates add role names and a system prompt, not books.
GROWTH_FACTOR = 8
GROWTH_BYTES = 64 << 10


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote; for rendering it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - the attribute jinja2 reads

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Give the block's own statements."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str, date: datetime) -> jinja2.Template:
    """Compile a template with the helpers transformers offers to one."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = date.strftime
    return environment.from_string(source)


def _to_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - any JSON value
    # Jinja's own filter escapes for HTML, which would change the text the model sees.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"the template ran for more than {seconds:g} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def render(template: jinja2.Template, constants: dict[str, str], request: dict[str, Any]) -> str:
    """Render one conversation.

    Raises:
        jinja2.TemplateError: The template refused it or is wrong.
        TimeoutError: It took too long.
        MemoryError: It took too much, or wrote too much.
    """
    limit = GROWTH_BYTES + GROWTH_FACTOR * sum(len(m["content"]) for m in request["messages"])
    parts, length = [], 0
    with _time_limit(SECONDS_A_RENDER):
        for part in template.generate(**constants, **request, tools=None, documents=None):
            length += len(part)
            if length > limit:
                raise MemoryError(f"the template wrote more than {limit} characters")
            parts.append(part)
    return "".join(parts)


def _answer(
    template: jinja2.Template, constants: dict[str, str], request: dict[str, Any]
) -> dict[str, str]:
    try:
        return {"text": render(template, constants, request)}
    except Exception as error:
        # Whatever a stranger's template raises is about this record only.
        return {"error": f"{type(error).__name__}: {error}".strip(": ")[:500]}


def main() -> None:
    """Serve renderings until standard input ends."""
    # A terminal's Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):  # not every system limits address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    setup = json.loads(sys.stdin.readline())
    try:
        template = compile_template(setup["template"], datetime.fromisoformat(setup["date"]))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), flush=True)
        return
    print(json.dumps({"text": ""}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(template, setup["constants"], json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
