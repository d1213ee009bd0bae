"""A model folder's tokenizer, loaded so that no `tokenizer.json` can end the process.

In: a folder. Out: a `Tokenizer`. Definitions that our own reader knows are read by it; it never panics. The others are
left to the library `tokenizers`, which aborts, hangs or fills the memory at some of them (with regular expressions,
replacements and normalizers of a stranger), and so first run in a child with limits on time and memory. Texts of users
are for `child_encoding`.
"""

from __future__ import annotations

from pathlib import Path

from fam_engine._rust_tokenize import Tokenizer
from fam_engine.data.children import how_it_ended, start_child
from fam_engine.data.plain_files import plain_file
from fam_engine.data.tokenizer_files import named_tokens
from fam_engine.errors import ModelRefusedError

# Of computing; the largest definitions load in three.
_SECONDS_TO_TRY = 30


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a model folder's tokenizer.

    Raises:
        ModelRefusedError: It is missing, does not load, or lacks a token that a file beside it names.
    """
    name = "tokenizer.json"
    if not (folder / name).exists():
        raise ModelRefusedError(
            "does not exist, expected the tokenizer in Hugging Face's format",
            code="E_TOKENIZER",
            where=str(folder / name),
            hint="save it with transformers' AutoTokenizer.save_pretrained",
        )
    file = plain_file(folder, name, code="E_TOKENIZER")
    try:
        tokenizer = Tokenizer.native_from_file(file)
        if tokenizer is None:
            _try_out(file)
            tokenizer = Tokenizer.from_file(file)
            # And one of its decoders fails on tokens shorter than what it cuts off.
            tokenizer.decode(range(tokenizer.vocab_size))
        # Some tokenizers cannot encode a text that continues another; better refused now than late.
        tokenizer.encode_batch(["a"], continuation=True)
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelRefusedError(
            f"does not load: {error}", code="E_TOKENIZER", where=str(file)
        ) from None
    _check_named(tokenizer, folder)
    return tokenizer


def _check_named(tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a tokenizer that would read as plain text what transformers reads as one token.

    transformers adds the tokens that other files name. Adding them here too was rejected: where the files disagree, its
    ids depend on its version and on the tokenizer's class.
    """
    ids = dict(tokenizer.added_tokens())
    for token in named_tokens(folder):
        found = ids.get(token.text)
        if found is not None and token.id in (None, str(found)):
            continue
        named = f"names the token {token.text!r}" + (f" with id {token.id}" if token.id else "")
        there = "does not have it" if found is None else f"has it with id {found}"
        raise ModelRefusedError(
            f"{named}, tokenizer.json {there}",
            code="E_TOKENIZER",
            where=str(folder / token.file),
            hint="save the tokenizer anew with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )


def _try_out(file: Path) -> None:
    with start_child("fam_engine.data.tokenizer_worker", file.absolute(), _SECONDS_TO_TRY) as child:
        child.communicate()
    if child.returncode:
        raise RuntimeError(
            f"the process that tried it out did not survive: {how_it_ended(child.returncode)}"
        )
