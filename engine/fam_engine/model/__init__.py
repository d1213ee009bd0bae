"""The language model: packed batches in, hidden states and log-probs out.

What may come in here: configuration and checkpoint reading, NF4 weights, adapters, the decoder, the head. `ops` is
the one module that imports `fam_engine.kernels`; everything above it is the same code on any device.
"""
