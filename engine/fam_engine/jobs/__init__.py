"""Long work, one module a verb: it reads records, drives the model, keeps progress, writes results.

What may come in here: the journal that makes every job resumable, and the jobs themselves. Formulas belong to
`measure`, tensors to `model`, files and texts to `data`.
"""
