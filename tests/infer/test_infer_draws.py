"""Draws of latents, reconstructions and forecasts: shapes, seeds, and modes of modules."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmm_fast import DMM
from dmm_fast.data import SequenceSet
from dmm_fast.infer import (
    evaluate_elbo,
    evaluate_importance_nll,
    forecast,
    generate,
    importance_nll,
    latents,
    log_weights,
    reconstruct,
)
from tests.helpers_model import (
    FLOWS,
    LENGTHS,
    SIZES,
    assert_close,
    assert_means_agree,
    make_batch,
    missing_mask,
    small_dmm,
    valid_steps,
)

B, T, D, Z = len(LENGTHS), max(LENGTHS), SIZES["input_dim"], SIZES["z_dim"]
Draw = Callable[..., Tensor]


def latents_by_loop(dmm: DMM, batch: Any, S: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[S, B, T, Z]``, computed one row, draw and step at a time; zero past the end."""
    eps = torch.stack([torch.randn(S, B, Z, dtype=torch.float64) for _ in range(T)], -2)
    loc, scale, z = (torch.zeros(S, B, T, Z, dtype=torch.float64) for _ in range(3))
    h = dmm.encode(dmm.mini_batch(*batch))
    for s in range(S):
        for b, length in enumerate(LENGTHS):
            before = dmm.z_q_0
            for t in range(length):
                at = (s, b, t)
                loc[at], scale[at] = dmm.combiner(before, h[b, t])
                z[at] = before = loc[at] + scale[at] * eps[at]
    return loc, scale, z


class TestLatents:
    @torch.no_grad()
    def test_they_are_the_conditionals_along_each_draw(self) -> None:
        dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
        drawn = latents(dmm, batch, 3, seed=6)
        torch.manual_seed(6)
        for got, expected in zip(drawn, latents_by_loop(dmm, batch, 3), strict=True):
            assert_close(got, expected, 1e-12)

    @pytest.mark.parametrize("layers", [{}, FLOWS, {"min_scale": 0.3}])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shapes_and_zeros_past_the_end(self, layers: dict[str, Any], dtype: torch.dtype) -> None:
        dmm, batch = small_dmm(dtype=dtype, **layers), make_batch(dtype=dtype)
        for S, shape in ((None, (B, T, Z)), (1, (1, B, T, Z)), (4, (4, B, T, Z))):
            drawn = latents(dmm, batch, S)
            for value in drawn:
                assert value.shape == shape
                assert value.dtype == dtype
                assert not value.requires_grad
                assert bool((value.masked_select(~valid_steps()[:, :, None]) == 0).all())
                assert bool((value.masked_select(valid_steps()[:, :, None]) != 0).all())
            assert bool((drawn.scale >= 0).all())

    def test_with_flows_the_gaussian_is_the_one_before_them(self) -> None:
        dmm, batch = small_dmm(dtype=torch.float64, **FLOWS), make_batch(dtype=torch.float64)
        loc, scale, z = latents(dmm, batch, 2, seed=6)
        torch.manual_seed(6)
        eps = torch.stack([torch.randn(2, B, Z, dtype=torch.float64) for _ in range(T)], -2)
        flowed = loc + scale * eps
        for flow in dmm.iafs:
            flowed = flow(flowed)
        keep = valid_steps()[:, :, None]
        assert_close(z, torch.where(keep, flowed, 0.0).detach(), 1e-12)

    def test_moments_equal_those_of_the_draws(self) -> None:
        """The law of total variance, which gives the marginal moments."""
        dmm, batch = small_dmm(dtype=torch.float64), make_batch((6, 4), dtype=torch.float64)
        loc, scale, z = (v[:, 0] for v in latents(dmm, batch, 20000, seed=6))
        assert_means_agree(z, loc.mean(0))
        variance = (scale**2).mean(0) + loc.var(0)
        assert_close(z.var(0), variance, 0.03)

    def test_missing_values_have_no_effect(self) -> None:
        dmm, batch = small_dmm(), make_batch()
        mask = missing_mask(batch, 3)
        given = [
            (batch.mini_batch.masked_fill(mask == 0, v), None, mask, batch[3]) for v in (0, float("nan"))
        ]
        one, other = (latents(dmm, g, 2, seed=1) for g in given)
        assert all(map(torch.equal, one, other))


