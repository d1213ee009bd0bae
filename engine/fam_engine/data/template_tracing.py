"""A template run on contents nobody may look at: what it writes is pieces, what it asks becomes guards.

In: a template's source and a `Shape`. Out: a `CompiledTemplate`, or `UntraceableError`. Jinja compiles the template as
ever, but for `TracingEnvironment`, which most of what a template does passes through. What Jinja compiles straight to
Python (truth, iteration, slices) meets the methods of `TracedText`; comparisons and `~`, which it also compiles so,
are first rewritten to tests and filters; and a template with any other kind of node is refused. A `str` subclass that
records what is done with it was not enough: `content in 'abc'` and `'abc'.startswith(content)` read it without asking.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

import jinja2.visitor
from jinja2 import nodes

from fam_engine.data.compiled_templates import CompiledTemplate, Content, Shape
from fam_engine.data.template_sandbox import (
    GROWTH_BYTES,
    GROWTH_FACTOR,
    TemplateSource,
    generate,
    sandbox,
)
from fam_engine.data.traced_text import Trace, TracedText, UntraceableError
from fam_engine.data.tracing_environment import CONCAT, TracingEnvironment

# Kinds of node whose every effect passes through the environment or is plain control flow.
_FOLLOWED_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Scope, nodes.With),
    *(nodes.For, nodes.If, nodes.CondExpr, nodes.Continue, nodes.Break),
    *(nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Assign, nodes.AssignBlock),
    *(nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair),
    *(nodes.Call, nodes.Keyword, nodes.Getattr, nodes.Getitem, nodes.Slice),
    *(nodes.Filter, nodes.Test, nodes.Concat, nodes.Compare, nodes.Operand),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos),
)
_OPERATOR_TESTS = {"gteq": "ge", "lteq": "le", "notin": "in"}


class Tracer:
    """Traces one template.

    Args:
        source: The template.

    Raises:
        UntraceableError: It has a part that cannot be followed whatever the shape.
        jinja2.TemplateError: It does not compile.
    """

    def __init__(self, source: TemplateSource) -> None:
        self._environment = sandbox(TracingEnvironment, source.date)
        self._environment.watch()
        tree = self._environment.parse(source.text)
        for node in tree.find_all(nodes.Node):
            if type(node) not in _FOLLOWED_NODES:
                raise UntraceableError(f"a `{type(node).__name__}` node")
        rewritten = _Rewriter().visit(tree).set_environment(self._environment)
        self._template = self._environment.from_string(rewritten)
        self._constants = source.constants

    def trace(self, shape: Shape) -> CompiledTemplate:
        """Run the template on a shape; the caller limits the time.

        Raises:
            UntraceableError: It does something with a content that cannot be followed.
            Exception: Whatever the template raises.
        """
        trace = self._environment.trace = Trace(self._environment.marker)
        messages = [
            {"role": role, "content": trace.text([Content(turn, trimmed=False)])}
            for turn, role in enumerate(shape.roles)
        ]
        parts = generate(
            self._template,
            {**self._constants, **json.loads(shape.kwargs)},
            messages,
            add_generation_prompt=shape.add_generation_prompt,
        )
        whole = trace.join(_bounded(trace, parts))
        if trace.refusal:
            raise UntraceableError(trace.refusal)
        pieces = whole.pieces if isinstance(whole, TracedText) else (whole,) if whole else ()
        repeats = Counter(piece.turn for piece in pieces if isinstance(piece, Content))
        if any(count > GROWTH_FACTOR for count in repeats.values()):
            raise UntraceableError("a content written too often")
        return CompiledTemplate(shape, pieces, tuple(trace.guards))


def _bounded(trace: Trace, parts: Iterable[str]) -> Iterator[str]:
    """Stop at so much literal text that rendering could refuse it for some contents."""
    room = GROWTH_BYTES
    for part in parts:
        pieces = part.pieces if isinstance(part, TracedText) else (part,)
        room -= sum(len(piece) for piece in pieces if isinstance(piece, str))
        if room < 0:
            trace.refuse("more text than a rendering may have")
        yield part


class _Rewriter(jinja2.visitor.NodeTransformer):
    """Rewrites what Jinja compiles to bare Python operators into tests and filters."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Rewrite `a ~ b`."""
        parts = nodes.List([self.visit(part) for part in node.nodes], lineno=node.lineno)
        return nodes.Filter(parts, CONCAT, [], [], None, None, lineno=node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Rewrite `a == b` and its like; `a < b < c` is not followed."""
        if len(node.ops) != 1:
            raise UntraceableError("a chain of comparisons")
        operator = node.ops[0].op
        name = _OPERATOR_TESTS.get(operator, operator)
        left, right = self.visit(node.expr), self.visit(node.ops[0].expr)
        test = nodes.Test(left, name, [right], [], None, None, lineno=node.lineno)
        return nodes.Not(test, lineno=node.lineno) if operator == "notin" else test
