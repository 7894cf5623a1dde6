"""Benchmarks of fastconv against what a user has without it. `python -m benchmarks --help`."""
