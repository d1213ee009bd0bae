"""The tokenizer against the reference on the user's own texts.

In: records as pass 1 sees them. Out: how many encodings were compared and where they differ. The texts are those the
engine really encodes: each rendered context, each response, and the two joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fam_engine.data.records import Record
from fam_engine.data.tokenizer import Encoded, TextEncoder

# The reference is loaded anew for each call, which takes as long as encoding about a megabyte.
_BYTES_A_CALL = 16 << 20
_MAX_SHOWN = 10


class TextCheck:
    """Compares the texts of records, some megabytes at a time.

    Args:
        encoder: Whose tokenizer is checked, and which renders the contexts.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._records: list[Record] = []
        self._num_bytes = 0
        self._found: dict[str, Any] = {"num_compared": 0, "num_mismatched": 0, "mismatches": []}

    def see(self, record: Record) -> Sequence[Record]:
        """Note a record to be checked; give it on unchanged, as `IngestPlan.expand` asks."""
        self._records.append(record)
        self._num_bytes += len(record.verbatim) + len(record.response)
        if self._num_bytes >= _BYTES_A_CALL:
            self._compare()
        return (record,)

    def result(self) -> dict[str, Any]:
        """Compare what is left; give the fields of `Tokenizer.verify`'s result and the engine."""
        self._compare()
        is_reference = self._encoder.tokenizer.engine == "tokenizers"
        return {**self._found, "compared_with_itself": is_reference}

    def _compare(self) -> None:
        records, self._records, self._num_bytes = self._records, [], 0
        if not records:
            return
        texts: list[str] = []
        owners: list[Record] = []
        for record, encoded in zip(records, self._encoder.encode(records), strict=True):
            if isinstance(encoded, Encoded):
                context = encoded.context_text
                texts += [context, record.response, context + record.response]
                owners += [record] * 3
        found = self._encoder.tokenizer.verify(texts)
        self._found["num_compared"] += found["num_compared"]
        self._found["num_mismatched"] += found["num_mismatched"]
        for mismatch in found["mismatches"]:
            owner = owners[mismatch["text_index"]]
            place = {"file": owner.file, "line": owner.line}
            shown = {name: value for name, value in mismatch.items() if name != "text_index"}
            if len(self._found["mismatches"]) < _MAX_SHOWN:
                self._found["mismatches"].append(place | shown)
