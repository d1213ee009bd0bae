"""Chat templates: which one a model has.

In: a model folder or a template file. Out: a `Template` for `rendering.Renderer`. The date a template may ask for is
fixed and recorded, so scores do not depend on the day.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fam_engine.data.plain_files import plain_file
from fam_engine.data.tokenizer_files import CODE, TOKENIZER_CONFIG, read_config
from fam_engine.errors import ModelRefusedError, UsageError

MODEL_TEMPLATE: Final = "chat_template.jinja"

# What Llama 3's own template falls back to when no clock is offered.
TEMPLATE_DATE = "2024-07-26"


@dataclass(frozen=True)
class Template:
    """A chat template's source, the special tokens it may name, and the file it is from."""

    source: str
    constants: dict[str, str]
    file: Path | None = None

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
    return _file_template(Path(choice), constants)


def _file_template(file: Path, constants: dict[str, str]) -> Template:
    try:
        return Template(file.read_text(encoding="utf-8"), constants, file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot be read as a template: {error}", code="E_TEMPLATE_FILE", where=str(file)
        ) from None


def _model_template(folder: Path, constants: dict[str, str]) -> Template | None:
    if (folder / MODEL_TEMPLATE).exists():
        own_file = plain_file(folder, MODEL_TEMPLATE, code="E_TEMPLATE")
        try:
            return Template(own_file.read_text(encoding="utf-8"), constants, own_file)
        except (OSError, UnicodeDecodeError) as error:
            raise ModelRefusedError(
                f"cannot be read as a template: {error}", code="E_TEMPLATE", where=str(own_file)
            ) from None
    config = folder / TOKENIZER_CONFIG
    source = read_config(folder).get("chat_template")
    if isinstance(source, list) and all(isinstance(one, dict) for one in source):
        # Several templates by name: the plain chat is called `default`.
        plain = (one.get("template") for one in source if one.get("name") == "default")
        source = next(plain, None)
    if source is not None and not isinstance(source, str):
        raise ModelRefusedError(
            "`chat_template` is neither text nor a list of named texts",
            code=CODE,
            where=str(config),
        )
    return None if source is None else Template(source, constants, config)
