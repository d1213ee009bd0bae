"""Text to packed arrays: tokenizer, JSON Lines reader, spool of token ids, batch planner (Rust).

Heavy work runs without the interpreter lock; ids come back as flat numpy arrays that own their
memory, never as objects per token. Arrays that go in must be one-dimensional, contiguous and of the
dtype named; anything else is a TypeError or a ValueError. A file or folder the system refuses is an
OSError. A panic is never a `PanicException`. Calls that can last (`Tokenizer.verify`, the readers of
`JsonLinesReader`, `plan_batches`) let handlers of signals run meanwhile; what those raise ends them.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, Protocol, TypedDict, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "JsonLinesReader",
    "LineChunk",
    "Plan",
    "RecordBatch",
    "RecordEncoder",
    "RustPanicError",
    "Spool",
    "SpoolError",
    "SpoolWriter",
    "Tokenizer",
    "TokenizerError",
    "context_name",
    "linear_logprob_bf16",
    "pack_batch",
    "pack_lengths",
    "pack_sequences",
    "plan_batches",
    "supports_bf16_products",
    "texts_digest",
]

class TokenizerError(ValueError):
    """A tokenizer definition, a text or an id that cannot be used."""

class SpoolError(ValueError):
    """A spool that is unfinished, damaged or of another version."""

class RustPanicError(RuntimeError):
    """A bug in the extension or in one of its dependencies."""

@type_check_only
class Mismatch(TypedDict):
    """A text two tokenizers encode differently.

    Attributes:
        text_index: Which of the texts given it was found in.
        text: What is left of it when every character that is not needed is taken out.
        parse_special: How it was read.
        continuation: How it was read.
        ids: What this tokenizer makes of `text`; None: it fails.
        expected_ids: What the reference makes of it; None: it fails.
    """

    text_index: int
    text: str
    parse_special: bool
    continuation: bool
    ids: list[int] | None
    expected_ids: list[int] | None

@type_check_only
class Verification(TypedDict):
    """What `Tokenizer.verify` found.

    Attributes:
        num_compared: Encodings compared.
        num_mismatched: Those that differ.
        mismatches: The first ten at most, one a text, each minimal text once.
    """

    num_compared: int
    num_mismatched: int
    mismatches: list[Mismatch]

@final
class Tokenizer:
    """A tokenizer; safe to share between threads."""

    @staticmethod
    def from_file(path: str | PathLike[str]) -> Tokenizer:
        """Load a `tokenizer.json`; truncation and padding stored in it never apply.

        Raises:
            TokenizerError: Not a tokenizer, one of another version, or one whose ids would be
                random or renumbered.
        """
    @staticmethod
    def native_from_file(path: str | PathLike[str]) -> Tokenizer | None:
        """Load a `tokenizer.json` without the library `tokenizers`; None if only that can.

        The library aborts, hangs or fills the memory at some definitions; this never does.
        """
    @property
    def engine(self) -> str:
        """Name of the implementation: `native:` and the family, or `tokenizers` for the library."""
    @property
    def vocab_size(self) -> int:
        """Number of distinct tokens, added ones included; an embedding may have more rows."""
    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        num_threads: int | None = None,
        add_special_tokens: bool = False,
        parse_special: bool = True,
        continuation: bool = False,
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Encode texts; the ids of text i are `ids[offsets[i]:offsets[i + 1]]`.

        Args:
            texts: The texts; a lone surrogate in one is a UnicodeEncodeError.
            num_threads: At most so many threads (default: as many as the machine has). The ids do
                not depend on it.
            add_special_tokens: Add what the tokenizer puts around a text, such as BOS.
            parse_special: Special tokens in a text count as such; otherwise they are encoded as
                plain text.
            continuation: The texts go on from others, so no blank is put in front of them.

        Returns:
            ids int32[total] and offsets int64[n + 1].

        Raises:
            TokenizerError: A text cannot be encoded (the message has its position), or the
                tokenizer puts a blank in front of every word and so cannot encode a continuation.
        """
    def verify(self, texts: Sequence[str], *, num_threads: int | None = None) -> Verification:
        """Compare this tokenizer with the reference, the `tokenizers` crate, on texts of yours.

        Each text is encoded in four ways: special tokens in it parsed or plain text, at the start
        or as a continuation. The reference reads the file again that this tokenizer was loaded
        from. Where `engine` is `tokenizers` it is compared with another copy of itself.

        Args:
            texts: The texts; a lone surrogate in one is a UnicodeEncodeError.
            num_threads: At most so many threads (default: as many as the machine has).

        Returns:
            What was compared and what differs. The outcome depends on the texts alone: a difference
            is shrunk until so many bytes are encoded, not so much time has passed.

        Raises:
            TokenizerError, OSError: The file no longer loads.
        """
    def decode(
        self,
        ids: Sequence[int] | NDArray[np.int32] | NDArray[np.int64],
        *,
        skip_special_tokens: bool = False,
    ) -> str:
        """Give the text of ids; ids that have no token vanish, a negative one is a ValueError."""
    def token_to_id(self, token: str, /) -> int | None:
        """Give the id of a token, None if there is no such token."""
    def id_to_token(self, token_id: int, /) -> str | None:
        """Give the token of an id, None if there is no such id."""
    def special_tokens(self) -> list[tuple[str, int]]:
        """List added tokens marked special, by rising id."""
    def added_tokens(self) -> list[tuple[str, int]]:
        """List all added tokens, by rising id."""

