"""Who takes part where, and what is said of those who cannot."""

import importlib.util
import sys

import pytest
import torch

from benchmarks import contestants
from benchmarks.contestants import GPU_PEERS, JAX, PEERS, WITHOUT_A_GPU, WITHOUT_JAX, peers_on
from benchmarks.racer import JAX_NAME

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OF_TORCH = [
    "PyTorch, hand-written backward",
    "PyTorch, batched",
    "PyTorch, batched, compiled",
    "PyTorch, batched, CUDA graph",
    "PyTorch, batched, compiled, CUDA graph",
]
GRAPHED = dict.fromkeys(OF_TORCH[3:], WITHOUT_A_GPU)
needs_jax = pytest.mark.skipif(not JAX, reason="needs JAX: pip install -r benchmarks/requirements.txt")


@pytest.fixture
def no_jax(monkeypatch):
    monkeypatch.setattr(contestants, "WHY_NO_JAX", "there is none")


def test_the_peers_of_a_cpu_are_peers_of_a_gpu():
    assert [peer.name for peer in GPU_PEERS if peer not in JAX] == OF_TORCH
    assert set(PEERS) <= set(GPU_PEERS)
    assert len({peer.name for peer in GPU_PEERS}) == len(GPU_PEERS)


@pytest.mark.usefixtures("no_jax")
def test_who_is_left_out_says_why():
    assert peers_on(CPU)[1] == GRAPHED | {JAX_NAME: "there is none"}
    taking_part, why = peers_on(CUDA)
    assert why == {JAX_NAME: "there is none"}
    assert [peer.name for peer in taking_part] == OF_TORCH


@needs_jax
def test_jax_takes_part_where_it_is():
    assert [peer.name for peer in peers_on(CUDA)[0]] == [*OF_TORCH, JAX_NAME]
    assert [peer.name for peer in peers_on(CPU)[0]] == [*OF_TORCH[:3], JAX_NAME]


def test_without_jax_or_with_a_broken_one(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert contestants._jax() == ((), WITHOUT_JAX)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "benchmarks.peer_jax", None)
    peers, why = contestants._jax()
    assert peers == ()
    assert why.startswith("it cannot be imported, ModuleNotFoundError: ")