def draws(dmm: DMM, batch: Any) -> dict[str, Draw]:
    return {
        "latents": lambda S=None, **k: torch.stack(latents(dmm, batch, S, **k)).movedim(0, -1),
        "reconstruct": lambda S=None, **k: reconstruct(dmm, batch, S, **k),
        "forecast": lambda S=None, **k: forecast(dmm, batch, 4, S, **k),
        "generate": lambda S=None, **k: generate(dmm, S or 1, 4, **k),
    }


DRAWS = ("latents", "reconstruct", "forecast", "generate")
EMISSIONS = ("bernoulli", "gaussian")


class TestSeed:
    @pytest.mark.parametrize("which", DRAWS)
    def test_a_seed_repeats_a_call_and_does_not_change_the_global_generator(self, which: str) -> None:
        draw = draws(small_dmm(emission="gaussian"), make_batch(emission="gaussian"))[which]
        torch.manual_seed(6)
        expected = draw()
        state = torch.get_rng_state()
        for seed in (6, np.int64(6)):
            assert torch.equal(draw(seed=seed), expected)
        assert not torch.equal(draw(seed=7), expected)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(draw(), expected)
        draw(seed=0)
        draw(seed=2**64 - 1)

    def test_an_error_does_not_change_it_either(self) -> None:
        dmm, state = small_dmm(), torch.get_rng_state()
        x, _, mask, lengths = make_batch()
        with pytest.raises(ValueError, match=r"^mini_batch: "):
            latents(dmm, (x + 2, None, mask, lengths), seed=3)
        assert torch.equal(torch.get_rng_state(), state)


