"""The decoder's computation with gradients to an adapter, twice.

In: weights, an adapter's matrices, packed batches. Out: negative log-likelihoods, and gradients. `planned` and what it
is made of (`batch`, `layer`, `layer_inputs`, `heads`, `attention`, `varlen`, `augmented`, `row_sums`, `recomputation`)
is written out, and what every run takes, validation and the losses of the base included; `forward` and `functions` are
what torch can differentiate, the reference of the tests. The door is `fam_engine.model.trainable`.
"""
