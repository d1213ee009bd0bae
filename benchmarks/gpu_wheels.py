"""Offline bundles for a GPU machine with torch, triton and transformers but without the rest.

    python benchmarks/gpu_wheels.py             # all
    python benchmarks/gpu_wheels.py gpu         # one

In: this tree. Out: folders of wheels for Python 3.12 on x86-64 Linux, each below 60 MiB:

- `dist/gpu/`: our abi3 wheel, bitsandbytes cut to its CUDA 13 library, pydantic, and the commit;
- `dist/gpu-peers-liger/`, `dist/gpu-peers-trl/`, `dist/gpu-peers-unsloth/`: a peer each, since they exclude each other
  (Unsloth wants an older TRL and datasets).

Install there with

    pip install --no-index --no-deps --target SITE dist/gpu/*.whl
    pip install --no-index --no-deps --target PEER dist/gpu-peers-trl/*.whl
    PYTHONPATH=PEER:SITE python benchmarks/gpu_check.py --out DIR --parts training --peers trl

Expected on the machine, and so in no bundle: torch, triton, transformers, accelerate, peft, safetensors, numpy,
pyarrow, pandas, typer, rich, jinja2, PyYAML, pytest, hypothesis. xformers is left out of Unsloth's: its wheel is built
for CUDA 12.8 and torch 2.10 and does not load with a torch for CUDA 13; Unsloth then takes torch's own attention. Of
Unsloth's wheel the library is kept, without its desktop program (80 of 89 MB).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
CUDA_LIBRARY = "libbitsandbytes_cuda130.so"
# Of the versions installed here.
OURS = (
    "bitsandbytes",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",  # newer than the machine's may be
)
DATASETS = ("dill==0.4.1", "multiprocess==0.70.19")
PEERS: dict[str, tuple[str, ...]] = {
    "gpu-peers-liger": ("liger-kernel==0.8.5",),
    "gpu-peers-trl": ("trl==1.16.0", "datasets==5.2.0", *DATASETS),
    "gpu-peers-unsloth": (
        *("unsloth==2026.10.9", "unsloth_zoo==2026.10.9", "trl==1.15.0", "datasets==4.8.5"),
        *("cut-cross-entropy==25.1.1", "torchao==0.18.0", "hf_transfer==0.1.9", "msgspec==0.22.0"),
        *("tyro==1.0.17", "docstring_parser==0.18.0", "typeguard==4.6.1", "nest_asyncio==1.6.0"),
        *DATASETS,
    ),
}
LIMIT_BYTES = 60 << 20


def download(requirements: list[str], out: Path) -> None:
    """Fetch wheels for the GPU machine's Python."""
    platforms = [f"manylinux_2_{n}_x86_64" for n in (34, 28, 24, 17)] + ["manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(out)]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run([*command, *requirements], check=True)


def cut(wheel: Path, is_kept: Callable[[str], bool]) -> None:
    """Drop files of a wheel."""
    slim = wheel.with_suffix(".slim")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            if is_kept(item.filename):
                new.writestr(item, old.read(item))
    slim.replace(wheel)


def _of_bitsandbytes(name: str) -> bool:
    """Keep every file but native libraries other than those for CUDA 13 and the CPU."""
    file = name.rpartition("/")[2]
    is_native = file.startswith("libbitsandbytes") and file.endswith(".so")
    return not is_native or file in (CUDA_LIBRARY, "libbitsandbytes_cpu.so")


def _of_unsloth(name: str) -> bool:
    """Keep the library."""
    return name.startswith(("unsloth/", "unsloth-"))


def build_ours(out: Path) -> None:
    """Make the bundle that runs everything of ours."""
    build = [sys.executable, "-m", "maturin", "build", "--release", "--out", str(out)]
    subprocess.run(build, check=True, cwd=ROOT)
    download([f"{name}=={metadata.version(name)}" for name in OURS], out)
    wheel = next(out.glob("bitsandbytes-*.whl"))
    cut(wheel, _of_bitsandbytes)
    if not any(name.endswith(CUDA_LIBRARY) for name in zipfile.ZipFile(wheel).namelist()):
        sys.exit(f"{wheel.name} has no {CUDA_LIBRARY}")
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout
    (out / "commit.txt").write_text(commit)


def build_peer(name: str, out: Path) -> None:
    """Make a peer's bundle."""
    download(list(PEERS[name]), out)
    for wheel in out.glob("unsloth-*.whl"):
        cut(wheel, _of_unsloth)


def weigh(out: Path) -> None:
    """Say what a bundle weighs; one above the limit ends the program."""
    total = sum(file.stat().st_size for file in out.iterdir())
    for file in sorted(out.glob("*.whl")):
        print(f"{file.stat().st_size / 2**20:6.1f} MiB  {file.name}")
    print(f"{total / 2**20:6.1f} MiB  {out.relative_to(ROOT)}")
    if total > LIMIT_BYTES:
        sys.exit(f"{out.relative_to(ROOT)} is above {LIMIT_BYTES >> 20} MiB")


def main() -> None:
    """Make the bundles that are named, by default all."""
    for name in sys.argv[1:] or ["gpu", *PEERS]:
        out = DIST / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if name == "gpu":
            build_ours(out)
        else:
            build_peer(name, out)
        weigh(out)


if __name__ == "__main__":
    main()
