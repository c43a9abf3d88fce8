"""The stages of a run; the table in ``benchmarks.gpu.runner`` names the functions that list their units."""
