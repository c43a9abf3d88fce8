"""Small runs of the benchmark of quality."""

from benchmarks.quality import __main__ as quality
from dmm_fast.data import chorales, save_npz

SIZES = {
    "z_dim": 3,
    "emission_dim": 4,
    "transition_dim": 5,
    "rnn_dim": 6,
    "nade_dim": 3,
    "mini_batch_size": 4,
}


def two_sets(folder):
    """Save the data sets ``Little_One`` and ``other``; returns their folder."""
    for name, seed in (("Little_One", 0), ("other", 1)):
        save_npz(chorales(8, 3, 3, num_steps=(8, 12), seed=seed), folder / f"{name}.npz")
    return folder


def call(place, source, *more, presets=("krishnan",), epochs="3"):
    """Run the command on the data ``source``, with its outputs in ``place``."""
    words = ["--data", source, "--presets", *presets, "--out", place / "out", "--work", place / "work"]
    words += ["--particles", "6", "--set", "eval_frequency=1", *more]
    words += ["--epochs", epochs] if epochs else []
    for name, value in SIZES.items():
        words += ["--set", f"{name}={value}"]
    return quality.main(list(map(str, words)))
