"""Implementations on each device, and the reasons for skipping peers."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from benchmarks.implementations import GPU_PEERS, PEERS, WITHOUT_A_GPU, WITHOUT_JAX, jax_peers, skipped_on
from benchmarks.stepper import JAX_NAME

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OF_TORCH = [
    "PyTorch, hand-written backward",
    "PyTorch, batched",
    "PyTorch, batched, compiled",
    "PyTorch, batched, CUDA graph",
    "PyTorch, batched, compiled, CUDA graph",
]


def test_the_peers_on_a_cpu_are_peers_on_a_gpu():
    assert [peer.name for peer in GPU_PEERS] == OF_TORCH
    assert set(PEERS) <= set(GPU_PEERS)


def test_skipped_peers_have_a_reason():
    assert skipped_on(CUDA) == {}
    assert skipped_on(CPU) == dict.fromkeys(OF_TORCH[3:], WITHOUT_A_GPU)


@pytest.mark.skipif(not jax_peers()[0], reason="needs JAX: pip install -r benchmarks/requirements.txt")
def test_jax_is_a_peer_where_it_is_installed():
    ((peer,), why_not) = jax_peers()
    assert (peer.name, why_not) == (JAX_NAME, "")


def test_a_missing_or_broken_jax_is_skipped(monkeypatch):
    ask = jax_peers.__wrapped__
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ask() == ((), WITHOUT_JAX)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "benchmarks.peer_jax", None)
    peers, why = ask()
    assert peers == ()
    assert why.startswith("it cannot be imported, ModuleNotFoundError: ")


def test_jax_is_imported_only_on_request():
    program = "import sys, benchmarks.gpu.stages.steps; sys.exit('benchmarks.peer_jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
