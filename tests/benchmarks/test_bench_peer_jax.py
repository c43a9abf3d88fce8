"""The JAX peer has the losses, gradients and updates of the tutorial, and a limited number of processors."""

import importlib
import os
from pathlib import Path

import pytest
import torch

from benchmarks.stepper import OPTIMIZER, tutorial_noise
from tests.helpers_peers import STEPS, baseline_losses, disagreements, parameters, ragged_case

jax = pytest.importorskip("jax", reason="needs JAX: pip install -r benchmarks/requirements.txt")
peer_jax = importlib.import_module("benchmarks.peer_jax")


def test_agrees_on_ragged_batches():
    assert disagreements(peer_jax.JaxImplementation(), ragged_case()) == set()


def test_a_wrong_loss_is_detected(monkeypatch):
    def wrong(p, batch, eps, annealing_factor):
        return peer_jax.loss(p, batch, eps, 1.001 * annealing_factor)

    monkeypatch.setattr(peer_jax, "loss_and_gradients", jax.jit(jax.value_and_grad(wrong)))
    assert disagreements(peer_jax.JaxImplementation(), ragged_case(1)) == {"SVI loss", "SVI gradients"}


def test_training_has_the_losses_of_the_tutorial():
    case, start = ragged_case(2), parameters()  # each shape is compiled
    stepper = peer_jax.JaxImplementation().setup(case, start)
    step = jax.jit(peer_jax.step_with)
    state, losses = stepper.state, []
    for seed in range(STEPS):
        batch = case.batches[seed % len(case.batches)]
        eps = tutorial_noise(batch, 8, seed).numpy()
        state, value = step(state, peer_jax.padded(batch), eps, case.annealing_factor)
        losses.append(float(value))
    assert losses == pytest.approx(baseline_losses(case, start), rel=2e-6)
    assert int(state.steps) == STEPS
    assert float(state.lr) == pytest.approx(OPTIMIZER["lr"] * OPTIMIZER["lrd"] ** STEPS, rel=1e-6)


def test_the_optimizer_clips_each_element():
    p = {"a": jax.numpy.array([1.0, -2.0])}
    zero = {"a": jax.numpy.zeros(2)}
    state = peer_jax.State(p, zero, zero, jax.numpy.float32(0.1), jax.numpy.int32(0), jax.random.key(0))
    moved = peer_jax.clipped_adam(state, {"a": jax.numpy.array([50.0, -3.0])})
    clipped = torch.tensor([10.0 + 2.0, -3.0 - 4.0])  # and the weight decay of 2
    assert moved.mean["a"].tolist() == pytest.approx((0.04 * clipped).tolist())
    assert moved.square["a"].tolist() == pytest.approx((0.001 * clipped.square()).tolist())


def test_a_run_takes_a_step_per_batch_with_random_noise():
    case, start = ragged_case(2), parameters()  # each shape is compiled
    stepper = peer_jax.JaxImplementation().setup(case, start)
    key = jax.random.key_data(stepper.state.key).tolist()
    with stepper.active():
        assert stepper.run() > 0
    assert int(stepper.state.steps) == len(case.batches)
    assert jax.random.key_data(stepper.state.key).tolist() != key
    for name, p in stepper.state.parameters.items():
        assert p.shape == start[name].shape
        assert not torch.equal(torch.tensor(p.tolist()), start[name]), name


def test_runs_on_as_many_processors_as_torch_has_threads():
    stepper = peer_jax.JaxImplementation().setup(ragged_case(1), parameters())
    allowed = os.sched_getaffinity(0)
    with stepper.active():
        assert len(os.sched_getaffinity(0)) == torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == allowed
    tasks = [task for task in Path("/proc/self/task").iterdir() if "Eigen" in (task / "comm").read_text()]
    assert [len(os.sched_getaffinity(int(task.name))) for task in tasks] == [1]


def test_refuses_another_number_of_threads(monkeypatch):
    peer_jax.start_client("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(RuntimeError, match=r"threads: expected 1, with which XLA was started .* got 3"):
        peer_jax.JaxImplementation().setup(ragged_case(1), parameters())


def product_as_traced():
    return str(jax.make_jaxpr(lambda a: a @ a)(jax.numpy.ones((2, 2))))


@pytest.mark.parametrize(("asked", "given"), [("highest", "HIGHEST"), ("high", "HIGH"), ("medium", "HIGH")])
def test_on_a_gpu_products_have_the_precision_of_torch(asked, given):
    """JAX prints TF32 as HIGH."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(asked)
    try:
        with peer_jax.matmul_precision():
            assert f"Precision.{given}, " in product_as_traced()
    finally:
        torch.set_float32_matmul_precision(before)
    assert "Precision" not in product_as_traced()


def test_does_not_preallocate_gpu_memory():
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
