"""The study: variants of answers, trained on with several seeds, evaluated, judged by a rule fixed beforehand.

What may come in here: the YAML and its schema (`config`, `studies/`), the graph of steps, one file for each kind of
step that only calls the job of its name, and what joins their results. Nothing here computes what a job computes.
"""
