"""Selection: which answers to train on.

What may come in here: the job (`job`), the records and their scores brought together (`records`, `scores`, `join`),
the choice (`choice`), what to know before training on it (`cautions`, `overlap`), what it leaves (`files`), and
`replay`, which judges metrics on a ledger of known accuracies (`ledger`).
"""
