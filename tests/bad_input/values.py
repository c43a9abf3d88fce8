"""Invalid values: a pool of objects of other types, and ways to change a valid value."""

import copy
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Spoil = Callable[[Any], Any]

POOL: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "empty string": lambda: "",
    "string": lambda: "x",
    "string with a null": lambda: "a\0b",
    "bytes": lambda: b"x",
    "0": lambda: 0,
    "-1": lambda: -1,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "huge int": lambda: 2**70,
    "complex": lambda: 1j,
    "empty list": lambda: [],
    "list": lambda: [1, "a"],
    "tuple": lambda: (1,),
    "dict": lambda: {"a": 1},
    "set": lambda: {1},
    "object": object,
    "class": lambda: dict,
    "function": lambda: len,
    "array": lambda: np.array([1.0, 2.0]),
    "array of objects": lambda: np.array([None, "a"], dtype=object),
    "numpy float": lambda: np.float32(1.5),
    "numpy nan": lambda: np.float64("nan"),
    "numpy int": lambda: np.int64(2),
    "path": lambda: Path("nowhere") / "x",
    "folder": lambda: Path(),
    "tensor number": lambda: torch.tensor(1.5),
    "tensor nan": lambda: torch.tensor(float("nan")),
    "tensor int": lambda: torch.tensor(2),
    "empty tensor": lambda: torch.zeros(0),
    "tensor [2, 3]": lambda: torch.zeros(2, 3),
    "bool tensor": lambda: torch.ones(4, dtype=torch.bool),
    "int tensor": lambda: torch.arange(4),
    "huge int tensor": lambda: torch.full((4,), 2**62),
    "complex tensor": lambda: torch.zeros(2, 3, dtype=torch.complex64),
    "meta tensor": lambda: torch.zeros(4, 6, 5, device="meta"),
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "parameter": lambda: nn.Parameter(torch.ones(3)),
    "module": lambda: nn.Linear(2, 3),
}
"""Things of other kinds than what is asked for, each made anew, as calls may change them."""

_TENSOR_SPOILS: dict[str, Callable[[Tensor], Any]] = {
    "half": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float32": lambda t: t.float(),
    "float64": lambda t: t.double(),
    "int32": lambda t: t.int(),
    "int64": lambda t: t.long(),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "list of": lambda t: t.tolist(),
    "array of": lambda t: t.detach().numpy(),
    "nan": lambda t: torch.full_like(t.float(), float("nan")).to(t.dtype),
    "one nan": lambda t: t.clone().index_fill_(0, torch.tensor(0), float("nan")),
    "inf": lambda t: torch.full_like(t, float("inf")),
    "huge": lambda t: torch.full_like(t, 2**62 if not t.is_floating_point() else 1e38),
    "negative": lambda t: -t - 1,
    "times 2": lambda t: t * 2,
    "plus 1000": lambda t: t + 1000,
    "zeros": torch.zeros_like,
    "half of": lambda t: t * 0.5,
    "row less": lambda t: t[:-1],
    "column less": lambda t: t[..., :-1],
    "row more": lambda t: torch.cat([t, t[:1]]),
    "column more": lambda t: torch.cat([t, t[..., :1]], -1),
    "first row": lambda t: t[0],
    "no rows": lambda t: t[:0],
    "no columns": lambda t: t[..., :0],
    "no steps": lambda t: t[:, :0],
    "dimension more": lambda t: t.unsqueeze(0),
    "column of": lambda t: t.unsqueeze(-1),
    "flat": lambda t: t.flatten(),
    "sum of": lambda t: t.sum(),
    "transposed": lambda t: t.mT,
    "swapped": lambda t: t.transpose(0, 1),
    "not contiguous": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[:1].expand_as(t),
    "repeated": lambda t: torch.stack([t, t]),
    "requires grad": lambda t: t.detach().clone().requires_grad_(),
}

