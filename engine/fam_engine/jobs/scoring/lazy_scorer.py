"""A `Scorer` that other tools may copy into their workers: it pickles small, and loads its model where it is used.

In: the settings of a `Scorer`. Out: its `score_each`, and a state for pickle that is the same in every process: the
settings and a SHA-256 of all that scores depend on, never a loaded model. Tools that key their caches by what a
callable pickles to (`datasets`) thus find an old result exactly if model, adapter, template and settings are the same.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from fam_engine.arguments import check_whole_number
from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.data.templates import find_template, with_kwargs
from fam_engine.errors import UsageError
from fam_engine.jobs.scoring.scorer import Scorer
from fam_engine.jobs.sources import check_adapter
from fam_engine.model.folders import hash_model, resolve_model
from fam_engine.model.loading import check_choices, lacks_threads
from fam_engine.version import __version__

# Threads that share a scorer load it once. Not one each, which would have to stay out of what is pickled.
_one_loads = threading.Lock()


class LazyScorer:
    """Settings of a `Scorer`, and the scorer itself once it is needed. Threads may share it: their calls take turns.

    Args:
        model: Model folder, or `embedded`.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `auto`, `none` or a template file.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.

    Raises:
        ModelRefusedError: The model or the adapter is not there, or the model's own template does not read.
        UsageError: A choice there is not, a template file that does not read, `chat_template_kwargs` without
            a template, a budget that is no whole number above 0. What only the template can tell, or the
            machine that is to compute, is told by the first call.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        precision: Precision = "nf4",
        compute_dtype: ComputeDtype = "auto",
        device: Device = "auto",
        template: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        check_choices(precision, compute_dtype, device)
        if max_tokens_per_batch is not None:
            check_whole_number("max_tokens_per_batch", max_tokens_per_batch, least=1)
        folder = resolve_model(model, download=False)[0].resolve()
        lora = None if adapter is None else Path(adapter).resolve()
        check_adapter(lora)
        is_file = template not in ("auto", "none")
        file = Path(template).resolve() if is_file else None
        choice = template if file is None else str(file)
        with_kwargs(find_template(folder, choice, {}), chat_template_kwargs or {})
        self._settings: dict[str, Any] = {
            "model": str(folder),
            "adapter": None if lora is None else str(lora),
            "precision": precision,
            "compute_dtype": compute_dtype,
            "device": device,
            "template": choice,
            "chat_template_kwargs": dict(chat_template_kwargs or {}),
            "max_tokens_per_batch": max_tokens_per_batch,
        }
        self._sha256 = _sha256(folder, lora, file)
        self._scorer: Scorer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Give the settings and the hash, never the loaded model."""
        return {**self.__dict__, "_scorer": None}

    def score_each(
        self, records: Iterable[Mapping[str, Any]], *, verbatim: bool = False
    ) -> pa.Table:
        """Score records, see `Scorer.score_each`; the first call loads the model.

        Raises:
            UsageError: The process was forked from one that had loaded a model.
            FamEngineError: See `Scorer`.
        """
        _check_not_forked()
        scorer = self._scorer or self._loaded()
        return scorer.score_each(records, verbatim=verbatim)

    def _loaded(self) -> Scorer:
        with _one_loads:
            if self._scorer is None:
                self._scorer = Scorer(**self._settings)
            return self._scorer


def _check_not_forked() -> None:
    """Refuse what would hang: the pools of threads that a parent started are not in its child."""
    if lacks_threads():
        raise UsageError(
            "this process was forked from one that had loaded a model, whose threads it lacks",
            code="E_FORKED",
            hint="score nothing before the workers start, or start them by `spawn`",
        )


def _sha256(folder: Path, adapter: Path | None, template: Path | None) -> str:
    """Hash all that scores depend on beside the settings."""
    parts = [__version__, hash_model(folder), hash_model(adapter) if adapter else ""]
    if template is not None:
        parts.append(hashlib.sha256(template.read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
