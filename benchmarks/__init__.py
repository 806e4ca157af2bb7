"""Benchmarks. Each compares its figures with a baseline from the same run.

Each module is a program that starts the servers it needs with `local`, or code that these programs share.
Assertions about behavior belong in the tests, which the benchmarks do not import.
"""
