"""Mini-batches that model and guide accept, and their errors for others."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from dmm_fast import DMM, check
from dmm_fast._minibatch import validate_mini_batch
from dmm_fast.data import get_mini_batch
from tests.helpers_model import LENGTHS, loss_and_grads, make_batch, missing_mask, small_dmm

B, T, D = len(LENGTHS), max(LENGTHS), 5
NAN = float("nan")


def data(**kwargs: Any) -> Tensor:
    return make_batch(**kwargs).mini_batch


def lengths_of(*values: Any) -> Tensor:
    return torch.tensor(values)


def filled(value: float, at: tuple[int, ...] = (0, 3, 2), **kwargs: Any) -> Tensor:
    x = data(**kwargs)
    x[at] = value
    return x


def mask_with(value: float, b: int, t: int) -> Tensor:
    mask = make_batch().mini_batch_mask
    mask[b, t] = value
    return mask


def wide_mask_with(value: float, b: int, t: int, d: int) -> Tensor:
    mask = make_batch().mini_batch_mask[:, :, None].repeat(1, 1, D)
    mask[b, t, d] = value
    return mask


def packed(lengths: tuple[int, ...], width: int = D) -> PackedSequence:
    return pack_padded_sequence(
        torch.zeros(len(lengths), max(lengths), width), torch.tensor(lengths), batch_first=True
    )


def arguments(**changes: Any) -> tuple[Any, ...]:
    """The four arguments of a model, of which ``x``, ``back``, ``mask``, ``lengths`` may be changed."""
    x, _, mask, lengths = make_batch()
    given = {"x": x, "back": None, "mask": mask, "lengths": lengths, **changes}
    return given["x"], given["back"], given["mask"], given["lengths"]


# --- what is accepted -----------------------------------------------------------------------------


def test_all_forms_of_a_batch_are_equivalent() -> None:
    x, _, mask, lengths = make_batch((6, 5, 2, 1))
    packed_batch = get_mini_batch(torch.arange(4), x, lengths)
    assert isinstance(packed_batch.mini_batch_reversed, PackedSequence)
    assert torch.equal(packed_batch.mini_batch, x), "sorted already, so the rows are the same"
    dmm = small_dmm()
    expected = loss_and_grads(dmm, packed_batch, Trace_ELBO())
    for batch in (
        (x, None, mask, lengths),
        (x, x.flip(1), mask, lengths),
        (x, None, mask, None),
        (x, None, mask.bool(), None),
        (x, None, None, lengths),
        (x, None, mask[:, :, None].expand_as(x), lengths),
        (x, None, mask.bool(), lengths),
        (x, None, mask.long(), lengths),
        (x,) if bool(mask.all()) else (x, None, mask),
        (x.transpose(0, 1).contiguous().transpose(0, 1), None, mask, lengths),
    ):
        loss, grads = loss_and_grads(dmm, batch, Trace_ELBO())
        assert loss == expected[0]
        assert all(torch.equal(grads[name], g) for name, g in expected[1].items())


def test_without_mask_and_lengths_every_step_counts() -> None:
    x = data(lengths=(5, 5, 5))
    dmm = small_dmm()
    assert torch.equal(dmm.mini_batch(x).lengths, torch.tensor([5, 5, 5]))
    given = loss_and_grads(dmm, (x, None, None, torch.tensor([5, 5, 5])), Trace_ELBO())
    assert loss_and_grads(dmm, (x,), Trace_ELBO())[0] == given[0]


def test_observed_values_are_valid_and_not_masked() -> None:
    batch = make_batch()
    x = batch.mini_batch + 7 * (1 - batch.mini_batch_mask[:, :, None])
    for dims in (2, 3):
        mask = missing_mask(batch, dims)
        observed = small_dmm().mini_batch(x, None, mask, batch.mini_batch_seq_lengths)
        wide = (mask if dims == 3 else mask[:, :, None]).bool()
        assert torch.equal(observed.observed, wide)
        assert observed.x is not None
        assert torch.equal(observed.x, batch.mini_batch * wide)
        assert observed.T == T
        assert torch.equal(observed.valid, batch.mini_batch_mask.bool())
    alone = small_dmm().mini_batch(batch.mini_batch, None, None, batch.mini_batch_seq_lengths)
    assert torch.equal(alone.observed, batch.mini_batch_mask.bool()[:, :, None])


def test_the_callers_tensors_are_unchanged() -> None:
    batch = make_batch()
    x = batch.mini_batch.masked_fill(batch.mini_batch_mask[:, :, None] == 0, NAN)
    before = x.clone()
    loss_and_grads(small_dmm(), (x, *batch[1:]), Trace_ELBO())
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


def test_a_batch_without_data_takes_its_size_from_mask_or_lengths() -> None:
    dmm, lengths = small_dmm(), torch.tensor(LENGTHS)
    assert (given := dmm.mini_batch(None, None, None, lengths)).x is None
    assert (given.T, given.lengths.tolist()) == (T, list(LENGTHS))
    given = dmm.mini_batch(None, None, torch.ones(3, 4))
    assert (given.T, given.lengths.tolist()) == (4, [4, 4, 4])
    given = dmm.mini_batch(None, None, torch.zeros(3, 9, D), lengths_of(2, 9, 4))
    assert (given.T, given.lengths.tolist()) == (9, [2, 9, 4])


# --- bad input ------------------------------------------------------------------------------------

INT64 = r"int64 of shape \(4,\) on cpu"
LENGTH = "^mini_batch_seq_lengths: expected "
MASK = "^mini_batch_mask: expected "
DATA = "^mini_batch: expected "
BACK = "^mini_batch_reversed: expected "

BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("zero", {"lengths": lengths_of(6, 0, 1, 5)}, ValueError, LENGTH + ".* 1 and T = 6, got 0$"),
    ("negative", {"lengths": lengths_of(6, 2, -1, 5)}, ValueError, LENGTH + ".*, got -1$"),
    ("long", {"lengths": lengths_of(7, 2, 1, 5)}, ValueError, LENGTH + ".* T = 6, got 7$"),
    (
        "int32",
        {"lengths": lengths_of(*LENGTHS).int()},
        ValueError,
        LENGTH + INT64 + r".*, got int32 of shape \(4,\)",
    ),
    (
        "float",
        {"lengths": lengths_of(6.0, 2.0, 1.0, 5.0)},
        ValueError,
        LENGTH + INT64 + r".*, got float32 of shape \(4,\)",
    ),
    (
        "column",
        {"lengths": lengths_of(*LENGTHS)[:, None]},
        ValueError,
        LENGTH + INT64 + r".*, got int64 of shape \(4, 1\)",
    ),
    ("more", {"lengths": lengths_of(6, 2, 1, 5, 5)}, ValueError, LENGTH + INT64 + r".*\(5,\) on"),
    (
        "lengths elsewhere",
        {"lengths": lengths_of(*LENGTHS).to("meta")},
        ValueError,
        LENGTH + INT64 + ".*, got int64 .* on meta$",
    ),
    ("a list", {"lengths": list(LENGTHS)}, ValueError, LENGTH + INT64 + r".*, got list \[6, 2"),
    ("half", {"mask": mask_with(0.5, 0, 2)}, ValueError, MASK + "values 0 or 1, got 0.5$"),
    ("nan mask", {"mask": mask_with(NAN, 0, 2)}, ValueError, MASK + "values 0 or 1, got nan$"),
    (
        "half of a prefix",
        {"mask": mask_with(0.5, 0, 2), "lengths": None},
        ValueError,
        MASK + "(values 0 or 1, got 0.5|ones and then zeros)",
    ),
    (
        "gap",
        {"mask": mask_with(0.0, 0, 2), "lengths": None},
        ValueError,
        MASK + r"ones and then zeros in each row .*, got row 0: \[1.0, 1.0, 0.0, 1.0",
    ),
    (
        "empty row",
        {"mask": torch.ones(B, T).index_fill(0, torch.tensor([2]), 0.0), "lengths": None},
        ValueError,
        MASK + r"ones and then zeros in each row .*, got row 2: \[0.0",
    ),
    (
        "no lengths beside a full mask",
        {"mask": torch.ones(B, T, D), "lengths": None},
        ValueError,
        LENGTH + r"lengths beside a mask \[B, T, D\], got None",
    ),
    ("past", {"mask": mask_with(1.0, 1, 2)}, ValueError, MASK + "0 past the length 2 of row 1"),
    (
        "past in one feature",
        {"mask": wide_mask_with(1.0, 2, 4, 3)},
        ValueError,
        MASK + "0 past the length 1 of row 2",
    ),
    ("narrow", {"mask": torch.ones(B, T - 1)}, ValueError, MASK + r"shape \(4, 6\) or \(4, 6, 5\)"),
    ("flat", {"mask": torch.ones(B)}, ValueError, MASK + r".*, got float32 of shape \(4,\)"),
    ("wide", {"mask": torch.ones(B, T, 1)}, ValueError, MASK + r".*, got .* \(4, 6, 1\)"),
    (
        "mask elsewhere",
        {"mask": torch.ones(B, T, device="meta")},
        ValueError,
        MASK + "a dense tensor on cpu, got .* on meta",
    ),
    ("nan", {"x": filled(NAN)}, ValueError, DATA + r"0 or 1 wherever .*, got nan at \(0, 3, 2\)"),
    ("two", {"x": filled(2.0)}, ValueError, DATA + r"0 or 1 wherever .*, got 2.0 at \(0, 3, 2\)"),
    ("half", {"x": filled(0.5)}, ValueError, DATA + r"0 or 1 wherever .*, got 0.5 at"),
    (
        "no rows",
        {"x": torch.zeros(0, T, D), "mask": None, "lengths": None},
        ValueError,
        DATA + "at least one element in B, T, got B = 0",
    ),
    (
        "no steps",
        {"x": torch.zeros(B, 0, D), "mask": None, "lengths": None},
        ValueError,
        DATA + "at least one element in B, T, got T = 0",
    ),
    ("D", {"x": torch.zeros(B, T, D + 1)}, ValueError, DATA + r"shape \(B, T, 5\), got .* 6\)"),
    ("flat data", {"x": torch.zeros(T, D)}, ValueError, DATA + r"shape \(B, T, 5\), got .*\(6, 5\)"),
    (
        "float64",
        {"x": data(dtype=torch.float64)},
        ValueError,
        DATA + "float32 on cpu as the model has, got float64",
    ),
    ("uint8", {"x": data().byte()}, TypeError, DATA + "a floating-point tensor, got uint8"),
    ("bool", {"x": data().bool()}, TypeError, DATA + "a floating-point tensor, got bool"),
    ("an array", {"x": data().numpy()}, TypeError, DATA + "a floating-point tensor, got ndarray"),
    (
        "data elsewhere",
        {"x": data().to("meta")},
        ValueError,
        DATA + "float32 on cpu as the model has, got .* on meta",
    ),
    (
        "packed",
        {"back": packed((6, 5, 3, 1))},
        ValueError,
        BACK + "a packed batch of the same lengths, got one of 15 steps in 6, where mini_batch has 14 in 6",
    ),
    (
        "packed_of_as_many_steps",
        {"back": packed((6, 4, 3, 1))},
        ValueError,
        BACK + "a packed batch of the same lengths",
    ),
    (
        "reversed",
        {"back": torch.zeros(B, T + 1, D)},
        ValueError,
        BACK + r"shape \(4, 6, 5\), got .* \(4, 7, 5\)",
    ),
]


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("side", ["model", "guide"])
@pytest.mark.parametrize(("changes", "error", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    side: str,
    per_step_sites: bool,
) -> None:
    dmm = DMM(D, 3, 4, 6, 7, per_step_sites=per_step_sites)
    with pytest.raises(error, match=message):
        getattr(dmm, side)(*arguments(**changes))


def test_the_unchanged_arguments_are_valid() -> None:
    dmm = small_dmm()
    dmm.model(*arguments())
    dmm.guide(*arguments())
    dmm.guide(*arguments(back=packed((6, 5, 2, 1))))


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_gaussian_data_are_finite_where_observed(value: float) -> None:
    dmm = small_dmm(emission="gaussian")
    x = filled(value, emission="gaussian")
    with pytest.raises(ValueError, match=DATA + rf"a finite number wherever .*, got {value} at"):
        dmm.model(*arguments(x=x))
    dmm.model(*arguments(x=filled(2.5, emission="gaussian")))
    dmm.model(*arguments(x=x, mask=mask_with(0.0, 0, 3)))


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_an_annealing_factor_is_positive(bad: float) -> None:
    with pytest.raises(ValueError, match=r"^annealing_factor: expected a positive number"):
        small_dmm().model(*arguments(), bad)


def test_a_guide_needs_data_and_a_model_something_to_size_it() -> None:
    with pytest.raises(ValueError, match=r"^mini_batch: expected data for the guide .*, got None"):
        small_dmm().guide(None, None, None, torch.tensor(LENGTHS))
    with pytest.raises(ValueError, match=r"^mini_batch: expected data, a mask or lengths"):
        small_dmm().model(None)
    for lengths in (torch.zeros(0, dtype=torch.int64), torch.ones(2, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"^mini_batch_seq_lengths: expected int64 of shape"):
            small_dmm().model(None, None, None, lengths)
    for lengths in (torch.tensor([3.0]), torch.tensor([2, 0]), torch.tensor([-2])):
        with pytest.raises(ValueError, match=r"^mini_batch_seq_lengths: expected"):
            small_dmm().model(None, None, None, lengths)


def test_an_error_leaves_no_parameter_behind_and_the_next_step_works() -> None:
    dmm = small_dmm()
    with pytest.raises(ValueError, match="0 or 1"):
        loss_and_grads(dmm, arguments(x=filled(2.0)), Trace_ELBO())
    loss, _ = loss_and_grads(dmm, arguments(), Trace_ELBO())
    assert loss == loss_and_grads(small_dmm(), arguments(), Trace_ELBO())[0]


@pytest.mark.parametrize(("validate", "refused"), [(None, True), (True, True), (False, False)], ids=str)
def test_values_are_checked_unless_validation_is_off(validate: bool | None, refused: bool) -> None:
    dmm = small_dmm(validate_args=validate)
    bad = arguments(x=filled(2.0))
    if refused:
        with pytest.raises(ValueError, match=DATA + "0 or 1"):
            dmm.mini_batch(*bad)
    else:
        x = dmm.mini_batch(*bad).x
        assert x is not None
        assert bool((x == 2.0).any())
    with pytest.raises(ValueError, match=DATA + "shape"):
        dmm.mini_batch(torch.zeros(B, T, D + 1))


@pytest.mark.parametrize("lengths", [(7, 2, 1, 5), (6, 0, 1, 5), (6, 2, -1, 5)])
def test_requested_validation_reads_lengths_on_a_device(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where values are read only with ``validate_args=True``."""
    monkeypatch.setattr(check, "values_are_readable", lambda _: False)
    bad = arguments(lengths=torch.tensor(lengths), mask=None)
    small_dmm().mini_batch(*bad)
    with pytest.raises(ValueError, match=LENGTH + "values between 1 and T = 6, got"):
        small_dmm(validate_args=True).mini_batch(*bad)


