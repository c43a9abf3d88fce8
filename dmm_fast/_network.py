"""Networks that are computed by one fused op unless they were changed."""

from typing import Any, ClassVar, Generic, TypeVar

from torch import nn
from torch.nn.modules import module as torch_module

from dmm_fast import check

_FORMER_NAMES = {
    "lin_z_to_mu": "lin_z_to_loc",
    "lin_hidden_to_mu": "lin_hidden_to_loc",
    "lin_hidden_to_sigma": "lin_hidden_to_scale",
}

_Weights = TypeVar("_Weights")


def rename_former(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename entries of ``state`` that have former names of parameters of ``module``."""
    for former, current in _FORMER_NAMES.items():
        if hasattr(module, current):
            for part in ("weight", "bias"):
                key = f"{prefix}{former}.{part}"
                if key in state:
                    state[f"{prefix}{current}.{part}"] = state.pop(key)


class Network(nn.Module, Generic[_Weights]):
    """A network that is computed by one fused op unless it was changed.

    A subclass declares its layers, each with the letters of its output and input sizes, in the order of the
    op's weights; the parameters that follow them; and the types of its activations.
    """

    _WEIGHTS: ClassVar[type[Any]]
    _LAYERS: ClassVar[dict[str, str]]
    _PARAMETERS: ClassVar[tuple[str, ...]] = ()
    _ACTIVATIONS: ClassVar[dict[str, type[nn.Module]]]

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            check.size(name, size)

    @property
    def weights(self) -> _Weights:
        """The weights in the form and order of the ops."""
        layers: list[Any] = [self._modules[name] for name in self._LAYERS]
        tensors = [tensor for each in layers for tensor in (each.weight, each.bias)]
        weights: _Weights = self._WEIGHTS(*tensors, *(getattr(self, name) for name in self._PARAMETERS))
        return weights

    def what_changed(self) -> str | None:
        """A layer's or activation's difference from the op's, in words; None if there is none."""
        if torch_module._has_any_global_hook():
            return "every module has hooks"
        sizes: dict[str, int] = {}
        for name, letters in self._LAYERS.items():
            layer = self._modules[name]
            if reason := _layer_change(layer, letters, sizes):
                return f"its {name} {reason}"
        for name, kind in self._ACTIVATIONS.items():
            activation = self._modules[name]
            if reason := _activation_change(activation, kind):
                return f"its {name} {reason}"
        return None


class NotFusedWarning(UserWarning):
    """A network of a model was changed, so that it is computed by its own layers instead of a fused op."""


def why_not_fused(module: nn.Module, network: type[Network[Any]]) -> str | None:
    """The reason why no fused op can compute ``module``: its difference from ``network``; None if it can.

    It can if the layers and activations are as they were built, except for the values of their weights, and
    the module has no hooks and no ``forward`` of its own. Parametrized weights count as weights.
    """
    if not isinstance(module, network):
        return f"it is a {type(module).__name__}"
    is_called_as_built = type(module).__call__ is nn.Module.__call__
    if type(module).forward is not network.forward or "forward" in vars(module) or not is_called_as_built:
        return "it has a forward of its own"
    return "it has hooks" if has_hooks(module) else module.what_changed()


def _layer_change(layer: nn.Module | None, letters: str, sizes: dict[str, int]) -> str | None:
    """The difference of ``layer`` from a linear layer of the sizes named by ``letters``; None if none."""
    if not isinstance(layer, nn.Linear):
        return f"is a {type(layer).__name__}"
    if type(layer).forward is not nn.Linear.forward or "forward" in vars(layer):
        return "has a forward of its own"
    # A parametrized bias is not among the layer's own parameters.
    if layer._parameters.get("bias", layer) is None:
        return "has no bias"
    for letter, size in ((letters[0], layer.out_features), (letters[1], layer.in_features)):
        if sizes.setdefault(letter, size) != size:
            return f"has {size} features where {sizes[letter]} are expected"
    return "has hooks" if has_hooks(layer) else None


def _activation_change(activation: nn.Module | None, kind: type[nn.Module]) -> str | None:
    if type(activation) is not kind or "forward" in vars(activation):
        return f"is a {type(activation).__name__}"
    if isinstance(activation, nn.Softplus) and (activation.beta, activation.threshold) != (1, 20):
        return "has another beta or threshold"
    return "has hooks" if has_hooks(activation) else None


def has_hooks(module: nn.Module) -> bool:
    """True if a call of ``module`` runs hooks besides its ``forward``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
