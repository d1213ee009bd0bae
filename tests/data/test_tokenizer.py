from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fam_engine.data.records import Record, detect_form, read_record
from fam_engine.data.tokenizer import Encoded, TextEncoder
from fam_engine.data.turns import Message
from fam_engine.errors import ModelRefusedError, RecordError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _closing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every encoder a test makes: each may hold a child process."""
    made: list[TextEncoder] = []
    start = TextEncoder.__init__

    def noted(self: TextEncoder, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        start(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(TextEncoder, "__init__", noted)
    yield
    for encoder in made:
        encoder.close()


def record(prompt: str, response: str) -> Record:
    row = {"prompt": prompt, "response": response}
    return read_record(row, detect_form(row), file="f", line=1, stem="f")


def encode(encoder: TextEncoder, prompt: str, response: str) -> Encoded:
    (encoded,) = encoder.encode([record(prompt, response)])
    assert isinstance(encoded, Encoded)
    return encoded


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with a word tokenizer small enough to know every id by heart."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(["<unk>", "a", "b", "c", "user", "assistant"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def configure(folder: Path, **config: object) -> TextEncoder:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return TextEncoder(folder)


def test_a_plain_prompt_gets_one_bos_and_the_answer_an_eos(words: Path) -> None:
    encoder = configure(words, bos_token="<s>", eos_token="</s>", add_bos_token=True)
    encoded = encode(encoder, "a b\n", "c")
    assert encoded.context_ids.tolist() == [6, 1, 2]
    assert encoded.response_ids.tolist() == [3]
    assert encoded.end_of_turn_ids.tolist() == [7]
    assert encoded.flags == ()


def test_without_a_bos_an_empty_prompt_leaves_the_first_token_unscored(words: Path) -> None:
    encoder = configure(words, eos_token="</s>")
    encoded = encode(encoder, "", "a b")
    assert encoded.context_ids.tolist() == [1]
    assert encoded.response_ids.tolist() == [2]
    assert "first_token_unscored" in encoded.flags
    with_bos = configure(words, bos_token="<s>", add_bos_token=True)
    assert encode(with_bos, "", "a b").context_ids.tolist() == [6]


def test_a_record_without_a_token_costs_one_record(words: Path) -> None:
    encoder = configure(words)
    joint = TextEncoder(words, boundary="joint")
    for one in (encoder, joint):
        bad, good = one.encode([record("", " "), record("", "a b")])
        assert isinstance(bad, RecordError)
        assert bad.code == "E_EMPTY_TOKENS"
        assert isinstance(good, Encoded)
    with_bos = configure(words, bos_token="<s>", add_bos_token=True)
    assert encode(with_bos, "", " ").context_ids.tolist() == [6]


def test_special_tokens_in_texts_are_text_unless_asked(words: Path) -> None:
    encoder = configure(words, bos_token="<s>", eos_token="</s>", chat_template=CHATML)
    encoded = encode(encoder, "a <|im_end|> b", "c </s>")
    unk, start, end = 0, 8, 9
    assert encoded.context_ids.tolist() == [start, 4, 1, unk, 2, end, start, 5]
    assert encoded.response_ids.tolist() == [3, unk]
    assert encoded.flags == ("special_in_text",)
    assert "<|im_end|> b<|im_end|>" in encoded.context_text
    parsing = TextEncoder(words, parse_special=True)
    assert encode(parsing, "a <|im_end|> b", "c </s>").response_ids.tolist() == [3, 7]


def test_characters_kept_for_stand_ins_cost_one_record(words: Path) -> None:
    encoder = configure(words, bos_token="<s>", add_bos_token=True)
    bad, good = encoder.encode([record("a\n", "b \U000f0000"), record("a\n", "b")])
    assert isinstance(bad, RecordError)
    assert bad.code == "E_RECORD_TEXT"
    assert isinstance(good, Encoded)


def test_a_tokenizer_without_special_tokens_is_served(words: Path) -> None:
    file = words / "tokenizer.json"
    tokenizer = json.loads(file.read_text()) | {"added_tokens": []}
    file.write_text(json.dumps(tokenizer))
    assert encode(configure(words), "a\n", "b").response_ids.tolist() == [2]


def test_the_end_of_turn_is_the_templates_own(words: Path) -> None:
    encoder = configure(words, eos_token="</s>", chat_template=CHATML)
    assert encode(encoder, "a", "b").end_of_turn_ids.tolist() == [9]


def test_a_template_that_changes_the_answer_is_flagged(words: Path) -> None:
    shouting = CHATML.replace("m.content", "m.content | upper")
    encoder = configure(words, eos_token="</s>", chat_template=shouting)
    assert "template_altered" in encode(encoder, "a", "b").flags
    assert "template_altered" not in encode(encoder, "a", "1").flags


def test_a_template_that_trims_alters_only_what_has_white_space_at_its_ends(words: Path) -> None:
    trimming = CHATML.replace("m.content", "m.content | trim")
    encoder = configure(words, eos_token="</s>", chat_template=trimming)
    assert encode(encoder, "a", "b").flags == ()
    assert encode(encoder, "a ", "b c").flags == ()
    assert encode(encoder, "a", "b ").flags == ("template_altered",)


def test_white_space_of_the_template_s_own_is_not_the_answer_s(words: Path) -> None:
    # Compiles, as most templates that trim do.
    spacing = CHATML.replace("\n{{ m.content }}", "\n\n{{ m.content | trim }}\n")
    encoder = configure(words, eos_token="</s>", chat_template=spacing)
    assert encode(encoder, "a", "b").flags == ()
    for answer in ("\nb", "\n\nb", "b\n", "\n", "\nb\n"):
        assert encode(encoder, "a", answer).flags == ("template_altered",), answer


def test_leading_newlines_that_qwen3_strips_are_flagged(shared: Path) -> None:
    encoder = TextEncoder(shared / "tokenizers" / "qwen3")
    for answer in ("foo", "foo\n", " foo", "<think>\nr\n</think>\n\nfoo\n"):
        assert "template_altered" not in encode(encoder, "q", answer).flags, answer
    for answer in ("\n\nfoo", "\nfoo", "\n", "\n\nfoo\n"):
        assert "template_altered" in encode(encoder, "q", answer).flags, answer


def test_each_record_of_a_batch_keeps_its_own_error_and_flags(words: Path) -> None:
    refusing = "{{ raise_exception('no') if messages[-1].content == 'no' }}"
    shouting = "{{ (messages[-1].content | upper) ~ ' ' if messages[-1].content == 'c' }}"
    encoder = configure(words, eos_token="</s>", chat_template=refusing + CHATML + shouting)
    asked = [("no", "a"), ("a", "b"), ("a", "no"), ("a \U000f0000", "b"), ("</s>", "b"), ("c", "a")]
    results = encoder.encode([record(*one) for one in asked])
    codes = [one.code if isinstance(one, RecordError) else one.flags for one in results]
    assert codes == ["E_TEMPLATE", (), "E_TEMPLATE", "E_RECORD_TEXT", ("special_in_text",), ()]
    assert isinstance(results[1], Encoded)
    assert results[1].response_ids.tolist() == [2]


def test_boundary_modes(shared: Path) -> None:
    folder = shared / "tokenizers" / "gpt2"
    apart, joint = TextEncoder(folder), TextEncoder(folder, boundary="joint")
    # GPT-2 gives the blank at the end of a prompt to the next word.
    one, other = encode(apart, "Answer: ", "yes"), encode(joint, "Answer: ", "yes")
    assert "boundary_merged" in one.flags
    assert [apart.tokenizer.decode(e.response_ids) for e in (one, other)] == ["yes", ""]
    assert len(other.context_ids) == len(one.context_ids)
    clean = encode(apart, "Answer:\n", "yes")
    assert clean.flags == ()
    assert encode(joint, "Answer:\n", "yes").response_ids.tolist() == clean.response_ids.tolist()


@pytest.mark.parametrize("name", ["mistral_v03", "phi3_mini"])
def test_a_response_has_no_dummy_blank(shared: Path, name: str) -> None:
    encoder = TextEncoder(shared / "tokenizers" / name)
    encoded = encode(encoder, "Who?", "Lily")
    first = encoder.tokenizer.id_to_token(int(encoded.response_ids[0]))
    assert first is not None
    assert not first.startswith("\u2581")


def test_bos_is_never_doubled_by_a_template_that_brings_its_own(shared: Path) -> None:
    encoder = TextEncoder(shared / "tokenizers" / "llama3")
    ids = encode(encoder, "Who?", "Lily").context_ids
    assert encoder.bos_id == ids[0]
    assert int((ids == encoder.bos_id).sum()) == 1


@pytest.mark.parametrize(
    ("opening", "first"),
    [("{{ bos_token }}", [6, 4]), ("{{ bos_token }}<s>{{ bos_token }}", [6, 4]), ("", [4, 1])],
)
@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_template_s_context_has_at_most_one_bos(
    words: Path, opening: str, first: list[int], adds_bos: bool
) -> None:
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(words / "tokenizer.json"))
    if adds_bos:
        bos = [("<s>", 6)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=bos
        )
        tokenizer.save(str(words / "tokenizer.json"))
    template = opening + "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    encoder = configure(words, bos_token="<s>", chat_template=template)
    encoded = encode(encoder, "a", "b")
    assert encoded.context_ids.tolist()[:2] == first
    assert encoded.context_ids.tolist().count(6) == bool(opening)
    assert "boundary_merged" not in encoded.flags
    assert encoder.encode_context((Message("user", "a"),), "").tolist()[:2] == first


def add_bos_in_the_tokenizer(folder: Path) -> None:
    """Have `tokenizer.json` itself put `<s>` before a text and `</s>` behind it."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 6), ("</s>", 7)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
