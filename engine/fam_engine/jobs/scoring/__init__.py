"""Scoring: how familiar answers are to a model.

What may come in here: the job (`job`), its two passes (`ingest`, `entries`), what it leaves (`files`, `report`), its
dry run (`forecast`), and `scorer`, the same for other programs.
"""
