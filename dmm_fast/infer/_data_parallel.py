"""Data-parallel training and evaluation: the rows of each mini-batch are spread over several processes.

With ``torchrun --nproc-per-node N script.py`` every process runs the same script, with the same seeds and
mini-batches. :class:`DataParallel` joins them; its :meth:`~DataParallel.elbo` computes the rows of its own
process and sums losses and gradients over all of them. What comes out is what a single process computes,
but for rounding, whatever the number of processes.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import cast

import torch
import torch.distributed as dist
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from dmm_fast import check
from dmm_fast._share import Share
from dmm_fast.infer._parallel_elbo import ParallelELBO
from dmm_fast.infer._sequence_elbo import SequenceELBO

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets for each process, and that ``torch.distributed`` starts from."""


class RankLostError(RuntimeError):
    """Another process of a data-parallel run has ended, or cannot be reached any more.

    ``is_reported`` tells that the other process raised an error of its own, which is the one to show.
    """

    is_reported = False


class DataParallel:
    """The processes of a data-parallel run, which share the rows of each mini-batch.

    Three lines make a script data-parallel, and ``torchrun --nproc-per-node N script.py`` starts it::

        ranks = DataParallel()
        ranks.broadcast(dmm)
        svi = GraphedSVI(dmm.model, dmm.guide, optim, ranks.elbo(Trace_ELBO()))

    All processes take the same steps with the same, whole mini-batches, so their seeds have to be alike, and
    rank 0 alone should write files (:attr:`is_main`). In a process that was started alone this class does
    nothing, and the same script runs as it did.

    Where ``torch.distributed`` is not initialised yet, the constructor initialises it, with NCCL for tensors
    on GPUs and gloo for those on CPUs, and makes another GPU of its machine each process's current device.

    Args:
        group: the processes, by default all of them.

    Raises:
        TypeError: ``group`` is no process group.
        RankLostError: the other processes cannot be reached.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            check.fail("group", "a process group of torch.distributed", check.describe(group), TypeError)
        is_free = group is None and dist.is_available() and not dist.is_initialized()
        self._owns = is_free and _is_launched()
        if self._owns:
            _take_gpu()
            with _reached():
                dist.init_process_group()
        is_parallel = dist.is_available() and dist.is_initialized()
        self.group = group
        self.size: int = dist.get_world_size(group) if is_parallel else 1
        self.rank: int = dist.get_rank(group) if is_parallel else 0
        if self.rank < 0:
            check.fail("group", "a process group that this process belongs to", "another one")

    @property
    def local_size(self) -> int:
        """The number of processes that torchrun has started on this machine; 1 where another launcher has."""
        return min(self.size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def check_gpus(self) -> None:
        """Check that the machine has a GPU for each of its processes.

        Raises:
            ValueError: there are fewer.
        """
        if torch.cuda.device_count() < self.local_size:
            expected = f"a GPU for each of the {self.local_size} processes of this machine"
            check.fail("cuda", expected, str(torch.cuda.device_count()))

    @property
    def is_main(self) -> bool:
        """True for rank 0, the process that writes files and prints."""
        return self.rank == 0

    def __enter__(self) -> DataParallel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the others may not answer, and the end of this process leaves the group as well.
        if kind is None:
            self.close()

    def close(self) -> None:
        """Leave the process group, if this object has made it."""
        if self._owns and dist.is_initialized():
            dist.destroy_process_group()
        self._owns = False

    def share(self, total: int) -> Share:
        """The rows of this process in a mini-batch of ``total`` rows.

        Raises:
            ValueError: ``total`` is not positive.
        """
        return Share(self.rank, self.size, check.size("total", total))

    def elbo(self, elbo: ELBO) -> ELBO:
        """``elbo`` for ``SVI`` and :class:`~dmm_fast.infer.GraphedSVI`, computed by all processes together.

        It takes the arguments of a whole mini-batch. Each process uses every ``size``-th row of the tensors
        that have as many rows as the first one; it draws the noise of all rows and uses that of its own.
        Losses and gradients are summed over the processes, the gradients once, in buckets. A plate that
        subsamples a data set counts the rows of the whole mini-batch. ``Trace_ELBO`` and
        ``TraceMeanField_ELBO`` are computed as by :class:`~dmm_fast.infer.SequenceELBO`.

        Every sample site has to be within a plate of the rows, as those of a DMM are: the log-density of any
        other would be summed as often as there are processes. The first step checks that parameters and
        mini-batch are the same in all processes.

        The package draws noise, and the dropout of past data and between layers of its recurrent networks,
        for the whole mini-batch. Noise drawn in another way (dropout of an LSTM, GRU or other module, sites
        of a model of yours, ``per_step_sites``) is the same for the first row of each process, and so on; the
        result then differs from that of a single process. After a step on the CPU all processes have the
        random state of rank 0, so that they go on to draw the same mini-batches.

        Raises:
            TypeError: ``elbo`` is no estimator of Pyro.
        """
        check.kind("elbo", elbo, ELBO)
        if self.size == 1:
            return elbo
        if type(elbo) in (Trace_ELBO, TraceMeanField_ELBO):
            elbo = SequenceELBO(cast(Trace_ELBO, elbo))
        return ParallelELBO(elbo, self)

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers that ``module`` has on rank 0.

        Raises:
            TypeError: ``module`` is no module.
            RankLostError: another process has ended.
        """
        check.kind("module", module, nn.Module)
        if self.size > 1:
            with torch.no_grad(), _reached():
                for tensor in (*module.parameters(), *module.buffers()):
                    sent = tensor.detach().contiguous()
                    dist.broadcast(sent, group=self.group, group_src=0)
                    tensor.copy_(sent)

    def of_main(self, tensor: Tensor) -> Tensor:
        """``tensor`` as rank 0 has it, a tensor of the same shape and dtype on the CPU.

        Raises:
            TypeError: ``tensor`` is not a dense tensor.
            RankLostError: another process has ended.
        """
        check.dense("tensor", tensor)
        if self.size > 1:
            sent = tensor.to(self._device(), copy=True).contiguous()
            with _reached():
                dist.broadcast(sent, group=self.group, group_src=0)
            tensor = sent.cpu()
        return tensor

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave ``with`` in all processes, or by an error in all of them.

        Of several errors that of the lowest rank is raised there; other processes raise a
        :class:`RankLostError` with ``is_reported``. No process may exchange anything with the others within.

        Raises:
            RankLostError: another process failed, or has ended.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        try:
            codes = self._gather([int(failure is not None)])
        except RankLostError:
            if failure is None:
                raise
            raise failure  # noqa: B904 - this process's own error, which is the one to show
        failed = [rank for rank, (code,) in enumerate(codes) if code]
        if failure is not None and failed[0] == self.rank:
            raise failure
        if failed:
            lost = RankLostError(f"processes: expected rank {failed[0]} to go on, got an error there")
            lost.is_reported = True
            raise lost from failure

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all processes, in its own memory.

        Raises:
            TypeError: ``tensor`` is not a dense tensor.
            RankLostError: another process has ended.
        """
        check.dense("tensor", tensor)
        if self.size > 1:
            # A group with NCCL alone has no way for a loss that is a number on the host.
            sent = tensor if tensor.is_cuda else tensor.to(self._device())
            with _reached():
                dist.all_reduce(sent, group=self.group)
            if sent is not tensor:
                tensor.copy_(sent)
        return tensor

    def most(self, number: int) -> int:
        """The largest ``number`` of any process.

        Raises:
            TypeError: ``number`` is not an int.
            RankLostError: another process has ended.
        """
        check.kind("number", number, int)
        return max(self._gather([number]))[0]

    def check_alike(self, name: str, expected: str, *values: object) -> None:
        """Check that values are the same in all processes, by their representation.

        Args:
            name: the argument that the error is to name.
            expected: its description of what was expected.
            values: the values that are compared.

        Raises:
            TypeError: ``name`` or ``expected`` is not a string.
            ValueError: the values differ; raised in every process.
            RankLostError: another process has ended.
        """
        check.kind("name", name, str)
        check.kind("expected", expected, str)
        codes = self._gather([zlib.crc32(repr(values).encode())])
        if len(set(map(tuple, codes))) > 1:
            differing = [rank for rank, code in enumerate(codes) if code != codes[0]]
            check.fail(name, expected, f"another one on rank {', '.join(map(str, differing))} than on rank 0")

    def _gather(self, numbers: list[int]) -> list[list[int]]:
        """The whole numbers of each process, by rank."""
        if self.size == 1:
            return [numbers]
        table = torch.zeros(self.size, len(numbers), dtype=torch.int64, device=self._device())
        table[self.rank] = torch.tensor(numbers)
        gathered: list[list[int]] = self.sum(table).tolist()
        return gathered

    def _device(self) -> str:
        """The device type for messages between the processes; a group with only NCCL has no CPU tensors."""
        return "cpu" if "gloo" in dist.get_backend_config(self.group) else "cuda"


def _is_launched() -> bool:
    """True if this process is one of several started by torchrun or another launcher."""
    return all(name in os.environ for name in _LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def _take_gpu() -> None:
    """Make the GPU of this process's number on its machine the current device, where there are enough.

    Other launchers than torchrun show each process its own GPU alone, and set no such number.
    """
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if 0 < place < torch.cuda.device_count():
        torch.cuda.set_device(place)


@contextmanager
def _reached() -> Iterator[None]:
    """Raise a :class:`RankLostError` where a collective operation fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if check.is_capturing():
            raise
        # Without the place in the sources that gloo and NCCL put first, and the advice that they put last.
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).partition("\n")[0]).partition(". ")[0]
        raise RankLostError(
            f"processes: expected an answer from each one of this run, got none from at least one ({reason})"
        ) from error
