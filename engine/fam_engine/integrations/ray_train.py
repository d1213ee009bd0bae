"""Ray Train: the job of `fam-engine train` on the workers of a `TorchTrainer`.

In: the settings of `fam-engine train`, as `train_loop_config`. Out: its files, in a folder that all workers see, and
what came of it reported to Ray. It is the same function as under torchrun: Ray makes the process group, and the run
takes the one it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fam_engine.config import TrainConfig, check_threshold
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.training.job import run_train
from fam_engine.settings_reading import read_config

_REPORTED = ("steps", "tokens", "nll_first", "nll_last")


def train_loop(settings: Mapping[str, Any]) -> None:
    """Train an adapter as one of Ray's workers: the `train_loop_per_worker` of a `TorchTrainer`.

    Args:
        settings: Any setting of `fam-engine train` by its name but `nproc`; absolute paths, since a worker's folder is
            not its user's.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.

    Example:
        >>> trainer = TorchTrainer(  # doctest: +SKIP
        ...     train_loop,
        ...     train_loop_config={"model": "embedded", "data": ["/shared/a.jsonl"], "out": "/shared/out"},
        ...     scaling_config=ScalingConfig(num_workers=4, use_gpu=True),
        ... )
    """
    config = read_config(TrainConfig, dict(settings), None)
    check_threshold(config)

    import ray.train
    import ray.train.torch

    if torch.cuda.is_available() and (device := ray.train.torch.get_device()).type == "cuda":
        torch.cuda.set_device(device)
    outcome = run_train(config, Nobody())
    ray.train.report({name: outcome.summary["training"][name] for name in _REPORTED})
