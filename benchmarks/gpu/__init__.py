"""``python -m benchmarks.gpu``: build, test, check and measure on a machine with one NVIDIA GPU."""
