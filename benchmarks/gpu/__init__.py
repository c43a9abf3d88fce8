"""Checks and measurements on a machine with one NVIDIA GPU: ``python -m benchmarks.gpu``."""
