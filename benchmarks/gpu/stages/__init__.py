"""The stages of a run; ``benchmarks.gpu.runner.STAGES`` names the functions that list their units."""
