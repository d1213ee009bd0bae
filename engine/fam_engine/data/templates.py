"""Chat templates: which one a model has, and conversations rendered with it.

In: a model folder or a template file, then conversations. Out: texts, or a `RecordError` for the one that would not
render. Rendering happens in `template_worker`, a child with time and memory limits; a child that dies or hangs is
replaced and costs one record. The date a template may ask for is fixed and recorded, so scores do not depend on the
day.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine.data.records import Message
from fam_engine.errors import ModelRefusedError, RecordError, UsageError

# What Llama 3's own template falls back to when no clock is offered.
TEMPLATE_DATE = "2024-07-26"
# Wall seconds before a silent child is given up: its own limit is 2 s a rendering.
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Template:
    """A chat template's source and the special tokens it may name."""

    source: str
    constants: dict[str, str]


def find_template(folder: Path, choice: str, constants: dict[str, str]) -> Template | None:
    """Find the template `--template` asks for.

    Args:
        folder: The model's folder.
        choice: `auto` (the model's own, if it has one), `none`, or a file.
        constants: Names of special tokens -> their text, for the template to use.

    Raises:
        UsageError: The file given does not read.
        ModelRefusedError: The model's own template does not read.
    """
    if choice == "none":
        return None
    source = _model_template(folder) if choice == "auto" else _file_template(Path(choice))
    return Template(source, constants) if source is not None else None


def _file_template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot be read as a template: {error}", code="E_TEMPLATE_FILE", where=str(file)
        ) from None


def _model_template(folder: Path) -> str | None:
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return _file_template(own_file)
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        source = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        raise ModelRefusedError(
            "is not a JSON object", code="E_TOKENIZER_CONFIG", where=str(config)
        ) from None
    if isinstance(source, list):
        # Several templates by name: the plain chat is called `default`.
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise ModelRefusedError(
            "`chat_template` is neither text nor a list of named texts",
            code="E_TOKENIZER_CONFIG",
            where=str(config),
        )
    return source


class Renderer:
    """Renders conversations with one template, in a child process.

    Args:
        template: What to render with.

    Raises:
        ModelRefusedError: The template does not compile.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self._child = self._start()

    def __enter__(self) -> Renderer:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the child."""
        self.close()

    def close(self) -> None:
        """Stop the child; may be called again."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                pipe.close()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Render one conversation.

        Raises:
            RecordError: The template refused it, or went beyond its limits.
        """
        request = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        answer = self._ask(request)
        if answer is None:
            self.close()
            self._child = self._start()
            raise RecordError("E_TEMPLATE_LIMIT", "the chat template ran out of time or memory")
        if "error" in answer:
            raise RecordError("E_TEMPLATE", f"the chat template failed: {answer['error']}")
        return str(answer["text"])

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fam_engine.data.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        answer = self._ask(
            {
                "template": self._template.source,
                "constants": self._template.constants,
                "date": TEMPLATE_DATE,
            }
        )
        if answer is None or "error" in answer:
            reason = answer["error"] if answer else "the child process did not start"
            self.close()
            raise ModelRefusedError(
                f"the chat template does not compile: {reason}",
                code="E_TEMPLATE",
                hint="give one with --template FILE, or --template none",
            )
        return self._child

    def _ask(self, request: dict[str, Any]) -> dict[str, str] | None:
        """Send a request; None if the child died or kept silent."""
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return None
        ready, _, _ = select.select([stdout], [], [], _PATIENCE_SECONDS)
        line = stdout.readline() if ready else b""
        answer: dict[str, str] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer
