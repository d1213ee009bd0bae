"""The licences of the Rust crates that are compiled into the extension, as one text for the wheel.

In: `Cargo.lock` and the crates' own folders, where cargo has them. Out: each licence's text once, under the crates it
is of. Crates that only run while we are built, macros and build scripts, are left out.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MANIFEST = ROOT / "rust_tokenize" / "Cargo.toml"
_FILES = re.compile(r"(licen[sc]e|copying|notice|unlicense)", re.IGNORECASE)


def license_texts(target: str) -> str:
    """Give the licences of all that is compiled into the extension for a target.

    Raises:
        SystemExit: A crate names no licence.
    """
    packages = list(_compiled_in(target))
    by_text: dict[str, list[str]] = {}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        if not package["license"]:
            raise SystemExit(f"the crate {name} names no licence")
        headed = f"{name} ({package['license']})"
        for text in _texts(Path(package["manifest_path"]).parent) or [_by(package)]:
            by_text.setdefault(text, []).append(headed)
    rule = "\n" + "-" * 80 + "\n"
    parts = ("\n".join(names) + "\n\n" + text + "\n" for text, names in by_text.items())
    opening = "The extension of fam-engine holds code of these Rust crates, under these licences.\n"
    return rule.join((opening, *parts))


def _compiled_in(target: str) -> Iterator[dict[str, Any]]:
    """Walk from our crate to all it is linked with, but our own."""
    command = ("cargo", "metadata", "--locked", "--format-version", "1", "--features", "python")
    command += ("--manifest-path", str(_MANIFEST), "--filter-platform", target)
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    packages = {package["id"]: package for package in found["packages"]}
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    seen, open_ids = set(), [found["resolve"]["root"]]
    while open_ids:
        one = open_ids.pop()
        kinds = {kind for made in packages[one]["targets"] for kind in made["kind"]}
        if one in seen or "proc-macro" in kinds:
            continue
        seen.add(one)
        open_ids += [
            dependency["pkg"]
            for dependency in nodes[one]["deps"]
            if any(kind["kind"] is None for kind in dependency["dep_kinds"])
        ]
    yield from sorted(
        (packages[one] for one in seen if packages[one]["source"]), key=lambda p: str(p["name"])
    )


def _texts(folder: Path) -> list[str]:
    """Give the licences in a crate's folder, and in those of what it brings along one level down."""
    files = sorted(file for glob in ("*", "*/*") for file in folder.glob(glob))
    named = [file for file in files if file.is_file() and _FILES.match(file.name)]
    texts = (file.read_text(encoding="utf-8", errors="replace").strip() for file in named)
    return list(dict.fromkeys(texts))


def _by(package: dict[str, Any]) -> str:
    authors = ", ".join(package["authors"]) or package["repository"] or "unnamed authors"
    return f"By {authors}; the crate has no text of its licence with it."
