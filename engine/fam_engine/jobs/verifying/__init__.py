"""Verifying an adapter: the same answers scored in every way it may be served.

What may come in here: the job (`job`), the answers (`probe`), the ways our own engine computes (`ways`), a server asked
for the same (`over_http`), and how large a difference may be (`tolerances`).
"""
