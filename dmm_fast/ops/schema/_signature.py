"""The classes of the table of ops: arguments, signatures and rows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dmm_fast import check
from dmm_fast.ops.schema._weights import WEIGHTS

# Kinds of arguments that are not floating-point tensors, with their types in a schema.
_TYPES = {
    "lengths": "Tensor",
    "mask": "Tensor?",
    "choice": "str",
    "flag": "bool",
    "plan": "int[]",
    "int": "int",
    "float": "float",
    "tensors": "Tensor[]",
}


@dataclass(frozen=True)
class Argument:
    """An argument: its kind and, for a tensor, its dimensions and an optional fact about its values.

    ``kind`` is ``"tensor"``, ``"weights"`` (``dims`` is then the kind of weights), or a kind without
    gradient: ``"lengths"`` (int64 ``[B]`` in ``[0, T]``), ``"mask"`` (``[B, T]`` or ``[B, T, D]``, 0 or 1, or
    None), ``"choice"`` (one of the names in ``fact``), ``"flag"``, ``"plan"`` (the distribution of work in a
    CUDA kernel), ``"int"``, ``"float"``, and ``"tensors"`` (a list, changed in place if the fact is
    ``"changed"``).
    """

    name: str
    kind: str
    dims: str = ""
    fact: str = ""

    @classmethod
    def parse(cls, name: str, spec: str) -> "Argument":
        """Read the short form of the table."""
        word, _, fact = spec.partition(":")
        if len(word) > 1 and word.islower() and word not in _TYPES:
            return cls(name, "weights", word, fact)
        return cls(name, word, "", fact) if word in _TYPES else cls(name, "tensor", word, fact)

    @property
    def prefix(self) -> str:
        """The name prefix of weights with this name when they are single tensors."""
        return self.name.removesuffix("weights")

    @property
    def has_gradient(self) -> bool:
        """True if an op can have a gradient with respect to the argument."""
        return self.kind in ("tensor", "weights")

    @property
    def choices(self) -> tuple[str, ...]:
        """The valid names of a choice."""
        return tuple(self.fact.split("|"))

    def torch_type(self, alias: str = "") -> str:
        """The type in a schema of torch."""
        kind = _TYPES.get(self.kind, "Tensor")
        return kind.replace("Tensor", f"Tensor({alias}!)") if self.fact == "changed" else kind


@dataclass(frozen=True)
class Signature:
    """The arguments and the results of a compiled op, in order."""

    name: str
    arguments: tuple[Argument, ...]
    results: tuple[Argument, ...]

    @classmethod
    def parse(cls, name: str, inputs: dict[str, str], outputs: dict[str, str]) -> "Signature":
        """Read the short form of the table."""
        arguments, results = (
            tuple(Argument.parse(*entry) for entry in side.items()) for side in (inputs, outputs)
        )
        return cls(name, arguments, results)

    @cached_property
    def flat_arguments(self) -> tuple[Argument, ...]:
        """The arguments in torch's schema, in which each weight is one argument."""
        return _flat(self.arguments)

    @cached_property
    def flat_results(self) -> tuple[Argument, ...]:
        """The results in torch's schema."""
        return _flat(self.results)

    def group(self, given: Sequence[Any]) -> list[Any]:
        """The values of :attr:`arguments`, with weights as lists, from those of :attr:`flat_arguments`."""
        values = iter(given)
        return [
            [next(values) for _ in WEIGHTS[argument.dims].words]
            if argument.kind == "weights"
            else next(values)
            for argument in self.arguments
        ]

    @property
    def schema(self) -> str:
        """The schema in the syntax of ``torch.library``."""
        aliases = iter("abcdefgh")
        given = []
        for argument in self.flat_arguments:
            alias = next(aliases) if argument.fact == "changed" else ""
            given.append(f"{argument.torch_type(alias)} {argument.name}")
        made = [f"{result.torch_type()} {result.name}" for result in self.flat_results]
        results = made[0].partition(" ")[0] if len(made) == 1 else f"({', '.join(made)})"
        return f"{self.name}({', '.join(given)}) -> {results}"


def _flat(arguments: Iterable[Argument]) -> tuple[Argument, ...]:
    flat: list[Argument] = []
    for argument in arguments:
        if argument.kind == "weights":
            flat += (
                Argument(argument.prefix + field, "tensor", word)
                for field, word in WEIGHTS[argument.dims].entries
            )
        else:
            flat.append(argument)
    return tuple(flat)


BACKEND = Argument("backend", "choice", "", "|cpp|triton|cuda")
"""The last argument of a compiled op: the requested backend; empty: the device's default."""