def test_validation_alone_names_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=DATA + r"shape \(B, T, 2\), got float32 of shape \(4, 6"):
        validate_mini_batch(*arguments(), input_dim=2, like=torch.zeros(()), kind="binary", validate=None)


# --- the model's own arguments --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"emission": "poison"}, "^emission: expected one of bernoulli, .+, or a module, got str 'poison'"),
        ({"num_iafs": 1, "iaf_dim": 2, "z_dim": 3}, "^iaf_dim: expected at least z_dim = 3.*got 2"),
        ({"z_dim": 0}, "^z_dim: expected a positive int, got 0"),
        ({"input_dim": 0}, "^input_dim: expected a positive int"),
        ({"rnn_dim": -1}, "^rnn_dim: expected a positive int"),
        ({"num_layers": 0}, "^num_layers: expected a positive int"),
        ({"emission_dim": 1.5}, "^emission_dim: expected a positive int"),
        ({"transition_dim": None}, "^transition_dim: expected a positive int"),
        ({"num_iafs": -1}, "^num_iafs: expected"),
        ({"rnn_dropout_rate": 1.5, "num_layers": 2}, "^(rnn_)?dropout(_rate)?: expected a prob"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_arguments_of_a_model(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DMM(**kwargs)


def test_a_model_of_float64_accepts_only_float64() -> None:
    dmm = small_dmm(dtype=torch.float64)
    dmm.guide(*make_batch(dtype=torch.float64))
    with pytest.raises(ValueError, match=DATA + "float64 on cpu as the model has, got float32"):
        dmm.guide(*make_batch())
    pyro.clear_param_store()
