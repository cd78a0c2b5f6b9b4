"""One module for each library. It has `MEASUREMENTS` (by workload) and `DISTRIBUTIONS` (whose versions matter).

`run.py` runs one measurement of one of them, in whatever environment it is started with.
"""
