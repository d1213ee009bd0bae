"""How fast this machine is at what the tool does, and whether a change made it slower.

What may come in here: workloads, the harness that times them, what describes a machine. The scripts under `benchmarks/`
use the same harness and add the peers.
"""
