"""Checks of the arguments of a DMM, its model and its guide that no lower layer makes."""

import torch
from torch import Tensor

from dmm_fast import check

# Networks that may have x_{t-1} as an input.
AUGMENT = ("transition", "emission", "both")
# The guides, named as in table 1 of arXiv 1609.09869, and their recurrent networks.
INFERENCE = ("st-r", "st-l", "st-lr", "mf-r", "mf-l", "mf-lr")
NETWORKS = ("relu", "tanh", "lstm", "gru")
# The estimators of the gradient of an importance-weighted bound.
GRADIENTS = ("total", "path", "dreg")


def check_constructor(
    *,
    input_dim: object,
    z_dim: object,
    num_layers: object,
    rnn_dropout_rate: object,
    num_iafs: object,
    iaf_dim: object,
    use_cuda: object,
    nade_dim: object,
    nade_order: object,
    augment: object,
    past_dropout_rate: object,
    control_dim: object,
    static_dim: object,
    mask_input: object,
    inference: object,
    rnn: object,
    per_step_sites: object,
    min_scale: object,
    validate_args: object,
) -> None:
    """Check the arguments of :class:`dmm_fast.DMM`, except for the sizes that its networks check.

    Raises:
        ValueError: an argument is out of range or not a number; the message names it.
        TypeError: a flag is not a bool.
    """
    if isinstance(num_layers, float):
        # Pyro's tutorial notebook of 2017 passes rnn_dropout_rate by position here.
        expected = (
            "a positive int; num_layers now stands between rnn_dim and rnn_dropout_rate, so give "
            "rnn_dropout_rate, num_iafs, iaf_dim and use_cuda by name"
        )
        check.fail("num_layers", expected, str(num_layers))
    check.size("num_layers", num_layers)
    check.size("input_dim", input_dim)
    latents = check.size("z_dim", z_dim)
    hidden = check.size("iaf_dim", iaf_dim)
    check.probability("rnn_dropout_rate", rnn_dropout_rate)
    if check.int_between("num_iafs", num_iafs, 0) > 0 and hidden < latents:
        check.fail("iaf_dim", f"at least z_dim = {latents} for autoregressive flows", str(hidden))
    check.size("nade_dim", nade_dim)
    if nade_order is not None:
        _check_order(nade_order, check.size("input_dim", input_dim))
    if augment is not None and (not isinstance(augment, str) or augment not in AUGMENT):
        check.fail("augment", f"None or one of {', '.join(AUGMENT)}", check.describe(augment))
    if check.probability("past_dropout_rate", past_dropout_rate) > 0 and augment is None:
        check.fail("past_dropout_rate", "0 without augment", str(past_dropout_rate))
    check.int_between("control_dim", control_dim, 0)
    check.int_between("static_dim", static_dim, 0)
    check.kind("mask_input", mask_input, bool)
    for name, value, choices in (("inference", inference, INFERENCE), ("rnn", rnn, NETWORKS)):
        if not isinstance(value, str) or value not in choices:
            check.fail(name, f"one of {', '.join(choices)}", check.describe(value))
    if check.number("min_scale", min_scale, "a finite number from 0") < 0:
        check.fail("min_scale", "a finite number from 0", check.describe(min_scale))
    check.kind("per_step_sites", per_step_sites, bool)
    check.kind("validate_args", validate_args, bool, type(None))
    check.kind("use_cuda", use_cuda, bool)
    if use_cuda and not torch.cuda.is_available():
        check.fail("use_cuda", "a CUDA device", "torch.cuda.is_available() is False")


def _check_order(order: object, D: int) -> None:
    expected = f"a permutation of 0 to {D - 1}"
    order = order.tolist() if isinstance(order, Tensor) else order
    given = [check.integer("nade_order", i, expected) for i in check.elements("nade_order", order, expected)]
    if sorted(given) != list(range(D)):
        check.fail("nade_order", expected, check.describe(order))


def check_annealing_factor(factor: float | Tensor, B: int) -> float | Tensor:
    """Check the weight of the KL term and return it; a number is converted to a Python float.

    A tensor has one weight for all ``B`` sequences or one for each. Its values are checked only if it is on a
    CPU, where reading them needs no synchronisation.

    Raises:
        ValueError: the weight is not positive and finite, or has the wrong shape.
        TypeError: the weight is neither a number nor a dense floating-point tensor.
    """
    name, expected = "annealing_factor", "a positive number, or a floating-point tensor of such"
    if isinstance(factor, Tensor):
        if not factor.is_floating_point() or factor.layout != torch.strided or factor.is_meta:
            check.fail(name, expected, check.describe(factor), TypeError)
        if factor.dim() > 0 and factor.shape[-1] not in (1, B):
            check.fail(name, f"{expected}, of shape () or (..., {B})", check.describe(factor))
        if check.values_are_readable(factor) and not bool(((factor > 0) & factor.isfinite()).all()):
            check.fail(name, expected, str(factor.tolist()))
        return factor
    weight = check.number(name, factor, expected)
    if weight <= 0:
        check.fail(name, expected, str(factor))
    return weight
