"""What runs in a locked-down child process.

What may come in here: the lockdown itself, and the programs of the children. `lockdown` is also used by the worker of
symbolic maths. The child that runs code under test starts this folder with a bare interpreter (no site-packages, no
environment), so its modules import the standard library and each other, and nothing else.
"""
