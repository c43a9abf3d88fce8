"""Every public function above the ops, found by inspection, with arguments to call it.

A function is known by its module and name (``infer.forecast``), a method by its class too
(``model.DMM.guide``), a constructor by the class (``model.DMM``). An argument is looked up first under the
name of its function (``infer.forecast.num_steps``), then under its own (``num_steps``), and is otherwise
left at its default. A function is covered when all it requires is found.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dmm_fast
from tests.bad_input.arguments import ARGUMENTS, INSTANCES

INTERNAL_MODULES = {"check", "cli", "cuda", "ops", "reference", "triton"}
"""Modules that users do not call: arguments are checked above them. The ops have tests of their own."""

NOT_CALLED = {
    "distributions.SequenceDistribution": "a base class",
    "infer.SequenceELBO.loss": "Pyro's own",
    "infer.SequenceELBO.differentiable_loss": "Pyro's own",
    **dict.fromkeys(
        [f"infer.ImportanceELBO.{name}" for name in ("loss", "loss_and_grads", "differentiable_loss")],
        "model and guide check the arguments",
    ),
}
"""Public functions that are not called here, with the reason."""

SLOW = {"training.train", "training.Trainer", "data.chorales", "music.save_png", "music.compare"}
"""A tenth of the tries is for these."""


class Call(NamedTuple):
    """A function with a factory of its arguments."""

    name: str
    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]

    def __call__(self, arguments: dict[str, Any]) -> Any:
        """Call the function; the arguments under ``*`` are positional."""
        given = arguments.get("*", ())
        positional = given if isinstance(given, tuple | list) else (given,)
        named = {name: value for name, value in arguments.items() if name != "*"}
        return self.function(*positional, **named)


def public_calls() -> tuple[list[Call], list[str]]:
    """All covered calls, and the names of the public functions that are not covered."""
    calls, uncovered = [], []
    for name, function, instance in _public_functions():
        if name in NOT_CALLED:
            continue
        arguments = _arguments_of(name, function, instance)
        if arguments is None:
            uncovered.append(name)
        else:
            calls.append(Call(name, _Bound(function, instance), arguments))
    return calls, uncovered


class _Bound:
    """A function, or a method of an instance made for each call; a context manager is exited at once."""

    def __init__(self, function: Callable[..., Any], instance: Callable[[], Any] | None) -> None:
        self._function, self._instance = function, instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._instance is not None:
            return self._function(self._instance(), *args, **kwargs)
        made = self._function(*args, **kwargs)
        if isinstance(made, dmm_fast.use_backend):
            with made:
                return None
        return made


def _public_functions() -> Iterator[tuple[str, Callable[..., Any], Callable[[], Any] | None]]:
    yield "ops.use_backend", dmm_fast.use_backend, None
    for info in pkgutil.iter_modules(dmm_fast.__path__):
        if info.name.startswith("_") or info.name in INTERNAL_MODULES:
            continue
        module = importlib.import_module(f"dmm_fast.{info.name}")
        # A package lists its public names, which may be imported lazily; a module has the names it defines.
        for name in sorted(getattr(module, "__all__", vars(module))):
            thing = getattr(module, name)
            is_own = getattr(thing, "__module__", None) == module.__name__ and not name.startswith("_")
            if not (is_own or hasattr(module, "__all__")):
                continue
            if inspect.isclass(thing):
                yield from _of_class(f"{info.name}.{name}", thing)
            elif inspect.isfunction(thing):
                yield f"{info.name}.{name}", thing, None


def _no_instance() -> Any:
    """Placeholder for classes without a known instance."""


def _of_class(name: str, cls: type) -> Iterator[tuple[str, Callable[..., Any], Callable[[], Any] | None]]:
    """The constructor, if it checks anything, and the methods that have arguments.

    A method implemented by a base class is included if arguments for it are listed.
    """
    if issubclass(cls, BaseException) or getattr(cls, "_is_protocol", False):
        return
    holds_alone = dataclasses.is_dataclass(cls) and not hasattr(cls, "__post_init__")
    if not issubclass(cls, tuple) and not holds_alone:
        yield name, cls, None
    listed = {
        key.removeprefix(f"{name}.").partition(".")[0] for key in ARGUMENTS if key.startswith(f"{name}.")
    }
    inherited = {method: getattr(cls, method) for method in listed if hasattr(cls, method)}
    for method, function in sorted((inherited | vars(cls)).items()):
        is_public = not method.startswith("_") or method == "__call__"
        if is_public and inspect.isfunction(function) and len(inspect.signature(function).parameters) > 1:
            made = INSTANCES.get(f"{name}.{method}", INSTANCES.get(name, _no_instance))
            yield f"{name}.{method}", function, made


def _arguments_of(
    name: str, function: Callable[..., Any], instance: Callable[[], Any] | None
) -> Callable[[], dict[str, Any]] | None:
    """A factory of all arguments of a function; None if a required one is unknown."""
    if instance is _no_instance:
        return None
    makers: dict[str, Callable[[], Any]] = {}
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters if instance is None else parameters[1:]:
        key = "*" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name
        if f"{name}.{key}" in ARGUMENTS:
            makers[key] = ARGUMENTS[f"{name}.{key}"]
        elif parameter.default is not parameter.empty:
            makers[key] = ARGUMENTS.get(key, lambda default=parameter.default: default)
        elif key in ARGUMENTS:
            makers[key] = ARGUMENTS[key]
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
    return lambda: {key: make() for key, make in makers.items()}
