"""The estimator of a data-parallel run: losses and gradients summed over the rows of all processes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from dmm_fast import check
from dmm_fast._share import Share, rows_of, sharing
from dmm_fast.infer._unread import loss_tensor
from dmm_fast.triton import side_stream

if TYPE_CHECKING:
    from dmm_fast.infer._data_parallel import DataParallel

BUCKET_BYTES = 25 << 20
"""The most bytes of gradients in one all-reduce: enough for the full bandwidth of a network."""


class ParallelELBO(ELBO):
    """An estimator whose rows are spread over the processes of ``ranks``; see :meth:`DataParallel.elbo`."""

    def __init__(self, elbo: ELBO, ranks: DataParallel) -> None:
        self.__dict__ = dict(elbo.__dict__)
        self._elbo: Any = elbo
        self._ranks = ranks
        self._is_checked = False

    def _get_trace(self, *args: Any) -> Any:
        return self._elbo._get_trace(*args)

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of the whole mini-batch, without gradients."""
        with self._rows(args, kwargs) as (share, args, kwargs):
            loss = loss_tensor(self._elbo.loss(model, guide, *args, **kwargs))
        return torch_item(self._ranks.sum(loss.mul_(not share.is_empty)))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss of the whole mini-batch; its gradients are added to those of the parameters."""
        earlier = _gradients_of(param for _, param in pyro.get_param_store().named_parameters())
        with poutine.trace(param_only=True) as capture, self._rows(args, kwargs) as (share, own_args, own_kw):
            loss = loss_tensor(self._elbo.loss_and_grads(model, guide, *own_args, **own_kw)).clone()
        sites: Any = capture.trace.nodes.items()
        # Sites come in the order of the program, which is the same in all processes.
        params = {name: site["value"].unconstrained() for name, site in sites}
        if not self._is_checked:
            self._check(params, [*args, *kwargs.values()])
        once = list(dict.fromkeys(params.values()))
        side_stream.join(once)
        if share.is_empty:
            for tensor in (loss, *[param.grad for param in once if param.grad is not None]):
                tensor.zero_()
        self._sum_gradients(once)
        for param, gradient in earlier.items():
            param.grad = gradient if param.grad is None else param.grad.add_(gradient)
        return torch_item(self._ranks.sum(loss))

    def differentiable_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Not available: sums over processes are not differentiated.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "differentiable_loss: a data-parallel estimator has loss() and loss_and_grads(), which SVI uses"
        )

    @contextmanager
    def _rows(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[Share, tuple[Any, ...], dict[str, Any]]]:
        """The share of this process and its rows of the arguments, with noise and plates of all rows."""
        share = self._ranks.share(_number_of_rows((*args, *kwargs.values())))
        own_args = tuple(rows_of(value, share) for value in args)
        own_kwargs = {name: rows_of(value, share) for name, value in kwargs.items()}
        with sharing(share), _PlatesOfAllRows(share):
            yield share, own_args, own_kwargs
        if not any(isinstance(value, Tensor) and value.is_cuda for value in (*args, *kwargs.values())):
            # Noise may have been drawn for the own rows alone, of which others have one more or less.
            torch.set_rng_state(self._ranks.of_main(torch.get_rng_state()))

    def _check(self, params: dict[str, Tensor], arguments: list[Any]) -> None:
        """Check once that all processes compute the same thing: a sum over different things means nothing."""
        ranks = self._ranks
        layout = [(name, tuple(p.shape), p.dtype, p.grad is not None) for name, p in params.items()]
        ranks.check_alike("model", "the same parameters in all processes", layout)
        expected = "the same values in all processes (call broadcast(dmm), or seed alike before it is made)"
        ranks.check_alike("parameters", expected, [_checksum(param) for param in params.values()])
        given = [value for value in arguments if isinstance(value, Tensor)]
        expected = (
            "the same, whole mini-batch in all processes (seed them alike), each of which takes its rows"
        )
        ranks.check_alike("arguments", expected, [_checksum(value) for value in given])
        self._is_checked = True

    def _sum_gradients(self, params: Iterable[Tensor]) -> None:
        """Sum gradients over the processes, those of a device and dtype in few all-reduces."""
        for bucket in _buckets(params):
            flat = self._ranks.sum(torch.cat([gradient.reshape(-1) for _, gradient in bucket]))
            sums = flat.split([gradient.numel() for _, gradient in bucket])
            for (param, _), total in zip(bucket, sums, strict=True):
                param.grad = total.view(param.shape)


class _PlatesOfAllRows(Messenger):
    """Scales sites in a plate that subsamples a data set by the rows of all processes, not of one.

    Raises:
        ValueError: a sample site is in no plate of the rows.
    """

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        share = self._share
        plates = [frame for frame in msg["cond_indep_stack"] if frame.size == share.num_rows]
        if not plates:
            expected = f"a site within a plate of the {share.num_rows} rows of this process"
            check.fail(f"site {msg['name']!r}", expected, "one that each process would add to the sum again")
        if any(frame.full_size not in (None, frame.size) for frame in plates):
            msg["scale"] = msg["scale"] * (share.num_rows / share.total)


def _gradients_of(params: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Take the gradients from parameters, so that those to come can be told from them."""
    taken = {param: param.grad for param in params if param.grad is not None}
    for param in taken:
        param.grad = None
    return taken


def _buckets(params: Iterable[Tensor]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Parameters and their gradients, in lists of one device and dtype and at most :data:`BUCKET_BYTES`."""
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for param in params:
        if param.grad is None:
            continue
        bucket = alike.setdefault((param.device, param.dtype), [])
        if bucket and sum(each.nbytes for each, _ in bucket) + param.nbytes > BUCKET_BYTES:
            yield bucket.copy()
            bucket.clear()
        bucket.append((param, param.grad))
    yield from alike.values()


def _number_of_rows(arguments: Iterable[Any]) -> int:
    for value in arguments:
        if isinstance(value, Tensor) and value.dim() > 0:
            return len(value)
    check.fail("arguments", "the tensors of a mini-batch, one row for each sequence", "none", TypeError)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
