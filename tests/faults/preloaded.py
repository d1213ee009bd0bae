"""What the fork server imports before the first fork, so that faults fall into the jobs' own work."""

import contextlib
import functools

import bitsandbytes  # noqa: F401
import pyarrow.dataset  # noqa: F401
import torch
import torch._dynamo  # torch's optimizers import it
import typer.main

import fam_engine.cli.main
import fam_engine.jobs.evaluation.job
import fam_engine.jobs.experiment.job
import fam_engine.jobs.generation.job
import fam_engine.jobs.rewriting.job
import fam_engine.jobs.scoring.job
import fam_engine.jobs.selection.job
import fam_engine.jobs.tokenizing.job
import fam_engine.jobs.training.job
import fam_engine.report.experiment
import fam_engine.report.progress
import fam_engine.report.terminal

# Half the time of a small job: Arrow imports it with its first table, where it is installed.
with contextlib.suppress(ImportError):
    import pandas  # noqa: F401
# A fifth of what is left: the command line is made of its functions' types once, not in each run.
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(fam_engine.cli.main.app)

torch.set_num_threads(1)
