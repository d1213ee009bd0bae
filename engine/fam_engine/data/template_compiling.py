"""Shapes compiled and checked: what tracing found is believed only after real conversations render to the same.

In: a template and a `Shape`. Out: a `CompiledTemplate`, or an error that says why there is none. The check renders
contents chosen to be mistaken for something: the template's own constants and parts of longer texts made of them, white
space, markup, JSON, numbers, texts with an effect in Jinja or in a format string.
"""

from __future__ import annotations

import json

import jinja2
import jinja2.nodes

from fam_engine.data.compiled_templates import WHITE_SPACE, CompiledTemplate, Shape
from fam_engine.data.template_sandbox import TemplateSource, render, time_limit
from fam_engine.data.template_tracing import Tracer
from fam_engine.data.traced_text import UntraceableError

# Beyond so many turns shapes seldom come twice, and tracing looks at every turn at every step.
MAX_TURNS = 64
_MAX_CONSTANTS = 48
_PLAIN = "So plain that no template takes it for anything: %d."
_STRANGE = (
    *("", "a", "0", "-1", "1.5", "1", "true", "none", "None", "[]", "{}", "''"),
    *(" padded ", "\n\nline\n", WHITE_SPACE, f"{WHITE_SPACE}x{WHITE_SPACE}", "a\r\nb\tc", "\x00"),
    *("{{ 1 }}{% if %}{# #}", "%s %(x)d %", "{0} {content} {", '<b a="&">\'</b>', "\\n\\", "/"),
    *('{"role": "user", "content": "a"}', "[1, 2]", "assistant", "User", "SYSTEM", "tool"),
    *("A\u0308\u00df\u0130\u01c5\U0001f600\u202e", "word " * 300, "line\n" * 50, "a,b;c|d"),
)


class ShapeCompiler:
    """Compiles shapes of one template.

    Args:
        source: The template.
        template: The same, compiled for rendering.
    """

    def __init__(self, source: TemplateSource, template: jinja2.Template) -> None:
        self._source = source
        self._template = template
        self._tracer: Tracer | None = None
        self._probes = _probes(source, template.environment)

    def compile(self, shape: Shape) -> CompiledTemplate:
        """Compile a shape.

        Raises:
            UntraceableError: The template cannot be compiled for it, or does not do what was found.
            TimeoutError: It took too long.
            Exception: Whatever the template raises.
        """
        if len(shape.roles) > MAX_TURNS:
            raise UntraceableError("too many turns")
        with time_limit():
            if self._tracer is None:
                self._tracer = Tracer(self._source)
            compiled = self._tracer.trace(shape)
            self._check(compiled)
        return compiled

    def _check(self, compiled: CompiledTemplate) -> None:
        """Compare with the template itself on contents that fit."""
        roles, num_checked = compiled.shape.roles, 0
        kwargs = json.loads(compiled.shape.kwargs)
        fitting = [self._fitting(compiled, turn) for turn in range(len(roles))]
        for first in range(len(self._probes)):
            # Another probe each turn, so that they also meet each other.
            contents = [
                probes[(first + 7 * turn) % len(probes)] for turn, probes in enumerate(fitting)
            ]
            if not compiled.fits(contents):
                continue
            messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
            num_checked += 1
            rendered = render(
                self._template,
                self._source.constants,
                messages,
                add_generation_prompt=compiled.shape.add_generation_prompt,
                kwargs=kwargs,
            )
            if rendered != compiled.render(contents):
                raise UntraceableError("a content had an effect that tracing did not see")
        if not num_checked:
            raise UntraceableError("no content satisfies what it asks for")

    def _fitting(self, compiled: CompiledTemplate, turn: int) -> list[str]:
        """Give the probes, a plain text in place of those that do not fit this turn."""
        guards = [guard for guard in compiled.guards if guard.content.turn == turn]
        before = [""] * turn
        return [
            probe if all(guard.holds([*before, probe]) for guard in guards) else _PLAIN % turn
            for probe in self._probes
        ]


def _probes(source: TemplateSource, environment: jinja2.Environment) -> list[str]:
    constants = [node.value for node in environment.parse(source.text).find_all(jinja2.nodes.Const)]
    named = [text for text in constants if isinstance(text, str) and text]
    probes = list(_STRANGE)
    told = [value for value in source.constants.values() if isinstance(value, str)]
    for text in dict.fromkeys([*told, *named][:_MAX_CONSTANTS]):
        probes += [text, f"{text}a", f"a {text}", f" a{text}b\n", text.swapcase()]
    return probes
