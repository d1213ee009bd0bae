"""An offline bundle for a GPU machine with torch, triton and transformers but without the rest.

In: this tree. Out: `dist/gpu/` with our abi3 wheel, bitsandbytes cut to its CUDA 13 library, and pydantic, all for
Python 3.12 on x86-64 Linux, under 60 MiB. Install there with

    pip install --no-index --no-deps --target SITE dist/gpu/*.whl
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "dist" / "gpu"
CUDA_LIBRARY = "libbitsandbytes_cuda130.so"
PACKAGES = ("bitsandbytes", "pydantic", "pydantic-core", "annotated-types", "typing-inspection")
LIMIT_BYTES = 60 << 20


def download(packages: dict[str, str]) -> None:
    """Fetch wheels for the GPU machine's Python, of the versions installed here."""
    platforms = [f"manylinux_2_{n}_x86_64" for n in (34, 28, 24, 17)] + ["manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(OUT)]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run(
        [*command, *(f"{name}=={version}" for name, version in packages.items())], check=True
    )


def cut(wheel: Path) -> None:
    """Drop every native library of a wheel but the one for CUDA 13 and the CPU."""
    slim = wheel.with_suffix(".slim")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            name = Path(item.filename).name
            native = name.startswith("libbitsandbytes") and name.endswith(".so")
            if not native or name in (CUDA_LIBRARY, "libbitsandbytes_cpu.so"):
                new.writestr(item, old.read(item))
        kept = [n for n in new.namelist() if n.endswith(CUDA_LIBRARY)]
    if not kept:
        sys.exit(f"{wheel.name} has no {CUDA_LIBRARY}")
    slim.replace(wheel)


def main() -> None:
    """Build, fetch, cut, weigh."""
    from importlib import metadata

    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.glob("*.whl"):
        old.unlink()
    build = [sys.executable, "-m", "maturin", "build", "--release", "--out", str(OUT)]
    subprocess.run(build, check=True, cwd=ROOT)
    download({name: metadata.version(name) for name in PACKAGES})
    cut(next(OUT.glob("bitsandbytes-*.whl")))
    total = sum(file.stat().st_size for file in OUT.glob("*.whl"))
    for file in sorted(OUT.glob("*.whl")):
        print(f"{file.stat().st_size / 2**20:6.1f} MiB  {file.name}")
    print(f"{total / 2**20:6.1f} MiB  in all")
    if total > LIMIT_BYTES:
        sys.exit(f"the bundle is above {LIMIT_BYTES >> 20} MiB")


if __name__ == "__main__":
    main()
