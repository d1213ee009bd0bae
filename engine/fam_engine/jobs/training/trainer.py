"""`fam_engine.Trainer`: the training job for other programs, records in memory instead of files.

In: records as dicts of the forms files may have. Out: what `fam-engine train` leaves, and its outcome. It writes the
records beside the job's progress and runs the very same job, so there is one way to train.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fam_engine.config import TrainConfig, check_threshold
from fam_engine.jobs.given_records import check_settings, kept_records
from fam_engine.jobs.journal import check_unclaimed
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.training.job import WRITTEN, TrainOutcome, run_train
from fam_engine.settings_reading import read_config


class Trainer:
    """Trains LoRA adapters over one model.

    Args:
        model: Model folder, or `embedded`.
        settings: Any setting of `fam-engine train` but `data` and `out`, by its name: `rank`, `epochs`, `loss`...

    Raises:
        UsageError: A setting that does not exist or would do nothing, or a value that does not fit.

    Example:
        >>> trainer = Trainer("embedded", rank=8, steps=20)  # doctest: +SKIP
        >>> trainer.train(records, "out").adapter  # doctest: +SKIP
        PosixPath('out/adapter')
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:  # noqa: ANN401 - any setting
        check_settings(settings, ("data", "out"), "give the records and the folder to `train`")
        self._settings = {"model": str(model), **settings}
        # Whatever is wrong with them should be said now.
        check_threshold(self._config(Path("out"), "records.jsonl"))

    def train(
        self,
        records: Iterable[Mapping[str, Any]],
        out: str | Path,
        *,
        validation: Iterable[Mapping[str, Any]] | None = None,
    ) -> TrainOutcome:
        """Train on records, or go on where an earlier call with the same ones stopped.

        Args:
            records: Dicts of any form a data file may have, all of one form.
            out: Output folder, as of `fam-engine train`.
            validation: Records to judge by.

        Returns:
            The summary, and where the adapter is.

        Raises:
            FamEngineError: Something its user can cure; see the subclasses.
        """
        folder, given = Path(out), {"records": records}
        if validation is not None:
            given["validation"] = validation
        check_unclaimed(folder, WRITTEN)
        with kept_records(folder, given) as files:
            data = files.pop("records")
            return run_train(self._config(folder, data, **files), Nobody())

    def _config(self, out: Path, data: str, **settings: Any) -> TrainConfig:  # noqa: ANN401
        given = {**self._settings, **settings, "out": out, "data": (data,)}
        return read_config(TrainConfig, given, None)