_NUMBER_SPOILS: dict[str, Spoil] = {
    "negative": lambda v: -v,
    "plus a half": lambda v: v + 0.5,
    "float of": float,
    "int of": int,
    "string of": str,
    "tensor of": torch.tensor,
    "numpy of": np.float64,
    "list of": lambda v: [v],
    "zero": lambda v: type(v)(0),
    "plus 40": lambda v: v + 40,
}

_STRING_SPOILS: dict[str, Spoil] = {
    "upper": lambda v: str(v).upper(),
    "longer": lambda v: f"{v}x",
    "bytes of": lambda v: str(v).encode(),
    "list of": lambda v: [str(v)],
    "very long": lambda v: str(v) * 2000,
}

# The density of a latent that is off by a thousand can overflow float32.
NOT_FINITE = ("nan", "inf", "huge", "plus 1000")
"""Words in the labels of values after which an answer may be infinite or not a number."""


def spoilt(value: Any, dice: random.Random, depth: int = 0) -> tuple[str, Any]:
    """An invalid value in place of ``value``, and a label for it."""
    if dice.random() < 0.35:
        return _from_pool(dice)
    if isinstance(value, Tensor):
        return _applied(_TENSOR_SPOILS, value, dice)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _applied(_NUMBER_SPOILS, value, dice)
    if isinstance(value, str | Path):
        return _applied(_STRING_SPOILS, value, dice)
    if depth < 3 and (isinstance(value, tuple | list | dict) or _is_record(value)):
        return _inside(value, dice, depth)
    return _from_pool(dice)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _from_pool(dice: random.Random) -> tuple[str, Any]:
    label = dice.choice(list(POOL))
    return label, POOL[label]()


def _applied(spoils: dict[str, Any], value: Any, dice: random.Random) -> tuple[str, Any]:
    """Draw one of ``spoils`` that is applicable to ``value``."""
    labels = list(spoils)
    dice.shuffle(labels)
    for label in labels:
        try:
            return f"{label}, spoilt", spoils[label](value)
        except (RuntimeError, TypeError, ValueError, IndexError, OverflowError):
            continue  # not applicable to every value, for example to a tensor of one dimension
    raise AssertionError(f"nothing spoils {value!r}")


def _inside(value: Any, dice: random.Random, depth: int) -> tuple[str, Any]:
    """``value`` with one of its parts changed, removed or duplicated."""
    if isinstance(value, dict):
        return _inside_dict(value, dice, depth)
    if _is_record(value):
        name = dice.choice([field.name for field in dataclasses.fields(value)])
        label, part = spoilt(getattr(value, name), dice, depth + 1)
        try:
            return f"{name}: {label}", dataclasses.replace(value, **{name: part})
        except Exception:
            return _from_pool(dice)  # a record that checks its fields rejects this part
    parts = list(value)
    if isinstance(value, torch.Size):
        value = tuple(value)  # torch.Size accepts only integers
    if not parts or dice.random() < 0.15:
        return ("a part less", type(value)(parts[:-1])) if _is_plain(value) else _from_pool(dice)
    if _is_plain(value) and dice.random() < 0.1:
        return "a part more", type(value)([*parts, copy.copy(parts[0])])
    index = dice.randrange(len(parts))
    label, parts[index] = spoilt(parts[index], dice, depth + 1)
    made = type(value)(parts) if _is_plain(value) else type(value)(*parts)
    return f"[{index}]: {label}", made


def _is_plain(value: Any) -> bool:
    return not hasattr(value, "_fields")


def _inside_dict(value: dict[Any, Any], dice: random.Random, depth: int) -> tuple[str, Any]:
    spoiled = dict(value)
    if not spoiled or dice.random() < 0.2:
        key, kind = dice.choice([("strange", "str"), (3, "int"), (None, "None")])
        spoiled[key] = 1
        return f"another key ({kind})", spoiled
    key = dice.choice(list(spoiled))
    if dice.random() < 0.3:
        del spoiled[key]
        return f"without {key!r}"[:40], spoiled
    label, spoiled[key] = spoilt(spoiled[key], dice, depth + 1)
    return f"{key!r}: {label}"[:60], spoiled
