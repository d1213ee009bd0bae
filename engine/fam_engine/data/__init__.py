"""Records in, packed batches out.

What may come in here: reading files, recognising record forms, templates, text to ids, the on-disk spool, batch
planning, and writing tables. Nothing here knows of a model; nothing here imports torch.
"""
