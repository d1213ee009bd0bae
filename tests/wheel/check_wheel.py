"""Build the wheel and the sdist, install the wheel in a clean environment, import every module of it.

Not a pytest test: it needs a network-free pip with the environment's own packages and takes a minute. `make test-wheel`
runs it. The two linked folders are what it is for: maturin drops them without a word when an `include` glob is missing.
"""

from __future__ import annotations

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
extras = ("datatrove", "lm_eval", "starlette", "uvicorn")  # not installed here, and imported by few
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
print(f"imported {len(modules)} modules from the installed wheel")
"""


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command; stop here if it fails."""
    subprocess.run([str(part) for part in command], check=True, cwd=cwd)


def main() -> None:
    """Build, install, import, score."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "maturin", "build", "--release", "--sdist", "--out", folder)
        (wheel,) = folder.glob("*.whl")
        (sdist,) = folder.glob("*.tar.gz")
        assert "abi3" in wheel.name, wheel.name
        names = zipfile.ZipFile(wheel).namelist()
        assert any(n.startswith("fam_engine/kernels/") for n in names), "kernels/ is missing"
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, {len(names)} files")
        print(f"{sdist.name}: {sdist.stat().st_size / 2**20:.1f} MiB")
        # Dependencies are seen from this environment; ours is only in the new one.
        clean = folder / "venv"
        venv.create(clean, with_pip=True)
        python = clean / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        outer = Path(sys.prefix) / "lib" / version / "site-packages"
        (clean / "lib" / version / "site-packages" / "outer.pth").write_text(f"{outer}\n")
        run(python, "-c", CHECK, cwd=folder)
        run(
            clean / "bin" / "fam-engine",
            *("score", "--model", "embedded", "--data", "embedded"),
            *("--out", folder / "out", "--limit", "20", "--quiet"),
            cwd=folder,
        )


if __name__ == "__main__":
    main()