@dataclass(frozen=True)
class Op:
    """A row of the table.

    Attributes:
        name: name of the op, of its public function, its reference and its compiled op.
        doc: a description of the result.
        inputs: dimensions by name, in the order of the op's signature.
        outputs: dimensions by name.
        stem: name of its files in ``ops/``, ``triton/`` and ``cuda/``; empty: the name of the op.
        leading: the argument whose dtype, device and sizes the others must match; empty: the first.
        saved: names of the inputs and outputs that the backward pass reads, in its order; empty: all inputs.
        kept: further outputs of the compiled op for its backward pass only, computed if autograd records.
        optional: inputs whose gradient the backward pass computes only on request.
        valued: the backward pass also returns the outputs, after the gradients, on request: if the incoming
            gradient is known beforehand, one pass is then enough for both. The op must have one output, and
            its backward pass must read all inputs.
        has_backward: the op has gradients; otherwise a backward pass through it raises an error.
    """

    name: str
    doc: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    stem: str = ""
    leading: str = ""
    saved: str = ""
    kept: dict[str, str] | None = None
    optional: tuple[str, ...] = ()
    valued: bool = False
    has_backward: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem", self.stem or self.name)
        object.__setattr__(self, "leading", self.leading or next(iter(self.inputs)))
        known = {*self.inputs, *self.outputs, *(self.kept or {})}
        named = (
            ("leading", {self.leading}, {*self.inputs}),
            ("saved", {*self.saved.split()}, known),
            ("optional", {*self.optional}, {*self.inputs}),
        )
        for field, names, expected in named:
            if not names <= expected:
                got = ", ".join(sorted(names - expected))
                check.fail(f"{self.name}.{field}", f"names among {', '.join(sorted(expected))}", got)
        if self.valued and (self.saved or len(self.outputs) != 1):
            check.fail(f"{self.name}.valued", "one output, and all inputs saved", "a row of another kind")

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """The arguments of the public function and of the reference."""
        return tuple(Argument.parse(name, spec) for name, spec in self.inputs.items())

    @cached_property
    def results(self) -> tuple[Argument, ...]:
        """The results of the public function and of the reference."""
        return tuple(Argument.parse(name, dims) for name, dims in self.outputs.items())

    @cached_property
    def kept_results(self) -> tuple[Argument, ...]:
        """The further results of the compiled op for its backward pass."""
        return tuple(Argument.parse(name, dims) for name, dims in (self.kept or {}).items())

    @cached_property
    def differentiable(self) -> tuple[Argument, ...]:
        """The arguments with gradients."""
        return tuple(argument for argument in self.arguments if argument.has_gradient)

    @cached_property
    def leading_argument(self) -> Argument:
        """The argument that the others must match."""
        return next(argument for argument in self.arguments if argument.name == self.leading)

    @property
    def signatures(self) -> "tuple[Signature, ...]":
        """The compiled ops of this row that are registered with torch."""
        return (self.forward, self.backward) if self.has_backward else (self.forward,)

    @property
    def is_sequence(self) -> bool:
        """True if the op works on sequences, which have lengths, and not on single steps."""
        return "lengths" in self.inputs

    @cached_property
    def forward(self) -> Signature:
        """The compiled op."""
        flags = (Argument(f"keep_{kept.name}", "flag") for kept in self.kept_results)
        return Signature(self.name, (*self.arguments, *flags, BACKEND), self.results + self.kept_results)

    @cached_property
    def backward(self) -> Signature:
        """The compiled op of the gradients."""
        known = {argument.name: argument for argument in (*self.arguments, *self.results, *self.kept_results)}
        names = self.saved.split() or list(self.inputs)
        incoming = [Argument(f"d{result.name}", "tensor", result.dims) for result in self.results]
        values = self.results if self.valued else ()
        wanted = (*(f"d{name}" for name in self.optional), *(value.name for value in values))
        flags = [Argument(f"with_{name}", "flag") for name in wanted]
        gradients = (Argument(f"d{a.name}", a.kind, a.dims) for a in self.differentiable)
        return Signature(
            f"{self.name}_backward",
            (*incoming, *(known[name] for name in names), *flags, BACKEND),
            (*gradients, *values),
        )


def sizes_in(dims: str) -> list[str]:
    """The sizes of a word: letters, twice a letter, ``(2Z)``, or a difference, ``(I-Z)``."""
    return re.findall(r"\(\d\w\)|\(\w-\w\)|\w", dims)


def size_of(size: str, letters: Mapping[str, int]) -> int:
    """The value of a size of a word."""
    if not size.startswith("("):
        return letters[size]
    first, last = size[1], size[-2]
    return int(first) * letters[last] if first.isdigit() else letters[first] - letters[last]
