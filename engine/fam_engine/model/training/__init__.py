"""The decoder's computation with gradients to an adapter.

In: weights, an adapter's matrices, packed batches. Out: negative log-likelihoods that torch can
differentiate. The door is `fam_engine.model.trainable`.
"""
