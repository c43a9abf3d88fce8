"""The peer "JAX, jit + lax.scan": loss, gradients and optimizer in one compiled function.

The two recurrences are ``lax.scan``; everything else is batched over T x B with masks. Parameters and moments
are donated, and noise is drawn inside the function. Each shape of a mini-batch, padded to its longest
sequence, is compiled once, before it is timed. A run waits for its results.

On a CPU, XLA ignores ``torch.set_num_threads``: it makes, once per process, a thread for each processor the
calling thread may use. Its client is therefore started, and every run made, with the thread restricted to as
many processors as torch has threads.

On a GPU, XLA's default precision of float32 products is TF32; here it follows the setting of torch.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array, lax
from jax.nn import relu, sigmoid, softplus
from pyro.infer import Trace_ELBO
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.stepper import JAX_NAME, OPTIMIZER, tutorial_noise
from benchmarks.timing import Timed
from dmm_fast.data import Batch

ADAM_EPS = 1e-8
# Read when the client starts. The default takes three quarters of the GPU memory that all share.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

Parameters = dict[str, Array]


class Padded(NamedTuple):
    """A mini-batch, time first: ``x`` [T, B, D], ``valid`` [T, B, 1] bool."""

    x: Array
    valid: Array


class State(NamedTuple):
    """The state that a step updates."""

    parameters: Parameters
    mean: Parameters
    square: Parameters
    lr: Array
    steps: Array
    key: Array


def loss(p: Parameters, batch: Padded, eps: Array, annealing_factor: Array) -> Array:
    """The negative ELBO of one sample, as ``Trace_ELBO`` estimates it; ``eps`` is ``[T, B, Z]``."""

    def layer(name: str, inputs: Array) -> Array:
        return inputs @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def heads(kind: str) -> Array:
        return jnp.concatenate([p[f"combiner.lin_hidden_to_{head}.{kind}"] for head in ("loc", "scale")])

    B, Z = eps.shape[1:]
    projected = batch.x @ p["rnn.weight_ih_l0"].T + (p["rnn.bias_ih_l0"] + p["rnn.bias_hh_l0"])
    W_hh, W_out, b_out = p["rnn.weight_hh_l0"].T, heads("weight").T, heads("bias")

    def rnn_step(h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        a, valid = inputs
        h = jnp.where(valid, relu(a + h @ W_hh), h)  # h_0 past the end of the sequence
        return h, h

    def guide_step(z: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        h, noise = inputs
        combined = 0.5 * (jnp.tanh(layer("combiner.lin_z_to_hidden", z)) + h)
        z_loc, raw = jnp.split(combined @ W_out + b_out, 2, axis=1)
        scale = softplus(raw)
        z = z_loc + scale * noise
        return z, (z, scale)

    h_0 = jnp.broadcast_to(p["h_0"].reshape(-1), (B, W_hh.shape[0]))
    _, h = lax.scan(rnn_step, h_0, (projected, batch.valid), reverse=True)
    _, (z, q_scale) = lax.scan(guide_step, jnp.broadcast_to(p["z_q_0"], (B, Z)), (h, eps))

    z_before = jnp.concatenate([jnp.broadcast_to(p["z_0"], (1, B, Z)), z[:-1]])
    gate = sigmoid(layer("trans.lin_gate_hidden_to_z", relu(layer("trans.lin_gate_z_to_hidden", z_before))))
    hidden = relu(layer("trans.lin_proposed_mean_z_to_hidden", z_before))
    proposed = layer("trans.lin_proposed_mean_hidden_to_z", hidden)
    p_loc = gate * proposed + (1 - gate) * layer("trans.lin_z_to_loc", z_before)
    p_scale = softplus(layer("trans.lin_sig", relu(proposed)))
    # log q(z) - log p(z) with z = loc + scale eps in q; the constants cancel.
    excess = 0.5 * (((z - p_loc) / p_scale) ** 2 - eps**2) + jnp.log(p_scale / q_scale)

    hidden = relu(layer("emitter.lin_hidden_to_hidden", relu(layer("emitter.lin_z_to_hidden", z))))
    logits = layer("emitter.lin_hidden_to_input", hidden)
    surprise = softplus(logits) - batch.x * logits
    per_row = surprise.sum(-1) + annealing_factor * excess.sum(-1)
    return jnp.where(batch.valid[..., 0], per_row, 0.0).sum()


loss_and_gradients = jax.jit(jax.value_and_grad(loss))


def clipped_adam(state: State, gradients: Parameters) -> State:
    """A step of Pyro's ``ClippedAdam``."""
    beta1, beta2 = OPTIMIZER["betas"]
    lr, steps = state.lr * OPTIMIZER["lrd"], state.steps + 1
    # 1 - beta^n without cancellation in float32
    left1, left2 = (-jnp.expm1(steps * math.log(beta)) for beta in (beta1, beta2))
    step_size = lr * jnp.sqrt(left2) / left1

    def gradient(g: Array, p: Array) -> Array:
        return jnp.clip(g, -OPTIMIZER["clip_norm"], OPTIMIZER["clip_norm"]) + OPTIMIZER["weight_decay"] * p

    def moved(p: Array, m: Array, v: Array) -> Array:
        return p - step_size * m / (jnp.sqrt(v) + ADAM_EPS)

    g = jax.tree.map(gradient, gradients, state.parameters)
    mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mean, g)
    square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.square, g)
    parameters = jax.tree.map(moved, state.parameters, mean, square)
    return State(parameters, mean, square, lr, steps, state.key)


