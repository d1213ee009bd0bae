"""What we depend on may be used as we use it, and comes from where it should: Rust crates and Python distributions.

Licences are compared with the list in deny.toml, which `make audit` gives to cargo-deny, and a few that only Python's
have. No network: crates are described by cargo's own cache, distributions by what is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
RUST = tuple(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"])
CRATES = "registry+https://github.com/rust-lang/crates.io-index"
# Of libraries that are used unchanged: weak copyleft by file, Python's own, and the public domain.
PYTHON = (
    *RUST,
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "0BSD",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
)
# Older metadata names licences in words.
WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def is_allowed(expression: str, allowed: tuple[str, ...]) -> bool:
    """Whether one way to read an SPDX expression asks only for licences that are allowed."""
    flat = re.sub(r"[()]", " ", expression.replace("/", " OR "))
    branches = (re.split(r"\s+AND\s+", branch.strip()) for branch in re.split(r"\s+OR\s+", flat))
    return any(all(term.strip() in allowed for term in terms) for terms in branches)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT OR GPL-3.0", True),
        ("MIT AND GPL-3.0", False),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0", False),
        ("", False),
    ],
)
def test_expressions(expression: str, expected: bool) -> None:
    assert is_allowed(expression, RUST) is expected


def test_crates_have_licences_we_may_use() -> None:
    if shutil.which("cargo") is None:
        pytest.skip("needs cargo")
    command = [
        "cargo",
        "metadata",
        "--locked",
        "--offline",
        "--format-version",
        "1",
        "--all-features",
    ]
    platform = ("--filter-platform", "x86_64-unknown-linux-gnu")
    run = subprocess.run([*command, *platform], cwd=ROOT, capture_output=True, check=True)
    packages = json.loads(run.stdout)["packages"]
    assert len(packages) > 50
    wrong = {p["name"]: p["license"] for p in packages if not is_allowed(p["license"] or "", RUST)}
    assert not wrong


def test_crates_come_from_the_registry_with_their_checksums() -> None:
    for package in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]:
        ours = package["name"] in ("rust_simd", "rust_tokenize")
        assert ours or (package["source"] == CRATES and package["checksum"]), package["name"]


def distributions() -> dict[str, importlib.metadata.Distribution]:
    """Give what an installation with the extras for users brings; extras that are not installed aside.

    lm-eval is not ours to judge: who asks for that extra has chosen that tool.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    todo, seen = [("fam-engine", extra) for extra in ("", "math", "tensorboard", "serve")], set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in found[name].requires or []:
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": extra}):
                other = re.sub(r"[-_.]+", "-", required.name).lower()
                todo += [(other, more) for more in ("", *required.extras)]
    return found


def licence_of(distribution: importlib.metadata.Distribution) -> str:
    """Give its licence as an expression, however it says so."""
    about = distribution.metadata
    if expression := about.get("License-Expression"):
        return expression
    kinds = [
        c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if c.startswith("License ::")
    ]
    said = kinds[0] if kinds else about.get("License", "")
    return WORDS.get(said, said)


def test_distributions_have_licences_we_may_use() -> None:
    found = distributions()
    assert {"torch", "transformers", "numpy"} <= found.keys()
    wrong = {
        name: licence_of(distribution)
        for name, distribution in found.items()
        # torch brings CUDA's libraries, which NVIDIA allows to be used and passed on unchanged.
        if not name.startswith(("nvidia-", "cuda-toolkit"))
        and not is_allowed(licence_of(distribution), PYTHON)
    }
    assert not wrong


def test_distributions_come_from_an_index() -> None:
    """Not from a folder or an address, which pip notes; except ourselves."""
    for name, distribution in distributions().items():
        assert name == "fam-engine" or distribution.read_text("direct_url.json") is None, name
