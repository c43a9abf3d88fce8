"""Every op defined a second time, as plainly as possible, to test ``dmm_fast.reference``.

Python loops over particles, rows and valid steps, one vector at a time, in float64, with the densities of
``torch.distributions``. Without masks and without care for extreme values. Arguments are those of the ops.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, NegativeBinomial, Normal, Poisson, kl_divergence

from dmm_fast.reference import (
    CombinerWeights,
    EmitterWeights,
    FlowWeights,
    GaussianEmitterWeights,
    NadeEmitterWeights,
    TransitionWeights,
)

Index = tuple[int, ...]


# --- how a tensor is read -----------------------------------------------------------------------------


def at(tensor: Tensor, index: Index, event_dims: int) -> Tensor:
    """The entries of ``tensor`` at ``index``, broadcast from the right over the dimensions of ``index``."""
    lead = tensor.shape[: tensor.dim() - event_dims]
    for size, i in zip(lead, index[len(index) - len(lead) :], strict=True):
        tensor = tensor[i if size > 1 else 0]
    return tensor


def rows(particles: Sequence[int], lengths: Tensor) -> Iterator[tuple[Index, int]]:
    """Iterate over the rows of all particles: index ``(*particle, b)`` and number of steps."""
    for *particle, b in product(*(range(n) for n in particles), range(len(lengths))):
        yield (*particle, b), int(lengths[b])


def particles_of(*tensors: Tensor) -> torch.Size:
    """The broadcast particle dimensions of tensors ``[..., B, T, *]``."""
    return torch.broadcast_shapes(*(t.shape[:-3] for t in tensors))


def sums(particles: Sequence[int], lengths: Tensor, row: Callable[[Index, int], list[Tensor]]) -> Tensor:
    """``[..., B]``: for each row, the sum of the terms that ``row(index, length)`` lists."""
    zero = torch.zeros((), dtype=torch.float64)
    totals = [sum(row(index, length), zero) for index, length in rows(particles, lengths)]
    return torch.stack(totals).reshape(*particles, len(lengths))


def stack_rows(particles: Sequence[int], B: int, T: int, width: int, filled: list[list[Tensor]]) -> Tensor:
    """``[..., B, T, width]`` from a list of steps for each row, zero past the end of each."""
    zero = torch.zeros(width, dtype=torch.float64)
    padded = [step for steps in filled for step in steps + [zero] * (T - len(steps))]
    return torch.stack(padded).reshape(*particles, B, T, width)


def each_vector(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> list[Tensor]:
    """``function`` of every vector along the last dimension, tensors broadcast on the others."""
    lead = torch.broadcast_shapes(*(t.shape[:-1] for t in tensors))
    indices = product(*(range(n) for n in lead))
    results = [function(*(at(t, index, 1) for t in tensors)) for index in indices]
    return [torch.stack(column).reshape(*lead, -1) for column in zip(*results, strict=True)]


# --- the networks, one vector at a time ---------------------------------------------------------------


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def relu(x: Tensor) -> Tensor:
    return torch.maximum(x, torch.zeros_like(x))


def transition_step(z: Tensor, w: TransitionWeights) -> tuple[Tensor, Tensor]:
    gate = sigmoid(w.w_gate_out @ relu(w.w_gate_in @ z + w.b_gate_in) + w.b_gate_out)
    mean = w.w_mean_out @ relu(w.w_mean_in @ z + w.b_mean_in) + w.b_mean_out
    loc = (1 - gate) * (w.w_loc @ z + w.b_loc) + gate * mean
    return loc, softplus(w.w_scale @ relu(mean) + w.b_scale)


def combiner_step(z: Tensor, h: Tensor, w: CombinerWeights) -> tuple[Tensor, Tensor]:
    combined = (torch.tanh(w.w_z @ z + w.b_z) + h) / 2
    return w.w_loc @ combined + w.b_loc, w.w_scale @ combined + w.b_scale


def flow_step(x: Tensor, w: FlowWeights) -> tuple[Tensor, Tensor]:
    hidden = relu(w.w_in @ x + w.b_in)
    log_scale = w.w_log_scale @ hidden + w.b_log_scale
    clamped = log_scale.detach().clamp(-5.0, 3.0) + (log_scale - log_scale.detach())
    return torch.exp(clamped) * x + w.w_mean @ hidden + w.b_mean, clamped


def emitter_hidden(z: Tensor, w: EmitterWeights | GaussianEmitterWeights | NadeEmitterWeights) -> Tensor:
    return relu(w.w_hidden @ relu(w.w_in @ z + w.b_in) + w.b_hidden)


def emitter_step(z: Tensor, w: EmitterWeights) -> Tensor:
    return w.w_out @ emitter_hidden(z, w) + w.b_out


def gaussian_emitter_step(z: Tensor, w: GaussianEmitterWeights) -> tuple[Tensor, Tensor]:
    hidden = emitter_hidden(z, w)
    return w.w_loc @ hidden + w.b_loc, w.w_scale @ hidden + w.b_scale


# --- the ops --------------------------------------------------------------------------------------------


def gated_transition(z_prev: Tensor, weights: TransitionWeights) -> tuple[Tensor, ...]:
    return tuple(each_vector(lambda z: transition_step(z, weights), z_prev))


def combiner(z_prev: Tensor, h: Tensor, weights: CombinerWeights) -> tuple[Tensor, ...]:
    def step(z: Tensor, h_t: Tensor) -> tuple[Tensor, Tensor]:
        loc, pre_scale = combiner_step(z, h_t, weights)
        return loc, softplus(pre_scale)

    return tuple(each_vector(step, z_prev, h))


def emitter(z: Tensor, weights: EmitterWeights) -> Tensor:
    return each_vector(lambda z_t: (emitter_step(z_t, weights),), z)[0]


def gaussian_emitter(z: Tensor, weights: GaussianEmitterWeights) -> tuple[Tensor, ...]:
    return tuple(each_vector(lambda z_t: gaussian_emitter_step(z_t, weights), z))


def transition_log_prob(z: Tensor, z_0: Tensor, weights: TransitionWeights, lengths: Tensor) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        z_row, z_prev, terms = at(z, index, 2), at(z_0, index, 1), []
        for t in range(length):
            loc, scale = transition_step(z_prev, weights)
            terms.append(Normal(loc, scale).log_prob(z_row[t]).sum())
            z_prev = z_row[t]
        return terms

    return sums(particles_of(z), lengths, row)


def transition_kl(
    z: Tensor,
    loc: Tensor,
    pre_scale: Tensor,
    z_0: Tensor,
    weights: TransitionWeights,
    lengths: Tensor,
) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        z_prev, terms = at(z_0, index, 1), []
        z_row, loc_row, pre_scale_row = (at(v, index, 2) for v in (z, loc, pre_scale))
        for t in range(length):
            posterior = Normal(loc_row[t], softplus(pre_scale_row[t]))
            prior = Normal(*transition_step(z_prev, weights))
            terms.append(kl_divergence(posterior, prior).sum())
            z_prev = z_row[t]
        return terms

    return sums(particles_of(z), lengths, row)


def combiner_log_prob(
    z: Tensor, h: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        z_row, h_row = at(z, index, 2), at(h, index, 2)
        z_prev, terms = at(z_q_0, index, 1), []
        for t in range(length):
            loc, pre_scale = combiner_step(z_prev, h_row[t], weights)
            terms.append(Normal(loc, softplus(pre_scale)).log_prob(z_row[t]).sum())
            z_prev = z_row[t]
        return terms

    return sums(particles_of(z, h), lengths, row)


def drawn_log_prob(eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        eps_row, pre_scale_row, terms = at(eps, index, 2), at(pre_scale, index, 2), []
        for t in range(length):
            scale = softplus(pre_scale_row[t])
            draw = scale * eps_row[t]
            terms.append(Normal(torch.zeros_like(draw), scale).log_prob(draw).sum())
        return terms

    return sums(particles_of(eps), lengths, row)


def entries_of(mask: Tensor | None, b: int, t: int, width: int) -> list[int]:
    """The observed entries of a step."""
    if mask is None:
        return list(range(width))
    return [d for d in range(width) if mask[b, t].expand(width)[d] != 0]


def observed(
    x: Tensor,
    index: Index,
    length: int,
    mask: Tensor | None,
    distribution: Callable[[int, list[int]], Distribution],
) -> list[Tensor]:
    """Log-probabilities of the observed entries of a row under ``distribution(t, entries)``."""
    x_row, terms = at(x, index, 2), []
    for t in range(length):
        entries = entries_of(mask, index[-1], t, x_row.shape[-1])
        terms.append(distribution(t, entries).log_prob(x_row[t][entries]).sum())
    return terms


def emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        def emission(t: int, entries: list[int]) -> Bernoulli:
            return Bernoulli(logits=emitter_step(at(z, index, 2)[t], weights)[entries])

        return observed(x, index, length, mask, emission)

    return sums(particles_of(x, z), lengths, row)


def gaussian_emission_log_prob(
    x: Tensor,
    z: Tensor,
    weights: GaussianEmitterWeights,
    lengths: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        def emission(t: int, entries: list[int]) -> Normal:
            loc, pre_scale = gaussian_emitter_step(at(z, index, 2)[t], weights)
            return Normal(loc[entries], softplus(pre_scale[entries]))

        return observed(x, index, length, mask, emission)

    return sums(particles_of(x, z), lengths, row)


def nade_emission_log_prob(
    x: Tensor,
    z: Tensor,
    weights: NadeEmitterWeights,
    lengths: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    w = weights

    def row(index: Index, length: int) -> list[Tensor]:
        x_row, z_row, terms = at(x, index, 2), at(z, index, 2), []
        for t in range(length):
            hidden = emitter_hidden(z_row[t], w)
            state = w.w_state @ hidden + w.b_state
            for d in range(x.shape[-1]):
                if mask is not None and mask[index[-1], t].expand(x.shape[-1])[d] == 0:
                    continue
                logit = w.w_out[d] @ hidden + w.b_out[d] + w.w_read[d] @ sigmoid(state)
                terms.append(Bernoulli(logits=logit).log_prob(x_row[t, d]))
                state = state + x_row[t, d] * w.w_write[d]
        return terms

    return sums(particles_of(x, z), lengths, row)


def nade_draw(u: Tensor, logits: Tensor, state: Tensor, w_read: Tensor, w_write: Tensor) -> Tensor:
    def draw(u: Tensor, logits: Tensor, state: Tensor) -> tuple[Tensor]:
        drawn = []
        for d in range(len(logits)):
            drawn.append(u[d] < sigmoid(logits[d] + w_read[d] @ sigmoid(state)))
            state = state + w_write[d] if drawn[d] else state
        return (torch.stack(drawn).to(logits.dtype),)

    return each_vector(draw, u, logits, state)[0]


def poisson_emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        def emission(t: int, entries: list[int]) -> Poisson:
            return Poisson(softplus(emitter_step(at(z, index, 2)[t], weights)[entries]))

        return observed(x, index, length, mask, emission)

    return sums(particles_of(x, z), lengths, row)


def negative_binomial_emission_log_prob(
    x: Tensor,
    z: Tensor,
    weights: GaussianEmitterWeights,
    lengths: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        def emission(t: int, entries: list[int]) -> NegativeBinomial:
            heads = gaussian_emitter_step(at(z, index, 2)[t], weights)
            mean, total_count = (softplus(head[entries]) for head in heads)
            return NegativeBinomial(total_count, logits=torch.log(mean) - torch.log(total_count))

        return observed(x, index, length, mask, emission)

    return sums(particles_of(x, z), lengths, row)


def categorical_emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        x_row, z_row, terms = at(x, index, 2), at(z, index, 2), []
        for t in range(length):
            weight = torch.exp(emitter_step(z_row[t], weights))
            probs = weight / weight.sum()
            seen = entries_of(mask, index[-1], t, len(probs))
            missing = [d for d in range(len(probs)) if d not in seen]
            terms += [x_row[t][d] * torch.log(probs[d]) for d in seen]
            if seen and missing:
                terms.append((1 - x_row[t][seen].sum()) * torch.log(probs[missing].sum()))
        return terms

    return sums(particles_of(x, z), lengths, row)


def normal_log_prob(
    value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        def normal(t: int, entries: list[int]) -> Normal:
            return Normal(at(loc, index, 2)[t][entries], at(scale, index, 2)[t][entries])

        return observed(value, index, length, mask, normal)

    return sums(particles_of(value, loc, scale), lengths, row)


def bernoulli_log_prob(x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
    def row(index: Index, length: int) -> list[Tensor]:
        def bernoulli(t: int, entries: list[int]) -> Bernoulli:
            return Bernoulli(logits=at(logits, index, 2)[t][entries])

        return observed(x, index, length, mask, bernoulli)

    return sums(particles_of(x, logits), lengths, row)


def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    filled = [
        [w @ at(x, index, 2)[t] + b for t in range(length)] for index, length in rows(x.shape[:-3], lengths)
    ]
    return stack_rows(x.shape[:-3], *x.shape[-3:-1], w.shape[0], filled)


def rnn_scan(
    x_proj: Tensor,
    w_hh: Tensor,
    h_0: Tensor,
    lengths: Tensor,
    nonlinearity: str = "relu",
    direction: str = "backward",
) -> Tensor:
    activation = {"relu": relu, "tanh": torch.tanh}[nonlinearity]
    filled = []
    for index, length in rows(x_proj.shape[:-3], lengths):
        x_row, h = at(x_proj, index, 2), at(h_0, index, 1)
        steps: dict[int, Tensor] = {}
        for t in range(length) if direction == "forward" else reversed(range(length)):
            h = steps[t] = activation(x_row[t] + w_hh @ h)
        filled.append([steps[t] for t in range(length)])
    return stack_rows(x_proj.shape[:-3], *x_proj.shape[-3:], filled)


def transition_scan(
    eps: Tensor, z_0: Tensor, inputs: Tensor, weights: TransitionWeights, lengths: Tensor
) -> Tensor:
    particles = particles_of(eps, inputs)
    filled = []
    for index, length in rows(particles, lengths):
        eps_row, inputs_row, z = at(eps, index, 2), at(inputs, index, 2), at(z_0, index, 1)
        steps = []
        for t in range(length):
            loc, scale = transition_step(torch.cat([z, inputs_row[t]]), weights)
            z = loc + scale * eps_row[t]
            steps.append(z)
        filled.append(steps)
    return stack_rows(particles, *eps.shape[-3:], filled)


def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> tuple[Tensor, ...]:
    filled: list[list[tuple[Tensor, ...]]] = []
    for index, length in rows(eps.shape[:-3], lengths):
        h_row, eps_row, z = at(h, index, 2), at(eps, index, 2), at(z_q_0, index, 1)
        steps = []
        for t in range(length):
            loc, pre_scale = combiner_step(z, h_row[t], weights)
            z = loc + softplus(pre_scale) * eps_row[t]
            steps.append((z, loc, pre_scale))
        filled.append(steps)
    return tuple(
        stack_rows(eps.shape[:-3], *eps.shape[-3:], [[step[k] for step in row] for row in filled])
        for k in range(3)
    )


def flow_scan(
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    weights: CombinerWeights,
    flow_weights: FlowWeights,
    lengths: Tensor,
) -> tuple[Tensor, ...]:
    filled: list[list[tuple[Tensor, ...]]] = []
    log_dets = []
    for index, length in rows(eps.shape[:-3], lengths):
        h_row, eps_row, z = at(h, index, 2), at(eps, index, 2), at(z_q_0, index, 1)
        steps = []
        log_det = torch.zeros((), dtype=torch.float64)
        for t in range(length):
            loc, pre_scale = combiner_step(z, h_row[t], weights)
            z = loc + softplus(pre_scale) * eps_row[t]
            for k in range(len(flow_weights.w_in)):
                z, log_scale = flow_step(z, FlowWeights(*(each[k] for each in flow_weights)))
                log_det = log_det + log_scale.sum()
            steps.append((z, loc, pre_scale))
        filled.append(steps)
        log_dets.append(log_det)
    sequences = (
        stack_rows(eps.shape[:-3], *eps.shape[-3:], [[step[k] for step in row] for row in filled])
        for k in range(3)
    )
    return *sequences, torch.stack(log_dets).reshape(*eps.shape[:-3], len(lengths))
