"""Nested dicts, lists, tuples, tensors and JSON values as one JSON document beside named tensors."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmm_fast import check

DEEPEST = 64
"""Largest depth of a tree; an optimizer's state has seven levels."""

LARGEST_DOCUMENT = 1 << 24
"""Largest number of characters in a document; a model with thirty parameters needs about ten thousand."""

DTYPES = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    }
)
"""Dtypes that a tensor in a tree may have."""

Scalar = bool | int | float | str | None


def encode(node: Any, name: str, tensors: dict[str, Tensor], depth: int = 0) -> Any:
    """``node`` as JSON; its tensors are added to ``tensors`` under their dotted path in the tree.

    ``depth`` is the depth of ``node`` in the tree.

    Raises:
        TypeError: a value is neither a tensor nor a JSON value, or a key is neither a str nor an int.
        ValueError: two tensors would have the same name, or the tree is deeper than :data:`DEEPEST`.
    """
    if depth > DEEPEST:
        check.fail(name, f"at most {DEEPEST} levels", "more")
    if isinstance(node, Scalar):
        return node
    if isinstance(node, Tensor):
        if name in tensors:
            check.fail(name, "one tensor of this name", "two: one key is an int, another its digits")
        tensors[name] = portable(name, node)
        return {"tensor": name}
    if isinstance(node, Mapping):
        for key in node:
            if isinstance(key, bool) or not isinstance(key, str | int):
                check.fail(name, "keys that are str or int", check.describe(key), TypeError)
        return {"dict": [[key, encode(node[key], _join(name, key), tensors, depth + 1)] for key in node]}
    if isinstance(node, tuple | list):
        places = enumerate(node)
        values = [encode(value, _join(name, place), tensors, depth + 1) for place, value in places]
        return {"tuple" if isinstance(node, tuple) else "list": values}
    check.fail(name, "a tensor, dict, list, tuple or JSON value", type(node).__name__, TypeError)


def portable(name: str, tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU: safetensors refuses tensors that share storage."""
    if check.dense(name, tensor).dtype not in DTYPES:
        check.fail(name, "real numbers, whole numbers or bools", check.describe(tensor), TypeError)
    return tensor.detach().to("cpu", copy=True).contiguous()


def parse(document: str) -> dict[str, Any]:
    """Parse ``document``, which must be a JSON object.

    Raises:
        ValueError: it is not a JSON object, too large, or nested too deeply.
    """
    if len(document) > LARGEST_DOCUMENT:
        check.fail("document", f"at most {LARGEST_DOCUMENT} characters", str(len(document)))
    try:
        parsed = json.loads(document)
    except RecursionError:
        check.fail("document", f"at most {DEEPEST} levels", "more")
    if not isinstance(parsed, dict):
        check.fail("document", "a JSON object", type(parsed).__name__)
    return parsed


def decode(node: Any, tensors: Mapping[str, Tensor], depth: int = 0) -> Any:
    """Inverse of :func:`encode`; ``depth`` is the depth of ``node`` in the tree.

    Raises:
        ValueError: ``node`` does not have the form that :func:`encode` writes, or names a missing tensor.
    """
    if depth > DEEPEST:
        check.fail("tree", f"at most {DEEPEST} levels", "more")
    if isinstance(node, Scalar):
        return node
    if not isinstance(node, dict) or len(node) != 1:
        check.fail("tree", "values and objects of one entry", type(node).__name__)
    ((kind, value),) = node.items()
    if kind == "tensor":
        if not isinstance(value, str) or value not in tensors:
            check.fail("tree", "the name of a tensor in this file", repr(value)[:80])
        return tensors[value]
    if kind not in ("dict", "tuple", "list"):
        check.fail("tree", "a tensor, dict, tuple or list", repr(kind)[:80])
    if not isinstance(value, list):
        check.fail("tree", f"the parts of a {kind}", type(value).__name__)
    if kind == "dict":
        return _decode_dict(value, tensors, depth)
    parts = [decode(item, tensors, depth + 1) for item in value]
    return tuple(parts) if kind == "tuple" else parts


def _decode_dict(pairs: list[Any], tensors: Mapping[str, Tensor], depth: int) -> dict[str | int, Any]:
    decoded: dict[str | int, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            check.fail("tree", "pairs of key and value in a dict", repr(pair)[:80])
        key, item = pair
        if isinstance(key, bool) or not isinstance(key, str | int):
            check.fail("tree", "keys that are str or int", type(key).__name__)
        if key in decoded:
            check.fail("tree", "each key of a dict once", repr(key)[:80])
        decoded[key] = decode(item, tensors, depth + 1)
    return decoded


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
