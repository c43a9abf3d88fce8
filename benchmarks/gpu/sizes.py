"""At which sizes the ops are timed; all others are the tutorial's."""

from benchmarks.cases import TUTORIAL_BATCH

SCANS = ("rnn_scan", "combiner_scan")
# Of the rowwise ops.
BATCHES = (TUTORIAL_BATCH, 256)
# Of the scans: one is varied at a time.
ALONG = {"B": (1, 4, 64, 256, 1024), "T": (1024, 4096), "H": (64, 128, 256, 1024)}
