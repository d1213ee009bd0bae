"""Chat templates: which one a model has.

In: a model folder or a template file, and what the user wants the template told. Out: a `Template` for
`rendering.Renderer`. Of several templates a model has by name, the plain chat is `default`, and `tool_use` is for
conversations with tools, as transformers has it. The date a template may ask for is fixed and recorded, so scores do
not depend on the day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from fam_engine.data.plain_files import plain_file
from fam_engine.data.tokenizer_files import CODE, TOKENIZER_CONFIG, read_config
from fam_engine.data.turns import CONVERSATION
from fam_engine.errors import FamEngineError, ModelRefusedError, UsageError

MODEL_TEMPLATE: Final = "chat_template.jinja"
# Where a model keeps its other templates, and the one of them that is used here.
MORE_TEMPLATES: Final = "additional_chat_templates"
TOOL_TEMPLATE: Final = "tool_use.jinja"
_PLAIN, _WITH_TOOLS = "default", "tool_use"

# What Llama 3's own template falls back to when no clock is offered.
TEMPLATE_DATE = "2024-07-26"


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes:
        source: What it is.
        constants: The special tokens it may name.
        file: Where it is from.
        for_tools: The source of another one, for conversations with tools; None: there is none.
        kwargs: What else it is told by name, JSON values, as `apply_chat_template` of transformers hands
            them on: `enable_thinking` of many.
    """

    source: str
    constants: dict[str, str]
    file: Path | None = None
    for_tools: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str | None:
        """The file as errors name it."""
        return str(self.file) if self.file else None


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
    if choice == "auto":
        return _model_template(folder, constants)
    file = Path(choice)
    return Template(_read(file, UsageError, "E_TEMPLATE_FILE"), constants, file)


def with_kwargs(template: Template | None, kwargs: Mapping[str, Any]) -> Template | None:
    """Give a template that is told more.

    Raises:
        UsageError: There is no template to tell, or a name stands for the conversation itself.
    """
    if not kwargs:
        return template
    if template is None:
        raise UsageError(
            "chat_template_kwargs are given, but there is no chat template to read them",
            code="E_TEMPLATE_KWARGS",
            hint="leave them out, or give a template with --template FILE",
        )
    for name in kwargs:
        if name in CONVERSATION:
            raise UsageError(
                f"chat_template_kwargs has `{name}`, which comes from the records",
                code="E_TEMPLATE_KWARGS",
                hint="leave it out",
            )
    return replace(template, kwargs=kwargs)


def _model_template(folder: Path, constants: dict[str, str]) -> Template | None:
    if (folder / MODEL_TEMPLATE).exists():
        file, tools = plain_file(folder, MODEL_TEMPLATE, code="E_TEMPLATE"), tool_template(folder)
        read = partial(_read, refused=ModelRefusedError, code="E_TEMPLATE")
        return Template(read(file), constants, file, None if tools is None else read(tools))
    source: Any = read_config(folder).get("chat_template")
    if source is None:
        return None
    config = folder / TOKENIZER_CONFIG
    named = source if isinstance(source, list) else [{"name": _PLAIN, "template": source}]
    if not all(map(_is_named, named)):
        raise ModelRefusedError(
            "`chat_template` is neither text nor a list of named texts",
            code=CODE,
            where=str(config),
        )
    sources = {one["name"]: one["template"] for one in named}
    if _PLAIN not in sources:
        raise ModelRefusedError(
            f"`chat_template` has no template named `{_PLAIN}`",
            code="E_TEMPLATE",
            where=str(config),
            hint="give one with --template FILE, or --template none",
        )
    return Template(sources[_PLAIN], constants, config, sources.get(_WITH_TOOLS))


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("name", "template")
    )


def tool_template(folder: Path) -> Path | None:
    """Give the file beside a model's own template that is for conversations with tools, if there is one.

    Raises:
        ModelRefusedError: It leads out of the folder.
    """
    more = folder / MORE_TEMPLATES
    if not (more / TOOL_TEMPLATE).exists():
        return None
    if more.is_symlink():
        raise ModelRefusedError("the folder is a link", code="E_TEMPLATE", where=str(more))
    return plain_file(more, TOOL_TEMPLATE, code="E_TEMPLATE")


def _read(file: Path, refused: type[FamEngineError], code: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise refused(
            f"cannot be read as a template: {error}", code=code, where=str(file)
        ) from None
