"""Benchmarks. Each compares its figures with a baseline from the same run."""
