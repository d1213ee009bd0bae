"""fam-engine: how familiar answers are to a language model, and fine-tuning on the familiar ones.

The names below are the stable Python API; each is imported on first use, so `import fam_engine` costs nothing and
brings no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fam_engine._rust_tokenize import Tokenizer
    from fam_engine.jobs.evaluation.evaluator import Evaluator
    from fam_engine.jobs.generation.generator import Generator
    from fam_engine.jobs.resident import ResidentModel
    from fam_engine.jobs.scoring.continuations import Continuation
    from fam_engine.jobs.scoring.scorer import Scorer
    from fam_engine.jobs.training.trainer import Trainer
    from fam_engine.model.generation.requests import Completion, Request, Sampling
    from fam_engine.model.loading import load_model
    from fam_engine.version import __version__

_HOMES = {
    "Completion": "fam_engine.model.generation.requests",
    "Continuation": "fam_engine.jobs.scoring.continuations",
    "Evaluator": "fam_engine.jobs.evaluation.evaluator",
    "Generator": "fam_engine.jobs.generation.generator",
    "Request": "fam_engine.model.generation.requests",
    "ResidentModel": "fam_engine.jobs.resident",
    "Sampling": "fam_engine.model.generation.requests",
    "Scorer": "fam_engine.jobs.scoring.scorer",
    "Tokenizer": "fam_engine._rust_tokenize",
    "Trainer": "fam_engine.jobs.training.trainer",
    "load_model": "fam_engine.model.loading",
    "__version__": "fam_engine.version",
}

__all__ = [
    "Completion",
    "Continuation",
    "Evaluator",
    "Generator",
    "Request",
    "ResidentModel",
    "Sampling",
    "Scorer",
    "Tokenizer",
    "Trainer",
    "__version__",
    "load_model",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever lives there
    """Import a public name from where it lives (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module `fam_engine` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
