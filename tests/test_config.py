from __future__ import annotations

import math
from pathlib import Path

import pytest

from fam_engine.config import (
    LINEARS,
    EvalConfig,
    ExportConfig,
    GenerateConfig,
    RewriteConfig,
    ScoreConfig,
    Settings,
    TrainConfig,
)
from fam_engine.errors import UsageError
from fam_engine.settings_reading import read_config

FLAGS = {"model": "m", "data": ["a.jsonl"], "out": "o"}


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: other\nprecision: bf16\nmax-length: 99\ndata: [b.jsonl]\nout: o\n")
    config = read_config(ScoreConfig, {"model": "m", "seed": None}, file)
    assert (config.model, config.precision, config.max_length) == ("m", "bf16", 99)
    assert config.data == ("b.jsonl",)
    assert config.seed == 0


def test_one_text_is_a_list_of_one(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: m\nout: o\ndata: b.jsonl\ntarget_modules: q_proj,v_proj\n")
    config = read_config(TrainConfig, {}, file)
    assert (config.data, config.target_modules) == (("b.jsonl",), ("q_proj", "v_proj"))
    every = read_config(TrainConfig, {"target_modules": "all-linear"}, file)
    assert every.target_modules == LINEARS
    adapter = {"adapter": "trained/adapter"}
    assert read_config(EvalConfig, FLAGS | adapter, None).adapter == (Path("trained/adapter"),)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TrainConfig, "max_grad_norm"),
        (TrainConfig, "epochs"),
        (TrainConfig, "alpha"),
        (GenerateConfig, "temperature"),
        (EvalConfig, "top_p"),
    ],
)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_json_has_not_is_refused(
    kind: type[Settings], name: str, value: float
) -> None:
    with pytest.raises(UsageError, match=f"`{name}`: Input should be a finite number"):
        read_config(kind, FLAGS | {name: value}, None)


def test_nor_is_one_taken_for_a_template() -> None:
    with pytest.raises(UsageError, match=r"chat_template_kwargs.*a finite number"):
        read_config(ScoreConfig, FLAGS | {"chat_template_kwargs": {"a": [math.nan]}}, None)


@pytest.mark.parametrize("length", [{"epochs": 1e300}, {"steps": 10**12}])
def test_a_training_without_end_is_refused(length: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="less than or equal to"):
        read_config(TrainConfig, FLAGS | length, None)


@pytest.mark.parametrize("name", ["quiet", "json", "debug", "dry-run", "config"])
def test_what_is_a_flag_only_is_said_to_be_one(tmp_path: Path, name: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"model: m\nout: o\ndata: b.jsonl\n{name}: true\n")
    with pytest.raises(UsageError, match=rf"only a flag \(give --{name} to the command\)"):
        read_config(ScoreConfig, {}, file)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("presicion: bf16", "did you mean `precision`"),
        ("precision: int8", "`precision`"),
        ("max_length: 1", "`max_length`"),
        ("- a\n- b", "holds no settings"),
        ("a: [", "c.yaml:1: is not YAML: expected the node content"),
        ("a: b: c", "mapping values are not allowed here (put a text that holds `: ` into quotes)"),
        ("data: a\nmap: {id: x, id: y}", "c.yaml:2: is not YAML: the key `id` comes a second time"),
        ("map: {respnse: x}", "did you mean `response`"),
    ],
)
def test_what_does_not_fit_is_named_with_the_remedy(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r".") as caught:
        read_config(ScoreConfig, FLAGS, file)
    assert named in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("kind", "more", "named"),
    [
        (GenerateConfig, {"samples": 4}, "`samples`: needs a `temperature` above 0"),
        (GenerateConfig, {"top_p": 0.9}, "`top_p`: needs a `temperature` above 0"),
        (EvalConfig, {"top_k": 5, "temperature": 0.0}, "`top_k`: needs a `temperature`"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(
    kind: type[Settings], more: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        read_config(kind, FLAGS | more, None)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (GenerateConfig, {"samples": 4, "top_p": 0.9, "top_k": 5, "temperature": 0.7}),
        (GenerateConfig, {"samples": 1, "top_p": 1.0, "top_k": 0}),
        (RewriteConfig, {"samples": 4, "top_p": 0.9}),
    ],
)
def test_a_setting_that_does_something_is_taken(
    kind: type[Settings], more: dict[str, object]
) -> None:
    assert more.items() <= read_config(kind, FLAGS | more, None).model_dump().items()


def test_a_path_is_shown_as_it_was_given() -> None:
    given = {"data": ["a.jsonl"], "format": "trl", "out": Path("o.json")}
    with pytest.raises(UsageError, match=r"\.jsonl, given 'o\.json' \("):
        read_config(ExportConfig, given, None)


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"setting `model` is missing \(give --model\)"):
        read_config(ScoreConfig, {"data": ["a"], "out": "o"}, None)
    file = tmp_path / "score.yaml"
    file.write_text("model: m\nout: o\n")
    with pytest.raises(UsageError, match=r"score\.yaml: setting `data` is missing \(see --help\)"):
        read_config(ScoreConfig, {}, file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(ScoreConfig, FLAGS, tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('model: m\nout: "a\\0b"\n', ":2"),  # no name of a file
        ("model: " + "[" * 5000, ""),
        ("model: &a [*a]\n", ""),
    ],
)
def test_yaml_nobody_can_mean_is_refused(tmp_path: Path, text: str, where: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_config(ScoreConfig, {}, file)
    assert caught.value.where == f"{file}{where}"
    assert len(str(caught.value)) < 400


def test_a_billion_values_are_not_shown(tmp_path: Path) -> None:
    """Each list means ten times what the one before it does."""
    lists = ["&a0 [x, x, x, x, x, x, x, x, x, x]"]
    lists += [f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file = tmp_path / "settings.yaml"
    file.write_text(f"model: [{', '.join(lists)}]\n")
    with pytest.raises(UsageError, match="setting `model`") as caught:
        read_config(ScoreConfig, FLAGS | {"model": None}, file)
    assert len(str(caught.value)) < 400
