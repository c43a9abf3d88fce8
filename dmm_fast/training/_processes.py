"""The processes of a data-parallel training run: their agreement, and how to start them again."""

from __future__ import annotations

import shlex
from pathlib import Path

from dmm_fast.check import fail
from dmm_fast.infer import DataParallel
from dmm_fast.model import DMM
from dmm_fast.training._averaging import Averaging
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._folder import LAST
from dmm_fast.training._identity import Identity
from dmm_fast.training._ranges import ENUMERATED
from dmm_fast.training._recovery import Progress


def check_processes(config: TrainConfig, ranks: DataParallel) -> None:
    """Check that a run with these settings can be spread over ``ranks``.

    Raises:
        ValueError: it cannot.
    """
    if config.elbo in ENUMERATED:
        # Noise drawn site by site would be the same in all processes.
        fail("elbo", "trace, mean_field or importance with several processes", repr(config.elbo))
    if config.mini_batch_size < ranks.size:
        expected = f"at least a sequence for each of {ranks.size} processes"
        fail("mini_batch_size", expected, str(config.mini_batch_size))
    if config.cuda:
        ranks.check_gpus()


def agree(
    ranks: DataParallel,
    config: TrainConfig,
    dmm: DMM,
    averaging: Averaging,
    identity: Identity,
    progress: Progress,
) -> None:
    """Check that all processes have the same run before them, and give them the parameters of rank 0.

    Raises:
        ValueError: settings, data or progress differ.
        RankLostError: another process has ended.
    """
    ranks.check_alike("settings", "the same in all processes", config.saved(), identity.settings)
    ranks.check_alike("data", "the same in all processes", identity.data)
    place = (progress.epoch, progress.step)
    ranks.check_alike("resume", "the same checkpoint in all processes, in a folder that all can read", place)
    ranks.broadcast(dmm)
    if averaging.tensors:
        with averaging.swapped():
            ranks.broadcast(dmm)


def way_on(out: Path | None, ranks: DataParallel | None) -> str:
    """End of a message about a run that has stopped: what was saved, and how to resume.

    Args:
        out: the folder of the run, if it has one.
        ranks: the processes of the run; None: a single one.
    """
    if out is None or not (out / LAST).exists():
        return "no checkpoint was written; give a folder with --out to be able to resume"
    command = "dmm-fast" if ranks is None else f"torchrun --nproc-per-node {ranks.local_size} -m dmm_fast"
    return f"saved {out / LAST}; resume with: {command} train --resume --out {shlex.quote(str(out))}"
