"""Build what a release consists of: the sdist, a wheel for each Linux we can build for, and the notes.

In: the tree, and CHANGELOG.md with a section for the version. Out: `dist/`. The version stands in one place,
rust_tokenize/Cargo.toml, from which maturin takes the package's. zig is the linker: it has the C library of every
manylinux with it, so one machine builds for both processors without a container. manylinux_2_28 and not an older one:
torch's own wheels ask for that. A target whose Rust standard library is not installed is named and left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
MANYLINUX = "manylinux_2_28"
TARGETS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")


def version() -> str:
    """Give the version of this tree."""
    manifest = tomllib.loads((ROOT / "rust_tokenize" / "Cargo.toml").read_text(encoding="utf-8"))
    return str(manifest["package"]["version"])


def release_notes(changelog: str, version: str) -> str:
    """Give the section of a version in the changelog, without its heading.

    Raises:
        SystemExit: There is none, or it is empty.
    """
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for section in sections:
        heading, _, body = section.partition("\n")
        if heading.split(" ")[0] == version and body.strip():
            return body.strip() + "\n"
    sys.exit(f"CHANGELOG.md has nothing under `## {version}`: name the section of this release so")


def has_standard_library(target: str) -> bool:
    """Whether the Rust compiler at hand can build for a target."""
    compiler = os.environ.get("RUSTC", "rustc")  # as cargo finds it
    command = (compiler, "--print", "target-libdir", "--target", target)
    folder = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return any(Path(folder).glob("libstd-*.rlib"))


def maturin(*arguments: str) -> None:
    """Run maturin, which looks for zig in the first Python on the path; stop here if it fails."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = (sys.executable, "-m", "maturin", *arguments)
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PATH": path})


def main() -> None:
    """Write the notes first, for they are what a person forgets."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    notes = release_notes(changelog, version())
    DIST.mkdir(exist_ok=True)
    for old in (*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")):
        old.unlink()
    (DIST / "RELEASE_NOTES.md").write_text(notes, encoding="utf-8")
    maturin("sdist", "--out", str(DIST))
    for target in TARGETS:
        if has_standard_library(target):
            zig = ("--zig", "--compatibility", MANYLINUX, "--target", target)
            maturin("build", "--release", "--locked", *zig, "--out", str(DIST))
        else:
            print(f"not built for {target}: no Rust library for it (rustup target add {target})")


if __name__ == "__main__":
    main()