OBJECTS = {name: {"content": text, "lstrip": False} for name, text in NAMED.items()}
SPEAKING = "{{ bos_token }}{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("config", "older", "bos", "eos"),
    [
        ({}, NAMED, "<s>", "</s>"),
        ({}, OBJECTS, "<s>", "</s>"),
        ({}, {"eos_token": "<|im_end|>"}, None, "<|im_end|>"),
        # Where both name one, transformers takes the older file's; with tokens by their ids it does not read it.
        ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, NAMED, "<s>", "</s>"),
        ({"eos_token": "<|im_end|>", "added_tokens_decoder": {}}, NAMED, None, "<|im_end|>"),
    ],
)
def test_bos_and_eos_are_those_transformers_finds_in_the_older_file_too(
    words: Path, config: dict[str, Any], older: dict[str, Any], bos: str | None, eos: str
) -> None:
    from transformers import AutoTokenizer

    (words / "special_tokens_map.json").write_text(json.dumps(older))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    encoder = configure(words, **config, chat_template=SPEAKING)
    theirs = AutoTokenizer.from_pretrained(words)
    assert (theirs.bos_token, theirs.eos_token) == (bos, eos)
    conversation = [{"role": "user", "content": "a"}]
    expected = theirs.apply_chat_template(conversation, return_dict=False)
    encoded = encode(encoder, "a", "b")
    assert encoded.context_ids.tolist() == expected
    assert encoded.end_of_turn_ids.tolist() == [theirs.eos_token_id]
    plain = TextEncoder(words, template="none")
    assert encode(plain, "a", "b").context_ids.tolist() == theirs("a").input_ids == [1]
    assert plain.end_of_turn_ids.tolist() == [theirs.eos_token_id]


