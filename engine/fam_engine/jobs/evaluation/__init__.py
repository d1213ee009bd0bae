"""Evaluating: how many questions of each task a model, and adapters of it, answer right.

What may come in here: the job (`job`), what it begins with (`prepare`, `models`, `ingest`, `questions`,
`few_shot`), its passes (`texts`, `choices`), what it leaves (`samples`, `summary`, `files`, `report`), its dry run
(`forecast`), and `evaluator`, the same for other programs.
"""
