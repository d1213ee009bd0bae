"""Generating: answers of a model to the records' prompts.

What may come in here: the job (`job`), what it begins with (`prepare`, `rows`, `ingest`), its passes (`texts`,
`judging`), what it leaves (`files`) and its dry run (`forecast`).
"""
