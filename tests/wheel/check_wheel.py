"""Install the wheel and the sdist, each in a clean environment, import every module, score.

In: a folder with both (`make release`), or nothing: then both are built first (`make test-wheel`). Not a pytest test:
it takes minutes. No network is needed: the clean environments see the packages of this one, but not our own. The linked
folders are what it is for: maturin drops them without a word when an `include` glob is missing.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

CHECK = """
import importlib, pkgutil, sys, pathlib
import fam_engine
home = pathlib.Path(fam_engine.__file__).parent
assert "site-packages" in str(home), home
modules = ["fam_engine." + ".".join(p.relative_to(home).with_suffix("").parts)
           for p in sorted(home.rglob("*.py")) if p.name != "__init__.py"]
assert any(m.startswith("fam_engine.kernels.") for m in modules), modules
assert any(m.startswith("fam_engine.cli.") for m in modules), modules
apart = ("_worker", "train_embedded", "make_demo_records")  # programs of their own
extras = ("datatrove", "lm_eval", "nemo_curator", "starlette", "uvicorn")  # not installed here, and imported by few
for module in modules:
    if not module.endswith(apart) and ".confined." not in module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name not in extras:
                raise
            assert ".integrations." in module or ".serving." in module, module
from fam_engine.measure.answers import judge
for two, correct in (("2", True), ("3", False)):
    code = f"```python\\ndef two():\\n    return {two}\\n```"
    verdict = judge(code, kind="code", answer=None, tests=["assert two() == 2"])
    assert verdict.correct is correct, verdict
for name in ("engine", "kernels", "cli"):
    found = sys.modules.get(name)
    assert found is None or "fam" not in str(getattr(found, "__file__", "")), name
assert (home / "embedded" / "model" / "model.safetensors").is_file()
assert (home / "jobs" / "experiment" / "studies" / "small.yaml").is_file()
assert (home / "jobs" / "rewriting" / "templates" / "rewrite.txt").is_file()
assert (home / "py.typed").is_file()
print(f"imported {len(modules)} modules of fam-engine {fam_engine.__version__} from what was installed")
"""


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Run a command; stop here if it fails."""
    subprocess.run([str(part) for part in command], check=True, cwd=cwd, env=env)


def clean_environment(folder: Path) -> Path:
    """Make an environment that sees the packages of this one, but not our own; give its Python."""
    venv.create(folder, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    outer = Path(sys.prefix) / "lib" / version / "site-packages"
    (folder / "lib" / version / "site-packages" / "outer.pth").write_text(f"{outer}\n")
    return folder / "bin" / "python"


def check(artefact: Path, folder: Path) -> None:
    """Install one artefact, import all of it, and score a few records with it."""
    print(f"{artefact.name}: {artefact.stat().st_size / 2**20:.1f} MiB", flush=True)
    folder.mkdir()
    python = clean_environment(folder / "venv")
    # The sdist is built by this environment's maturin, into the tree's target: only our own crates are compiled.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "CARGO_TARGET_DIR": str(ROOT / "target")}
    plain = ("--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed")
    run(python, "-m", "pip", "install", *plain, artefact, env=env)
    run(python, "-c", CHECK, cwd=folder)
    run(
        folder / "venv" / "bin" / "fam-engine",
        *("score", "--model", "embedded", "--data", "embedded"),
        *("--out", folder / "out", "--limit", "20", "--quiet"),
        cwd=folder,
    )


def check_release(wheel: zipfile.ZipFile) -> None:
    """Make sure that a wheel to be published has what its makers owe others, and nothing of their machine."""
    texts = wheel.read("fam_engine/RUST_LICENSES.txt").decode()
    assert "\ntokenizers " in texts, "the licences of the Rust crates are incomplete"
    (extension,) = (name for name in wheel.namelist() if name.endswith(".so"))
    assert str(Path.home()).encode() not in wheel.read(extension), (
        "it names folders of this machine"
    )


def main() -> None:
    """Check what is given, or build it and check that."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dist = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else folder / "dist"
        if len(sys.argv) == 1:
            run(sys.executable, "-m", "maturin", "build", "--release", "--sdist", "--out", dist)
        (wheel,) = (file for file in dist.glob("*.whl") if platform.machine() in file.name)
        (sdist,) = dist.glob("*.tar.gz")
        assert "abi3" in wheel.name, wheel.name
        names = zipfile.ZipFile(wheel).namelist()
        assert any(n.startswith("fam_engine/kernels/") for n in names), "kernels/ is missing"
        if len(sys.argv) > 1:
            check_release(zipfile.ZipFile(wheel))
        for number, artefact in enumerate((wheel, sdist)):
            check(artefact, folder / str(number))


if __name__ == "__main__":
    main()
