"""Training: a LoRA adapter fitted to the answers of records, over quantized or plain weights.

What may come in here: the job (`job`), what it begins with (`prepare`, `examples`), what its memory allows (`budget`,
`cards`), the loop and its parts (`loop`, `order`, `steps`, `losses`, `optim`, `schedule`, `validation`, `divergence`),
what it keeps (`checkpoints`, `log`, `card`), its dry run (`forecast`, `trial`), and `trainer`, the same for other
programs. `merge` turns an adapter into a model.
"""
