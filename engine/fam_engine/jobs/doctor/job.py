"""Everything worth knowing before the first command, or in a report of what went wrong.

In: a device, maybe a model and an adapter. Out: checks, and the exit code a command would end with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fam_engine.config import Device
from fam_engine.errors import EXIT_OK, UsageError
from fam_engine.jobs.doctor.checks import Check
from fam_engine.jobs.doctor.installation import check_extras, check_installation

_EXIT_INSTALLATION: Final = UsageError.exit_code


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        checks: In the order they are shown in.
        exit_code: 0, or that of the refusal a command would give: 8 of the device, 10 of the model
            or the adapter; 2 where what every command needs is not installed.
    """

    checks: tuple[Check, ...]
    exit_code: int


def examine(
    *, device: Device = "auto", model: str | None = None, adapter: Path | None = None
) -> Diagnosis:
    """Look at this machine.

    Args:
        device: As commands take it.
        model: A folder, or `embedded`; None: no model is looked at.
        adapter: A folder; None: no adapter is looked at.
    """
    installation = list(check_installation())
    try:
        computing, exit_code = _check_computing(device, model, adapter)
    except (ImportError, OSError) as error:
        # A package that is missing, or whose libraries are: who asks a doctor may be in that state.
        found = f"cannot be looked at: {type(error).__name__}: {error}"
        computing = [Check("computing", "machine", "fail", found, "mend what fails above")]
        exit_code = _EXIT_INSTALLATION
    if exit_code == EXIT_OK and _any_fails(installation):
        exit_code = _EXIT_INSTALLATION
    return Diagnosis((*installation, *computing, *check_extras()), exit_code)


def _any_fails(checks: Sequence[Check]) -> bool:
    return any(check.level == "fail" for check in checks)


def _check_computing(
    device: Device, model: str | None, adapter: Path | None
) -> tuple[list[Check], int]:
    """Look at all that takes torch to look at."""
    from fam_engine.jobs.doctor.adapter import check_adapter_folder
    from fam_engine.jobs.doctor.machine import check_gpu, check_processor, check_space
    from fam_engine.jobs.doctor.model import check_model, check_paths

    gpu, refused = check_gpu(device)
    # Without the device asked for, paths and model are told for the one there is.
    there: Device = "auto" if refused else device
    checks = [*check_processor(), *gpu, *check_space(), *check_paths(there)]
    exit_code = refused.exit_code if refused else EXIT_OK
    if model is not None:
        found, refusal = check_model(model, there)
        checks += found
        exit_code = exit_code or (refusal.exit_code if refusal else EXIT_OK)
    if adapter is not None:
        found, refusal = check_adapter_folder(adapter, model)
        checks += found
        exit_code = exit_code or (refusal.exit_code if refusal else EXIT_OK)
    return checks, exit_code
