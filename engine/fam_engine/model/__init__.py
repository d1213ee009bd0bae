"""The language model: packed batches in, hidden states and log-probs out.

What may come in here: configuration and checkpoint reading, NF4 weights, adapters, the decoder, the head. `ops` is
the one module that imports `fam_engine.kernels`; everything above it is the same code on any device.
"""

from fam_engine.model.cpu_products import keep_bits_here

# Before anything here can multiply matrices.
keep_bits_here()
