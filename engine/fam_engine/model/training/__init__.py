"""The decoder's computation with gradients to an adapter, twice.

In: weights, an adapter's matrices, packed batches. Out: negative log-likelihoods, and gradients. `planned` and what it
is made of (`layer`, `heads`, `attention`, `augmented`, `elementwise`, `recomputation`) is written out, and what
training takes; `forward` and `functions` are what torch can differentiate: the reference of the tests, and without
gradient the losses of validation and of the base. The door is `fam_engine.model.trainable`.
"""
