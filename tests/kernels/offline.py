"""Compile every shipped kernel for every GPU known, without one, and hold it against what is recorded.

    python -m tests.kernels.offline            compare with tests/kernels/budgets/triton-VERSION.json
    python -m tests.kernels.offline --all      the same, and compile what has not changed too (ten minutes of a core)
    python -m tests.kernels.offline --write    record

In: the `variants(capability)` of every `kernels/*_triton.py`. Measured of each: registers, bytes spilled to memory,
bytes of shared memory, instructions (and for a value made, where a kernel counts them), and whether it uses matrix
instructions.
Arguments are also handed to what Triton makes of a kernel's signature for its launches, which compiling passes by: a
kernel with an argument that is named like a variable there compiles, and cannot be launched.
Budgets hold for one version of Triton: another one compiles otherwise. The same version makes the same of the same
source, so a kernel whose source, arguments and options have the recorded hash is not compiled again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor

from fam_engine.kernels.launching import CAPABILITIES, POINTER, SHARED_LIMIT, Variant

_KERNELS = Path(__file__).parents[2] / "kernels"
BUDGETS = Path(__file__).with_name("budgets") / f"triton-{triton.__version__}.json"
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Matrix instructions of PTX by capability.
_MATRIX = {
    80: "mma.sync",
    86: "mma.sync",
    89: "mma.sync",
    90: "wgmma",
    100: "tcgen05",
    120: "mma.sync",
}
_DTYPES = {kind: dtype for dtype, kind in POINTER.items()}
_NUMBERS = {"i32": 16, "fp32": 0.5}
# From this capability on kernels may be launched early.
_FIRST_EARLY = 90
# Compilers order instructions anew at every release of ours; more than this is a change of the code.
_SLACK = 1.05
_NUM_PROCESSES = 2
# What waits for the kernel before, and what touches memory that is not constant (`.nc`), in PTX.
_WAITS = "griddepcontrol.wait"
_TOUCHES = re.compile(r"\b(ld|st|red|atom)\.(global|async|bulk)(?!\.nc)|\bcp\.(async|reduce)")


@dataclass(frozen=True)
class Measured:
    """What the compiler made of a variant.

    Attributes:
        source: Hash of what was compiled.
        registers: A thread.
        spilled: Bytes a thread keeps in memory for want of registers.
        shared: Bytes of shared memory a program.
        instructions: Machine instructions of the kernel, whole.
        per_value: Instructions a thread executes for a value it makes, were there no loop; None: not counted.
        has_matrix: Whether it uses the GPU's matrix instructions.
        touches_early: Whether it reads or writes memory, constants aside, before it waits for the kernel before it.
    """

    source: str
    registers: int
    spilled: int
    shared: int
    instructions: int
    per_value: float | None
    has_matrix: bool
    touches_early: bool


def modules() -> list[str]:
    """Give the names of the modules with Triton kernels."""
    return [f"fam_engine.kernels.{path.stem}" for path in sorted(_KERNELS.glob("*_triton.py"))]


def variants(capability: int) -> Iterator[Variant]:
    """Yield all shipped variants for a capability."""
    for name in modules():
        yield from importlib.import_module(name).variants(capability)


def measure(capability: int, known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Measure all variants for a capability, by name; what is known of the same source is taken over."""
    found: dict[str, dict[str, Any]] = {}
    for variant in variants(capability):
        assert variant.name not in found, f"two variants are named {variant.name}"
        before = known.get(variant.name, {})
        is_same = before.get("source") == _hash(variant, capability)
        found[variant.name] = before if is_same else asdict(_measure(variant, capability))
    return found


def complaints(found: dict[str, dict[str, Any]], capability: int) -> list[str]:
    """Say what no recorded budget may allow."""
    limit = SHARED_LIMIT[capability]
    matrix = {variant.name: variant.uses_matrix_units for variant in variants(capability)}
    early = {variant.name: variant.launch.is_early for variant in variants(capability)}
    said = []
    for name, one in found.items():
        if one["spilled"]:
            said.append(f"{name} on sm_{capability} spills {one['spilled']} bytes")
        if one["shared"] > limit:
            said.append(f"{name} on sm_{capability} needs {one['shared']} of {limit} bytes shared")
        if matrix[name] and not one["has_matrix"]:
            said.append(f"{name} on sm_{capability} uses no {_MATRIX[capability]}")
        if early[name] and capability >= _FIRST_EARLY and one["touches_early"]:
            said.append(f"{name} on sm_{capability} does not wait before it touches memory")
    for variant in variants(capability):
        launched = launched_with(variant, capability)
        if launched != dict(variant.arguments):
            said.append(f"{variant.name} on sm_{capability} is launched with {launched}")
    return said


def launched_with(variant: Variant, capability: int) -> dict[str, str | tuple[str, ...]]:
    """Give the types of arguments as Triton sees them when a kernel is launched."""
    backend = make_backend(GPUTarget("cuda", capability, 32))
    bind = create_function_from_signature(variant.kernel.signature, variant.kernel.params, backend)
    arguments = {name: _argument(kind) for name, kind in variant.arguments.items()}
    _, specialized, _ = bind(**arguments, **variant.launch.keywords)
    types = dict(zip(variant.kernel.arg_names, specialized, strict=True))
    return {name: types[name][0] for name in variant.arguments}


