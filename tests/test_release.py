"""What a release is named and says: one version, and notes for it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from release.build import refuse_changes, release_notes, sections, version, without_paths
from release.licenses import license_texts

from fam_engine import __version__

ROOT = Path(__file__).parents[1]
CHANGELOG = "# Changelog\n\n## Unreleased\n\n## 0.2.0 - 2027-01-01\n\n- b\n\n## 0.1.0\n\n- a\n"


def test_the_version_stands_in_one_place() -> None:
    assert version() == __version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project]")[1]
    assert not re.search(r"^version\b", project.split("\n[")[0], re.M)


def test_notes_are_the_section_of_the_version() -> None:
    assert release_notes(CHANGELOG, "0.2.0") == "- b\n"
    assert release_notes(CHANGELOG, "0.1.0") == "- a\n"


@pytest.mark.parametrize("missing", ["0.3.0", "0.1", "Unreleased"])
def test_a_release_without_notes_is_refused(missing: str) -> None:
    with pytest.raises(SystemExit, match=f"nothing under `## {missing}`"):
        release_notes(CHANGELOG, missing)


def test_a_release_with_unreleased_changes_is_refused() -> None:
    with pytest.raises(SystemExit, match="under `## Unreleased`"):
        release_notes(
            CHANGELOG.replace("## Unreleased", "## Unreleased\n\n### Added\n\n- c"), "0.2.0"
        )


def test_a_release_of_a_changed_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="from a git checkout"):
        refuse_changes(tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    refuse_changes(tmp_path)
    (tmp_path / "new").touch()
    with pytest.raises(SystemExit, match="files differ from the commit"):
        refuse_changes(tmp_path)


def test_this_version_has_notes() -> None:
    assert "fam-engine score" in sections((ROOT / "CHANGELOG.md").read_text())[version()]


def test_a_wheel_has_the_licences_of_what_is_compiled_in() -> None:
    text = license_texts("x86_64-unknown-linux-gnu")
    named = dict(re.findall(r"^(\S+) \d+\.\d+\.\d+ \((.+)\)$", text, re.M))
    assert named["tokenizers"] == "Apache-2.0"
    # The C library that `onig_sys` brings along has a licence of its own.
    assert "K.Kosako" in text
    # Macros run while we are built, and our own crates are under the licence of the package.
    assert not {"syn", "serde_derive", "rust_tokenize", "rust_simd"} & set(named)


def test_no_path_of_this_machine_is_compiled_in() -> None:
    flags = without_paths()
    assert f"--remap-path-prefix={ROOT}=fam-engine" in flags
    assert any("registry" in flag and flag.endswith("=crates") for flag in flags)


def test_the_forges_workflow_runs_what_a_person_runs() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"^ *- run: (.*)$", workflow, re.M) == ["make check test"]
