"""The settings of each command as a JSON Schema, for editors and for programs that write YAML.

In: a command's name. Out: the schema its pydantic model gives. Names are written with `_`, lists as lists; `--config`
also takes `-` in names, as flags have them.
"""

from __future__ import annotations

from typing import Any, Final

from fam_engine import config
from fam_engine.config import Settings, nearest
from fam_engine.errors import UsageError
from fam_engine.jobs.experiment.config import ExperimentConfig

SETTINGS: Final[dict[str, type[Settings]]] = {
    "score": config.ScoreConfig,
    "generate": config.GenerateConfig,
    "rewrite": config.RewriteConfig,
    "select": config.SelectConfig,
    "export": config.ExportConfig,
    "train": config.TrainConfig,
    "eval": config.EvalConfig,
    "experiment": ExperimentConfig,
    "merge": config.MergeConfig,
    "bench": config.BenchConfig,
    "tokenize": config.TokenizeConfig,
    "serve": config.ServeConfig,
}


def settings_schema(command: str) -> dict[str, Any]:
    """Give the JSON Schema of a command's YAML.

    Raises:
        UsageError: No command with a YAML has this name.
    """
    if command not in SETTINGS:
        raise UsageError(
            f"no settings are read for `{command}`{nearest(command, list(SETTINGS))}",
            code="E_USAGE",
            hint=f"give one of {', '.join(SETTINGS)}",
        )
    schema = SETTINGS[command].model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"fam-engine {command}",
    }
