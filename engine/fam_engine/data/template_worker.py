"""The child process that runs chat templates: a model's template is somebody else's program.

In (arguments): the seconds of computing that a request may take, after which the kernel ends the process; (standard
input): a JSON line with the template, perhaps another one for conversations with tools, and their constants, then one
JSON line a request, `{"render": [...]}` with conversations or `{"compile": ...}` with a shape. Out (standard output):
one JSON line each: first the names the templates read, `{"names": [...]}`; then a list of `{"text": ...}` or
`{"error": ...}`, a conversation each; or what the shape compiled to.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import jinja2

from fam_engine.data.children import allow_seconds, become_child
from fam_engine.data.compiled_templates import Shape
from fam_engine.data.template_compiling import ShapeCompiler
from fam_engine.data.template_sandbox import (
    TemplateSource,
    compile_template,
    names_read,
    render,
    time_limit,
)

MEMORY_BYTES = 512 << 20


def _rendering(
    template: jinja2.Template, source: TemplateSource, request: dict[str, Any]
) -> dict[str, str]:
    try:
        with time_limit():
            return {"text": render(template, source.constants, **request)}
    except Exception as error:
        # Whatever a stranger's template raises is about this record only.
        return _refusal(error)


def _compiled(compiler: ShapeCompiler, request: dict[str, Any]) -> dict[str, Any]:
    try:
        shape = Shape(tuple(request["roles"]), request["add_generation_prompt"], request["kwargs"])
        compiled = compiler.compile(shape)
    except Exception as error:
        return _refusal(error)
    return {
        "pieces": [p if isinstance(p, str) else asdict(p) for p in compiled.pieces],
        "guards": [asdict(guard) for guard in compiled.guards],
    }


def _refusal(error: Exception) -> dict[str, str]:
    return {"error": f"{type(error).__name__}: {error}".strip(": ")[:500]}


def _send(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Serve requests until standard input ends."""
    seconds = int(sys.argv[1])
    become_child(MEMORY_BYTES)
    allow_seconds(seconds)
    setup = json.loads(sys.stdin.readline())
    source = TemplateSource(
        setup["template"], setup["constants"], datetime.fromisoformat(setup["date"])
    )
    try:
        template = for_tools = compile_template(source)
        names = names_read(source, template.environment)
        if setup["for_tools"] is not None:
            with_tools = replace(source, text=setup["for_tools"])
            for_tools = compile_template(with_tools)
            names |= names_read(with_tools, for_tools.environment)
        compiler = ShapeCompiler(source, template)
    except Exception as error:
        _send(_refusal(error))
        return
    _send({"names": sorted(names)})
    for line in sys.stdin:
        allow_seconds(seconds)
        request = json.loads(line)
        if "compile" in request:
            _send(_compiled(compiler, request["compile"]))
        else:
            _send(
                [
                    _rendering(template if one["tools"] is None else for_tools, source, one)
                    for one in request["render"]
                ]
            )


if __name__ == "__main__":
    main()
