"""From a model's name to its folder, and the hash that says which model it is.

In: a folder, `embedded`, or (only with `download`) a Hugging Face id. Out: a folder; one SHA-256 of what is in it.

Offline by default: a name that is no folder is refused, never looked up, so a run cannot depend on
what a server says today. With `download` the id is resolved to a commit, which the caller records.
Nothing here imports torch: `tokenize` does without.
"""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fam_engine import embedded
from fam_engine.config import nearest
from fam_engine.data.plain_files import may_open
from fam_engine.errors import ModelRefusedError, StorageError

EMBEDDED: Final = "embedded"
# Everything a model's folder may give us to read; the rest is neither fetched nor hashed.
SUFFIXES: Final = (".safetensors", ".json", ".txt", ".model", ".jinja")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def resolve_model(model: str | Path, *, download: bool) -> tuple[Path, str | None]:
    """Find a model's folder.

    Args:
        model: A folder, `embedded`, or with `download` the id of a repository on the hub.
        download: Whether an id that is no folder may be fetched.

    Returns:
        The folder, and the commit it was fetched at if it was.

    Raises:
        ModelRefusedError: Neither a folder nor, with `download`, to be had from the hub.
    """
    if not isinstance(model, str | os.PathLike):  # as of other programs
        message = (
            f"a value of type {type(model).__name__} was given, expected a folder or `{EMBEDDED}`"
        )
        raise ModelRefusedError(message, code="E_MODEL_NOT_FOUND")
    if str(model) == EMBEDDED:
        return embedded.MODEL, None
    folder = Path(model)
    if folder.is_dir():
        return folder, None
    is_hub_id = _HUB_ID.fullmatch(str(model)) is not None
    if download and is_hub_id:
        return _download(str(model))
    message = f"`{model}` is not a folder{nearest(str(model), [EMBEDDED])}"
    hint = "add --download to fetch it from the hub" if is_hub_id else "check the path"
    raise ModelRefusedError(message, code="E_MODEL_NOT_FOUND", hint=hint)


def _download(hub_id: str) -> tuple[Path, str]:
    """Fetch the files we read of a repository, at the commit its main branch has now."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        message = f"`{hub_id}` could not be downloaded: {error}"
        hint = "check the id, the network, and whether the model asks for a login"
        raise ModelRefusedError(message, code="E_MODEL_DOWNLOAD", hint=hint) from error
    return folder, folder.name  # .../snapshots/<commit>


def hash_model(folder: Path) -> str:
    """Give one SHA-256 over the names and bytes of all files of a model or adapter we may read.

    Args:
        folder: Its folder.

    Raises:
        ModelRefusedError: No such folder.
        StorageError: A file that cannot be read.
    """
    if not folder.is_dir():
        raise ModelRefusedError(f"`{folder}` is not a folder", code="E_MODEL_NOT_FOUND")
    try:
        paths = sorted(folder.iterdir())
        files = [path for path in paths if path.suffix in SUFFIXES and may_open(path)]
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
            digests = list(pool.map(_hash_file, files))
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise StorageError(message, code="E_MODEL_READ", where=str(error.filename)) from error
    total = hashlib.sha256()
    for path, digest in zip(files, digests, strict=True):
        total.update(f"{path.name}\n{digest}\n".encode())
    return total.hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