@type_check_only
class _Readable(Protocol):
    """What gives bytes on request."""

    def read(self, size: int, /) -> bytes: ...

@final
class JsonLinesReader:
    """Reads a JSON Lines file once, checking each line; belongs to one thread at a time.

    With `file` the bytes come from there, `path` being what errors name: `file.read(size)` gives up to `size` of them,
    none at the end. What it raises goes through unchanged. Memory is bounded by `max_line_bytes` and the 16 MiB of text
    after which a batch ends early.
    """

    def __new__(
        cls,
        path: str | PathLike[str],
        *,
        max_line_bytes: int = 67108864,
        file: _Readable | None = None,
    ) -> JsonLinesReader: ...
    def read_batch(
        self, max_lines: int
    ) -> list[tuple[int, int, str | None, str | None, str | None]]:
        """Give up to `max_lines` lines that are not blank; an empty list only at the end.

        Returns:
            Tuples (line, offset, text, code, reason): 1-based line number, offset of the line's
            first byte in the file (after a byte order mark), then the text of one strict JSON
            object and two None, or None and why not: a code `E_JSON_...` and a reason that names
            the 1-based byte column.
        """
    def read_chunk(self, max_lines: int) -> LineChunk:
        """Give the same lines unchecked and without an object a line; empty only at the end."""
    @property
    def bytes_read(self) -> int:
        """Bytes consumed so far."""

@final
class LineChunk:
    """Lines of a JSON Lines file that are not blank, yet to be checked."""

    @staticmethod
    def from_bytes(text: bytes) -> LineChunk:
        """Give the lines of a text."""
    def __len__(self) -> int: ...
    def row(self, index: int) -> tuple[int, int, str | None, str | None, str | None]:
        """Check a line; see `JsonLinesReader.read_batch`."""

@final
class RecordEncoder:
    """Lines to token ids by the rule of `fam_engine.data.tokenizer.TextEncoder`, without an object a token.

    Takes records of the usual kind. The others, `RecordBatch.others`, are for the reader in Python: whatever
    is wrong or unusual, conversations without a template of their shape, records longer than `max_length`.
    """

    def __new__(
        cls,
        tokenizer: Tokenizer,
        *,
        bos_id: int | None,
        end_of_turn_ids: NDArray[np.int32],
        has_template: bool,
        joint: bool,
        parse_special: bool,
        max_length: int,
    ) -> RecordEncoder:
        """Make ready.

        Args:
            tokenizer: Text to ids.
            bos_id: What a plain prompt begins with, if it does.
            end_of_turn_ids: What ends an answer.
            has_template: Whether contexts are rendered; otherwise they are the prompts.
            joint: Whether context and answer are encoded together, cut at the context's own length.
            parse_special: Whether special tokens in the texts count as such.
            max_length: Longest sequence, tokens.
        """
    def add_shape(
        self,
        roles: Sequence[str],
        context: tuple[Sequence[str | tuple[int, bool]], Sequence[tuple[int, bool, str, str]]],
        whole: tuple[Sequence[str | tuple[int, bool]], Sequence[tuple[int, bool, str, str]]],
    ) -> None:
        """Tell how conversations whose turns before the answer have these roles are rendered.

        Args:
            roles: The roles, the answer's apart.
            context: (pieces, guards) of the rendering before the answer: pieces are literal texts or (turn,
                trimmed), guards are (turn, trimmed, test, text), see `fam_engine.data.compiled_templates`.
            whole: The same of the rendering with the answer, which is the turn after the last.

        Raises:
            ValueError: An unknown role or test, or a turn that is not there.
        """
    def remove_shape(self, roles: Sequence[str]) -> None:
        """Take a shape back."""
    def encode(
        self,
        lines: LineChunk,
        *,
        form: str,
        columns: Sequence[tuple[str, str]],
        num_threads: int | None = None,
    ) -> RecordBatch:
        """Encode the records of some lines; the outcome does not depend on threads.

        Args:
            lines: The lines.
            form: `turns`, `turns and answer`, `prompt`, `question` or `instruction`.
            columns: (column, what it holds): `prompt`, `input`, `response`, `id`, `source`, `group`,
                `correct`, or `checked` for a label that only has to be one,
                `history` for what only Python makes turns of, `handed` for what only Python hands to a
                template.
            num_threads: At most so many threads (default: as many as the machine has).
        """

