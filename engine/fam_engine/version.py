"""The version of this package, in one place: the metadata it was installed with."""

from __future__ import annotations

from importlib import metadata

__version__ = metadata.version("fam-engine")
