"""Scoring by many workers: one job cut in parts, processes that claim them, and the way back to one process.

`parts` cuts and counts, `claims` says who does what, `worker` is the job of one of them, `gathering` brings their
results together, `local` and `on_ray` start them (`launching`). What comes in here: nothing that changes a score.

The design, on one page. The input is read once, into the spool every job has, by whichever worker is first; the parts
of that spool are fixed then, by its tokens and never by how many workers there are. A worker claims a part, computes
it with the same code as a job of one process, keeps the results in a journal of its own, and marks the part as done.
The end is a job of one process: it takes in all results the workers have kept, computes what is still missing, and
writes the tables.

Nothing is ever written by two processes, so no lock has to hold between machines: claims are symbolic links, which
come to be whole or not at all on every file system, and a worker whose sign of life has stopped is passed over by a
claim of the next number. A claim only saves work. If two workers do the same part, after a sign of life that came
late, both get the same bits; if a mark outlives what it stands for, the last process computes the rest. So every row
is there exactly once, and the same, for any number of workers, kills and restarts.

Rejected: one SQLite file for all (its locks do not hold on network file systems), a server that hands out parts (one
more thing that can die), parts of the input files (prompts are shared across them, and each worker would have to know
the bytes before its own), and shares fixed by the number of workers (a resume with another number would move them).
"""
