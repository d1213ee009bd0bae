"""TRL: our reward in its GRPO trainer, and its dataset formats read and written."""

from __future__ import annotations

import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fam_engine.errors import InputError, UsageError
from fam_engine.integrations.trl import FamiliarityReward
from fam_engine.jobs.scoring.scorer import Scorer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Whatever a conversation may hold: else its loss is an error.
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{{ mood }}{% for m in messages %}"
    "<{{ m.role }}>{{ m.content or '' }}{{ (m.tool_calls or []) | tojson }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def reward(tiny_model: Path) -> FamiliarityReward:
    return FamiliarityReward(tiny_model, precision="fp32", device="cpu")


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_it_is_minus_the_mean_so_length_alone_changes_nothing(tiny_model: Path) -> None:
    with Scorer(tiny_model, precision="fp32", device="cpu") as scorer:
        texts = ["two", "two hundred and two"]
        table = scorer.score([{"prompt": "one\n", "response": text} for text in texts])
    for metric in ("nll_mean", "bits_per_byte"):
        reward = FamiliarityReward(tiny_model, metric=metric, precision="fp32", device="cpu")  # type: ignore[arg-type]
        found = reward(prompts=["one\n"] * 2, completions=texts, completion_ids=[], other=[1, 2])
        assert found == [-value for value in table[metric].to_pylist()]


def test_what_cannot_be_scored_gets_the_floor_and_nothing_gets_less(tiny_model: Path) -> None:
    reward = FamiliarityReward(tiny_model, floor=-50.0, precision="fp32", device="cpu")
    texts = ["", "x" * 300, "\ud800", "two"]
    with pytest.warns(UserWarning, match=r"the floor, -50.0: E_JSON_SURROGATE: .*\\ud800"):
        *unusable, usable = reward(prompts=["one\n"] * 4, completions=texts)
    assert unusable == [-50.0] * 3
    assert -50.0 < usable < -0.5
    assert reward(["a"], [""]) == [-50.0]
    strict = FamiliarityReward(tiny_model, floor=-0.5, precision="fp32", device="cpu")
    assert strict(["one\n"], ["two"]) == [-0.5]


def test_turns_and_texts_are_the_same_completion(reward: FamiliarityReward) -> None:
    as_text = reward(["one\n"], ["two"])
    assert reward([turns("one")], [answer("two")]) == as_text
    assert reward([turns("zero", "no", "one")], [answer("two")]) != as_text


@pytest.fixture(scope="module")
def chat_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat-model")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def chat_reward(chat_model: Path) -> FamiliarityReward:
    return FamiliarityReward(chat_model, precision="fp32", device="cpu")


def test_a_text_is_scored_as_it_stands_and_turns_by_the_template(
    chat_reward: FamiliarityReward, chat_model: Path
) -> None:
    """As TRL generates: from a text without the template, from turns with it."""
    settings: dict[str, Any] = {"precision": "fp32", "device": "cpu"}
    record = {"prompt": "one\n", "completion": "two"}
    with (
        Scorer(chat_model, **settings) as with_it,
        Scorer(chat_model, template="none", **settings) as without,
    ):
        templated, plain = (-s.score([record])["nll_mean"][0].as_py() for s in (with_it, without))
    assert templated != plain
    assert chat_reward(["one\n"], ["two"]) == [plain]
    # Those of one batch may differ, and what a template is told concerns turns alone.
    told: dict[str, Any] = {"tools": [None, None], "chat_template_kwargs": [None, {"mood": "x"}]}
    mixed = chat_reward([turns("one\n"), "one\n"], [answer("two"), "two"], **told)
    assert mixed == [templated, plain]


