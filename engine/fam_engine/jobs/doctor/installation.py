"""What is installed: Python, the packages we need, our own extension, and the extras.

In: the installed packages' own metadata. Out: checks. What we need and in which versions is read from our metadata too,
so that no second list can differ from `pyproject.toml`.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement

from fam_engine.jobs.doctor.checks import Check
from fam_engine.version import __version__, installed_version

_PACKAGE: Final = "fam-engine"
# What each extra is for; `dev` is for those who work on the package.
_EXTRAS: Final = {
    "math": "comparing mathematical answers of unlike form",
    "tensorboard": "train --tensorboard",
    "ray": "score --launcher ray",
    "serve": "serve",
    "lm-eval": "lm-eval",
    "datasets": "scores inside datasets.map",
    "trl": "rewards for TRL",
    "datatrove": "filters for datatrove",
}
_SECTION: Final = "versions"


def check_installation() -> Iterator[Check]:
    """Look at Python, the packages and our extension."""
    yield Check(_SECTION, "fam-engine", "ok", __version__)
    yield Check(_SECTION, "python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield _extension()
    for requirement in _requirements(extra=None):
        yield _package(requirement)
    yield _peft()


def check_extras() -> Iterator[Check]:
    """Look at what each extra needs."""
    for extra, purpose in _EXTRAS.items():
        missing = [
            requirement.name
            for requirement in _requirements(extra=extra)
            if not _fits(requirement, installed_version(requirement.name))
        ]
        if missing:
            found = f"{', '.join(missing)} missing or too old, needed for: {purpose}"
            yield Check("extras", extra, "warn", found, f"pip install '{_PACKAGE}[{extra}]'")
        else:
            yield Check("extras", extra, "ok", f"installed, for: {purpose}")


def _extension() -> Check:
    name = "fam_engine._rust_tokenize"
    try:
        importlib.import_module(name)
    except ImportError as error:
        remedy = "install the package again; from a checkout, run `make`"
        return Check(_SECTION, "rust extension", "fail", f"does not load: {error}", remedy)
    return Check(_SECTION, "rust extension", "ok", "loads")


def _package(requirement: Requirement) -> Check:
    version = installed_version(requirement.name)
    if _fits(requirement, version):
        return Check(_SECTION, requirement.name, "ok", version or "")
    found = "not installed" if version is None else f"{version}, needs {requirement.specifier}"
    remedy = f"pip install '{requirement.name}{requirement.specifier}'"
    return Check(_SECTION, requirement.name, "fail", found, remedy)


def _peft() -> Check:
    """Look for the one package nothing here needs, but that others read our adapters with."""
    version = installed_version("peft")
    return Check(_SECTION, "peft", "ok", version or "not installed; no command needs it")


def _requirements(*, extra: str | None) -> list[Requirement]:
    """Give what we need on this machine; of an extra what comes on top."""
    try:
        texts = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []  # run from a folder, without being installed
    requirements = [Requirement(text) for text in texts]
    if extra is None:
        return [
            one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return [
        one
        for one in requirements
        if one.marker is not None
        and one.marker.evaluate({"extra": extra})
        and not one.marker.evaluate({"extra": ""})
    ]


def _fits(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)
