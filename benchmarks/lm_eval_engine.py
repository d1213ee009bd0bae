"""A model of lm-evaluation-harness as the harness of `fam-engine bench` runs it."""

from __future__ import annotations

from typing import Any

Pair = tuple[str, str]


class LmEvalEngine:
    """A model of lm-eval.

    Args:
        kind: `fam-engine` or `hf`.
        folder: The model's.
    """

    def __init__(self, kind: str, folder: str) -> None:
        if kind == "hf":
            from lm_eval.models.huggingface import HFLM

            self._model: Any = HFLM(folder, dtype="float32", device="cpu", batch_size=1)
        else:
            from fam_engine.integrations.lm_eval import FamEngineLM

            self._model = FamEngineLM(folder, precision="fp32", device="cpu")

    def run(self, pairs: list[Pair], size: int) -> list[tuple[float, bool]]:
        """Give the log-likelihoods of all pairs."""
        from lm_eval.api.instance import Instance

        if hasattr(self._model, "batch_size_per_gpu"):
            self._model.batch_size_per_gpu = size
        asked = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs
        ]
        answers: list[tuple[float, bool]] = self._model.loglikelihood(asked, disable_tqdm=True)
        return answers
