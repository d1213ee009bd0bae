"""Rewriting: the model puts given answers into its own words, and only what is verified counts.

What may come in here: the job (`job`), what it begins with (`prepare`, `prompts`, `templates/`, `ingest`), its
passes (`asking`, `attempts`, `verification`, `distance`), what it leaves (`files`, `summary`) and its dry run
(`forecast`).
"""
