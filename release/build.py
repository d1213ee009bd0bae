"""Build what a release consists of: the sdist, a wheel for each Linux we can build for, and the notes.

In: the tree as committed, and CHANGELOG.md with a section for the version and nothing unreleased. Out: `dist/`. The
version stands in one place, rust_tokenize/Cargo.toml, from which maturin takes the package's. zig is the linker: it has
the C library of every manylinux with it, so one machine builds for both processors without a container. manylinux_2_28
and not an older one: torch's own wheels ask for that. A target whose Rust standard library is not installed is named
and left out. Wheels have the licences of all Rust crates in them, and no path of the machine that built them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from release.licenses import license_texts

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
MANYLINUX = "manylinux_2_28"
# Made for each wheel, and not in the tree.
LICENSES = "engine/fam_engine/RUST_LICENSES.txt"
TARGETS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")


def version() -> str:
    """Give the version of this tree."""
    manifest = tomllib.loads((ROOT / "rust_tokenize" / "Cargo.toml").read_text(encoding="utf-8"))
    return str(manifest["package"]["version"])


def sections(changelog: str) -> dict[str, str]:
    """Give what stands under each version, or `Unreleased`, of a changelog."""
    parts = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    headed = (part.partition("\n") for part in parts)
    return {heading.split(" ")[0]: body.strip() for heading, _, body in headed}


def release_notes(changelog: str, version: str) -> str:
    """Give the section of a version in the changelog, without its heading.

    Raises:
        SystemExit: There is none, or it is empty, or there are changes under no version yet.
    """
    found = sections(changelog)
    if found.get("Unreleased"):
        sys.exit("CHANGELOG.md has changes under `## Unreleased`: move them to a version's section")
    if not found.get(version):
        sys.exit(
            f"CHANGELOG.md has nothing under `## {version}`: name the section of this release so"
        )
    return found[version] + "\n"


def refuse_changes(root: Path) -> None:
    """Stop where files differ from the commit, since a release is what anybody can build from one.

    Raises:
        SystemExit: Files are changed or unknown to git, or there is no repository.
    """
    status = ("git", "-C", str(root), "status", "--porcelain")
    run = subprocess.run(status, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"a release is built from a git checkout: {run.stderr.strip()}")
    if run.stdout:
        sys.exit(f"files differ from the commit; commit them first:\n{run.stdout.rstrip()}")


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
    env = os.environ | {"PATH": path, "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(without_paths())}
    subprocess.run(command, cwd=ROOT, check=True, env=env)


def without_paths() -> list[str]:
    """Give the compiler's flags that keep this machine's folders out of messages of panics."""
    cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    named = {cargo / "registry" / "src": "crates", ROOT: "fam-engine"}
    return [f"--remap-path-prefix={folder}={name}" for folder, name in named.items()]


def build_wheel(target: str) -> None:
    """Build the wheel for a target, with the licences of what is compiled in."""
    licenses = ROOT / LICENSES
    licenses.write_text(license_texts(target), encoding="utf-8", newline="\n")
    zig = ("--zig", "--compatibility", MANYLINUX, "--target", target)
    try:
        maturin("build", "--release", "--locked", *zig, "--out", str(DIST))
    finally:
        licenses.unlink()


def main() -> None:
    """Write the notes first, for they are what a person forgets."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    notes = release_notes(changelog, version())
    refuse_changes(ROOT)
    DIST.mkdir(exist_ok=True)
    for old in (*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")):
        old.unlink()
    (DIST / "RELEASE_NOTES.md").write_text(notes, encoding="utf-8")
    maturin("sdist", "--out", str(DIST))
    for target in TARGETS:
        if has_standard_library(target):
            build_wheel(target)
        else:
            print(f"not built for {target}: no Rust library for it (rustup target add {target})")


if __name__ == "__main__":
    main()
