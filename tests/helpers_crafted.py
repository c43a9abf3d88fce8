"""Crafted checkpoints: invalid trees and tensors with a valid checksum."""

import copy
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

STRANGE: tuple[Any, ...] = (
    None, True, "", "x", 0, -1, 3, 1.5, 2**62, 2**80, float("nan"), float("inf"), [], [1], {}, {"a": 1},
    {"tensor": "nope"}, {"tensor": 3}, {"tensor": ["h"]}, {"tensor": "rng.cpu"}, {"dict": 3}, {"dict": [1]},
    {"dict": [[[1], 2]]}, {"dict": [[None, 2]]}, {"dict": [["a", 1], ["a", 2]]}, {"dict": []}, {"list": None},
    {"tuple": []}, {"list": [{"list": [[]]}]}, {"evil": 1}, {"dict": [], "list": []}, "é" * 300,
)  # fmt: skip
"""JSON values to put in place of a node."""

TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "int": lambda t: t.long(),
    "bool": lambda t: t.bool(),
    "half": lambda t: t.half(),
    "float64": lambda t: t.double(),
    "float8": lambda t: t.float().to(torch.float8_e4m3fn),
    "empty": lambda t: torch.zeros(0, dtype=t.dtype),
    "number": lambda t: torch.zeros((), dtype=t.dtype),
    "row less": lambda t: t[:-1] if t.dim() else t,
    "dimension more": lambda t: t[None],
    "nan": lambda t: torch.full_like(t.float(), float("nan")),
    "zeros": torch.zeros_like,
    "negative": lambda t: -t - 1 if t.dtype == torch.int64 else t,
}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["dmm_fast"]), tensors


def crc32(document: str, tensors: dict[str, Tensor]) -> int:
    crc = zlib.crc32(document.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().tobytes(), crc)
    return crc


def write(path: Path, document: Any, tensors: dict[str, Tensor] | None = None) -> None:
    """A file with a valid checksum and any contents; a str is the document itself."""
    text = document if isinstance(document, str) else json.dumps(document)
    held = {name: tensor.contiguous() for name, tensor in (tensors or {}).items()}
    metadata = {"dmm_fast": text, "crc32": str(crc32(text, held))}
    path.write_bytes(safetensors_bytes(held, metadata))


def write_raw(path: Path, header: str, data: bytes = b"") -> None:
    """A file with this header, which need not be JSON, and these bytes."""
    path.write_bytes(struct.pack("<Q", len(header.encode())) + header.encode() + data)


def mutants(path: Path, number: int, seed: int = 0) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """``number`` corrupted versions of the checkpoint at ``path``, reproducible by seed."""
    document, tensors = read(path)
    dice = random.Random(seed)
    for _ in range(number):
        spoilt, held = copy.deepcopy(document), dict(tensors)
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            if not spoilt:
                break
            if dice.random() < 0.3 and held:
                _spoil_tensor(held, dice)
            else:
                _spoil_node(spoilt, dice)
        yield spoilt, held


def _spoil_tensor(tensors: dict[str, Tensor], dice: random.Random) -> None:
    name = dice.choice(sorted(tensors))
    if dice.random() < 0.2:
        del tensors[name]
        return
    tensors[name] = TENSORS[dice.choice(list(TENSORS))](tensors[name]).clone()


def _spoil_node(document: dict[str, Any], dice: random.Random) -> None:
    """Replace, remove or repeat one node of the document, at any depth alike."""
    place: Any = document
    key: Any = dice.choice(list(document))
    for _ in range(dice.randrange(12)):
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        place, key = inner, dice.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    kind = dice.random()
    if kind < 0.15:
        del place[key]
    elif kind < 0.25 and isinstance(place, list):
        place.append(copy.deepcopy(place[key]))
    elif kind < 0.35:
        place[key] = {"list": [copy.deepcopy(place[key])]}
    else:
        place[key] = copy.deepcopy(dice.choice(STRANGE))
