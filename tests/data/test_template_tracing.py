from __future__ import annotations

import itertools

import pytest

from fam_engine.data.compiled_templates import Content, Shape
from fam_engine.data.traced_text import UntraceableError
from tests.data.template_families import CHATML, LLAMA_2, rendered, source, traced

C = "messages[0].content"
OTHER = "messages[1].content"

# What makes a rendering depend on a content in ways no guard can say. Each must be noticed while
# tracing: the check with real contents that follows may not be what saves it.
UNTRACEABLE = {
    "slice": "{{ C[1:] }}",
    "index": "{{ C[0] }}",
    "iteration": "{% for char in C %}{{ char }}.{% endfor %}",
    "iteration in a macro": "{% macro m(x) %}{% for c in x %}.{% endfor %}{% endmacro %}{{ m(C) }}",
    "unpacking": "{% set a, b = C %}{{ a }}",
    "length": "{{ C | length }}",
    "length beyond zero": "{% if C | length > 3 %}x{% endif %}",
    "length on the right": "{% if 3 == C | length %}x{% endif %}",
    "length in a list": "{% if 3 in [C | length] %}x{% endif %}",
    "length added": "{{ C | length + 1 }}",
    "length of a list made of it": "{{ C | list | length }}",
    "upper": "{{ C | upper }}",
    "upper method": "{{ C.upper() }}",
    "method by item": "{{ C['upper']() }}",
    "method by filter": "{{ (C | attr('upper'))() }}",
    "map upper": "{{ messages | map(attribute='content') | map('upper') | join }}",
    "filter block": "{% filter upper %}{{ C }}{% endfilter %}",
    "set block": "{% set x %}<{{ C }}>{% endset %}{{ x | upper }}",
    "set block compared": "{% set x %}{{ C }}!{% endset %}{{ x == 'yes!' }}",
    "macro result compared": "{% macro m() %}{{ C }}!{% endmacro %}{{ m() == 'yes!' }}",
    "concatenation compared": "{{ (C + '!') == 'yes!' }}",
    "tilde compared": "{{ C ~ '!' == 'yes!' }}",
    "tilde searched": "{{ 'es!' in C ~ '!' }}",
    "tojson": "{{ C | tojson }}",
    "tojson of a message": "{{ messages[0] | tojson }}",
    "message written": "{{ messages[0] }}",
    "messages written": "{{ messages }}",
    "items written": "{{ messages[0].items() | list }}",
    "repr": "{{ '%r' % C }}",
    "percent": "{{ '%s' % C }}",
    "percent tuple": "{{ '%s-%s' % (C, 1) }}",
    "format": "{{ '{}'.format(C) }}",
    "format method taken": "{{ C.format(1) }}",
    "format filter": "{{ '%s' | format(C) }}",
    "content as format": "{{ C % 1 }}",
    "times": "{{ C * 2 }}",
    "order": "{{ C < 'm' }}",
    "order from the right": "{{ 'm' < C }}",
    "order test": "{{ C is gt 'm' }}",
    "chain": "{{ 'a' < 'b' < C }}",
    "two contents": "{{ C == OTHER }}",
    "two contents by test": "{{ C is eq OTHER }}",
    "two contents, in": "{{ C in [OTHER] }}",
    "two contents, part of": "{{ C in OTHER }}",
    "two messages": "{{ messages[0] == messages[1] }}",
    "message in messages": "{{ messages[0] in messages[1:] }}",
    "index of a message": "{{ messages.index(messages[1]) }}",
    "identity": "{{ C is sameas 'x' }}",
    "part of a constant": "{{ C in 'yes, please' }}",
    "part of a constant, not": "{{ C not in 'yes, please' }}",
    "part of a constant, test": "{{ C is in 'yes, please' }}",
    "start of a constant": "{{ 'yes, please'.startswith(C) }}",
    "found in a constant": "{{ 'yes, please'.find(C) }}",
    "counted in a constant": "{{ 'yes, please'.count(C) }}",
    "taken out of a constant": "{{ 'yes, please'.replace(C, '') }}",
    "taken out by filter": "{{ 'yes, please' | replace(C, '') }}",
    "stripped off a constant": "{{ 'yes, please'.strip(C) }}",
    "constant split": "{{ 'yes, please'.split(C) | length }}",
    "default of get": "{{ {'yes': 1}.get(C, 0) }}",
    "key": "{{ {'yes': 1}[C] }}",
    "key, in": "{{ C in {'yes': 1} }}",
    "key made": "{{ {C: 1}['yes'] }}",
    "key by dict": "{{ dict([[C, 1]])['yes'] }}",
    "attribute name": "{{ messages[0][C] }}",
    "attribute of a constant": "{{ 'abc'[C] is defined }}",
    "attribute of a list": "{{ messages[C] is defined }}",
    "item by length": "{{ 'abc'[C | length] is defined }}",
    "attribute of map": "{{ messages | map(attribute=C) | list | length }}",
    "attribute of selectattr": "{{ messages | selectattr(C) | list | length }}",
    "test name": "{{ ['a'] | select(C) | list | length }}",
    "filter name": "{{ ['a'] | map(C) | list | length }}",
    "sort": "{{ messages | sort(attribute='content') | map(attribute='role') | join }}",
    "dictsort": "{{ messages[0] | dictsort(by='value') | first | first }}",
    "groupby": "{{ messages | groupby('content') | list | length }}",
    "unique": "{{ messages | unique(attribute='content') | list | length }}",
    "unique contents": "{{ messages | map(attribute='content') | unique | list | length }}",
    "max": "{{ (messages | max(attribute='content')).role }}",
    "sum": "{{ messages | sum(attribute='content', start='') }}",
    "changed": "{% for m in messages %}{{ loop.changed(m.content) }}{% endfor %}",
    "cycle": "{% for m in messages %}{{ loop.cycle(m.content, 'x') | upper }}{% endfor %}",
    "int": "{{ C | int }}",
    "int, default": "{{ C | int(7) }}",
    "float": "{{ C | float }}",
    "list": "{{ C | list }}",
    "first": "{{ C | first }}",
    "last": "{{ C | last }}",
    "reverse": "{{ C | reverse }}",
    "select": "{{ C | select | list | length }}",
    "batch": "{{ C | batch(2) | list | length }}",
    "wordcount": "{{ C | wordcount }}",
    "truncate": "{{ C | truncate(5) }}",
    "indent": "{{ C | indent }}",
    "escape": "{{ C | e }}",
    "safe": "{{ (C | safe) + '<' }}",
    "joined to markup": "{{ ('<b>' | safe) + C }}",
    "markup compared": "{{ ('yes' | safe) == C }}",
    "markup listed": "{{ C in ['yes' | safe] }}",
    "escape after": "{{ (C ~ '<') | escape }}",
    "autoescape": "{% autoescape true %}{{ C }}{% endautoescape %}",
    "urlencode": "{{ C | urlencode }}",
    "striptags": "{{ C | striptags }}",
    "upper test": "{{ C is upper }}",
    "lower test": "{{ C is lower }}",
    "odd": "{{ C | length is odd }}",
    "divisible": "{{ C | length is divisibleby 2 }}",
    "split at blanks": "{{ C.split() | length }}",
    "split at nothing": "{{ C.split('') | length }}",
    "partition": "{{ C.partition(' ')[0] }}",
    "splitlines": "{{ C.splitlines() | length }}",
    "count": "{{ C.count('a') }}",
    "find": "{{ C.find('a') }}",
    "isdigit": "{{ C.isdigit() }}",
    "encode": "{{ C.encode() }}",
    "zfill": "{{ C.zfill(5) }}",
    "join with it": "{{ C.join(['a', 'b']) }}",
    "join of its parts": "{{ '-'.join(C) }}",
    "call": "{{ C() }}",
    "range": "{{ range(C | int) | length }}",
    "replace a part by a content": "{{ C | replace('a', OTHER) }}",
    "replace all of nothing": "{{ C | replace('', '-') }}",
    "recursion": "{% for x in messages recursive %}{{ loop(x.content) }}{% endfor %}",
    "chance": "{{ ['a', 'b'] | random }}",
    "lipsum": "{{ lipsum(1) }}",
    "address": "{{ messages[0].get }}",
    "block": "{% block b %}{{ C }}{% endblock %}",
    "include": "{% include 'x' %}{{ C }}",
    "method tested": "{{ C.strip is callable }}",
    "too long": "{{ 'x' * 99999 }}{{ C }}",
    "too often": "{% for i in range(9) %}{{ C }}{% endfor %}",
}


