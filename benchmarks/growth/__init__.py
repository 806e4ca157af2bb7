"""How cost grows with the number of rows, caches and so on: `python -m benchmarks.growth`."""
