"""Exporting: records as other trainers' files.

What may come in here: the job (`job`), and how a record looks in each tool's format (`formats`). Nothing here imports
torch.
"""
