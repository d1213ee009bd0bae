"""Random templates over random contents: whatever tracing accepts must render the same."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fam_engine.data.compiled_templates import Shape
from fam_engine.data.template_sandbox import TemplateSource, compile_template, render
from fam_engine.data.template_tracing import Tracer
from tests.data.template_families import source

# Atoms and what can be made of expressions; E stands for an expression.
ATOMS = [
    *("messages[0].content", "messages[1].content", "messages[-1]['content']", "x", "ns.x"),
    *("'a'", "'ab'", "' '", "''", "1", "0", "none", "messages[0]", "messages", "nothing", "true"),
]
FORMS = [
    *("E ~ E", "E + E", "E == E", "E != E", "E in E", "E not in E", "E < E", "not E", "E % E"),
    *("E and E", "E or E", "(E if E else E)", "E.strip()", "E.lstrip('a')", "E.rstrip()"),
    *("E.strip('ab')", "E.split('a')[0]", "E.split(E)[-1]", "E.replace('a', E)", "E.upper()"),
    *("E.startswith(E)", "E.endswith('b')", "E.startswith(('a', E))", "E.get(E)", "E[0]", "E[1:]"),
    *("E | trim", "E | trim('a')", "E | upper", "E | length", "E | string", "E | default(E, true)"),
    *("E | default(E)", "E | replace(E, 'b')", "E | first", "E | last", "E | list", "E | reverse"),
    *("E | join(E)", "[E, E] | join", "[E, E]", "(E, E)[1]", "{'k': E}['k']", "{'k': E}.k"),
    *(
        "{'k': E}.get('k', E)",
        "{E: E}",
        "{'a': 1}[E]",
        "'-'.join([E, E])",
        "[E, E] | select | list",
    ),
    *("[E, E] | map('trim') | list", "[E, E] | reject('eq', E) | list | length", "E | items"),
    *("messages | selectattr('content', 'in', E) | list | length", "E | int", "E | tojson"),
    *("E is string", "E is mapping", "E is none", "E is sequence", "E is eq E", "E is in E"),
    *("E is sameas E", "E is defined", "E is callable", "E is lower", "show(E)", "show(E) | trim"),
    *("E | length > 0", "E | length == E", "E | map('upper') | join", "E | e", "E is ge E", "-E"),
    *(
        "dict(k=E).k",
        "namespace(x=E).x",
        "range(E) | list",
        "E * E",
        "E | sort | first",
        "E.items()",
    ),
]
STATEMENTS = [
    *("{{ E }}", "{% if E %}y{% else %}n{% endif %}", "{% set x = E %}", "{% set ns.x = E %}"),
    *("{% set x %}{{ E }}{% endset %}", "{% filter trim %}{{ E }} {% endfilter %}", " lit "),
    *("{% for x in E %}{{ E }}{% endfor %}", "{% for m in messages if E %}{{ E }}{% endfor %}"),
    *("{% for m in messages %}{{ loop.index ~ m.content }}{% if m.content == E %}!{% endif %}",),
]
STATEMENTS[-1] += "{% endfor %}"
PREAMBLE = (
    "{% macro show(a) %}<{{ a }}{{ '?' if a == 'b' }}>{% endmacro %}"
    "{% set x = messages[0].content %}{% set ns = namespace(x='a') %}"
)
CONTENTS = ["", "a", "b", "ab", " a", "b ", " ", "ba b", "\n", "1", "content"]
SHAPE = Shape(("user", "assistant"), True)


def grow(draw: st.DrawFn, form: str, depth: int) -> str:
    parts = form.split("E")
    grown = parts[0]
    for part in parts[1:]:
        inner = draw(st.sampled_from(FORMS if depth and draw(st.booleans()) else ATOMS))
        grown += ("(" + grow(draw, inner, depth - 1) + ")" if "E" in inner else inner) + part
    return grown


@st.composite
def templates(draw: st.DrawFn) -> str:
    statements = draw(st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=4))
    return PREAMBLE + "".join(grow(draw, statement, 2) for statement in statements)


def check(template: TemplateSource) -> bool:
    """Compare on all pairs of contents; whether the template was compiled."""
    try:
        compiled = Tracer(template).trace(SHAPE)
    except Exception:
        return False
    jinja = compile_template(template)
    for pair in itertools.product(CONTENTS, repeat=2):
        if compiled.fits(pair):
            turns = [{"role": r, "content": c} for r, c in zip(SHAPE.roles, pair, strict=True)]
            expected = render(jinja, template.constants, turns, add_generation_prompt=True)
            assert compiled.render(pair) == expected, (template.text, pair, compiled)
    return True


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(templates())
def test_what_tracing_accepts_renders_the_same(text: str) -> None:
    check(source(text))
