"""The versions of this package and of others, in one place: the metadata they were installed with."""

from __future__ import annotations

from importlib import metadata

__version__ = metadata.version("fam-engine")


def installed_version(package: str) -> str | None:
    """Give the version of a package, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
