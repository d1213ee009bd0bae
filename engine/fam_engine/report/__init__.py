"""Results for people to look at: terminal tables, plots, the HTML report.

What may come in here: everything that turns results into text or markup. It sees `measure` and nothing else of ours, so
that a report can be made again from the files of a finished job.
"""