@type_check_only
class RecordColumns(TypedDict):
    """What is known of each record of a batch beside its ids."""

    line: list[int]
    id: list[str | None]
    source: list[str | None]
    group: list[str]
    correct: list[bool | None]
    num_bytes: list[int]
    text_digest: list[int]
    num_prompt_tokens: list[int]
    num_response_tokens: list[int]
    flags: list[int]

@final
class RecordBatch:
    """Encoded records, in the order of their lines."""

    def __len__(self) -> int: ...
    def others(self) -> list[int]:
        """Give the indices of the lines that are for the reader in Python."""
    def ids(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Give context ids and target ids (answer, then end of turn) of a record."""
    def columns(self) -> RecordColumns:
        """Give the labels of all records; the flags are bits, `fam_engine.data.fast_records.FLAGS`."""

@final
class SpoolWriter:
    """Writes a spool; belongs to one thread at a time. A folder without `finish` holds no spool."""

    def __new__(cls, folder: str | PathLike[str], *, durable: bool = True) -> SpoolWriter:
        """Start a spool in `folder`, made if need be; a spool that was there is gone.

        Args:
            folder: The folder.
            durable: Force it to the disk; not needed where the folder goes with the process.
        """
    def append(
        self,
        context_ids: NDArray[np.int32],
        context_offsets: NDArray[np.int64],
        target_ids: NDArray[np.int32],
        target_offsets: NDArray[np.int64],
        num_eot: NDArray[np.uint8] | NDArray[np.int32],
        variant: NDArray[np.uint8],
        record: NDArray[np.uint32],
    ) -> None:
        """Add n entries; they are numbered in the order they come.

        Args:
            context_ids: Flat context ids, at least one an entry.
            context_offsets: [n + 1], from 0 to the number of ids.
            target_ids: Flat response ids, each entry's followed by its end-of-turn ids.
            target_offsets: [n + 1], from 0 to the number of ids.
            num_eot: [n] end-of-turn ids among the targets, at most 255.
            variant: [n] which form of the record this is; the caller gives it meaning.
            record: [n] the record an entry belongs to.

        Raises:
            ValueError: Columns that disagree or a negative id; nothing was added.
            OSError: The disk; the writer takes no more entries.
            SpoolError: The writer is finished, or an earlier write failed.
        """
    def append_records(
        self, records: RecordBatch, start: int, stop: int, *, variant: int, record: int
    ) -> None:
        """Add records `start` to `stop` of a batch, as entries of the records from `record` on."""
    def finish(self) -> None:
        """Make the spool durable (fsync), where it is to be, and then visible (rename)."""

@type_check_only
class SpoolIndex(TypedDict):
    """The index as columns of n entries."""

    context_len: NDArray[np.uint32]
    target_len: NDArray[np.uint32]
    num_eot: NDArray[np.uint8]
    variant: NDArray[np.uint8]
    record: NDArray[np.uint32]
    context_hash: NDArray[np.uint64]

@final
class Spool:
    """A finished spool; safe to share between threads."""

    @staticmethod
    def open(folder: str | PathLike[str]) -> Spool:
        """Open a spool and check its index.

        Raises:
            SpoolError: There is no finished spool, or it is damaged or of another version.
        """
    def __len__(self) -> int: ...
    def index(self) -> SpoolIndex:
        """Give a copy of the index."""
    def read(self, entry: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Give context ids and target ids of an entry; SpoolError if they are damaged."""

@final
class Plan:
    """Which entries are computed together, largest units first."""

    @property
    def num_batches(self) -> int:
        """Number of batches."""
    @property
    def total_tokens(self) -> int:
        """Tokens of all batches before padding."""
    @property
    def tokens_without_sharing(self) -> int:
        """Tokens it would be if every entry brought its own prompt."""
    def batch_entries(self, batch: int) -> NDArray[np.int64]:
        """Give the entries of a batch, those that share a prompt side by side."""

def plan_batches(spool: Spool, entries: NDArray[np.int64], *, max_tokens: int) -> Plan:
    """Plan batches of at most `max_tokens` tokens and as many targets, longest units first.

    Padding to a multiple of 64 tokens is within `max_tokens` (at least 64). Entries with identical
    context ids form a unit: one prompt segment, a response segment each. A unit that is too large
    is cut, each part with the prompt; an entry that alone is too large gets a batch of its own. All
    but the few units that fill a batch up are neighbours in length. The plan depends on the set of
    entries, not on their order; an entry listed twice is a ValueError.
    """

def pack_lengths(
    lengths: NDArray[np.int64],
    capacity: int,
    *,
    mode: Literal["global", "windowed", "in-order"] = "global",
    window: int | None = None,
) -> NDArray[np.int32]:
    """Give each item its bin, such that few bins are needed; the same input, the same bins.

    Args:
        lengths: int64[n], tokens of each item. Records that share a prompt and must stay together
            are one item: the prompt's tokens and those of all their responses.
        capacity: Tokens a bin; an item above it gets a bin of its own.
        mode: `global` sorts all items by length and fills best. `windowed` does so with `window`
            items at a time, so that items stay near their neighbours and whoever gathers them needs
            memory for two windows. `in-order` keeps the order: an item goes into the last bin or
            opens the next.
        window: Items a window (default 10,000); with `windowed` only.

    Returns:
        int32[n]; bins are numbered from 0 in the order they are filled.

    Raises:
        ValueError: A negative length, a capacity or window of 0, or a mode that is not one of these.
    """

@type_check_only
class PackedArrays(TypedDict):
    """The fields of `fam_engine.data.packing.PackedBatch`."""

    input_ids: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    parents: NDArray[np.int32]
    rows: NDArray[np.int32]
    targets: NDArray[np.int32]
    num_rows: int
    entry_rows: NDArray[np.int64]
    entries: NDArray[np.int64]

def pack_batch(spool: Spool, entries: NDArray[np.int64]) -> PackedArrays:
    """Pack entries, siblings adjacent or not, into one batch; rows keep the order given."""

def context_name(ids: NDArray[np.int32]) -> str:
    """Name a prompt by its ids: 16 hexadecimal digits, the spool's own hash."""

def texts_digest(texts: list[str]) -> int:
    """Give 64 bits, signed, that differ where any of the texts does; the same in every release."""

@type_check_only
class PackedSequenceArrays(TypedDict):
    """The fields of `fam_engine.data.packing.PackedSequences`."""

    input_ids: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    response_mask: NDArray[np.uint8]
    cu_seqlens: NDArray[np.int64]
    pack_starts: NDArray[np.int64]
    entries: NDArray[np.int64]

def pack_sequences(
    spool: Spool, entries: NDArray[np.int64], *, capacity: int
) -> PackedSequenceArrays:
    """Pack entries, whole, into packs of at most `capacity` tokens, by best-fit decreasing.

    In a pack entries keep the order given; one longer than a pack has a pack of its own.
    """

def supports_bf16_products() -> bool:
    """Whether this CPU multiplies bf16 with fp32 sums (AVX512-BF16)."""

def linear_logprob_bf16(
    hidden: NDArray[np.int16],
    head: NDArray[np.int16],
    targets: NDArray[np.int64],
    *,
    width: int,
    num_threads: int,
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Give log-probs, ranks, entropies and margins of one target a row.

    hidden [R, D] and head [V, D] are flat and hold the bits of bf16 values; nobody may change them
    meanwhile. D is even. Raises ValueError for other sizes, and on a CPU
    without bf16 products.
    """