@pytest.mark.parametrize("text", UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_what_guards_cannot_say_is_noticed_while_tracing(text: str) -> None:
    text = text.replace("OTHER", OTHER).replace("C", C)
    with pytest.raises(UntraceableError):
        traced(text, "user", "assistant")


@pytest.mark.parametrize(
    ("text", "refused", "accepted"),
    [
        ("{% if 'a' in C %}x{% endif %}", ["a", "bab"], ["", "b", "A"]),
        ("{% if 'a' not in C %}x{% endif %}", ["a", "bab"], ["", "b"]),
        ("{% if C is in ['a', 'b', 1, none] %}x{% endif %}", ["a", "b"], ["", "ab", "1"]),
        ("{% if 'a' in [C, OTHER] %}x{% endif %}", ["a"], ["", "b"]),
        ("{% if C == 'a' %}x{% endif %}", ["a"], ["", " a"]),
        ("{% if 'a' != C %}x{% endif %}", ["a"], ["", " a"]),
        ("{% if C.startswith('ab') %}x{% endif %}", ["ab", "abc"], ["", "a", " ab"]),
        ("{% if C.startswith(('a', 'b')) %}x{% endif %}", ["a", "b"], ["", "c"]),
        ("{% if C.startswith('') %}x{% endif %}", [], ["", "c"]),
        ("{% if C.endswith('ab') %}x{% endif %}", ["ab", "cab"], ["", "b", "ab "]),
        ("{% if C.strip().endswith('ab') %}x{% endif %}", ["ab", "cab\n"], ["", "b"]),
        ("{% if C %}x{% endif %}", [""], ["a", " "]),
        ("{% if not C | trim %}x{% endif %}", ["", " ", "\x1c\u3000"], ["a"]),
        ("{{ C or 'x' }}", [""], ["a", " "]),
        ("{{ C and 'x' }}", [""], ["a", " "]),
        ("{{ 'x' if C else 'y' }}", [""], ["a", " "]),
        ("{{ C | default('x', true) }}", [""], ["a", " "]),
        ("{{ C | default('x') }}", [], ["a", ""]),
        ("{{ messages | selectattr('content') | list | length }}", [""], ["a", " "]),
        ("{{ messages | selectattr('content', 'eq', 'a') | list | length }}", ["a"], ["b", ""]),
        ("{{ C | length > 0 }}", [""], ["a", " "]),
        ("{{ C | trim | count == 0 }}", ["", "\n"], ["a"]),
        ("{{ 'x' if C | length }}", [""], ["a"]),
        ("{{ C.split('ab')[-1] }}", ["ab", "xaby"], ["", "b", "a b"]),
        ("{{ C.replace('ab', 'x') }}", ["ab", "xaby"], ["", "b"]),
        ("{{ C | replace('ab', '') }}", ["ab", "xaby"], ["", "b"]),
        ("{{ C.lstrip('ab') }}", ["ab", "bx"], ["", "c", "xa"]),
        ("{{ (C | trim).lstrip('ab\n') }}", ["a", " b"], ["", "c", " ", "\n"]),
        ("{{ (C | trim).rstrip('ab ') }}", ["a", "b "], ["", "c", " ", "ac "]),
        ("{{ C.rstrip() }}", ["a ", "\u2028"], ["", " a"]),
        ("{{ C | trim('-') }}", ["-a", "a-", "-"], ["", "a", "b-c"]),
        ("{{ ('x ' + C).strip() }}", ["", "a\n", " "], ["a", " a"]),
        ("{{ (C ~ ' x ') | trim }}", ["", " a"], ["a", "a "]),
        ("{{ (' ' + (C | trim) + ' ').strip() }}", ["", " "], ["a", " a "]),
        ("{{ C is string }}{{ C is mapping }}{{ C is none }}{{ C is sequence }}", [], ["", "a"]),
        ("{{ C == 1 }}{{ C == none }}{{ C != [] }}{{ C == nothing }}", [], ["", "1", "[]", "None"]),
        ("{{ 'content' in messages[0] }}{{ messages == none }}", [], ["", "a"]),
        ("{% set ns = namespace(x=C) %}{{ ns.x == 'a' }}", ["a"], ["", "b"]),
        ("{% macro m(x) %}{{ x == 'a' }}{% endmacro %}{{ m(C) }}", ["a"], ["", "b"]),
        ("{% for k, v in messages[0].items() %}{{ v }}{% endfor %}", [], ["", "b"]),
        ("{% for x in messages if x.content == 'a' %}{{ x.role }}{% endfor %}", ["a"], ["", "b"]),
        ("{{ dict(messages[0], role='x').content ~ (C,)[0] }}", [], ["", "b"]),
    ],
)
def test_guards_let_pass_only_what_renders_the_same(
    text: str, refused: list[str], accepted: list[str]
) -> None:
    text = text.replace("OTHER", OTHER).replace("C", C)
    shape = Shape(("user", "assistant"), True)
    compiled = traced(text, *shape.roles)
    fine = "a plain one"
    assert [content for content in refused if compiled.fits([content, fine])] == []
    assert [content for content in accepted if not compiled.fits([content, fine])] == []
    for pair in itertools.product([*accepted, *refused, fine], repeat=2):
        if compiled.fits(pair):
            assert compiled.render(pair) == rendered(source(text), shape, pair)


def test_pieces_are_what_a_reader_of_the_template_expects() -> None:
    assert traced(CHATML, "user").pieces == (
        "<|im_start|>user\n",
        Content(0, trimmed=False),
        "<|im_end|>\n<|im_start|>assistant\n",
    )
    compiled = traced(LLAMA_2, "user", "assistant")
    trimmed = Content(0, trimmed=True), Content(1, trimmed=True)
    assert compiled.pieces == ("<s>[INST] ", trimmed[0], " [/INST] ", trimmed[1], " </s>")
    assert compiled.guards == ()


def test_a_conversation_without_contents_is_a_literal() -> None:
    assert traced("{{ bos_token }}", "user").pieces == ("<s>",)
    assert traced("", "user").pieces == ()
