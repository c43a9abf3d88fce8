"""Benchmarks: what is timed, against what, and how the numbers reach the README."""
