"""Ops of torch made of the functions of a package's modules."""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch


class Library:
    """The ops ``<namespace>::<name>`` of every function in ``__all__`` of a package's modules.

    The functions' annotations are the schemas; a module's ``MUTATED`` tells which arguments an op changes.
    """

    def __init__(self, namespace: str, package: str, key: str) -> None:
        self._ops = torch.library.Library(namespace, "FRAGMENT")
        self._package = package
        self._key = key
        self._defined: set[str] = set()

    def holds(self, stem: str) -> bool:
        """Whether the package has a module ``stem``; if so, its ops are there from now on."""
        if find_spec(f"{self._package}.{stem}") is None:
            return False
        if stem not in self._defined:
            self._defined.add(stem)
            self._define(stem)
        return True

    def implement(self, name: str, function: Callable[..., Any], key: str) -> None:
        """Have the op of that name computed by ``function`` for another dispatch key."""
        self._ops.impl(name, function, key)

    def _define(self, stem: str) -> None:
        module = importlib.import_module(f"{self._package}.{stem}")
        mutated: dict[str, tuple[str, ...]] = getattr(module, "MUTATED", {})
        for name in module.__all__:
            function: Callable[..., Any] = getattr(module, name)
            schema = torch.library.infer_schema(function, mutates_args=mutated.get(name, ()))
            self._ops.define(name + schema)
            self._ops.impl(name, function, self._key)
