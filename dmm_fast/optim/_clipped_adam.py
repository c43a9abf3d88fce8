"""``ClippedAdam`` for torch and for Pyro, public as :mod:`dmm_fast.optim`."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, overload

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from dmm_fast import check
from dmm_fast.check import describe, fail
from dmm_fast.ops.clipped_adam import clipped_adam
from dmm_fast.optim._capturable import as_kept, is_capturable, put_count_on_device, put_rate_on_device
from dmm_fast.optim._checks import (
    MOMENTS,
    check_gradient,
    check_new_group,
    check_params,
    check_structure,
    check_values,
)


class ClippedAdam(Optimizer):
    """Adam with elementwise gradient clipping, learning-rate decay and L2 weight decay.

    A step does the following, in this order: ``lr *= lrd`` for each group; each gradient element is
    clamped to ``[-clip_norm, clip_norm]``, in ``p.grad`` itself; ``weight_decay * p`` is added to a copy
    of the gradient; then an Adam step. :func:`dmm_fast.ops.clipped_adam` has the formulas. A
    parameter whose ``grad`` is None is left unchanged, and each parameter has its own step count.
    Parameters with the same device, dtype, step count and hyperparameters are updated by one call, even if
    they are in different groups.

    With ``capturable`` the learning rates and the step counts are tensors on the device of the parameters:
    a step can be captured in a CUDA graph, whose replays decay and count like steps. At least one step has
    to be taken before the capture. Afterwards set a rate with ``group["lr"].fill_(rate)``, as torch's
    schedulers do: a number assigned instead becomes a new tensor in the next step, which no graph reads.

    Args:
        params: parameters, or dicts that define parameter groups.
        lr: learning rate of the first step, before its decay.
        betas: decay of the averages of the gradient and of its square, each in [0, 1).
        eps: added to the denominator.
        weight_decay: weight of the L2 penalty.
        clip_norm: largest magnitude of a gradient element; ``inf``: no clipping.
        lrd: factor applied to the learning rate in each step.
        centered_variance: average the squared deviation of the gradient from its mean, not its square.
        capturable: keep ``lr`` as a float64 and the step counts as int64 tensors on the parameters' device.
            A state with numbers or with tensors can be loaded into either kind of optimizer, which
            converts them.

    Raises:
        TypeError: a hyperparameter is not a number; in a step, a gradient is sparse or complex.
        ValueError: a hyperparameter is out of range; in a step, a capturable group is on two devices.
        RuntimeError: in a capture, a number or a parameter's state has not been put on the device by an
            earlier step.

    Source: ``pyro.optim.clipped_adam.ClippedAdam``. On a CPU the reference backend is bitwise equal to it,
    and the compiled one differs by rounding.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        clip_norm: float = 10.0,
        lrd: float = 1.0,
        centered_variance: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
            "lrd": lrd,
            "centered_variance": centered_variance,
        }
        # Without it, the state has exactly the entries of Pyro's.
        if capturable is not False:
            defaults["capturable"] = capturable
        super().__init__(check_params(params), defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; a ``closure`` computes gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            check.takes("closure", closure, (), {})
            with torch.enable_grad():
                loss = closure()
        _step_together([self])
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; hyperparameters that it lacks are those of the constructor.

        Raises:
            TypeError: the group is not a dict, contains other objects than parameters, or a hyperparameter
                has the wrong type.
            ValueError: a parameter is not a leaf or is in another group, or a hyperparameter is out of range.
        """
        param_group["params"] = check_new_group(param_group, self.defaults, self.param_groups)
        super().add_param_group(param_group)
        put_rate_on_device(self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a ``ClippedAdam`` of this package or of Pyro.

        On an error the present state is kept.

        Raises:
            TypeError: a part of the state has the wrong type.
            ValueError: the state belongs to another optimizer or to other parameters.
        """
        check_structure(state_dict, self.param_groups)
        kept = as_kept(state_dict, self.param_groups)
        for group in kept["param_groups"]:
            group.setdefault("centered_variance", False)  # missing in states of older versions of Pyro
        check_values(kept, self.param_groups)
        super().load_state_dict(kept)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch calls this with the whole new state, in load_state_dict, copy and pickle.
        for group in filter(is_capturable, state["param_groups"]):
            put_rate_on_device(group)
            for param in group["params"]:
                if param in state["state"]:
                    put_count_on_device(param, state["state"][param])
        super().__setstate__(state)


class PyroClippedAdam(PyroOptim):
    """:class:`ClippedAdam` for ``pyro.infer.SVI``: ``SVI(model, guide, optim, loss)``.

    As in ``pyro.optim.ClippedAdam``, each parameter has an optimizer in ``optim_objs`` that holds its
    state, so ``get_state``, ``set_state``, ``save`` and ``load`` use Pyro's format. A call updates all
    parameters together, with one operation for each combination of hyperparameters, step count, device
    and dtype. It does not call ``step`` of the single optimizers, so hooks on them do not run.

    Args:
        optim_args: arguments of :class:`ClippedAdam`, or a function of a parameter's name that
            returns them.
        clip_args: ``clip_norm`` and ``clip_value`` for Pyro's clipping of each parameter's gradient
            before the step, or a function of a parameter's module name and name that returns them.

    Raises:
        TypeError: an argument is neither a dict nor a function.
    """

    def __init__(
        self,
        optim_args: dict[str, Any] | Callable[..., dict[str, Any]],
        clip_args: dict[str, Any] | Callable[..., dict[str, Any]] | None = None,
    ) -> None:
        for name, value in (
            ("optim_args", optim_args),
            ("clip_args", {} if clip_args is None else clip_args),
        ):
            if not isinstance(value, dict) and not _has_signature(value):
                fail(name, "a dict or a function that returns one", describe(value), TypeError)
        super().__init__(ClippedAdam, optim_args, clip_args)
        # Kept here because another model's parameters may replace these in the store. As in Pyro, some
        # parameters have no name.
        self._names: dict[Tensor, Any] = {}

    def get_state(self) -> dict[str, Any]:
        """The state of each parameter's optimizer, under the parameter's name at its first step."""
        kept = self.optim_objs
        return {name: kept[param].state_dict() for param, name in self._names.items() if param in kept}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take one step for every parameter in ``params``.

        Raises:
            TypeError: ``params`` contains other objects than parameters, or there are further arguments: a
                closure would have to run once for each parameter.
            ValueError: ``params`` contains a parameter twice.
        """
        if args or kwargs:
            fail("arguments", "params alone", f"{len(args) + len(kwargs)} more", TypeError)
        once = check.elements("params", params, "an iterable of parameters")
        for p in once:
            if not isinstance(p, Tensor):
                fail("params", "an iterable of parameters", f"one that is {describe(p)}", TypeError)
        if len({id(p) for p in once}) != len(once):
            fail("params", "each parameter once", f"{len(once)} with repetitions")
        optimizers = [self._optimizer_of(p) for p in once]
        for p in once:
            if self.grad_clip[p] is not None:
                self.grad_clip[p](p)
        _step_together(optimizers)

    def _optimizer_of(self, param: Tensor) -> ClippedAdam:
        """The optimizer of ``param``, created at its first step with the state that was loaded for it."""
        if param not in self.optim_objs:
            optimizer = self._get_optim(param)
            name = pyro.get_param_store().param_name(param)
            if name in self._state_waiting_to_be_consumed:
                optimizer.load_state_dict(self._state_waiting_to_be_consumed[name])
                del self._state_waiting_to_be_consumed[name]
            self.grad_clip[param] = self._get_grad_clip(param)  # type: ignore[arg-type]
            self.optim_objs[param], self._names[param] = optimizer, name
        return self.optim_objs[param]


def _has_signature(value: Any) -> bool:
    """True if ``value`` is a function whose signature Pyro can inspect."""
    try:
        inspect.signature(value)
    except (TypeError, ValueError):
        return False
    return True


class _Rule(NamedTuple):
    """Settings that parameters must share to be updated by one call."""

    device: torch.device
    dtype: torch.dtype
    step: int | None  # None: each parameter has its own count on the device
    lr: float | None
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float
    centered_variance: bool
    lrd: float | None  # None: step counts and learning rates were updated before the call


class _Bucket(NamedTuple):
    """The tensors under one rule, as parallel lists; the last two hold numbers if the rule has them."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Any]
    lrs: list[Any]


class _Stepped(NamedTuple):
    """A parameter of the current step, with its state and its group."""

    param: Tensor
    grad: Tensor
    state: dict[str, Any]
    group: dict[str, Any]


def _step_together(optimizers: Iterable[Optimizer]) -> None:
    """Take a step for all parameters of all ``optimizers``; if a gradient is invalid, nothing changes."""
    groups = [(optimizer, group) for optimizer in optimizers for group in optimizer.param_groups]
    for _, group in groups:
        put_rate_on_device(group)
        for param in group["params"]:
            check_gradient(param, group)
    stepped = [
        _Stepped(param, param.grad, optimizer.state[param], group)
        for optimizer, group in groups
        for param in group["params"]
        if param.grad is not None
    ]
    for each in stepped:
        _begin(each)
    for rule, bucket in _count_and_decay([group for _, group in groups], stepped).items():
        *tensors, steps, lrs = bucket
        clipped_adam(
            *tensors,
            step=steps if rule.step is None else rule.step,
            lr=lrs if rule.lr is None else rule.lr,
            beta1=rule.betas[0],
            beta2=rule.betas[1],
            eps=rule.eps,
            weight_decay=rule.weight_decay,
            clip_norm=rule.clip_norm,
            centered_variance=rule.centered_variance,
            lrd=rule.lrd,
        )


def _begin(each: _Stepped) -> None:
    """Initialise the state of a parameter before its first step."""
    if not each.state:
        state = {"step": 0, **{moment: torch.zeros_like(each.grad) for moment in MOMENTS}}
        if is_capturable(each.group):
            put_count_on_device(each.param, state)
        each.state.update(state)


def _count_and_decay(groups: list[dict[str, Any]], stepped: list[_Stepped]) -> dict[_Rule, _Bucket]:
    """Update step counts and learning rates of ``groups``, and return the calls to make, by rule.

    A call updates both itself if it covers a whole group on a device that shares its rate with no other
    group. All others are updated here by separate operations, since a call would decay their rate too early
    or not at all.
    """
    for group in groups:
        if not is_capturable(group):
            group["lr"] *= group["lrd"]
    for each in stepped:
        if not is_capturable(each.group):
            each.state["step"] += 1
    rules = [_rule_of(each) for each in stepped]
    on_device = [group for group in groups if is_capturable(group)]
    apart = _in_no_call_as_a_whole(on_device, stepped, rules) if on_device else set()
    if apart:
        _decay_apart([group for group in on_device if id(group) in apart])
        counts = [each.state["step"] for each in stepped if id(each.group) in apart]
        if counts:
            torch._foreach_add_(counts, 1)
    buckets: dict[_Rule, _Bucket] = {}
    for each, rule in zip(stepped, rules, strict=True):
        _put_into_bucket(each, rule._replace(lrd=None) if id(each.group) in apart else rule, buckets)
    return buckets


def _in_no_call_as_a_whole(
    groups: list[dict[str, Any]], stepped: list[_Stepped], rules: list[_Rule]
) -> set[int]:
    """The ids of the groups that several rules or none apply to, or that share a learning rate."""
    rules_of: dict[int, set[_Rule]] = {id(group): set() for group in groups}
    for each, rule in zip(stepped, rules, strict=True):
        if rule.lrd is not None:
            rules_of[id(each.group)].add(rule)
    holders = Counter(id(group["lr"]) for group in groups)
    return {id(group) for group in groups if len(rules_of[id(group)]) != 1 or holders[id(group["lr"])] > 1}


def _decay_apart(groups: list[dict[str, Any]]) -> None:
    """``lr *= lrd`` in each group, by one operation for all; group by group if some share a rate."""
    rates, factors = [group["lr"] for group in groups], [float(group["lrd"]) for group in groups]
    if len(set(map(id, rates))) == len(rates):
        torch._foreach_mul_(rates, factors)
    else:
        for rate, factor in zip(rates, factors, strict=True):
            rate.mul_(factor)


def _rule_of(each: _Stepped) -> _Rule:
    """The rule that applies to a parameter."""
    param, _, state, group = each
    capturable = is_capturable(group)
    return _Rule(
        device=param.device,
        dtype=param.dtype,
        step=None if capturable else state["step"],
        lr=None if capturable else group["lr"],
        betas=tuple(group["betas"]),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        clip_norm=group["clip_norm"],
        centered_variance=group["centered_variance"],
        lrd=float(group["lrd"]) if capturable else None,
    )


def _put_into_bucket(each: _Stepped, rule: _Rule, buckets: dict[_Rule, _Bucket]) -> None:
    """Add a parameter to those with the same rule."""
    param, grad, state, group = each
    bucket = buckets.setdefault(rule, _Bucket([], [], [], [], [], []))
    row = (param, grad, *(state[m] for m in MOMENTS), state["step"], group["lr"])
    for column, value in zip(bucket, row, strict=True):
        column.append(value)
