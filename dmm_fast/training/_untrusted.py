"""Checks of a checkpoint's contents: a file may come from an untrusted source, with a valid checksum."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast.model import DMM
from dmm_fast.training import _tree

if TYPE_CHECKING:
    from dmm_fast.training._checkpoint import Checkpoint


def check_fields(checkpoint: Checkpoint) -> None:
    """Check the values of a checkpoint whose fields have the right types."""
    for name in ("epoch", "step", "metrics_bytes", "waited"):
        check.int_between(name, getattr(checkpoint, name), 0)
    check.number("epoch_loss", checkpoint.epoch_loss)
    if checkpoint.best is not None:
        check.number("best", checkpoint.best)
    for name in ("sizes", "config"):
        for key, value in getattr(checkpoint, name).items():
            if not isinstance(key, str) or not isinstance(value, _tree.Scalar):
                check.fail(name, "names and their JSON values", f"{key!r}: {check.describe(value)}"[:80])
    check_state("model", checkpoint.model)
    check_state("unaveraged", checkpoint.unaveraged)
    check_optimizer(checkpoint.optimizer)
    check_rng(checkpoint.rng)
    order = checkpoint.order
    if order is None:
        if checkpoint.step > 0:
            check.fail("order", "a permutation in the middle of an epoch", "None")
        return
    is_list = order.dtype == torch.int64 and order.dim() == 1
    if not is_list or not torch.equal(order.sort().values, torch.arange(order.numel())):
        check.fail("order", "a permutation, int64 of shape (N,)", check.describe(order))


def check_state(name: str, state: object) -> None:
    """Check that ``state`` maps names to tensors."""
    check.kind(name, state, Mapping)
    for key, tensor in typing.cast("Mapping[Any, Any]", state).items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            check.fail(name, "tensors by their names", f"{key!r}: {check.describe(tensor)}"[:80])


def check_optimizer(state: dict[Any, Any]) -> None:
    """Check that ``state`` has, for each parameter, the dicts of a torch optimizer: a state and groups."""
    for name, own in state.items():
        if (
            not isinstance(name, str)
            or not isinstance(own, dict)
            or not isinstance(own.get("state"), dict)
            or not isinstance(own.get("param_groups"), list)
            or not all(isinstance(group, dict) for group in own["param_groups"])
            or not all(isinstance(each, dict) for each in own["state"].values())
        ):
            expected = "a state and param_groups for the name of each parameter"
            check.fail("optimizer", expected, f"{name!r}: {check.describe(own)}"[:80])


def check_rng(rng: dict[Any, Any]) -> None:
    """Check that torch's generators accept the states in ``rng``."""
    if "cpu" not in rng or not set(rng) <= {"cpu", "cuda"}:
        check.fail("rng", "'cpu' and perhaps 'cuda'", str(list(rng))[:80])
    for name, state in rng.items():
        if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.dim() != 1:
            check.fail(f"rng.{name}", "uint8 of shape (N,)", check.describe(state))
    try:
        torch.Generator().set_state(rng["cpu"])
    except RuntimeError as error:
        check.fail("rng.cpu", "a state of torch's generator", " ".join(str(error).split())[:120])


def check_sizes(sizes: Mapping[str, Any], model: Mapping[str, Tensor]) -> None:
    """Check that a DMM of these sizes has the tensors of ``model``, without allocating it."""
    known = inspect.signature(DMM).parameters
    strange = [name for name in sizes if name not in known or name == "use_cuda"]
    if strange:
        check.fail("sizes", "constructor arguments of a DMM", str(strange[0])[:80])
    # Bounded by the number of tensors: a crafted file must not cause an endless loop over layers or flows.
    layers, flows = (
        check.int_between(f"sizes.{name}", sizes.get(name, known[name].default), 0, len(model))
        for name in ("num_layers", "num_iafs")
    )
    try:
        with torch.device("meta"):
            expected = DMM(**{**sizes, "num_layers": min(layers, 2), "num_iafs": 0}).state_dict()
    except (TypeError, ValueError, RuntimeError) as error:
        check.fail("sizes", "the sizes of a DMM", " ".join(str(error).split())[:200])
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    # A recurrent network with many layers is slow to construct. All layers from the second on have the same
    # shapes.
    second = {name.removesuffix("1"): shape for name, shape in shapes.items() if name.endswith("_l1")}
    for layer in range(2, layers):
        shapes |= {f"{name}{layer}": shape for name, shape in second.items()}
    z_dim = shapes["z_0"][0]
    for flow in range(flows):
        # Flows cannot be constructed on the meta device. No tensor of a flow is larger than these two.
        iaf_dim = check.int_between("sizes.iaf_dim", sizes.get("iaf_dim", known["iaf_dim"].default), z_dim)
        prefix = f"iafs_modules.{flow}.arn.layers"
        shapes |= {f"{prefix}.0.weight": (iaf_dim, z_dim), f"{prefix}.1.weight": (2 * z_dim, iaf_dim)}
    for name, shape in shapes.items():
        if name not in model or tuple(model[name].shape) != shape:
            got = tuple(model[name].shape) if name in model else "none"
            check.fail(f"model.{name}", f"shape {shape} as the sizes say", str(got))


def check_units(state: Mapping[str, Tensor], input_dim: int) -> None:
    """Check the units of the data, ``x_loc`` and ``x_scale``, of which a state has both or neither."""
    given = [name for name in ("x_loc", "x_scale") if name in state]
    if len(given) == 1:
        check.fail(given[0], "both x_loc and x_scale or neither", "one")
    for name in given:
        units = check.floating(name, state[name])
        check.shape(name, units, (input_dim,))
        if not bool(units.isfinite().all()) or (name == "x_scale" and not bool((units > 0).all())):
            check.fail(name, "finite values, of x_scale above 0", str(units.tolist())[:80])
