"""The argument checks and their error texts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmm_fast import check

CPU = torch.device("cpu")


class Pair(NamedTuple):
    w: Any
    b: Any


def refused(call: Callable[[], Any], exc: type[Exception] = ValueError) -> str:
    with pytest.raises(exc) as caught:
        call()
    assert type(caught.value) is exc
    return str(caught.value)


def test_fail_states_name_expected_and_got() -> None:
    assert refused(lambda: check.fail("T", "a", "b")) == "T: expected a, got b"
    assert refused(lambda: check.fail("T", "a", "b", TypeError), TypeError) == "T: expected a, got b"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(20, 1), "float32 of shape (20, 1) on cpu"),
        (torch.zeros((), dtype=torch.int64, device="meta"), "int64 of shape () on meta"),
        (3, "int 3"),
        (None, "NoneType None"),
        ("relu", "str 'relu'"),
    ],
)
def test_describe(value: object, words: str) -> None:
    assert check.describe(value) == words


def test_describe_stays_short() -> None:
    assert len(check.describe(list(range(1000)))) == 80


def test_values_are_read_on_a_cpu_only() -> None:
    assert check.values_are_readable(torch.zeros(1))
    assert not check.values_are_readable(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("value", [torch.zeros(2, dtype=torch.int32), torch.ones(1) > 0, 1.0, None])
def test_floating_refuses_other_values(value: object) -> None:
    assert refused(lambda: check.floating("z", value), TypeError).startswith(
        "z: expected a floating-point tensor, got "
    )


def test_floating_returns_the_tensor() -> None:
    z = torch.zeros(2)
    assert check.floating("z", z) is z


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.float64), torch.zeros(2, device="meta")])
def test_like(tensor: Tensor) -> None:
    check.like("h", torch.zeros(5), torch.zeros(2), "z")
    message = refused(lambda: check.like("h", tensor, torch.zeros(2), "z"))
    assert message.startswith("h: expected float32 on cpu as z has, got ")
    assert check.describe(tensor) in message


@pytest.mark.parametrize("value", [None, 1.0, [1.0]])
def test_like_refuses_other_values(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^h: expected float32 on cpu as z has, got "):
        check.like("h", value, torch.zeros(2), "z")


def test_shape() -> None:
    check.shape("z", torch.zeros(2, 3), torch.Size((2, 3)))
    assert refused(lambda: check.shape("z", torch.zeros(2, 3), (3, 2))) == (
        "z: expected shape (3, 2), got float32 of shape (2, 3) on cpu"
    )


def test_trailing() -> None:
    check.trailing("z", torch.zeros(9, 2, 3), (-1, 3), "[..., T, Z]")
    check.trailing("z", torch.zeros(2, 3), (2, 3), "[..., T, Z]")
    for wrong in (torch.zeros(3), torch.zeros(2, 4), torch.zeros(())):
        assert refused(lambda w=wrong: check.trailing("z", w, (-1, 3), "[..., T, Z]")) == (
            f"z: expected shape (..., *, 3) as [..., T, Z], got {check.describe(wrong)}"
        )


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.0, 2.0]),
        torch.tensor([1, 2], dtype=torch.int32),
        torch.tensor([1, 2, 3]),
        torch.tensor([[1], [2]]),
        torch.tensor([1, 2]).to("meta"),
        [1, 2],
        None,
    ],
)
def test_lengths_of_another_kind(value: Any) -> None:
    message = refused(lambda: check.lengths(value, 2, 5, torch.device("cpu")))
    assert message.startswith("lengths: expected int64 of shape (2,) on cpu, got ")


def test_lengths_in_range() -> None:
    cpu = torch.device("cpu")
    lengths = torch.tensor([0, 5])
    assert check.lengths(lengths, 2, 5, cpu) is lengths
    wrong = refused(lambda: check.lengths(lengths, 2, 4, cpu))
    assert wrong == "lengths: expected values between 0 and T = 4, got 5"
    wrong = refused(lambda: check.lengths(lengths, 2, 5, cpu, minimum=1))
    assert wrong == "lengths: expected values between 1 and T = 5, got 0"
    assert check.lengths(torch.zeros(0, dtype=torch.int64), 0, 5, cpu, minimum=1).numel() == 0


def test_lengths_of_the_package_are_read_once_and_those_of_others_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = []
    aminmax = Tensor.aminmax
    monkeypatch.setattr(Tensor, "aminmax", lambda self: reads.append(self) or aminmax(self))
    buffer = np.array([9, 2])
    given = torch.from_numpy(buffer)
    assert refused(lambda: check.lengths(given, 2, 5, CPU)).endswith("got 9")
    buffer[0] = 4  # as a loader that reuses the tensor does
    own = check.own_lengths(given)
    reads.clear()
    for T in (4, 5):
        check.lengths(own, 2, T, CPU)
    assert refused(lambda: check.lengths(own, 2, 3, CPU)).endswith("got 4")
    assert reads == []
    buffer[0] = 9
    check.lengths(own, 2, 5, CPU)
    assert refused(lambda: check.lengths(given, 2, 5, CPU)).endswith("got 9")
    own[0] = 7
    assert refused(lambda: check.lengths(own, 2, 5, CPU)).endswith("got 7")
    with torch.inference_mode():
        untracked = check.own_lengths(torch.tensor([1, 4]))
        untracked[0] = 9
        assert refused(lambda: check.lengths(untracked, 2, 5, CPU)).endswith("got 9")


def test_lengths_elsewhere_are_not_read() -> None:
    meta = torch.device("meta")
    check.lengths(torch.tensor([9, 9], device=meta), 2, 5, meta)


def test_nonempty() -> None:
    check.nonempty("z", torch.zeros(0), {"T": 1})
    wrong = refused(lambda: check.nonempty("z", torch.zeros(0), {"B": 2, "T": 0}))
    assert wrong == "z: expected at least one element in B, T, got T = 0"


def test_weights_returns_the_sizes_it_found() -> None:
    pair = Pair(torch.zeros(4, 3), torch.zeros(4))
    sizes = {"Z": 3}
    check.weights("weights", pair, Pair, ("RZ", "R"), torch.zeros(1), "z", sizes)
    assert sizes == {"R": 4, "Z": 3}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair(torch.zeros(4, 3), torch.zeros(5)), "weights.b: expected shape (4,), got float32"),
        (Pair(torch.zeros(4, 2), torch.zeros(4)), "weights.w: expected shape (4, 3), got float32"),
        (Pair(torch.zeros(4, 3).double(), torch.zeros(4)), "weights.w: expected float32 on cpu as"),
        (Pair(torch.zeros(4, 3), torch.zeros(1, 4)), "weights.b: expected shape (4,), got float32"),
    ],
)
def test_weights_names_the_field(pair: Pair, message: str) -> None:
    got = refused(lambda: check.weights("weights", pair, Pair, ("RZ", "R"), torch.zeros(1), "z", {"Z": 3}))
    assert got.startswith(message)


@pytest.mark.parametrize("values", [None, (torch.zeros(4, 3), torch.zeros(4)), torch.zeros(2)])
def test_weights_wants_a_named_tuple(values: Any) -> None:
    message = refused(
        lambda: check.weights("weights", values, Pair, ("RZ", "R"), torch.zeros(1), "z", {"Z": 3}), TypeError
    )
    assert message.startswith("weights: expected ")


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
def test_observation_mask_fits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check.observation_mask("mask", torch.ones(shape, dtype=dtype), (2, 3, 4), CPU)
    check.observation_mask("mask", None, (2, 3, 4), CPU)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 4), "mask: expected shape (2, 3) or (2, 3, 4), got float32 of shape (2, 4)"),
        (torch.ones(2, 3, 1), "mask: expected shape (2, 3) or (2, 3, 4), got"),
        (torch.ones(2, 3, device="meta"), "mask: expected a dense tensor on cpu, got"),
        (torch.full((2, 3), 2.0), "mask: expected values 0 or 1, got 2.0"),
        (torch.full((2, 3), torch.nan), "mask: expected values 0 or 1, got nan"),
        (1.0, "mask: expected shape (2, 3) or (2, 3, 4), got float 1.0"),
    ],
)
def test_observation_mask_that_does_not(mask: Any, message: str) -> None:
    got = refused(lambda: check.observation_mask("mask", mask, (2, 3, 4), CPU))
    assert got.startswith(message)


@pytest.mark.parametrize("shape", [(), (4,), (1,), (3, 4), (1, 4), (2, 3, 4), (2, 1, 1)])
def test_broadcastable(shape: tuple[int, ...]) -> None:
    check.broadcastable("z_0", torch.zeros(shape), (2, 3, 4), "[..., B, Z]")


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 1, 3, 4), (3, 3, 4)])
def test_not_broadcastable(shape: tuple[int, ...]) -> None:
    wrong = torch.zeros(shape)
    assert refused(lambda: check.broadcastable("z_0", wrong, (2, 3, 4), "[..., B, Z]")) == (
        f"z_0: expected a shape that broadcasts to (2, 3, 4) as [..., B, Z], got {check.describe(wrong)}"
    )


def test_sequences() -> None:
    assert check.sequences("z", torch.zeros(7, 2, 3, 4)) == (2, 3, 4)
    assert check.sequences("z", torch.zeros(0, 3, 4)) == (0, 3, 4)
    wrong = refused(lambda: check.sequences("z", torch.zeros(2, 0, 4)))
    assert wrong == "z: expected at least one element in T, got T = 0"
    wrong = refused(lambda: check.sequences("z", torch.zeros(3, 4)))
    assert wrong.startswith("z: expected shape (..., *, *, *) as [..., B, T, D], got")
    assert refused(lambda: check.sequences("z", None), TypeError).startswith("z: expected")


def test_functions_are_inspected_for_their_arguments() -> None:
    @functools.wraps(len)
    def decorated(first: object, second: object) -> None: ...

    with_hook = nn.Linear(2, 3)
    with_hook.register_forward_pre_hook(lambda module, args: (torch.ones(2),))
    # Decorators and hooks may add arguments, and some builtins have no signature.
    for function, args in (
        (decorated, (1, 2)),
        (with_hook, ()),
        (dict, ()),
        (nn.Linear(2, 3), (torch.ones(2),)),
    ):
        check.takes("f", function, args, {})
    message = refused(lambda: check.takes("f", nn.Linear(2, 3), (), {"x": 1}), TypeError)
    assert message.startswith("f: expected arguments that fit (input: ")
    assert ", got 0 by position and ['x'] by name: " in message
    assert refused(lambda: check.takes("f", 3, (), {}), TypeError) == "f: expected a function, got int 3"


@pytest.mark.parametrize("value", [np.array(1.0), torch.ones(3), "ab", b"ab", 3, None, dict])
def test_elements_equal_those_of_an_iterable(value: Any) -> None:
    assert refused(lambda: check.elements("x", value, "several"), TypeError).startswith(
        "x: expected several, got"
    )
    assert check.elements("x", (v for v in (1, 2)), "several") == [1, 2]
