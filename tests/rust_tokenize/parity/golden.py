"""The ids that the pinned reference gave for real text, frozen as hashes.

`python -m tests.rust_tokenize.parity.golden` writes `golden.json` anew; do so only with a new pin. Kept are the
version, and for each tokenizer the hash of its file and of the ids of each text. Only files under open licences take
part.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.conftest import SHARED
from tests.rust_tokenize.parity.definitions import Definition, small_tokenizers

FILE = Path(__file__).with_name("golden.json")
# Real text in many languages and kinds; the file says whose.
TEXTS: list[str] = json.loads(FILE.with_name("golden_texts.json").read_text())["texts"]
# llama3 is under a licence that asks for more; added_tokens_ortx is no tokenizer.
OPEN = ["bert_base_cased", "deepseek", "falcon", "gemma_shaped_mistral_vocab", "gpt2", "gpt_neox"]
OPEN += ["mistral_v03", "phi2", "phi3_mini", "qwen2.5", "qwen3", "roberta_base"]
OPEN += ["smollm2_shaped_gpt2_vocab", "t5_small"]


def hash_of(ids: list[int] | NDArray[np.int32]) -> str:
    """Give 64 bits of the SHA-256 of ids as int32."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()[:16]


def file_hash(definition: Definition) -> str:
    """Give 64 bits of the SHA-256 of a definition, however its file is laid out."""
    text = json.dumps(definition, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def definitions() -> dict[str, Definition]:
    """Give the small tokenizers, and the real ones whose files are there."""
    found = small_tokenizers()
    for name in OPEN:
        path = SHARED / "tokenizers" / name / "tokenizer.json"
        if path.is_file():
            found[name] = json.loads(path.read_text())
    return found


def main() -> None:
    """Write `golden.json`."""
    import tokenizers

    rows = {}
    for name, definition in definitions().items():
        reference = tokenizers.Tokenizer.from_str(json.dumps(definition))
        reference.no_truncation()
        reference.no_padding()
        ids = [reference.encode(text, add_special_tokens=False).ids for text in TEXTS]
        hashes = [hash_of(each) for each in ids]
        rows[name] = {"file": file_hash(definition), "tokens": sum(map(len, ids)), "ids": hashes}
    frozen = {"tokenizers": tokenizers.__version__, "golden": rows}
    FILE.write_text(json.dumps(frozen, indent=1) + "\n")


if __name__ == "__main__":
    main()
