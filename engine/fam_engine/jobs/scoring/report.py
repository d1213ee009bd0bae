"""`report.html` of a scoring job: picks the answers to show, gets their tokens, hands all to the report.

In: the finished table and the scorer, still loaded. Out: the file. The few answers shown token by token are computed
again rather than kept from the first time: a record gives the same bits whenever it is computed, so nothing need be
stored for the million that are not shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fam_engine._rust_tokenize import Tokenizer
from fam_engine.data.files import write_text_whole
from fam_engine.data.tokenizer import Ids
from fam_engine.jobs.scoring.entries import EntryScorer
from fam_engine.model.generation.detokenizer import REPLACEMENT, byte_tokens
from fam_engine.model.out_of_memory import memory_errors
from fam_engine.report.examples import Example, pick_examples
from fam_engine.report.html import MAX_QUARANTINE, ReportData, render_report

_SHOWN_SETTINGS = (
    "model",
    "adapter",
    "precision",
    "compute_dtype",
    "device",
    "template",
    "chat_template_kwargs",
    "boundary",
    "on_long",
    "data",
)


def write_score_report(
    path: Path, table: pa.Table, summary: dict[str, Any], scorer: EntryScorer, tokenizer: Tokenizer
) -> None:
    """Write the report.

    Args:
        path: Where to.
        table: The scores table.
        summary: What `summary.json` holds.
        scorer: The scorer of the job, to compute the answers shown.
        tokenizer: Ids to text.
    """
    nll_mean = table["nll_mean"].to_numpy(zero_copy_only=False).astype(np.float64)
    counts = table["num_response_tokens"].to_numpy()
    most, least = pick_examples(nll_mean, counts)
    shown = _examples(table, most + least, scorer, tokenizer)
    settings = {name: summary["settings"].get(name) for name in _SHOWN_SETTINGS}
    data = ReportData(
        title=f"How familiar are these answers to {Path(summary['settings']['model']).name}?",
        summary=summary,
        sources=table["source"].to_pylist(),
        nll_mean=nll_mean,
        num_response_tokens=counts,
        most_familiar=[shown[row] for row in most if row in shown],
        least_familiar=[shown[row] for row in least if row in shown],
        quarantined=summary["records"]["quarantined_by_code"],
        quarantine_sample=_quarantine_sample(scorer),
        settings={**settings, **summary["key"]["versions"]},
    )
    write_text_whole(path, render_report(data))


def _quarantine_sample(scorer: EntryScorer) -> list[dict[str, Any]]:
    names = ("file", "line", "code", "reason")
    rows = scorer.journal.db.execute(
        "SELECT file, line, code, reason FROM quarantine ORDER BY number LIMIT ?", (MAX_QUARANTINE,)
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def _examples(
    table: pa.Table, rows: Sequence[int], scorer: EntryScorer, tokenizer: Tokenizer
) -> dict[int, Example]:
    """Compute the answers of some rows again, each token by token; those that memory is there for."""
    examples = {}
    for row in rows:
        # One at a time; another program may have taken since what there was.
        with contextlib.suppress(torch.OutOfMemoryError), memory_errors():
            (record,) = table.slice(row, 1).to_pylist()
            examples[row] = _example(record, scorer, tokenizer)
    return examples


def _example(record: dict[str, Any], scorer: EntryScorer, tokenizer: Tokenizer) -> Example:
    entry = _entry_of(scorer, record)
    (one,) = scorer.facts(np.array([entry], np.int64))
    context, targets = scorer.spool.read(entry)
    count = record["num_response_tokens"]
    return Example(
        id=record["id"],
        source=record["source"],
        prompt=tokenizer.decode(context),
        tokens=token_texts(tokenizer, targets[:count]),
        logprobs=one.logprobs[:count].tolist(),
        ranks=one.ranks[:count].tolist(),
        perplexity=record["perplexity"],
        correct=record["correct"],
    )


def _entry_of(scorer: EntryScorer, record: dict[str, Any]) -> int:
    row = scorer.journal.db.execute(
        "SELECT entry FROM records WHERE file = ? AND line = ?", (record["file"], record["line"])
    ).fetchone()
    return int(row[0])


def token_texts(tokenizer: Tokenizer, ids: Ids) -> list[str]:
    """Give what each token adds to the text; a character of several tokens goes to its last.

    Only what stands between the last two places where nothing to come changes the text is decoded again, not all that
    comes before: some tokens read otherwise where a text begins, so a place needs one before it.
    """
    texts, known = [], ""
    begin = whole_until = 0
    runs = byte_tokens(tokenizer)
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[begin:end])
        # An unfinished character decodes to replacement characters, which later tokens replace.
        whole = text.rstrip(REPLACEMENT)
        texts.append(whole[len(known) :])
        known = whole
        if texts[-1] and whole == text and int(ids[end - 1]) not in runs:
            begin, whole_until = whole_until, end
            known = tokenizer.decode(ids[begin:end])
    return texts