def _argument(kind: str | tuple[str, ...]) -> object:
    """Give something of a type."""
    if isinstance(kind, tuple):
        return tuple(map(_argument, kind))
    if kind in _DTYPES:
        return torch.empty(16, dtype=_DTYPES[kind])
    if descriptor := re.fullmatch(r"tensordesc<(\w+)\[(\d+), (\d+)\]>", kind):
        sides = [int(side) for side in descriptor.groups()[1:]]
        return TensorDescriptor.from_tensor(
            torch.empty(sides, dtype=_DTYPES[f"*{descriptor[1]}"]), sides
        )
    return _NUMBERS[kind]


def changes(found: dict[str, dict[str, Any]], recorded: dict[str, dict[str, Any]]) -> list[str]:
    """Say where a measurement is worse than what is recorded, or either is missing."""
    said = [f"{name} is recorded and no longer shipped" for name in recorded.keys() - found.keys()]
    for name, now in found.items():
        if name not in recorded:
            said.append(f"{name} is not recorded")
            continue
        before = recorded[name]
        said += [
            f"{name}: {what} {before[what]} -> {now[what]}"
            for what in ("registers", "shared", "instructions")
            if now[what] > before[what] * _SLACK
        ]
    return said


class _Driver:
    """What tells kernels which GPU they are compiled for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target


def _measure(variant: Variant, capability: int) -> Measured:
    target = GPUTarget("cuda", capability, 32)
    triton.runtime.driver.set_active(_Driver(target))
    compiled = triton.compile(_source(variant), target=target, options=variant.launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", code, re.MULTILINE))
    threads = 32 * variant.launch.num_warps
    per_value = instructions * threads / variant.values if variant.values else None
    return Measured(
        source=_hash(variant, capability),
        registers=_number(usage, "REG"),
        spilled=_number(usage, "LOCAL") + _number(usage, "STACK"),
        shared=compiled.metadata.shared,
        instructions=instructions,
        per_value=round(per_value, 2) if per_value else None,
        has_matrix=_MATRIX[capability] in compiled.asm["ptx"],
        touches_early=_TOUCHES.search(compiled.asm["ptx"].partition(_WAITS)[0]) is not None,
    )


def _hash(variant: Variant, capability: int) -> str:
    compiled_from = (_source(variant).hash(), sorted(variant.launch.options.items()), capability)
    return hashlib.sha256(repr(compiled_from).encode()).hexdigest()[:16]


def _source(variant: Variant) -> ASTSource:
    constants = dict(variant.launch.constants)
    names = variant.kernel.arg_names
    missing = [name for name in names if name not in variant.arguments and name not in constants]
    assert not missing, f"{variant.name} says nothing of {missing}"
    # In order, for the hash.
    aligned = [
        name
        for name, kind in variant.arguments.items()
        if kind[0].startswith("*") or name in variant.divisible
    ]
    places = [
        place for name in aligned for place in _places(names.index(name), variant.arguments[name])
    ]
    return ASTSource(
        fn=variant.kernel,
        signature={name: variant.arguments.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in places},
    )


def _places(index: int, kind: str | tuple[str, ...]) -> list[tuple[int, ...]]:
    """Give where an argument, or each of a tuple, is found."""
    return [(index,)] if isinstance(kind, str) else [(index, part) for part in range(len(kind))]


def _cuobjdump(what: str, file: str) -> str:
    command = [str(_TOOLS / "cuobjdump"), what, file]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _number(usage: str, name: str) -> int:
    match = re.search(rf"\b{name}:(\d+)", usage)
    assert match, usage
    return int(match[1])


def measure_all(known: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Give all measurements, by capability and name; Triton's own cache is left aside."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        each = [known.get(str(capability), {}) for capability in CAPABILITIES]
        with ProcessPoolExecutor(_NUM_PROCESSES) as pool:
            results = list(pool.map(measure, CAPABILITIES, each))
    return {str(capability): one for capability, one in zip(CAPABILITIES, results, strict=True)}


def _without_some(
    recorded: dict[str, dict[str, Any]], count: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Forget some of what is recorded, at random."""
    places = [(key, name) for key, one in recorded.items() for name in one]
    chosen = set(random.sample(places, min(count, len(places))))
    return {
        key: {name: value for name, value in one.items() if (key, name) not in chosen}
        for key, one in recorded.items()
    }


def main() -> int:
    """Record, or compare and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="record what is measured")
    parser.add_argument("--all", action="store_true", help="compile what has not changed too")
    parser.add_argument("--anew", type=int, default=0, help="compile so many unchanged ones too")
    options = parser.parse_args()
    recorded = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    found = measure_all({} if options.all else _without_some(recorded, options.anew))
    said = [line for key, one in found.items() for line in complaints(one, int(key))]
    if options.write:
        BUDGETS.parent.mkdir(exist_ok=True)
        BUDGETS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    else:
        for key, one in found.items():
            said += [f"sm_{key}: {line}" for line in changes(one, recorded.get(key, {}))]
    print("\n".join(said) or f"{sum(map(len, found.values()))} kernels are as recorded")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