def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: One.
        b: The other.
    """
    return a + b


SCHEMA = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_tools_are_told_of(chat_reward: FamiliarityReward, chat_model: Path) -> None:
    asked = [turns("one")], [answer("two")]
    with Scorer(chat_model, precision="fp32", device="cpu") as scorer:
        record = {"prompt": turns("one"), "completion": answer("two"), "tools": [SCHEMA]}
        expected = -scorer.score([record])["nll_mean"][0].as_py()
    own = FamiliarityReward(chat_model, tools=[SCHEMA], precision="fp32", device="cpu")
    assert own(*asked) == chat_reward(*asked, tools=[[SCHEMA]]) == [expected]
    assert chat_reward(*asked) != [expected]
    # A function is what transformers makes of it; a row's own tools go before.
    made = FamiliarityReward(chat_model, tools=[add], precision="fp32", device="cpu")
    assert made(*asked) not in ([expected], chat_reward(*asked))
    assert made(*asked, tools=[[SCHEMA]]) == [expected]
    assert pickle.loads(pickle.dumps(made))(*asked) == made(*asked)
    moods = chat_reward(asked[0] * 2, asked[1] * 2, chat_template_kwargs=[{"mood": "calm"}, None])
    assert moods[0] != moods[1] == chat_reward(*asked)[0]


def test_columns_may_be_arrays(chat_reward: FamiliarityReward) -> None:
    asked = [turns("one")] * 2, [answer("two")] * 2
    tools, moods = [[SCHEMA], None], [None, {"mood": "calm"}]
    arrays = [np.empty(2, object), np.empty(2, object)]
    arrays[0][:], arrays[1][:] = tools, moods
    arrays[0][0] = np.array([SCHEMA, SCHEMA], object)
    expected = chat_reward(*asked, tools=[[SCHEMA, SCHEMA], None], chat_template_kwargs=moods)
    assert chat_reward(*asked, tools=arrays[0], chat_template_kwargs=arrays[1]) == expected  # type: ignore[arg-type]
    assert len(set(expected)) == 2


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_template_that_refuses_every_prompt_is_no_constant_reward(
    tiny_model: Path, tmp_path: Path
) -> None:
    template = tmp_path / "refusing.jinja"
    template.write_text(REFUSING)
    refused = [{"role": "system", "content": "be brief"}, *turns("one")]
    reward = FamiliarityReward(tiny_model, template=str(template), precision="fp32", device="cpu")
    for _ in range(2):
        with pytest.raises(InputError, match=r"not one completion .* E_TEMPLATE.*no system turns"):
            reward([refused] * 2, [answer("two"), answer("three")])
    # What a policy wrote may be its own fault.
    assert reward([turns("one")], [answer("")]) == [-12.0]
    # Among others it is warned of, once; and once something was scored nothing ends a training.
    with pytest.warns(UserWarning, match="get the floor, -12.0: E_TEMPLATE.*no system turns"):
        [right, wrong] = reward([turns("one"), refused], [answer("two"), answer("two")])
    assert right > wrong == -12.0
    assert reward([refused], [answer("two")]) == [-12.0]


def undescribed(a: int) -> int:
    return a


@pytest.mark.parametrize("tools", ["add", SCHEMA, [5], [{"type": "function"}], 5, [undescribed]])
def test_tools_that_are_none_are_refused(chat_model: Path, tools: Any) -> None:  # noqa: ANN401
    with pytest.raises(UsageError, match=r"\[E_TRL_TOOLS\]"):
        FamiliarityReward(chat_model, tools=tools)


def test_of_several_turns_the_last_is_rewarded(chat_reward: FamiliarityReward) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    result = {"role": "tool", "content": "3"}
    completions = [[call, result, *answer("two")], [call, result]]
    with pytest.warns(UserWarning, match="E_RECORD_ROLE"):
        [found, at_a_result] = chat_reward([turns("one")] * 2, completions)
    assert found == chat_reward([[*turns("one"), call, result]], [answer("two")])[0]
    assert found > at_a_result == -12.0


def test_sums_and_floors_that_are_no_numbers_are_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="nll_sum"):
        FamiliarityReward(tiny_model, metric="nll_sum")  # type: ignore[arg-type]
    wrong: list[Any] = [float("nan"), float("-inf"), "x", None, True, 0.5, float("inf")]
    for floor in wrong:
        with pytest.raises(UsageError, match=r"E_TRL_FLOOR.*finite number of at most 0"):
            FamiliarityReward(tiny_model, floor=floor)


def test_it_pickles_without_its_model(reward: FamiliarityReward) -> None:
    expected = reward(["one\n"], ["two"])
    assert pickle.loads(pickle.dumps(reward))(["one\n"], ["two"]) == expected


def test_it_has_the_name_that_trl_asks_every_reward_for(reward: FamiliarityReward) -> None:
    """TRL 1.0 to 1.8 take `__name__` from instances too; a copy in another process has it as well."""
    assert reward.__name__ == pickle.loads(pickle.dumps(reward)).__name__ == "FamiliarityReward"


@pytest.mark.filterwarnings("default")
def test_a_grpo_trainer_takes_it(
    bos_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl", reason="needs the package `trl`")
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    reward = FamiliarityReward(bos_model, precision="fp32", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(bos_model)
    tokenizer.pad_token = tokenizer.eos_token
    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=6,
        max_steps=1,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=str(bos_model),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["one", "two"]}),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    value = logged["rewards/FamiliarityReward/mean"]
    assert math.isfinite(value)
    assert -12.0 <= value < 0.0


# -- dataset formats ------------------------------------------------------------------------------


def test_its_dataset_formats_are_read(tiny_model: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"prompt": "one\n", "completion": "two"},
        {"prompt": turns("one"), "completion": answer("two")},
        {"messages": turns("one", "two")},
    ]
    with Scorer(tiny_model, precision="fp32", device="cpu") as scorer:
        sums = [scorer.score([form])["nll_sum"][0].as_py() for form in forms]
        assert sums[0] == sums[1] == sums[2]
        # What has no answer, or two, is told and not guessed at.
        for other in ({"prompt": "one"}, {"prompt": "one", "chosen": "a", "rejected": "b"}):
            (error,) = scorer.score_each([other])["error"].to_pylist()
            assert error.startswith("E_RECORD_FORM")


@pytest.mark.filterwarnings("default")
def test_what_we_write_is_read_by_it(bos_model: Path, tmp_path: Path) -> None:
    """Loaded as our export says, its own template function splits the rows where we mean them to be."""
    pytest.importorskip("trl", reason="needs the package `trl`")
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl.data_utils import apply_chat_template, is_conversational

    from fam_engine.config import ExportConfig
    from fam_engine.jobs.exporting.job import run_export
    from fam_engine.report.progress import JobProgress

    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text(
        '{"prompt": "one", "response": "caf\\u00e9"}\n{"prompt": "2", "response": "b"}\n'
    )
    config = ExportConfig(data=(str(data),), format="trl", out=out)
    with JobProgress(quiet=True) as progress:
        summary = run_export(config, progress).summary
    names: dict[str, Any] = {}
    cached = load_dataset.__globals__["config"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "HF_DATASETS_CACHE", tmp_path / "cache")
        exec(summary["tool_settings"], names)
    dataset = names["dataset"]
    tokenizer = AutoTokenizer.from_pretrained(bos_model)
    tokenizer.chat_template = TEMPLATE
    assert is_conversational(dataset[0])
    rendered = [apply_chat_template(row, tokenizer) for row in dataset]
    assert rendered[0] == {"prompt": "<user>one</s><assistant>", "completion": "caf\u00e9</s>"}
