"""Sets with missing values: their normal form, and every use of a set respects the mask."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from dmm_fast.data import Dataset, SequenceSet, load, save_npz
from dmm_fast.infer import GraphedSVI, evaluate_elbo, evaluate_importance_nll, forecast, log_weights
from dmm_fast.music import _gallery
from dmm_fast.training import TrainConfig, Trainer
from dmm_fast.training._data import fingerprint
from tests.helpers_graph import RecordedGraphs, Run, assert_same_bits
from tests.helpers_model import LENGTHS, make_batch, missing_mask, small_dmm

NAN = float("nan")
EMISSIONS = ("bernoulli", "gaussian")


def parts(emission: str = "gaussian", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Complete sequences, their lengths, and a mask with a third of the values missing."""
    batch = make_batch(dtype=dtype, emission=emission)
    return batch.mini_batch, batch.mini_batch_seq_lengths, missing_mask(batch, 3).bool()


def with_missing(emission: str = "gaussian") -> SequenceSet:
    x, lengths, mask = parts(emission)
    return SequenceSet(x, lengths, mask)


class TestOneForm:
    def valid(self) -> Tensor:
        return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None])[:, :, None]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_nan_and_a_mask_are_equivalent(self, dtype: torch.dtype) -> None:
        x, lengths, mask = parts(dtype=dtype)
        half = mask.clone()
        half[0] = True
        first = x.clone()
        first[0] = first[0].masked_fill(~mask[0], NAN)
        expected = torch.where(mask, x, torch.where(self.valid(), NAN, 0.0).to(dtype))
        for given in (
            SequenceSet(x, lengths, mask),
            SequenceSet(x.masked_fill(~mask, NAN), lengths),  # with NaN past the end, which is blank
            SequenceSet(first, lengths, half),  # one sequence by NaN, the others by the mask
            SequenceSet(x.masked_fill(~mask, 7.0) * self.valid(), lengths, mask | ~self.valid()),
        ):
            assert given.mask is not None
            assert torch.equal(given.mask, mask)
            torch.testing.assert_close(given.sequences, expected, rtol=0, atol=0, equal_nan=True)
            assert given.num_time_steps == sum(LENGTHS)
        assert int(mask.sum()) < int(self.valid().expand_as(mask).sum())

    def test_arguments_are_unchanged(self) -> None:
        x, lengths, mask = parts()
        before = x.clone(), mask.clone()
        SequenceSet(x, lengths, mask)
        assert torch.equal(x, before[0])
        assert torch.equal(mask, before[1])
        assert SequenceSet(x, lengths).sequences is x

    def test_without_anything_missing_there_is_no_mask(self) -> None:
        x, lengths, _ = parts()
        assert SequenceSet(x, lengths).mask is None
        blank = SequenceSet(x.masked_fill(~self.valid(), NAN), lengths)
        assert blank.mask is None
        assert torch.equal(blank.sequences, x)
        assert blank.batch(torch.arange(2)).mini_batch_mask.dim() == 2
        given = SequenceSet(x, lengths, torch.ones_like(x, dtype=torch.bool)).mask
        assert given is not None
        assert torch.equal(given, self.valid().expand_as(x))

    def test_no_synchronisation_with_the_device(self) -> None:
        # A meta tensor has no values: reading one would raise.
        x, lengths, mask = (v.to("meta") for v in parts())
        moved = SequenceSet(x, lengths, mask)
        batch = moved.batch(torch.zeros(3, dtype=torch.int64, device="meta"), T=4)
        assert batch.mini_batch_mask.shape == batch.mini_batch.shape == (3, 4, 5)
        assert with_missing().to("meta").mask is not None
        assert Dataset("name", *[with_missing()] * 3).to("meta").test.mask is not None

    def test_a_batch_has_the_mask_and_zeros_where_values_are_missing(self) -> None:
        data = with_missing()
        indices = torch.tensor([1, 3, 1])
        batch = data.batch(indices)
        x, _, mask = parts()
        expected = mask[indices, :5].to(x.dtype)
        assert torch.equal(batch.mini_batch_mask, expected)
        assert torch.equal(batch.mini_batch, x[indices, :5] * expected)
        assert batch.mini_batch_seq_lengths.tolist() == [2, 5, 2]
        assert data.batch(indices, T=6).mini_batch_mask.shape == (3, 6, 5)

    @pytest.mark.parametrize("lengths", [LENGTHS, (6, 6, 6, 6)])
    def test_npz_keeps_missing_values(self, tmp_path: Path, lengths: tuple[int, ...]) -> None:
        x, _, mask = parts()
        data = SequenceSet(x, torch.tensor(lengths), mask)
        path = tmp_path / "set.npz"
        save_npz(Dataset("set", data, data, SequenceSet(x, data.lengths)), path)
        read = load(path)
        for split in (read.train, read.valid):
            assert data.mask is not None
            assert split.mask is not None
            assert torch.equal(split.mask, data.mask)
            torch.testing.assert_close(split.sequences, data.sequences, rtol=0, atol=0, equal_nan=True)
        assert read.test.mask is None

    @pytest.mark.parametrize(
        ("mask", "kind", "message"),
        [
            ([True], TypeError, r"^mask: expected Tensor, got list \[True\]$"),
            (
                torch.ones(4, 6, 5),
                ValueError,
                r"^mask: expected bool of shape \(4, 6, 5\) on cpu, got float32",
            ),
            (torch.ones(4, 6).bool(), ValueError, r"^mask: .* got bool of shape \(4, 6\)"),
            (torch.ones(4, 6, 5, device="meta").bool(), ValueError, r"^mask: .* on meta$"),
        ],
    )
    def test_a_bad_mask_is_refused(self, mask: Any, kind: type[Exception], message: str) -> None:
        x, lengths, _ = parts()
        with pytest.raises(kind, match=message):
            SequenceSet(x, lengths, mask)

    def test_nan_past_the_end_is_ignored_and_numbers_are_refused(self) -> None:
        x, lengths, _ = parts()
        x[1, 4, 0] = float("inf")
        with pytest.raises(ValueError, match=r"^sequences: expected zeros past the end .* in sequence 1$"):
            SequenceSet(x, lengths)


