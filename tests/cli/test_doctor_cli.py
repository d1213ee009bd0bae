from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from fam_engine.jobs.doctor import installation, machine
from fam_engine.model.adapter_consumers import CONSUMERS
from tests.cli.conftest import Run
from tests.jobs.verifying.test_verify import make_adapter


def examined(run: Run, *flags: str | Path) -> tuple[int, dict[str, dict[str, Any]]]:
    code, printed, _ = run("doctor", *flags, "--json")
    checks = json.loads(printed)["checks"]
    assert len({(one["section"], one["name"]) for one in checks}) == len(checks)
    return code, {f"{one['section']}/{one['name']}": one for one in checks}


def test_a_machine_that_works_is_well(run: Run) -> None:
    code, checks = examined(run, "--model", "embedded", "--device", "cpu")
    assert code == 0
    assert [one for one in checks.values() if one["level"] == "fail"] == []
    assert checks["versions/torch"]["found"] == metadata.version("torch")
    assert checks["model/tokenizer"]["found"].startswith("native")
    assert checks["paths/compute"]["found"].endswith("cpu")
    assert all(one["remedy"] for one in checks.values() if one["level"] != "ok")
    code, printed, _ = run("doctor")
    assert code == 0
    assert printed.splitlines()[-1].endswith("0 fail")


def test_the_path_is_the_one_a_scoring_takes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from fam_engine.model import ops

    for own, named in ((True, "our AVX512-BF16"), (False, "torch, in tiles")):
        monkeypatch.setattr(ops, "has_fused_logprob", lambda *_, own=own: own)
        assert named in examined(run)[1]["paths/log-probs"]["found"]


def test_a_tokenizer_that_transformers_reads_otherwise_is_worth_a_warning(
    run: Run, shared: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(shared / "models" / "stories260K", tmp_path / "model")
    assert "model/other readers" not in examined(run, "--model", model)[1]
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    code, checks = examined(run, "--model", model)
    assert code == 0
    assert checks["model/other readers"]["level"] == "warn"
    assert "PreTrainedTokenizerFast" in checks["model/other readers"]["remedy"]


def test_a_device_that_is_not_there_ends_with_8(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, checks = examined(run, "--device", "cuda")
    assert code == 8
    assert checks["gpu/device"]["level"] == "fail"
    # A GPU that only torch does not see is worth a warning.
    monkeypatch.setattr(machine, "_driver", lambda: "570.1")
    code, checks = examined(run)
    assert code == 0
    assert checks["gpu/device"]["level"] == "warn"
    assert "driver 570.1" in checks["gpu/device"]["found"]
    assert run("doctor", "--device", "gpu")[0] == 2


def test_a_model_that_is_refused_ends_with_10_and_says_why(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    code, checks = examined(run, "--model", folder)
    assert code == 10
    assert "is missing; the config asks for it" in checks["model/refused"]["found"]
    assert examined(run, "--model", tmp_path / "none")[0] == 10


def test_a_tokenizer_left_to_the_library_is_told(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    file.write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    code, checks = examined(run, "--model", folder)
    assert code == 0
    assert checks["model/tokenizer"]["level"] == "warn"


def test_what_is_missing_is_named_with_how_to_get_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"uvicorn": None, "safetensors": "0.1"}
    known = installation.installed_version
    monkeypatch.setattr(
        installation, "installed_version", lambda name: versions.get(name, known(name))
    )
    code, checks = examined(run)
    assert code == 2
    assert checks["extras/serve"]["level"] == "warn"
    assert checks["extras/serve"]["remedy"] == "pip install 'fam-engine[serve]'"
    assert checks["versions/safetensors"]["found"] == "0.1, needs >=0.5"
    assert checks["versions/safetensors"]["remedy"] == "pip install 'safetensors>=0.5'"


def test_it_answers_where_torch_does_not_load(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fam_engine.jobs.doctor.machine", None)
    code, checks = examined(run)
    assert code == 2
    assert checks["computing/machine"]["level"] == "fail"
    assert "versions/torch" in checks


def test_every_extra_is_known() -> None:
    extras = set(metadata.metadata("fam-engine").get_all("Provides-Extra") or [])
    assert extras - {"dev"} == set(installation._EXTRAS)


def test_an_adapter_is_looked_at_for_others_too(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    code, checks = examined(run, "--model", tiny_model, "--adapter", adapter)
    assert code == 0
    assert [checks[f"adapter/{name}"]["level"] for name in CONSUMERS] == ["ok"] * 3
    assert "--max-lora-rank 8" in checks["adapter/vllm"]["found"]
    assert checks["adapter/fam-engine"]["found"].startswith("accepts it: 6 matrices")
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"use_rslora": True}))
    code, checks = examined(run, "--adapter", adapter)
    assert code == 0
    assert checks["adapter/llama.cpp"]["level"] == "warn"
    assert checks["adapter/fam-engine"]["found"].startswith("not tried")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"r": 600}, "refuses rank 600: --max-lora-rank goes to 512"),
        ({"r": None}, "refuses rank None"),
        ({"r": "8"}, "refuses rank '8'"),
        ({"rank_pattern": {"q_proj": None}}, "refuses rank None"),
        (None, "refuses it without `r`"),
    ],
)
def test_a_rank_vllm_does_not_have_is_told(
    run: Run, tiny_model: Path, tmp_path: Path, change: dict[str, Any] | None, found: str
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text("{}" if change is None else json.dumps(config | change))
    code, checks = examined(run, "--adapter", adapter)
    assert code == 0
    assert checks["adapter/vllm"]["level"] == "warn"
    assert checks["adapter/vllm"]["found"].startswith(found)
    assert checks["adapter/llama.cpp"]["level"] == "ok"


def test_an_adapter_that_is_refused_ends_with_10_and_others_are_still_told(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"use_dora": True}))
    code, checks = examined(run, "--model", tiny_model, "--adapter", adapter)
    assert code == 10
    assert checks["adapter/vllm"]["found"] == "refuses `use_dora`"
    assert checks["adapter/peft"]["level"] == "ok"
    assert "`use_dora`" in checks["adapter/refused"]["found"]
    assert examined(run, "--adapter", tmp_path / "none")[0] == 10


def test_on_a_gpu_kernels_of_ours_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    from fam_engine.jobs.doctor import model
    from fam_engine.model import ops

    for has, named in ((True, "a batch in one call"), (False, "a record at a time")):
        monkeypatch.setattr(ops, "has_varlen_attention", lambda *_, has=has, **__: has)
        found = dict(model._paths_of_a_gpu(torch.empty(0)))
        assert named in found["attention"]
        assert "Triton" in found["log-probs"]
        assert "Triton" in found["nf4"]