def step_with(state: State, batch: Padded, eps: Array, annealing_factor: Array) -> tuple[State, Array]:
    """Take an SVI step with the noise ``eps``; returns the next state and the loss before it."""
    value, gradients = jax.value_and_grad(loss)(state.parameters, batch, eps, annealing_factor)
    return clipped_adam(state, gradients), value


@functools.partial(jax.jit, donate_argnums=0)
def step(state: State, batch: Padded, annealing_factor: Array) -> tuple[State, Array]:
    """Take an SVI step with random noise."""
    key, now = jax.random.split(state.key)
    eps = jax.random.normal(now, (*batch.x.shape[:2], state.parameters["z_0"].size))
    return step_with(state._replace(key=key), batch, eps, annealing_factor)


@contextmanager
def processors(count: int) -> Iterator[None]:
    """Restrict this thread, and threads it starts, to ``count`` of the processors it may use."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def matmul_precision() -> AbstractContextManager[None]:
    """Compute float32 products in the precision that torch is set to."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return jax.default_matmul_precision("highest" if exact else "tensorfloat32")


@functools.cache
def start_client(platform: str) -> int:
    """Start XLA's client, on a CPU with as many threads as torch. Returns the number of threads of torch.

    Raises:
        RuntimeError: this JAX does not support the platform, or runs on another one in this process.
    """
    threads = torch.get_num_threads()
    jax.config.update("jax_platforms", platform)
    with processors(threads) if platform == "cpu" else nullcontext():
        jax.devices(platform)
        # A client may start although its GEMM library is missing.
        jax.block_until_ready(jnp.ones((2, 2)) @ jnp.ones((2, 2)))
    return threads


def moved(tensor: Tensor) -> Array:
    """A copy of ``tensor`` as a JAX array."""
    return jnp.array(tensor.cpu().numpy())


def padded(batch: Batch) -> Padded:
    """``batch`` as JAX arrays."""
    mask = batch.mini_batch_mask.T.unsqueeze(-1)
    return Padded(moved(batch.mini_batch.transpose(0, 1)), moved(mask.bool()))


class JaxStepper:
    """Takes the SVI steps of this peer; parameters have the tutorial's names.

    Raises:
        RuntimeError: JAX has no client for the device of the case; or, on a CPU, XLA was started with another
            number of threads than torch has now.
    """

    def __init__(self, case: Case, parameters: Mapping[str, Tensor]) -> None:
        self.case = case
        self.threads = start_client(case.device.type)
        if self._on_a_cpu and self.threads != torch.get_num_threads():
            raise RuntimeError(
                f"threads: expected {self.threads}, with which XLA was started in this process, "
                f"got {torch.get_num_threads()}"
            )
        mine = {name: moved(value) for name, value in parameters.items()}
        self._annealing_factor = jnp.float32(case.annealing_factor)
        self._batches = [padded(batch) for batch in case.batches]
        self.state = State(
            parameters=mine,
            mean=jax.tree.map(jnp.zeros_like, mine),
            square=jax.tree.map(jnp.zeros_like, mine),
            lr=jnp.float32(OPTIMIZER["lr"]),
            steps=jnp.int32(0),
            key=jax.random.key(0),
        )

    def active(self) -> AbstractContextManager[None]:
        """Restrict to as many processors as torch has threads; on a GPU, set the precision of torch."""
        return processors(self.threads) if self._on_a_cpu else matmul_precision()

    @property
    def _on_a_cpu(self) -> bool:
        return self.case.device.type == "cpu"

    def run(self) -> float:
        """Take a step on every batch of the case, which is one timed run. Returns the last loss."""
        value = jnp.float32(jnp.nan)
        for batch in self._batches:
            self.state, value = step(self.state, batch, self._annealing_factor)
        jax.block_until_ready(self.state)
        return float(value)

    def loss_and_grads(self, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradient of every parameter with the tutorial's noise for ``seed``."""
        eps = tutorial_noise(batch, self.state.parameters["z_0"].size, seed)
        with self.active():
            value, gradients = loss_and_gradients(
                self.state.parameters, padded(batch), moved(eps), self._annealing_factor
            )
        back = {name: torch.from_numpy(np.array(g)) for name, g in gradients.items()}
        return float(value), {name: g.to(self.case.device) for name, g in back.items()}

    def timed(self) -> Timed:
        """The function to time."""
        return Timed(self.run, self.active)


@dataclass(frozen=True)
class JaxImplementation:
    """This peer."""

    name: str = JAX_NAME
    elbo: Callable[[], Any] = Trace_ELBO

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> JaxStepper:
        """Build a stepper for ``case`` that starts from ``parameters``."""
        return JaxStepper(case, parameters)