class TestSamples:
    @pytest.mark.parametrize("emission", EMISSIONS)
    @pytest.mark.parametrize("which", DRAWS[:3])
    def test_one_of_one_is_the_draw_itself(self, which: str, emission: str) -> None:
        draw = draws(small_dmm(emission=emission), make_batch(emission=emission))[which]
        alone, one = draw(seed=3), draw(1, seed=3)
        torch.testing.assert_close(one, alone.unsqueeze(0), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("emission", EMISSIONS)
    @pytest.mark.parametrize("layers", [{}, FLOWS])
    def test_shapes(self, layers: dict[str, Any], emission: str) -> None:
        dmm, batch = small_dmm(emission=emission, **layers), make_batch(emission=emission)
        again, future = reconstruct(dmm, batch, 7), forecast(dmm, batch, 2, 7)
        assert again.shape == (7, B, T, D)
        assert future.shape == (7, B, 2, D)
        assert bool((again.masked_select(~valid_steps()[:, :, None]) == 0).all())
        assert not torch.equal(again[0], again[1])
        assert not torch.equal(future[0], future[1])
        assert future.isfinite().all()

    def test_draws_have_the_distribution_of_single_ones(self) -> None:
        """Each row continues from its own end in every draw, also if rows are tiled."""
        dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
        S = 3000
        tiled = tuple(v if v is None else v.repeat_interleave(S, 0) for v in batch)
        together = forecast(dmm, batch, 2, S, seed=1)
        assert_means_agree(together, forecast(dmm, tiled, 2, seed=2).view(B, S, 2, D).transpose(0, 1))
        rows = reconstruct(dmm, batch, S, seed=1)[:, valid_steps()]
        by_tiles = reconstruct(dmm, tiled, seed=2).view(B, S, T, D).transpose(0, 1)[:, valid_steps()]
        assert_means_agree(rows, by_tiles)

    @pytest.mark.filterwarnings("ignore::dmm_fast.nn.NotFusedWarning")
    @torch.no_grad()
    def test_a_forecast_continues_from_the_end_of_each_row_in_each_draw(self) -> None:
        """If the transition keeps z and the emission has no noise, it equals the last reconstruction."""
        dmm, batch = small_dmm(emission="gaussian"), make_batch(emission="gaussian")
        dmm.trans.forward = lambda z: (z, torch.zeros_like(z))
        dmm.emitter.lin_hidden_to_scale.weight.zero_()
        dmm.emitter.lin_hidden_to_scale.bias.fill_(-60.0)
        future, past = forecast(dmm, batch, 3, 5, seed=1), reconstruct(dmm, batch, 5, seed=1)
        for b, length in enumerate(LENGTHS):
            expected = past[:, b, length - 1, None].expand(5, 3, D)
            torch.testing.assert_close(future[:, b], expected, rtol=1e-5, atol=1e-5)


class TestQuantiles:
    def test_they_equal_those_of_the_draws(self) -> None:
        dmm, batch = small_dmm(emission="gaussian"), make_batch(emission="gaussian")
        probabilities = [0.0, 0.05, 0.5, 1.0]
        got = forecast(dmm, batch, 4, 11, quantiles=probabilities, seed=2)
        x = forecast(dmm, batch, 4, 11, seed=2)
        assert got.shape == (4, B, 4, D)
        ordered = x.sort(0).values
        for index, at in ((0, 0), (2, 5), (3, 10)):
            assert torch.equal(got[index], ordered[at])
        torch.testing.assert_close(got[1], 0.5 * (ordered[0] + ordered[1]))

    @pytest.mark.parametrize("make", [tuple, np.array, torch.tensor, iter])
    def test_any_sequence_will_do(self, make: Callable[[list[float]], Any]) -> None:
        dmm, batch = small_dmm(emission="gaussian"), make_batch(emission="gaussian")
        one, other = (forecast(dmm, batch, 2, 9, q, seed=2) for q in (make([0.25, 0.75]), [0.25, 0.75]))
        assert torch.equal(one, other)

    @pytest.mark.parametrize(
        ("quantiles", "kind", "message"),
        [
            (0.5, TypeError, r"^quantiles: expected a sequence of prob.* between 0 and 1, got float 0.5$"),
            ("0.5", TypeError, r"^quantiles: expected a sequence .*, got str '0.5'$"),
            (["a"], TypeError, r"^quantiles: expected a probability .*, got str 'a'$"),
            ([True], TypeError, r"^quantiles: expected a probability .*, got bool True$"),
            ([0.5, 1.5], ValueError, r"^quantiles: expected a probability .*, got float 1.5$"),
            ([float("nan")], ValueError, r"^quantiles: expected a probability .*, got float nan$"),
            (torch.tensor(0.5), TypeError, r"^quantiles: expected a sequence .*, got float 0.5$"),
            (torch.ones(1, device="meta"), TypeError, r"^quantiles: expected a dense tensor with values"),
            ([], ValueError, r"^quantiles: expected at least one probability, got none$"),
        ],
    )
    def test_others_are_refused(self, quantiles: Any, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            forecast(small_dmm(), make_batch(), 2, 3, quantiles)

    def test_they_are_of_draws(self) -> None:
        message = r"^num_samples: expected a positive int with quantiles, got None$"
        with pytest.raises(ValueError, match=message):
            forecast(small_dmm(), make_batch(), 2, quantiles=[0.5])


def sequence_set() -> SequenceSet:
    batch = make_batch()
    return SequenceSet(batch.mini_batch, batch.mini_batch_seq_lengths)


EVALUATIONS: dict[str, Callable[[DMM], Any]] = {
    "log_weights": lambda dmm: log_weights(dmm, make_batch(), 2),
    "importance_nll": lambda dmm: importance_nll(dmm, make_batch(), 2),
    "evaluate_elbo": lambda dmm: evaluate_elbo(dmm, sequence_set()),
    "evaluate_importance_nll": lambda dmm: evaluate_importance_nll(dmm, sequence_set(), 2),
    "latents": lambda dmm: latents(dmm, make_batch()),
    "reconstruct": lambda dmm: reconstruct(dmm, make_batch()),
    "forecast": lambda dmm: forecast(dmm, make_batch(), 2),
    "generate": lambda dmm: generate(dmm, 2, 2),
}


class _Watched(nn.Module):
    """Records the modes in which it runs."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped, self.inner = wrapped, nn.Dropout(0.5)
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, z: Tensor) -> Any:
        self.seen.add((self.training, self.inner.training))
        return self.wrapped(z)


@pytest.mark.filterwarnings("ignore::dmm_fast.nn.NotFusedWarning")
class TestModes:
    @pytest.mark.parametrize("which", EVALUATIONS)
    def test_the_mode_of_every_module_is_restored(self, which: str) -> None:
        dmm = small_dmm(num_layers=2, rnn_dropout_rate=0.5)
        dmm.emitter, dmm.trans = _Watched(dmm.emitter), _Watched(dmm.trans)
        dmm.rnn.eval()
        dmm.emitter.inner.eval()
        before = {name: module.training for name, module in dmm.named_modules()}
        assert set(before.values()) == {True, False}
        EVALUATIONS[which](dmm)
        assert {name: module.training for name, module in dmm.named_modules()} == before
        seen = dmm.emitter.seen | dmm.trans.seen
        assert seen <= {(False, False)}
        assert seen or which == "latents"

    def test_also_after_an_error(self) -> None:
        dmm = small_dmm()
        dmm.rnn.eval()

        def fail(*args: Any) -> None:
            raise RuntimeError("broken")

        dmm.combiner.register_forward_hook(fail)
        for call in (EVALUATIONS["evaluate_elbo"], EVALUATIONS["latents"]):
            with pytest.raises(RuntimeError, match="broken"):
                call(dmm)
            assert (dmm.training, dmm.rnn.training, dmm.combiner.training) == (True, False, True)

    def test_an_overridden_train_is_called(self) -> None:
        """Weights merged for evaluation are separated again afterwards."""

        class Merging(nn.Identity):
            merged = False

            def train(self, mode: bool = True) -> Any:
                self.merged = not mode
                return super().train(mode)

        dmm = small_dmm()
        dmm.extra = Merging()
        evaluate_elbo(dmm, sequence_set())
        assert (dmm.extra.merged, dmm.extra.training) == (False, True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, b: log_weights(d, b, 2.0), r"num_particles: expected a positive int, got float 2.0"),
        (lambda d, b: importance_nll(d, b, "2"), r"num_particles: expected a positive int, got str '2'"),
        (lambda d, b: importance_nll(d, b, 2, None), r"chunk_size: expected a positive int, got NoneType"),
        (lambda d, b: importance_nll(b, b), r"dmm: expected DMM, got Batch"),
        (lambda d, b: log_weights(d, b[0], 2), r"batch: expected a tuple of 1 to 7 .*, got float32 of shape"),
        (lambda d, b: reconstruct(d, ()), r"batch: expected a tuple of 1 to 7 .*, got 0 of them"),
        (lambda d, b: reconstruct(d, (*b, *b)), r"batch: expected a tuple of 1 to 7 .*, got 8 of them"),
        (lambda d, b: evaluate_elbo(d, b), r"data: expected SequenceSet, got Batch"),
        (lambda d, b: evaluate_elbo(None, sequence_set()), r"dmm: expected DMM, got NoneType None"),
        (lambda d, b: evaluate_elbo(d, sequence_set(), True), r"num_particles: .*, got bool True"),
        (
            lambda d, b: evaluate_importance_nll(d, sequence_set(), mini_batch_size=1.5),
            r"mini_batch_size: .*",
        ),
        (lambda d, b: latents(d, b, 1.5), r"num_samples: expected a positive int, got float 1.5"),
        (lambda d, b: latents(d.rnn, b), r"dmm: expected DMM, got InferenceNetwork"),
        (lambda d, b: reconstruct(d, "batch"), r"batch: expected a tuple of 1 to 7 .*, got str 'batch'"),
        (lambda d, b: forecast(d, b, None), r"num_steps: expected a positive int, got NoneType None"),
        (lambda d, b: forecast(d, b, 2, seed="a"), r"seed: expected an int from 0, got str 'a'"),
        (lambda d, b: generate(d, 1.0, 2), r"num_sequences: expected a positive int, got float 1.0"),
        (lambda d, b: generate(d, 1, 2, seed=0.5), r"seed: expected an int from 0, got float 0.5"),
    ],
)
def test_arguments_of_other_types(call: Callable[[DMM, Any], Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        call(small_dmm(), make_batch())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, b: latents(d, b, 0), r"num_samples: expected a positive int, got 0"),
        (lambda d, b: forecast(d, b, 2, -1), r"num_samples: expected a positive int, got -1"),
        (lambda d, b: reconstruct(d, b, seed=-1), r"seed: expected an int from 0, got -1"),
        (lambda d, b: generate(d, 1, 1, seed=2**64), r"seed: expected an int below 2 \*\* 64, got 1844"),
        (lambda d, b: latents(d, (None, None, *b[2:])), r"batch: expected data to condition on, got None"),
    ],
)
def test_numbers_out_of_range(call: Callable[[DMM, Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call(small_dmm(), make_batch())


def test_numpy_integers_are_accepted() -> None:
    dmm, batch = small_dmm(), make_batch()
    assert forecast(dmm, batch, np.int64(2), np.int32(3)).shape == (3, B, 2, D)
    assert importance_nll(dmm, batch, np.int64(5), np.int64(2)).shape == (B,)
