"""Chat templates from strangers: programs that reach for Python, for files, for time and for memory."""

from __future__ import annotations

from collections.abc import Callable

from tests.hostile.case import Artefact, Case, harmless, refused

FILE = "chat_template.jinja"


def source(text: str | Callable[[Case], str]) -> Callable[[Case], object]:
    def make(case: Case) -> None:
        (case.model / FILE).write_text(text(case) if callable(text) else text)

    return make


def running(expression: str) -> Callable[[Case], object]:
    """Reach a function that runs a shell command by way of an expression."""
    return source(lambda case: "{{ " + expression + f"('touch {case.canary}')" + " }}")


def plain(case: Case) -> None:
    source("{{ messages[0].content }}")(case)


def linked(case: Case) -> None:
    (case.outside / FILE).write_text("{{ messages[0].content }}")
    case.link(FILE, case.outside / FILE)


def linked_for_tools(case: Case) -> None:
    plain(case)
    (case.outside / "tool_use.jinja").write_text("{{ messages[0].content }}")
    case.link("additional_chat_templates", case.outside)


def over_many(body: str) -> str:
    return (
        "{% for a in range(99999) %}{% for b in range(99999) %}" + body + "{% endfor %}{% endfor %}"
    )


CODE = "E_TEMPLATE"
MRO = "''.__class__.__mro__[1].__subclasses__()"
ARTEFACTS: list[Artefact] = [
    refused("template that walks to all classes", source("{{ " + MRO + " }}"), CODE),
    refused(
        "template that runs a command by its globals",
        running("lipsum.__globals__['os'].system"),
        CODE,
    ),
    refused(
        "template that runs a command by a cycler",
        running("cycler.__init__.__globals__.os.system"),
        CODE,
    ),
    refused(
        "template that runs a command by a name",
        running("self.__init__.__globals__.__builtins__.exec"),
        CODE,
    ),
    refused("template that hides an attribute's name", running("''|attr('__cla' ~ 'ss__')"), CODE),
    harmless(
        "template that formats attributes",
        source(
            "{{ '{0.__class__}'.format(messages) }}{% for m in messages %}{{ m.content }}{% endfor %}"
        ),
        same_scores=False,
    ),
    refused("template that includes a file", source("{% include '/etc/passwd' %}"), CODE),
    refused(
        "template that imports a file",
        source("{% import '../../outside/secret' as s %}{{ s }}"),
        CODE,
    ),
    refused("template that loops for ever", source(over_many("")), CODE),
    refused("template that writes for ever", source(over_many("x")), CODE),
    refused("template that formats a gigabyte", source("{{ '%999999999d' % 1 }}"), CODE),
    refused("template that repeats a gigabyte", source("{{ 'x' * 999999999 }}"), CODE),
    refused("template that multiplies text", source("{{ ('x' * 100000) * 100000 }}"), CODE),
    refused(
        "template that calls itself",
        source("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        CODE,
    ),
    refused("template of a huge power", source("{{ 9 ** (9 ** 9) }}"), CODE),
    refused("template that does not compile", source("{% for %}"), CODE),
    refused(
        "template that is no UTF-8", lambda case: (case.model / FILE).write_bytes(b"\xff\xfe"), CODE
    ),
    refused("template that links outside", linked, CODE),
    refused("template for tools that links outside", linked_for_tools, CODE),
]
