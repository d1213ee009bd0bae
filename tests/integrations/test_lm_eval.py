"""lm-evaluation-harness with our model, beside its own Hugging Face model on the same tasks."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("lm_eval", reason="needs the package `lm-eval`")
# Neither lm-eval nor datasets is free of warnings.
pytestmark = pytest.mark.filterwarnings("default")

from lm_eval.api.instance import Instance  # noqa: E402

from fam_engine.errors import FamEngineError, InputError, UsageError  # noqa: E402
from fam_engine.integrations.lm_eval import FamEngineLM  # noqa: E402

if TYPE_CHECKING:
    from lm_eval.api.model import LM

CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
WRITE = """
output_type: generate_until
doc_to_text: "{{question}} "
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["o", "."], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks over one file of made-up questions, as a user would write them."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    words = ["pear", "apple", "seven", "more", "caf\u00e9", "Tom"]
    data = folder / "questions.jsonl"
    with data.open("w") as file:
        for _ in range(8):
            question = " ".join(rng.choices(words, k=rng.randint(2, 8))) + "?"
            choices = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(4)]
            text = f"{question} {' '.join(choices)} " * rng.randint(1, 4)  # some beyond 256 tokens
            row = {"question": question, "choices": choices, "label": 1, "text": text}
            file.write(json.dumps(row) + "\n")
    for name, rest in (("choice", CHOICE), ("rolling", ROLLING), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(
            f"task: local_{name}\ndataset_path: json\ntest_split: test\ndataset_kwargs:\n"
            f"  data_files: {{test: {data}}}\n  cache_dir: {folder / 'cache'}\n{rest}"
        )
    return folder


@pytest.fixture(scope="module")
def hf(bos_model: Path) -> LM:
    pytest.importorskip("accelerate", reason="needs the package `accelerate`")
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(bos_model), dtype="float32", device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def ours(bos_model: Path) -> FamEngineLM:
    return FamEngineLM(str(bos_model), precision="fp32", device="cpu")


def evaluated(model: LM, tasks: Path, name: str, **options: Any) -> tuple[Any, list[Any]]:  # noqa: ANN401
    """Evaluate one task; give its figures, and what the model answered to each request."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    result = simple_evaluate(
        model,
        tasks=[f"local_{name}"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    samples = sorted(result["samples"][f"local_{name}"], key=lambda sample: sample["doc_id"])
    answers = [answer for sample in samples for (answer,) in sample["resps"]]
    return result["results"][f"local_{name}"], answers


def assert_alike(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for (logprob, is_greedy), (expected, also) in zip(one, other, strict=True):
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert is_greedy == also


def assert_same_texts(one: list[str], other: list[str]) -> None:
    # We leave out a character that the length cut in two, where transformers writes a stand-in.
    assert one == [text.rstrip("\ufffd") for text in other]


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_choices_have_the_figures_of_the_hugging_face_model(
    ours: FamEngineLM, hf: LM, tasks: Path, num_fewshot: int
) -> None:
    options = {"num_fewshot": num_fewshot}
    figures, answers = evaluated(ours, tasks, "choice", **options)
    expected, others = evaluated(hf, tasks, "choice", **options)
    assert len(answers) == 32
    assert_alike(answers, others)
    assert figures == expected


def test_whole_texts_have_them_too(ours: FamEngineLM, hf: LM, tasks: Path) -> None:
    _, answers = evaluated(ours, tasks, "rolling")
    _, others = evaluated(hf, tasks, "rolling")
    assert answers == pytest.approx(others, abs=2e-4)  # sums over up to 400 tokens
    assert min(answers) < -1500  # where a text takes two windows


def test_written_texts_are_the_same(ours: FamEngineLM, hf: LM, tasks: Path) -> None:
    figures, answers = evaluated(ours, tasks, "write")
    expected, others = evaluated(hf, tasks, "write")
    assert_same_texts(answers, others)
    assert any("o" not in answer for answer in answers)
    assert figures == expected


def test_a_chat_template_is_applied_as_there(bos_model: Path, tmp_path: Path, tasks: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path / "model"
    shutil.copytree(bos_model, folder)
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% if not loop.last or add_generation_prompt %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    options = {
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "num_fewshot": 1,
        "system_instruction": "be brief",
    }
    ours = FamEngineLM(str(folder), precision="fp32", device="cpu")
    hf = HFLM(str(folder), dtype="float32", device="cpu")
    for name in ("choice", "write"):
        _, answers = evaluated(ours, tasks, name, **options)
        _, others = evaluated(hf, tasks, name, **options)
        (assert_alike if name == "choice" else assert_same_texts)(answers, others)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]
    for prompted in (True, False):
        rendered = ours.apply_chat_template(turns, add_generation_prompt=prompted)
        assert rendered == hf.apply_chat_template(turns, add_generation_prompt=prompted)
    assert ours.chat_template(True) == hf.chat_template(True)
    ours.close()


@pytest.mark.parametrize("trim", ["", " | trim"])
def test_a_turn_is_left_open_where_transformers_leaves_it(
    bos_model: Path, tmp_path: Path, trim: str
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(bos_model, folder)
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content"
        f"{trim} }}}}<|im_end|>\n{{% endfor %}}"
    )
    (folder / "chat_template.jinja").write_text(template)
    ours = FamEngineLM(str(folder), precision="fp32", device="cpu")
    theirs = AutoTokenizer.from_pretrained(folder)
    # Among them what occurs in the template's own words, and white space that counts.
    for last in ("\n```python\n", "end", "e", "", " x ", "The best answer is"):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": last}]
        expected = theirs.apply_chat_template(turns, tokenize=False, continue_final_message=True)
        assert ours.apply_chat_template(turns, add_generation_prompt=False) == expected
    ours.close()


def test_a_turn_that_the_template_drops_cannot_be_left_open(
    bos_model: Path, tmp_path: Path
) -> None:
    template = tmp_path / "first.jinja"
    template.write_text("{{ messages[0].content }}")
    ours = FamEngineLM(str(bos_model), precision="fp32", device="cpu", template=str(template))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UsageError, match="changes the turn"):
        ours.apply_chat_template(turns, add_generation_prompt=False)
    ours.close()


def test_text_that_a_template_ends_turns_with_ends_no_text_as_there(
    bos_model: Path, tmp_path: Path, ours: FamEngineLM, hf: LM
) -> None:
    asked = requests("generate_until", ("one two", {"until": [], "max_gen_toks": 30}))
    [plain] = ours.generate_until(asked, disable_tqdm=True)
    turn_end = next(c for c in plain if c.isascii() and c.isalnum())
    folder = tmp_path / "model"
    shutil.copytree(bos_model, folder)
    template = f"{{% for m in messages %}}{{{{ m.content }}}}{turn_end}{{% endfor %}}"
    (folder / "chat_template.jinja").write_text(template)
    templated = FamEngineLM(str(folder), precision="fp32", device="cpu")
    assert templated._model.encoder.end_of_turn_ids.tolist() == templated.tok_encode(turn_end)[1:]
    assert templated.generate_until(asked, disable_tqdm=True) == [plain]
    assert_same_texts([plain], hf.generate_until(asked, disable_tqdm=True))
    templated.close()


def test_a_chat_template_is_told_what_it_is_told_there(bos_model: Path, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path / "model"
    shutil.copytree(bos_model, folder)
    template = "{{ 'plain' if enable_thinking is false }}{{ mood }}{{ messages[0].content }}"
    (folder / "chat_template.jinja").write_text(template)
    names = set()
    for told in (
        {},
        {"enable_thinking": False},
        {"chat_template_args": {"mood": "calm", "enable_thinking": True}, "enable_thinking": False},
    ):
        ours = FamEngineLM(str(folder), precision="fp32", device="cpu", **told)
        hf = HFLM(str(folder), dtype="float32", device="cpu", **told)
        turns = [{"role": "user", "content": "a"}]
        assert ours.apply_chat_template(turns) == hf.apply_chat_template(turns)
        names.add(ours.tokenizer_name)
        ours.close()
    assert len(names) == 3  # else lm-eval would take one's requests for another's
    with pytest.raises(UsageError, match="`chat_template_args` is 'mood', expected names"):
        FamEngineLM(str(folder), chat_template_args="mood")


def test_an_adapter_is_applied_as_there(bos_model: Path, tmp_path: Path, tasks: Path) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    adapter = tmp_path / "adapter"
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(bos_model), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(adapter)
    ours = FamEngineLM(str(bos_model), peft=str(adapter), precision="fp32", device="cpu")
    plain = FamEngineLM(str(bos_model), precision="fp32", device="cpu")
    hf = HFLM(str(bos_model), peft=str(adapter), dtype="float32", device="cpu")
    _, answers = evaluated(ours, tasks, "choice")
    _, others = evaluated(hf, tasks, "choice")
    assert_alike(answers, others)
    _, without = evaluated(plain, tasks, "choice")
    assert answers != without


def test_four_bits_work(bos_model: Path, tasks: Path, ours: FamEngineLM) -> None:
    # lm-eval's own model refuses `load_in_4bit` on transformers 5.
    quantized = FamEngineLM(str(bos_model), device="cpu", compute_dtype="fp32")
    _, answers = evaluated(quantized, tasks, "choice")
    _, exact = evaluated(ours, tasks, "choice")
    shifts = [abs(a[0] - b[0]) for a, b in zip(answers, exact, strict=True)]
    assert 0 < max(shifts) < 30
    assert quantized.get_model_info()["model_precision"] == "nf4"


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)
    ]


EDGES = [
    ("", "alone"),
    ("", "<s>with BOS"),
    ("trailing blanks  ", "b"),
    ("   ", "only blanks before"),
    ("<s>BOS already", " b"),
    ("a", "b"),
    ("x" * 300, " too long: " + "y" * 20),
    ("line\n", "after a line"),
]


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_odd_requests_agree(bos_model: Path, add_bos_token: bool | None) -> None:
    from lm_eval.models.huggingface import HFLM

    ours = FamEngineLM(str(bos_model), precision="fp32", device="cpu", add_bos_token=add_bos_token)
    hf = HFLM(str(bos_model), dtype="float32", device="cpu", add_bos_token=add_bos_token)
    asked = requests("loglikelihood", *(EDGES if add_bos_token is not False else EDGES[:3]))
    assert_alike(
        ours.loglikelihood(asked, disable_tqdm=True), hf.loglikelihood(asked, disable_tqdm=True)
    )


def test_the_choices_of_a_question_share_its_prompt(
    ours: FamEngineLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.model.decoder import Decoder

    seen: list[int] = []
    whole = Decoder.hidden_rows

    def counting(self: Decoder, batch: Any, **rest: Any) -> Any:  # noqa: ANN401
        seen.append(len(batch.input_ids))
        return whole(self, batch, **rest)

    monkeypatch.setattr(Decoder, "hidden_rows", counting)
    asked = requests("loglikelihood", *(("q" * 150, f" {letter}") for letter in "ABCDEFGH"))
    ours.loglikelihood(asked, disable_tqdm=True)
    assert sum(seen) == 192  # 151 of the prompt, one of each choice, on a grid of 64


def test_results_are_kept_as_they_come(ours: FamEngineLM, tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    asked = requests("loglikelihood", ("one", " two"), ("three", " four"))
    texts = requests("generate_until", ("one", {"until": ["\n"], "max_gen_toks": 4}))
    rolling = requests("loglikelihood_rolling", ("one two",))
    cached = CachingLM(ours, str(tmp_path / "cache.db"))
    first = (
        cached.loglikelihood(asked),
        cached.generate_until(texts),
        cached.loglikelihood_rolling(rolling),
    )
    before, ours._model = ours._model, None  # type: ignore[assignment]  # nothing can be computed
    try:
        again = (
            cached.loglikelihood(asked),
            cached.generate_until(texts),
            cached.loglikelihood_rolling(rolling),
        )
    finally:
        ours._model = before
    assert first == again


def test_a_continuation_without_tokens_is_refused_by_name(ours: FamEngineLM) -> None:
    with pytest.raises(InputError, match="no token of its own") as error:
        ours.loglikelihood(requests("loglikelihood", ("fine", " so"), ("context", "")))
    assert error.value.code == "E_LM_EVAL_EMPTY"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dtype": "float32"}, "its name here is `precision`"),
        ({"load_in_4bit": True}, "its name here is `precision`"),
        ({"pefft": "x"}, "did you mean `peft`"),
        ({"precision": "int8"}, "expected one of nf4, bf16, fp32"),
        ({"device": "mps"}, "expected one of auto, cpu, cuda"),
        ({"max_length": 10**6}, "at most 256"),
        ({"max_length": "abc"}, "max_length is 'abc', expected a whole number"),
        ({"prefix_token_id": -1}, "`prefix_token_id` is -1, expected 0 to 257"),
        ({"prefix_token_id": "x"}, "`prefix_token_id` is 'x'"),
        ({"prefix_token_id": 10**6}, "`prefix_token_id` is 1000000"),
        ({"add_bos_token": "False"}, "`add_bos_token` is 'False', expected one of True, False"),
        ({"enable_thinking": "False"}, "`enable_thinking` is 'False'"),
        ({"download": "False"}, "`download` is 'False'"),
        ({"peft": "nowhere"}, "not a folder"),
    ],
)
def test_a_model_argument_that_does_not_fit(
    bos_model: Path, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(FamEngineError, match=named):
        FamEngineLM(str(bos_model), **arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"until": ["x"], "num_beams": 4}, "`num_beams` is not supported"),
        ({"max_gen_toks": 256}, "expected less than 256"),
        ({"temperature": 200.0, "do_sample": True}, "temperature 200"),
    ],
)
def test_a_generation_argument_that_does_not_fit(
    ours: FamEngineLM, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        ours.generate_until(requests("generate_until", ("a", arguments)), disable_tqdm=True)


def test_a_generation_argument_that_is_null_is_not_given(ours: FamEngineLM) -> None:
    names = ("temperature", "top_p", "top_k", "do_sample")
    null = {"until": ["x"], "max_gen_toks": 12, **dict.fromkeys(names)}
    plain = {"until": ["x"], "max_gen_toks": 12}
    first, second = ours.generate_until(
        requests("generate_until", ("one", null), ("one", plain)), disable_tqdm=True
    )
    assert first == second
    with pytest.raises(UsageError, match="top_p 0"):
        ours.generate_until(
            requests("generate_until", ("one", plain | {"top_p": 0})), disable_tqdm=True
        )


def test_without_a_template_there_is_no_chat(ours: FamEngineLM) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        ours.apply_chat_template([{"role": "user", "content": "a"}])


def test_sampled_texts_come_again(ours: FamEngineLM) -> None:
    how = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": []}
    asked = requests("generate_until", *[("one", how)] * 4)
    texts = ours.generate_until(asked, disable_tqdm=True)
    assert len(set(texts)) > 1
    assert texts == ours.generate_until(asked, disable_tqdm=True)
