"""`fam_engine.Evaluator`: the evaluation for other programs, records in memory instead of files.

In: records of tasks as dicts of the forms files may have. Out: what `fam-engine eval` leaves, and its outcome. It
writes the records beside the job's progress and runs the very same job; the base model stays loaded between calls.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fam_engine.config import BaseModelSettings, EvalConfig
from fam_engine.jobs.evaluation.job import OUTPUTS, run_eval
from fam_engine.jobs.given_records import check_settings, kept_records
from fam_engine.jobs.journal import check_unclaimed
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.progress import Nobody
from fam_engine.model.folders import resolve_model
from fam_engine.model.loading import load_model
from fam_engine.settings_reading import read_config

_OF_A_CALL = "give the records and the folder to `evaluate`"
_OF_THE_MODEL = "give it to `Evaluator`, which loads the model"


class Evaluator:
    r"""Evaluates one base model and adapters of it. Threads may share it: their calls take turns.

    Args:
        model: Model folder, or `embedded`.
        settings: Any setting of `fam-engine eval` but `data` and `out`, by its name: `adapter`,
            `max_new_tokens`...

    Raises:
        UsageError: A setting that does not exist or would do nothing, or a value that does not fit.
        ModelRefusedError: The model cannot be used.

    Example:
        >>> evaluator = Evaluator("embedded", max_new_tokens=64)
        >>> task = [{"prompt": "What is 2 + 3?\n", "answer": "5", "task": "sums"}]
        >>> outcome = evaluator.evaluate(task, "out")  # doctest: +SKIP
        >>> outcome.summary["tasks"]["sums"]["models"]["base"]["accuracy"]  # doctest: +SKIP
        0.0
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:  # noqa: ANN401 - any setting
        # Calls share the model, and with it the memory that matrices are made ready in.
        self._one_at_a_time = threading.Lock()
        check_settings(settings, ("data", "out"), _OF_A_CALL)
        self._settings = {"model": str(model), **settings}
        # Whatever is wrong with them should be said now.
        config = self._config(Path("out"), "records.jsonl")
        folder, _ = resolve_model(config.model, download=config.download)
        self._decoder = load_model(
            folder,
            precision=config.precision,
            compute_dtype=config.compute_dtype,
            device=config.device,
        )

    def evaluate(
        self,
        records: Iterable[Mapping[str, Any]],
        out: str | Path,
        **settings: Any,  # noqa: ANN401 - any setting
    ) -> JobOutcome:
        """Evaluate on records, or go on where an earlier call with the same ones stopped.

        Args:
            records: Questions with `answer`, and `choices` or `tests` where they take them.
            out: Output folder, as of `fam-engine eval`.
            settings: Settings of this call alone, such as `adapter`; none of the base model.

        Raises:
            FamEngineError: Something its user can cure; see the subclasses.
        """
        check_settings(settings, ("data",), _OF_A_CALL)
        check_settings(settings, BaseModelSettings.model_fields, _OF_THE_MODEL)
        folder = Path(out)
        check_unclaimed(folder, OUTPUTS)
        with kept_records(folder, {"records": records}) as files:
            config = self._config(folder, files["records"], **settings)
            with self._one_at_a_time:
                return run_eval(config, Nobody(), decoder=self._decoder)

    def _config(self, out: Path, data: str, **settings: Any) -> EvalConfig:  # noqa: ANN401
        given = {**self._settings, **settings, "out": out, "data": (data,)}
        return read_config(EvalConfig, given, None)