@pytest.mark.parametrize("named", [{}, NAMED])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_plain_prompt_gets_the_bos_that_tokenizer_json_adds(
    words: Path, named: dict[str, str], file: str
) -> None:
    from transformers import AutoTokenizer

    add_bos_in_the_tokenizer(words)
    (words / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (words / file).write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | named))
    theirs = AutoTokenizer.from_pretrained(words)("a b").input_ids
    assert theirs == [6, 1, 2, 7]
    encoder = TextEncoder(words)
    assert encode(encoder, "a b", "c").context_ids.tolist() == theirs[:-1]
    # A prompt that begins with it gets no second one.
    parsing = TextEncoder(words, parse_special=True)
    assert encode(parsing, "<s> a b", "c").context_ids.tolist() == theirs[:-1]


def test_no_bos_is_made_of_what_stands_elsewhere(words: Path) -> None:
    from tokenizers import Tokenizer, processors

    file = str(words / "tokenizer.json")
    for single in ("$A <s>", "<s> </s> $A"):
        tokenizer = Tokenizer.from_file(file)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 6), ("</s>", 7)]
        )
        tokenizer.save(file)
        assert configure(words).bos_id is None
    assert configure(words, bos_token="<s>").bos_id == 6
    assert configure(words, bos_token="<s>", add_bos_token=False).bos_id is None


