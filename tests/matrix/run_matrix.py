"""Run the tests with the lowest, middling and newest versions of what we depend on.

Not a pytest test: every column is an environment of its own, gigabytes and many minutes each. `make test-matrix` runs
it. In: names of columns (all by default). Out: `docs/compatibility.json`, a column replaced for every column that ran,
from which the page of that name is made; exit code 1 where a test failed. The columns run in processes of their own and
one after the other: two at a time would only share the cores.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "docs" / "compatibility.json"
# By column, what narrows the ranges of pyproject.toml; `lowest` are the lower ends of all of them.
COLUMNS: dict[str, tuple[str, ...]] = {
    "lowest": (
        *("torch==2.11.*", "triton==3.6.*", "transformers==5.0.*", "safetensors==0.5.*"),
        *("bitsandbytes==0.50.*", "numpy==1.26.*", "packaging==23.0", "pyarrow==18.*"),
        *("typer==0.18.0", "rich==14.2.*", "pydantic==2.8.*", "PyYAML==6.0.*", "jinja2==3.1.*"),
    ),
    "middle": ("torch==2.13.*", "transformers==5.12.*"),
    "newest": (),
}
# Tools whose own requirements lie above our lowest versions (datasets wants pyarrow 21): their tests are skipped there.
ABOVE_LOWEST = ("datasets", "datatrove", "lm-eval", "trl")
PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "bitsandbytes", "numpy"),
    *("pyarrow", "typer", "rich", "pydantic", "PyYAML", "jinja2", "peft", "trl", "datasets"),
)


def environment(column: str) -> Path:
    """Make or bring up to date the environment of a column; give its Python."""
    folder = ROOT / f".venv-{column}"
    python = folder / "bin" / "python"
    if not is_whole(folder):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    eager = ("--upgrade", "--upgrade-strategy", "eager")
    wanted = (".", *test_tools(column), *COLUMNS[column])
    subprocess.run(
        (python, "-m", "pip", "install", "--quiet", *eager, *wanted), cwd=ROOT, check=True
    )
    return python


def is_whole(folder: Path) -> bool:
    """Whether an environment has pip, which comes last, and a Python we support."""
    command = (folder / "bin" / "python", "-c", "import sys; sys.exit(sys.version_info < (3, 11))")
    return (folder / "bin" / "pip").exists() and subprocess.run(command).returncode == 0


def test_tools(column: str) -> list[str]:
    """Give what the extra `dev` brings, as far as it goes with a column."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools: list[str] = project["optional-dependencies"]["dev"]
    return [t for t in tools if column != "lowest" or not t.startswith(ABOVE_LOWEST)]


def versions(python: Path) -> dict[str, str]:
    """Give the versions of the packages that the page names."""
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format", "json"], text=True)
    found = {entry["name"].lower(): entry["version"] for entry in json.loads(listed)}
    asked = (python, "-c", "import platform; print(platform.python_version())")
    return {"python": subprocess.check_output(asked, text=True).strip()} | {
        name: found[name.lower()] for name in PACKAGES if name.lower() in found
    }


def run_tests(python: Path, column: str) -> dict[str, object]:
    """Run the tests but those of faults; give how many did what, and the names of those that failed.

    Raises:
        SystemExit: They did not run to their end, or none passed: that is no result.
    """
    report = ROOT / f".venv-{column}" / "tests.xml"
    report.unlink(missing_ok=True)
    tests = os.environ.get("TESTS", "tests")
    command = (python, "-m", "pytest", "-q", "-m", "not faults and not ray", f"--junitxml={report}")
    run = subprocess.run(
        (*command, *tests.split()), cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    if run.returncode not in (0, 1):
        sys.exit(f"{column}: pytest ended with exit code {run.returncode}; nothing is recorded")
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if {"failure", "error"} & {child.tag for child in case}]
    num_skipped = sum(any(child.tag == "skipped" for child in case) for case in cases)
    num_passed = len(cases) - len(failed) - num_skipped
    if not num_passed:
        sys.exit(f"{column}: no test passed; nothing is recorded")
    return {
        "tests": tests,
        "passed": num_passed,
        "skipped": num_skipped,
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
    }


def commit() -> str:
    """Give the commit that is tested, marked where files other than the result differ from it."""
    head = ("git", "rev-parse", "--short=7", "HEAD")
    changes = ("git", "status", "--porcelain", "--", ".", f":(exclude){RESULT.relative_to(ROOT)}")
    name, changed = (subprocess.check_output(c, cwd=ROOT, text=True) for c in (head, changes))
    return name.strip() + ("-dirty" if changed else "")


def main() -> None:
    """Test the columns asked for; keep the results of the others."""
    asked = sys.argv[1:] or list(COLUMNS)
    if unknown := set(asked) - COLUMNS.keys():
        sys.exit(f"no column {sorted(unknown)}; there are {list(COLUMNS)}")
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for column in asked:
        python = environment(column)
        about = {"date": datetime.date.today().isoformat(), "commit": commit()}
        result[column] = about | {"versions": versions(python)} | run_tests(python, column)
        ordered = {name: result[name] for name in COLUMNS if name in result}
        RESULT.write_text(json.dumps(ordered, indent=1) + "\n")
    sys.exit(any(result[column]["failed"] for column in asked))


if __name__ == "__main__":
    main()
