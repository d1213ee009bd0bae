"""What is measured, and how sure we are of it.

What may come in here: the result types every job shares, the formulas of the metrics with their sources, and the
statistics (intervals, tests) around them, overlap of data sets, and `answers`, which judges responses. Pure numpy:
nothing here imports torch or reads a file.
"""
