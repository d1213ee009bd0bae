from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fam_engine
from fam_engine.errors import FamEngineError, InputError, printable

ROOT = Path(__file__).parents[1]


def in_new_process(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("module", ["fam_engine", "fam_engine.cli.main", "fam_engine.data.records"])
def test_light_modules_bring_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert in_new_process(code) == "False False"


def test_the_linked_folders_have_no_init() -> None:
    # With one, Hugging Face's own `kernels` package would be shadowed for transformers.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "cli" / "__init__.py").exists()
    assert (ROOT / "engine" / "fam_engine" / "kernels").is_symlink()
    assert (ROOT / "engine" / "fam_engine" / "cli").is_symlink()


def test_public_names_are_there() -> None:
    for name in fam_engine.__all__:
        assert getattr(fam_engine, name) is not None
    # Whatever a public method takes or gives has a name of its own there.
    assert {"Completion", "Continuation", "Request", "Sampling"} <= set(fam_engine.__all__)
    assert set(fam_engine.__all__) == set(fam_engine._HOMES)
    with pytest.raises(AttributeError, match="no attribute `score_all`"):
        _ = fam_engine.score_all


def test_an_error_is_one_line_that_cannot_steer_the_terminal() -> None:
    error = InputError("is \x1b[31mred\n", code="E_X", where="a\nb", hint="fix it")
    assert str(error) == "error[E_X] a\\nb: is \\x1b[31mred\\n (fix it)"
    assert printable("plain \u00e9") == "plain \u00e9"


def test_every_error_has_an_exit_code_of_its_own() -> None:
    kinds = FamEngineError.__subclasses__()
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
