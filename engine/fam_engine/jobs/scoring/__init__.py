"""Scoring: how familiar answers are to a model.

What may come in here: the job (`job`), what it begins with (`prepare`, `sources`), its two passes (`ingest`, which
fills the spool by `spooling`, and `entries`), responses after worked examples (`in_context`), what it leaves (`files`,
`report`), its dry run (`forecast`), the same by many workers (`sharing`), and for other programs: `scorer`,
`lazy_scorer`, which can be copied, and `continuations`, of token ids.
"""