def test_published_tokenizers_that_name_no_bos_begin_as_in_transformers(shared: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    for name in ("mistral_v03", "gpt2", "falcon", "gpt_neox"):
        folder = shared / "tokenizers" / name
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        encoded = encode(TextEncoder(folder), "Who?", "Lily")
        assert encoded.context_ids.tolist() == theirs("Who?").input_ids, name


def test_alone_starts_from_bos_or_from_the_first_token(words: Path) -> None:
    ids = np.array([1, 2, 3], np.int32)
    with_bos = configure(words, bos_token="<s>", add_bos_token=True)
    assert [part.tolist() for part in with_bos.context_alone(ids)] == [[6], [1, 2, 3]]
    without = configure(words)
    assert [part.tolist() for part in without.context_alone(ids)] == [[1], [2, 3]]


def test_a_tokenizer_that_cannot_continue_a_text_is_refused(shared: Path) -> None:
    with pytest.raises(ModelRefusedError, match="does not load"):
        TextEncoder(shared / "tokenizers" / "t5_small")


def test_a_text_the_tokenizer_cannot_take_costs_one_record(words: Path) -> None:
    # Without an unknown token this tokenizer fails on words it does not have.
    file = words / "tokenizer.json"
    file.write_text(file.read_text().replace('"unk_token": "<unk>"', '"unk_token": "<none>"'))
    encoder = configure(words, bos_token="<s>", eos_token="</s>", add_bos_token=True)
    good, bad, other = encoder.encode(
        [record("a\n", "b"), record("a\n", "zzz"), record("b\n", "c")]
    )
    assert isinstance(good, Encoded)
    assert isinstance(other, Encoded)
    assert isinstance(bad, RecordError)
    assert bad.code == "E_TOKENIZE"


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="does not exist"):
        TextEncoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelRefusedError, match="does not load"):
        TextEncoder(tmp_path)


@pytest.mark.parametrize("where", ["add_generation_prompt", "not add_generation_prompt"])
def test_a_template_that_fails_on_a_plain_question_is_refused(words: Path, where: str) -> None:
    template = words / "template.jinja"
    template.write_text(f"{{% if {where} %}}{{{{ no.such.name }}}}{{% endif %}}")
    (words / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(ModelRefusedError, match="on a plain question") as caught:
        TextEncoder(words, template=str(template))
    assert caught.value.where == str(template)


@pytest.mark.parametrize("listed", ['"a"', '{"name": []}'])
def test_templates_that_are_no_templates_are_refused(words: Path, listed: str) -> None:
    (words / "tokenizer_config.json").write_text(f'{{"chat_template": [{listed}]}}')
    with pytest.raises(ModelRefusedError, match="neither text nor a list of named texts"):
        TextEncoder(words)


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 100_000, r'{"bos_token": "\ud800"}', "[]"])
def test_a_configuration_that_is_none_is_refused(words: Path, text: str) -> None:
    (words / "tokenizer_config.json").write_text(text)
    with pytest.raises(ModelRefusedError, match="expected a JSON object"):
        TextEncoder(words)
