"""The ops of a Deep Markov Model: pure functions of tensors, each with a choice of backends.

The reference is eager PyTorch and has every derivative. A compiled backend has first derivatives in reverse
mode; second derivatives and forward mode raise :class:`~dmm_fast.BackendError`, and
``use_backend("reference")`` provides them.

Under ``torch.autocast`` ops compute in float32: inputs in half precision, as produced by autocast, are cast
up, float32 and float64 are unchanged, and results are those of the same call without autocast. The same holds
for the backward pass of a compiled backend, within autocast or after it. The backward pass of the reference
consists of torch's own operations, which autocast rounds while it is on: as with any module, call
``backward()`` after the block.
"""

from dmm_fast.ops._backends import BACKENDS, BackendError, info, use_backend
from dmm_fast.ops.bernoulli_log_prob import bernoulli_log_prob
from dmm_fast.ops.clipped_adam import clipped_adam
from dmm_fast.ops.combiner import combiner, combiner_log_prob
from dmm_fast.ops.combiner_scan import combiner_scan
from dmm_fast.ops.emission_log_prob import (
    categorical_emission_log_prob,
    emission_log_prob,
    gaussian_emission_log_prob,
    negative_binomial_emission_log_prob,
    poisson_emission_log_prob,
)
from dmm_fast.ops.emitter import emitter, gaussian_emitter
from dmm_fast.ops.flow_scan import flow_scan
from dmm_fast.ops.gated_transition import gated_transition
from dmm_fast.ops.input_projection import input_projection
from dmm_fast.ops.nade import nade_draw, nade_emission_log_prob
from dmm_fast.ops.normal_log_prob import drawn_log_prob, normal_log_prob
from dmm_fast.ops.rnn_scan import rnn_scan
from dmm_fast.ops.transition_kl import transition_kl
from dmm_fast.ops.transition_log_prob import transition_log_prob
from dmm_fast.ops.transition_scan import transition_scan
from dmm_fast.reference import (
    CombinerWeights,
    EmitterWeights,
    FlowWeights,
    GaussianEmitterWeights,
    NadeEmitterWeights,
    TransitionWeights,
)

__all__ = [
    "BACKENDS",
    "BackendError",
    "CombinerWeights",
    "EmitterWeights",
    "FlowWeights",
    "GaussianEmitterWeights",
    "NadeEmitterWeights",
    "TransitionWeights",
    "bernoulli_log_prob",
    "categorical_emission_log_prob",
    "clipped_adam",
    "combiner",
    "combiner_log_prob",
    "combiner_scan",
    "drawn_log_prob",
    "emission_log_prob",
    "emitter",
    "flow_scan",
    "gated_transition",
    "gaussian_emission_log_prob",
    "gaussian_emitter",
    "info",
    "input_projection",
    "nade_draw",
    "nade_emission_log_prob",
    "negative_binomial_emission_log_prob",
    "normal_log_prob",
    "poisson_emission_log_prob",
    "rnn_scan",
    "transition_kl",
    "transition_log_prob",
    "transition_scan",
    "use_backend",
]