@pytest.mark.parametrize("emission", EMISSIONS)
class TestUses:
    def test_evaluation_uses_the_observed_values(self, emission: str) -> None:
        """Averages are over all time steps, including those with missing values."""
        dmm, data = small_dmm(emission=emission), with_missing(emission)
        x, lengths, mask = parts(emission)
        torch.manual_seed(6)
        nats = -log_weights(dmm, (x, None, mask, lengths), 3).mean(0).double()
        torch.manual_seed(6)
        got = evaluate_elbo(dmm, data, num_particles=3)
        assert got.total_over_total == pytest.approx(nats.sum().item() / sum(LENGTHS), rel=1e-6)
        assert got.mean_of_averages == pytest.approx((nats / lengths).mean().item(), rel=1e-6)
        torch.manual_seed(6)
        whole = evaluate_elbo(dmm, SequenceSet(x, lengths), num_particles=3)
        assert abs(whole.total_over_total - got.total_over_total) > 0.1
        nll = evaluate_importance_nll(dmm, data, 5)
        assert torch.tensor(nll).isfinite().all()
        assert forecast(dmm, data.batch(torch.arange(4)), 2).isfinite().all()

    def test_a_captured_step_gathers_the_mask(self, emission: str) -> None:
        data, graphs = with_missing(emission), RecordedGraphs()
        ours, theirs = (Run(None, emission=emission) for _ in range(2))
        ours.svi, theirs.svi = (
            kind(run.dmm.model, run.dmm.guide, run.optim, Trace_ELBO(), **options)
            for kind, run, options in (
                (GraphedSVI, ours, {"gather": data.batch, "capturer": graphs}),
                (SVI, theirs, {}),
            )
        )
        for rows in ([0, 1], [1, 2], [3, 0], [2, 2]):
            indices = torch.tensor(rows)
            assert ours.step(indices, 6) == theirs.step(*data.batch(indices, 6))
            assert_same_bits(ours, theirs)
        assert graphs.replays == 3


def test_training_supports_missing_values() -> None:
    data = with_missing("bernoulli")
    config = TrainConfig(
        num_epochs=2,
        mini_batch_size=2,
        eval_frequency=1,
        z_dim=3,
        emission_dim=4,
        transition_dim=5,
        rnn_dim=6,
        progress=False,
    )
    trainer = Trainer(config, Dataset("set", data, data, data))
    weight = trainer.dmm.emitter.lin_hidden_to_input.weight
    before = weight.clone()
    trainer.run()
    assert all(bool(p.isfinite().all()) for p in trainer.dmm.parameters())
    assert not torch.equal(weight, before)


def test_other_missing_values_are_other_data() -> None:
    x, lengths, mask = parts("bernoulli")
    sets = (SequenceSet(x, lengths), SequenceSet(x, lengths, mask), SequenceSet(x, lengths, ~mask))
    assert len({fingerprint(Dataset("set", data, data, data)) for data in sets}) == 3


def test_continuations_in_pictures_start_from_observed_values(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, mask = parts("bernoulli")
    data = SequenceSet(x, torch.tensor([6, 6, 6, 6]), mask)
    given: list[Any] = []

    def recorded(dmm: Any, batch: Any, num_steps: int, **options: float) -> Tensor:
        given.append(batch)
        return forecast(dmm, batch, num_steps, **options)

    monkeypatch.setattr(_gallery, "forecast", recorded)
    _gallery._forecasts(small_dmm(), data, torch.tensor([0, 3]), 4, 2, lambda *args: None)
    assert torch.equal(given[0].mini_batch_mask, mask[[0, 3], :4].to(x.dtype))
