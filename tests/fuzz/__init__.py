"""Mutated input files against the command line: only clean errors, no hang, no memory, nothing written or run.

Invariant: a case is a kind and a number; the same two make the same files and the same command on any machine, so a
failure is reported as `kind:number` and can be run again alone. `python -m tests.fuzz --help` says how.
"""
