"""Tokenizing: what records come to in tokens, before any model computes.

What may come in here: the job (`job`), what it counts (`counting`), the check against the reference tokenizer
(`checking`), and the table of ids (`files`). Nothing here imports torch.
"""
