"""Which files of a model's folder may be opened, and the strict reading of the JSON among them.

In: a folder and a file name, which may come from a hostile index. Out: a path that stays in the
folder, or the object in a JSON file. A name is a plain name, never a path; a link may lead out of
the folder only where the Hugging Face cache keeps its files (`snapshots/<commit>/x ->
../../blobs/<hash>`, or one folder deeper).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final, NoReturn

from fam_engine.errors import ModelRefusedError

# The largest published config.json is some tens of KB (long rope tables), the largest index some
# MB.
MAX_JSON_BYTES: Final = 16 << 20
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


def plain_file(folder: Path, name: str, *, code: str, hint: str | None = None) -> Path:
    """Give the path of a regular file in a folder.

    Args:
        folder: The folder.
        name: The file's plain name: letters, digits, dot, underscore, hyphen.
        code: Code of the error raised.
        hint: What to do if there is no such file.

    Raises:
        ModelRefusedError: A name that is not plain, a link that leaves the folder, or no regular
            file.
    """
    if not _PLAIN_NAME.fullmatch(name) or name in (".", ".."):
        message = f"the file name {name!r} is not a plain name of letters, digits, `.`, `_`, `-`"
        raise ModelRefusedError(message, code=code, where=str(folder))
    path = folder / name
    if not _stays_inside(path):
        message = f"the link leads to {os.path.realpath(path)}, out of the folder"
        raise ModelRefusedError(message, code=code, where=str(path))
    if not path.is_file():
        if not path.exists():
            raise ModelRefusedError("no such file", code=code, where=str(path), hint=hint)
        raise ModelRefusedError("not a regular file", code=code, where=str(path))
    return path


def may_open(path: Path) -> bool:
    """Whether a file in a model's folder is a regular one that does not lie elsewhere."""
    return _stays_inside(path) and path.is_file()


def _stays_inside(path: Path) -> bool:
    home = path.parent.resolve()
    caches = [one.parent / "blobs" for one in list(home.parents)[:2] if one.name == "snapshots"]
    homes = [home, *caches]
    return Path(os.path.realpath(path)).parent in homes  # a loop of links stays what it is


def read_json_object(path: Path, *, code: str) -> dict[str, Any]:
    """Read a JSON file that must hold one object.

    Args:
        path: The file.
        code: Code of the error raised.

    Raises:
        ModelRefusedError: No such file, too large, not UTF-8 JSON, NaN or a repeated name in it, or
            not an object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ModelRefusedError(str(error.strerror), code=code, where=str(path)) from error
    if len(raw) > MAX_JSON_BYTES:
        message = f"expected a JSON object, found more than {MAX_JSON_BYTES} bytes"
        raise ModelRefusedError(message, code=code, where=str(path))
    return parse_json_object(raw, code=code, where=str(path))


def parse_json_object(raw: bytes, *, code: str, where: str) -> dict[str, Any]:
    """Parse bytes that must be one JSON object in UTF-8.

    Raises:
        ModelRefusedError: Not UTF-8 JSON, NaN, a repeated name or half a surrogate pair in it,
            nested too deep, or not an object.
    """
    try:
        value = json.loads(raw.decode(), parse_constant=_no_constant, object_pairs_hook=_no_repeats)
        json.dumps(value, ensure_ascii=False).encode()  # refuses half of a surrogate pair
    except (ValueError, RecursionError) as error:
        message = f"expected a JSON object, found: {error}"
        raise ModelRefusedError(message, code=code, where=where) from error
    if not isinstance(value, dict):
        message = f"expected a JSON object, found {type(value).__name__}"
        raise ModelRefusedError(message, code=code, where=where)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        count = Counter(name for name, _ in pairs)
        repeated = max(count, key=lambda name: count[name])
        raise ValueError(f"the name {repeated!r} twice in one object")
    return result
