"""Statements of SQLite that fail, one at a time, and an account of every message afterwards.

Run `python -m tests.faults --help` for the long form.
"""
