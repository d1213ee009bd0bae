"""The process of a worker that `local` starts: `python -m ...local_worker THREADS GPU`.

In: settings as a line of JSON on standard input, which stays open for as long as the worker is to go on. Out: its
results in the job's folder; a failure pickled on standard output.
"""

from __future__ import annotations

import json
import os
import pickle
import sys

import torch

from fam_engine.config import ScoreConfig
from fam_engine.data.children import end_with_parent
from fam_engine.errors import FamEngineError
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.scoring.sharing.worker import run_shard


def main() -> None:
    """Work, and leave with the exit code of what came of it."""
    threads, gpu = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA has not been looked for yet
    config = ScoreConfig.model_validate(json.loads(sys.stdin.buffer.readline()))
    end_with_parent()
    try:
        run_shard(config, Nobody())
    except FamEngineError as error:
        sys.stdout.buffer.write(pickle.dumps(error))
        sys.exit(error.exit_code)
    except Interrupted as stop:
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
