"""Agreement between the processes of a data-parallel training run."""

from __future__ import annotations

from dmm_fast.check import fail
from dmm_fast.infer import DataParallel
from dmm_fast.model import DMM
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._identity import Identity
from dmm_fast.training._recovery import Progress


def check_processes(config: TrainConfig, ranks: DataParallel) -> None:
    """Check that a run with these settings can be spread over ``ranks``.

    Raises:
        ValueError: it cannot.
    """
    if config.elbo not in ("trace", "mean_field"):
        # Noise drawn site by site would be the same in all processes.
        fail("elbo", "trace or mean_field with several processes", repr(config.elbo))
    if config.mini_batch_size < ranks.size:
        expected = f"at least a sequence for each of {ranks.size} processes"
        fail("mini_batch_size", expected, str(config.mini_batch_size))
    if config.cuda:
        ranks.check_gpus()


def agree(ranks: DataParallel, config: TrainConfig, dmm: DMM, identity: Identity, progress: Progress) -> None:
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
