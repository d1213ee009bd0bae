"""What the fork server imports before the first fork, so that faults fall into the jobs' own work."""

import bitsandbytes  # noqa: F401
import torch
import torch._dynamo

import fam_engine.cli.main
import fam_engine.jobs.evaluation.job
import fam_engine.jobs.experiment.job
import fam_engine.jobs.generation.job
import fam_engine.jobs.rewriting.job
import fam_engine.jobs.scoring.job
import fam_engine.jobs.training.job
import fam_engine.report.experiment
import fam_engine.report.terminal  # noqa: F401

torch.set_num_threads(1)
