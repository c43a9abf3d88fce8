"""The networks: names and initialisation as in Pyro's example, and their formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dmm_fast import DMM, Combiner, Emitter, GatedTransition, GaussianEmitter, InferenceNetwork
from dmm_fast.data import reverse_sequences
from dmm_fast.nn import CategoricalEmitter, NegativeBinomialEmitter, PoissonEmitter
from tests.helpers_model import LENGTHS, SIZES, TOLERANCE, assert_close, make_batch, stir

D, Z, E, R, H = 5, 3, 4, 6, 7

# The `state_dict` of the example's DMM for two layers and one flow, in order.
EXAMPLE = {
    "z_0": (Z,),
    "z_q_0": (Z,),
    "h_0": (1, 1, H),
    "emitter.lin_z_to_hidden.weight": (E, Z),
    "emitter.lin_z_to_hidden.bias": (E,),
    "emitter.lin_hidden_to_hidden.weight": (E, E),
    "emitter.lin_hidden_to_hidden.bias": (E,),
    "emitter.lin_hidden_to_input.weight": (D, E),
    "emitter.lin_hidden_to_input.bias": (D,),
    "trans.lin_gate_z_to_hidden.weight": (R, Z),
    "trans.lin_gate_z_to_hidden.bias": (R,),
    "trans.lin_gate_hidden_to_z.weight": (Z, R),
    "trans.lin_gate_hidden_to_z.bias": (Z,),
    "trans.lin_proposed_mean_z_to_hidden.weight": (R, Z),
    "trans.lin_proposed_mean_z_to_hidden.bias": (R,),
    "trans.lin_proposed_mean_hidden_to_z.weight": (Z, R),
    "trans.lin_proposed_mean_hidden_to_z.bias": (Z,),
    "trans.lin_sig.weight": (Z, Z),
    "trans.lin_sig.bias": (Z,),
    "trans.lin_z_to_loc.weight": (Z, Z),
    "trans.lin_z_to_loc.bias": (Z,),
    "combiner.lin_z_to_hidden.weight": (H, Z),
    "combiner.lin_z_to_hidden.bias": (H,),
    "combiner.lin_hidden_to_loc.weight": (Z, H),
    "combiner.lin_hidden_to_loc.bias": (Z,),
    "combiner.lin_hidden_to_scale.weight": (Z, H),
    "combiner.lin_hidden_to_scale.bias": (Z,),
    "rnn.weight_ih_l0": (H, D),
    "rnn.weight_hh_l0": (H, H),
    "rnn.bias_ih_l0": (H,),
    "rnn.bias_hh_l0": (H,),
    "rnn.weight_ih_l1": (H, H),
    "rnn.weight_hh_l1": (H, H),
    "rnn.bias_ih_l1": (H,),
    "rnn.bias_hh_l1": (H,),
    "iafs_modules.0.arn.permutation": (Z,),
    "iafs_modules.0.arn.layers.0.weight": (8, Z),
    "iafs_modules.0.arn.layers.0.bias": (8,),
    "iafs_modules.0.arn.layers.0.mask": (8, Z),
    "iafs_modules.0.arn.layers.1.weight": (2 * Z, 8),
    "iafs_modules.0.arn.layers.1.bias": (2 * Z,),
    "iafs_modules.0.arn.layers.1.mask": (2 * Z, 8),
}

FORMER = {
    "z_to_loc": "z_to_mu",
    "hidden_to_loc": "hidden_to_mu",
    "hidden_to_scale": "hidden_to_sigma",
}


def full_dmm() -> DMM:
    return DMM(**SIZES, num_layers=2, num_iafs=1, iaf_dim=8)


def in_former_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def former(name: str) -> str:
        for current, old in FORMER.items():
            if not name.startswith("emitter"):
                name = name.replace(f"lin_{current}.", f"lin_{old}.")
        return name

    return {former(name): value for name, value in state.items()}


def test_names_and_shapes_are_the_examples() -> None:
    state = full_dmm().state_dict()
    # As lists: the order matters to an optimizer's state.
    assert [(name, tuple(v.shape)) for name, v in state.items()] == list(EXAMPLE.items())


def test_a_state_with_the_names_of_the_example_loads_strictly_and_is_saved_unchanged() -> None:
    dmm = full_dmm()
    dtypes = {name: value.dtype for name, value in dmm.state_dict().items()}
    state = {n: (9 * torch.rand(shape)).to(dtypes[n]) for n, shape in EXAMPLE.items()}
    dmm.load_state_dict(state, strict=True)
    for name, value in dmm.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_former_names_load_nested_in_a_dmm() -> None:
    state = stir(full_dmm()).state_dict()
    former = in_former_names(state)
    assert sum(name not in state for name in former) == 6
    (dmm := full_dmm()).load_state_dict(former, strict=True)
    for name, value in dmm.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert "combiner.lin_hidden_to_mu.weight" in former, "the caller's mapping was changed"


@pytest.mark.parametrize("make", [lambda: GatedTransition(Z, R), lambda: Combiner(Z, H)])
def test_former_names_load_in_single_modules(make: Callable[[], nn.Module]) -> None:
    state = make().state_dict()
    former = in_former_names(state)
    assert former.keys() != state.keys()
    (module := make()).load_state_dict(former, strict=True)
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_gaussian_emitter_keeps_its_names() -> None:
    state = DMM(**SIZES, emission="gaussian").state_dict()
    names = {n.split(".")[1] for n in state if n.startswith("emitter.")}
    layers = ("z_to_hidden", "hidden_to_hidden", "hidden_to_loc", "hidden_to_scale")
    assert names == {f"lin_{layer}" for layer in layers}
    DMM(**SIZES, emission="gaussian").load_state_dict(state, strict=True)


def test_a_wrong_name_and_a_wrong_shape_do_not_load() -> None:
    state = full_dmm().state_dict()
    with pytest.raises(RuntimeError, match="lin_z_to_nu"):
        full_dmm().load_state_dict({**state, "trans.lin_z_to_nu.weight": torch.zeros(Z, Z)})
    with pytest.raises(RuntimeError, match="size mismatch for z_0"):
        full_dmm().load_state_dict({**state, "z_0": torch.zeros(Z + 1)})


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_seed_gives_the_parameters_of_plain_modules_in_the_examples_order(
    num_layers: int,
) -> None:
    torch.manual_seed(3)
    dmm = DMM(**SIZES, num_layers=num_layers)
    after = torch.rand(4)
    torch.manual_seed(3)
    plain = {
        "emitter.lin_z_to_hidden": nn.Linear(Z, E),
        "emitter.lin_hidden_to_hidden": nn.Linear(E, E),
        "emitter.lin_hidden_to_input": nn.Linear(E, D),
        "trans.lin_gate_z_to_hidden": nn.Linear(Z, R),
        "trans.lin_gate_hidden_to_z": nn.Linear(R, Z),
        "trans.lin_proposed_mean_z_to_hidden": nn.Linear(Z, R),
        "trans.lin_proposed_mean_hidden_to_z": nn.Linear(R, Z),
        "trans.lin_sig": nn.Linear(Z, Z),
        "trans.lin_z_to_loc": nn.Linear(Z, Z),
        "combiner.lin_z_to_hidden": nn.Linear(Z, H),
        "combiner.lin_hidden_to_loc": nn.Linear(H, Z),
        "combiner.lin_hidden_to_scale": nn.Linear(H, Z),
        "rnn": nn.RNN(D, H, num_layers, nonlinearity="relu", batch_first=True),
    }
    expected = {f"{m}.{n}": p for m, module in plain.items() for n, p in module.named_parameters()}
    expected["trans.lin_z_to_loc.weight"] = torch.eye(Z)
    expected["trans.lin_z_to_loc.bias"] = torch.zeros(Z)
    expected |= {"z_0": torch.zeros(Z), "z_q_0": torch.zeros(Z), "h_0": torch.zeros(1, 1, H)}
    found = dict(dmm.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert torch.equal(after, torch.rand(4)), "the generator was read more or less often"


def test_the_rnn_alone_starts_as_nn_rnn_does() -> None:
    torch.manual_seed(4)
    ours = InferenceNetwork(D, H, 2, "tanh", dropout=0.3)
    torch.manual_seed(4)
    theirs = nn.RNN(D, H, 2, nonlinearity="tanh", dropout=0.3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    theirs.load_state_dict(ours.state_dict(), strict=True)


# --- formulas ------------------------------------------------------------------------------------


def linear(state: dict[str, Tensor], name: str, v: Tensor) -> Tensor:
    return v @ state[f"lin_{name}.weight"].T + state[f"lin_{name}.bias"]


def softplus(v: Tensor) -> Tensor:
    return (1 + v.exp()).log()


def emitter_hidden(w: dict[str, Tensor], z: Tensor) -> Tensor:
    return linear(w, "hidden_to_hidden", linear(w, "z_to_hidden", z).clamp(min=0)).clamp(min=0)


def by_hand_emitter(w: dict[str, Tensor], z: Tensor) -> tuple[Tensor, ...]:
    return (1 / (1 + (-linear(w, "hidden_to_input", emitter_hidden(w, z))).exp()),)


def by_hand_gaussian_emitter(w: dict[str, Tensor], z: Tensor) -> tuple[Tensor, ...]:
    hidden = emitter_hidden(w, z)
    return linear(w, "hidden_to_loc", hidden), softplus(linear(w, "hidden_to_scale", hidden))


def by_hand_poisson_emitter(w: dict[str, Tensor], z: Tensor) -> tuple[Tensor, ...]:
    return (softplus(linear(w, "hidden_to_input", emitter_hidden(w, z))),)


def by_hand_negative_binomial_emitter(w: dict[str, Tensor], z: Tensor) -> tuple[Tensor, ...]:
    hidden = emitter_hidden(w, z)
    return softplus(linear(w, "hidden_to_mean", hidden)), softplus(linear(w, "hidden_to_total_count", hidden))


def by_hand_categorical_emitter(w: dict[str, Tensor], z: Tensor) -> tuple[Tensor, ...]:
    weight = linear(w, "hidden_to_input", emitter_hidden(w, z)).exp()
    return (weight / weight.sum(-1, keepdim=True),)


def by_hand_transition(w: dict[str, Tensor], z: Tensor) -> tuple[Tensor, ...]:
    gate = linear(w, "gate_hidden_to_z", linear(w, "gate_z_to_hidden", z).clamp(min=0))
    gate = 1 / (1 + (-gate).exp())
    hidden = linear(w, "proposed_mean_z_to_hidden", z).clamp(min=0)
    proposed = linear(w, "proposed_mean_hidden_to_z", hidden)
    loc = (1 - gate) * linear(w, "z_to_loc", z) + gate * proposed
    return loc, softplus(linear(w, "sig", proposed.clamp(min=0)))


def by_hand_combiner(w: dict[str, Tensor], z: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    combined = (linear(w, "z_to_hidden", z).tanh() + h) / 2
    return linear(w, "hidden_to_loc", combined), softplus(linear(w, "hidden_to_scale", combined))


FORMULAS = [
    (lambda: Emitter(D, Z, E), by_hand_emitter, (Z,)),
    (lambda: GaussianEmitter(D, Z, E), by_hand_gaussian_emitter, (Z,)),
    (lambda: PoissonEmitter(D, Z, E), by_hand_poisson_emitter, (Z,)),
    (lambda: NegativeBinomialEmitter(D, Z, E), by_hand_negative_binomial_emitter, (Z,)),
    (lambda: CategoricalEmitter(D, Z, E), by_hand_categorical_emitter, (Z,)),
    (lambda: GatedTransition(Z, R), by_hand_transition, (Z,)),
    (lambda: Combiner(Z, H), by_hand_combiner, (Z, H)),
]


@pytest.mark.parametrize("lead", [(), (4,), (2, 1, 4)])
@pytest.mark.parametrize(("make", "by_hand", "widths"), FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modules_equal_their_formulas(
    make: Callable[[], nn.Module],
    by_hand: Callable[..., tuple[Tensor, ...]],
    widths: tuple[int, ...],
    lead: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    module = stir(make()).to(dtype)
    inputs = [torch.randn(*lead, width, dtype=dtype) for width in widths]
    got = module(*inputs)
    got = got if isinstance(got, tuple) else (got,)
    state = {name: value.double() for name, value in module.state_dict().items()}
    expected = by_hand(state, *(v.double() for v in inputs))
    assert len(got) == len(expected)
    for ours, exact in zip(got, expected, strict=True):
        assert_close(ours.double(), exact, 1e-6 if dtype == torch.float32 else 1e-14)
        assert ours.dtype == dtype


def test_the_combiner_broadcasts_particles_against_one_h() -> None:
    module = Combiner(Z, H)
    z, h = torch.randn(6, 4, Z), torch.randn(4, H)
    loc, scale = module(z, h)
    for p in range(6):
        torch.testing.assert_close((loc[p], scale[p]), module(z[p], h))


# --- the inference network -----------------------------------------------------------------------


def packed_reversed(rnn: nn.RNN, x: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
    """``nn.RNN`` on the reversed, packed batch, put back into forward time."""
    order = lengths.argsort(descending=True)
    backward = reverse_sequences(x, lengths)[order]
    packed = pack_padded_sequence(backward, lengths[order], batch_first=True)
    start = h_0.expand(rnn.num_layers, x.shape[0], -1).contiguous()
    out, _ = pad_packed_sequence(rnn(packed, start)[0], batch_first=True, total_length=x.shape[1])
    return reverse_sequences(out[order.argsort()], lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_inference_network_is_nn_rnn_on_the_packed_reverse(
    num_layers: int, nonlinearity: str, dtype: torch.dtype
) -> None:
    ours = stir(InferenceNetwork(D, H, num_layers, nonlinearity)).to(dtype)
    theirs = nn.RNN(D, H, num_layers, nonlinearity=nonlinearity, batch_first=True).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    lengths = torch.tensor(LENGTHS)
    x = torch.randn(len(LENGTHS), max(LENGTHS) + 1, D, dtype=dtype)
    h_0 = torch.randn(H, dtype=dtype, requires_grad=True)
    weight = torch.randn(*x.shape[:2], H, dtype=dtype)
    h, h_theirs = ours(x, h_0, lengths), packed_reversed(theirs, x, h_0, lengths)
    assert_close(h, h_theirs, TOLERANCE[dtype])
    past_end = torch.arange(x.shape[1]) >= lengths[:, None]
    assert bool((h[past_end] == 0).all())
    grads = torch.autograd.grad((h * weight).sum(), [*ours.parameters(), h_0])
    grads_theirs = torch.autograd.grad((h_theirs * weight).sum(), [*theirs.parameters(), h_0])
    for mine, their in zip(grads, grads_theirs, strict=True):
        assert_close(mine, their, TOLERANCE[dtype])


def test_values_past_the_end_are_not_read() -> None:
    net, lengths = InferenceNetwork(D, H, 2), torch.tensor(LENGTHS)
    x = make_batch(T=8).mini_batch
    dirty = x.clone()
    dirty[torch.arange(8) >= lengths[:, None]] = float("nan")
    for_each = []
    for data in (x, dirty):
        h = net(data, torch.zeros(H), lengths)
        for_each.append((h, *torch.autograd.grad(h.square().sum(), list(net.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*for_each, strict=True))


def test_leading_dimensions_of_the_inference_network_are_independent() -> None:
    net, lengths = InferenceNetwork(D, H, 2), torch.tensor(LENGTHS)
    x = torch.randn(2, 3, len(LENGTHS), 6, D)
    h = net(x, torch.ones(H), lengths)
    assert h.shape == (2, 3, len(LENGTHS), 6, H)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(h[i, j], net(x[i, j], torch.ones(H), lengths))


def one_layer(net: InferenceNetwork, layer: int) -> InferenceNetwork:
    """A network of one layer with the weights of a layer of ``net``."""
    single = InferenceNetwork(D if layer == 0 else H, H, 1, net.nonlinearity)
    state = net.state_dict()
    single.load_state_dict({k: state[k[:-1] + str(layer)] for k in single.state_dict()})
    return single


def test_dropout_acts_between_layers_and_only_in_training() -> None:
    net = InferenceNetwork(D, H, 2, "tanh", dropout=0.4)
    h_0, lengths = torch.randn(H), torch.tensor(LENGTHS)
    x = torch.randn(len(LENGTHS), 6, D)
    below, above = one_layer(net, 0), one_layer(net, 1)
    between = below(x, h_0, lengths)
    torch.manual_seed(7)
    dropped = nn.functional.dropout(between, 0.4, training=True)
    torch.manual_seed(7)
    torch.testing.assert_close(net.train()(x, h_0, lengths), above(dropped, h_0, lengths))
    torch.testing.assert_close(net.eval()(x, h_0, lengths), above(between, h_0, lengths))
    assert not torch.allclose(dropped, between)


def test_dropout_of_one_layer_does_nothing() -> None:
    net = InferenceNetwork(D, H, 1, dropout=0.9)
    x, lengths = torch.randn(len(LENGTHS), 6, D), torch.tensor(LENGTHS)
    assert torch.equal(net.train()(x, torch.zeros(H), lengths), net.eval()(x, torch.zeros(H), lengths))


# --- bad arguments -------------------------------------------------------------------------------

BAD_SIZES = [
    (lambda n: Emitter(n, Z, E), "input_dim"),
    (lambda n: Emitter(D, n, E), "z_dim"),
    (lambda n: Emitter(D, Z, n), "emission_dim"),
    (lambda n: GaussianEmitter(n, Z, E), "input_dim"),
    (lambda n: GaussianEmitter(D, n, E), "z_dim"),
    (lambda n: GaussianEmitter(D, Z, n), "emission_dim"),
    (lambda n: GatedTransition(n, R), "z_dim"),
    (lambda n: GatedTransition(Z, n), "transition_dim"),
    (lambda n: Combiner(n, H), "z_dim"),
    (lambda n: Combiner(Z, n), "rnn_dim"),
    (lambda n: InferenceNetwork(n, H), "input_size"),
    (lambda n: InferenceNetwork(D, n), "hidden_size"),
    (lambda n: InferenceNetwork(D, H, n), "num_layers"),
]


@pytest.mark.parametrize("size", [0, -3, 2.0, True, "4", None])
@pytest.mark.parametrize(("make", "name"), BAD_SIZES)
def test_a_size_is_a_positive_int(make: Callable[[Any], nn.Module], name: str, size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected a positive int, got .*{size}"):
        make(size)


def test_bad_arguments_of_the_inference_network() -> None:
    with pytest.raises(ValueError, match=r"^nonlinearity: expected 'relu' or 'tanh', got 'gelu'"):
        InferenceNetwork(D, H, nonlinearity="gelu")
    for dropout in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"^dropout: expected a probability .*, got"):
            InferenceNetwork(D, H, 2, dropout=dropout)


@pytest.mark.parametrize(
    ("x", "lengths", "error", "message"),
    [
        (torch.zeros(2, 4, D + 1), [4, 1], ValueError, r"^x: expected shape \(\.\.\., 2, 4, 5\)"),
        (torch.zeros(2, 4, D, dtype=torch.int64), [4, 1], TypeError, "^x: expected a floating"),
        (torch.zeros(4, D), [4], ValueError, r"^x: expected shape \(\.\.\., \*, \*, \*\)"),
        (torch.zeros(2, 0, D), [0, 0], ValueError, "^x: expected at least one element in T"),
        (torch.zeros(2, 4, D), [4, 5], ValueError, "^lengths: expected .* T = 4, got 5"),
        (torch.zeros(2, 4, D), [4, -1], ValueError, "^lengths: expected .* T = 4, got -1"),
        (torch.zeros(2, 4, D), [4], ValueError, r"^lengths: expected int64 of shape \(2,\)"),
        (torch.zeros(2, 4, D), [4.0, 1.0], ValueError, r"^lengths: .*, got float32 of shape \(2,"),
    ],
)
def test_bad_input_of_the_inference_network(
    x: Tensor, lengths: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        InferenceNetwork(D, H)(x, torch.zeros(H), torch.tensor(lengths))


def test_weights_of_another_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float64"):
        Emitter(D, Z, E)(torch.zeros(2, Z, dtype=torch.float64))
