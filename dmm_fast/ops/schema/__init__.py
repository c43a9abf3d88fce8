"""The table of ops: each op's arguments, outputs and saved values, stated once.

Everything that depends on an op's signature is derived from its row: the schemas registered with torch, shape
functions for ``torch.compile``, autograd, the checks of arguments, the layout of compiled ops, the structs
and bindings in C++ (``csrc/ops.inc``, written by ``python -m dmm_fast.ops.schema --cpp``), and the shapes,
random inputs and invalid inputs of the tests and benchmarks. ``CONTRIBUTING.md`` explains how to add an op.

A tensor's dimensions are a word of size letters: ``B`` rows, ``T`` steps, ``D`` features, ``Z`` latents,
``H`` hidden units, ``G`` and ``R`` units of a transition's gate and proposed mean, ``E`` units of an
emitter, ``U`` units of a NADE's state, ``K`` flows with ``F`` units each, ``I`` inputs of a transition:
z_{t-1} and any further inputs. ``(2Z)`` is twice a size, ``(I-Z)`` a difference. At the front of a word:

    P   the particle dimensions, any number of them, in a compiled op exactly one
    p   the same, broadcast with those of the other arguments
    N   the leading dimensions of an op of single steps, any number; in a compiled op exactly one
    n   the same, broadcast
    s   any dimensions that broadcast to the particles and rows, in a compiled op [P, B] or [1, 1]

A colon and a fact may follow, which selects the random values in tests and benchmarks
(``benchmarks/draws.py``): ``binary``, 0 or 1; ``count``, an integer from 0; ``one_hot``, a single 1 among
zeros; ``positive``; ``sparse``, with rows from all zero to dense; ``uniform``, in [0, 1); ``wide``, three
times as large; ``weight``, as a layer's weights are initialised. Other values are standard normal.
"""

from collections.abc import Iterator

from dmm_fast.ops.schema._signature import BACKEND, Argument, Op, Signature
from dmm_fast.ops.schema._weights import WEIGHTS as WEIGHTS

_OBSERVED = {"lengths": "lengths", "mask": "mask"}
_POSTERIOR = {"z": "PBTZ", "loc": "PBTZ", "pre_scale": "PBTZ"}
_RECURRENCE = {
    "lengths": "lengths",
    "nonlinearity": "choice:relu|tanh",
    "direction": "choice:backward|forward",
}
_COMBINED = {"weights": "combiner", "lengths": "lengths", "plan": "plan"}
_SUM = {"out": "PB"}


def _emission(name: str, doc: str, fact: str, weights: str, stem: str = "emission_log_prob") -> Op:
    """The row of a log-density of data with the given ``fact``, from latents and an emitter's weights."""
    return Op(
        name,
        doc,
        stem=stem,
        leading="z",
        inputs={"x": f"pBTD:{fact}", "z": "PBTZ", "weights": weights, **_OBSERVED},
        outputs=_SUM,
        optional=("x",),
        valued=True,
    )


OPS = {
    op.name: op
    for op in (
        Op(
            "gated_transition",
            "loc, scale of p(z_t | z_{t-1}, inputs_t)",
            inputs={"z_prev": "NI", "weights": "driven_transition"},
            outputs={"loc": "NZ", "scale": "NZ"},
        ),
        Op(
            "combiner",
            "loc, scale of q(z_t | z_{t-1}, x_{t:T})",
            inputs={"z_prev": "NZ", "h": "nH", "weights": "combiner"},
            outputs={"loc": "NZ", "scale": "NZ"},
        ),
        Op(
            "emitter",
            "logits of a Bernoulli p(x_t | z_t)",
            inputs={"z": "NZ", "weights": "emitter"},
            outputs={"logits": "ND"},
        ),
        Op(
            "gaussian_emitter",
            "loc, pre_scale of a Gaussian p(x_t | z_t)",
            stem="emitter",
            inputs={"z": "NZ", "weights": "gaussian_emitter"},
            outputs={"loc": "ND", "pre_scale": "ND"},
        ),
        Op(
            "transition_log_prob",
            "sum over valid t of log N(z_t; gated_transition(z_{t-1}))",
            inputs={"z": "PBTZ", "z_0": "sZ", "weights": "transition", "lengths": "lengths"},
            outputs=_SUM,
            valued=True,
        ),
        Op(
            "transition_kl",
            "sum over valid t of KL(N(loc_t, softplus(pre_scale_t)) || p(z_t | z_{t-1}))",
            inputs={**_POSTERIOR, "z_0": "sZ", "weights": "transition", "lengths": "lengths"},
            outputs=_SUM,
            valued=True,
        ),
        Op(
            "combiner_log_prob",
            "sum over valid t of log q(z_t | z_{t-1}, x_{t:T}) at any z",
            stem="combiner",
            inputs={"z": "PBTZ", "h": "pBTH", "z_q_0": "sZ", "weights": "combiner", "lengths": "lengths"},
            outputs=_SUM,
        ),
        Op(
            "drawn_log_prob",
            "sum over valid t of the log-density of z_t = loc_t + softplus(pre_scale_t) eps_t",
            stem="normal_log_prob",
            inputs={"eps": "PBTZ", "pre_scale": "PBTZ:wide", "lengths": "lengths"},
            outputs=_SUM,
            optional=("eps",),
            valued=True,
        ),
        _emission(
            "emission_log_prob",
            "sum over observed entries of log Bernoulli(x_t; logits = emitter(z_t))",
            "binary",
            "emitter",
        ),
        _emission(
            "gaussian_emission_log_prob",
            "sum over observed entries of log N(x_t; loc(z_t), scale(z_t))",
            "",
            "gaussian_emitter",
        ),
        _emission(
            "poisson_emission_log_prob",
            "sum over observed entries of log Poisson(x_t; rate = softplus(emitter(z_t)))",
            "count",
            "emitter",
        ),
        _emission(
            "negative_binomial_emission_log_prob",
            "sum over observed entries of log NB(x_t; mean, total_count = softplus(gaussian_emitter(z_t)))",
            "count",
            "gaussian_emitter",
        ),
        _emission(
            "categorical_emission_log_prob",
            "sum over valid t of log Categorical(x_t; logits = emitter(z_t)), summed over missing entries",
            "one_hot",
            "emitter",
        ),
        _emission(
            "nade_emission_log_prob",
            "sum over observed entries of log NADE(x_t; nade_emitter(z_t))",
            "binary",
            "nade_emitter",
            stem="nade",
        ),
        Op(
            "nade_draw",
            "a draw of a NADE from its logits, its initial state and uniform noise",
            stem="nade",
            leading="logits",
            inputs={
                "u": "nD:uniform",
                "logits": "ND",
                "state": "nU",
                "w_read": "DU:weight",
                "w_write": "DU:weight",
            },
            outputs={"x": "ND"},
            has_backward=False,
        ),
        Op(
            "normal_log_prob",
            "sum over observed entries of log N(value; loc, scale)",
            leading="loc",
            inputs={"value": "pBTD", "loc": "PBTD", "scale": "pBTD:positive", **_OBSERVED},
            outputs=_SUM,
        ),
        Op(
            "bernoulli_log_prob",
            "sum over observed entries of log Bernoulli(x; sigmoid(logits))",
            leading="logits",
            inputs={"x": "pBTD:binary", "logits": "PBTD", **_OBSERVED},
            outputs=_SUM,
        ),
        Op(
            "input_projection",
            "x_proj_t = W x_t + b at valid steps, 0 past the end",
            inputs={"x": "PBTD:sparse", "w": "HD", "b": "H", "lengths": "lengths"},
            outputs={"x_proj": "PBTH"},
            saved="x w lengths",
            optional=("x",),
        ),
        Op(
            "transition_scan",
            "z_t = loc + scale eps_t with loc, scale of p(z_t | z_{t-1}, inputs_t); 0 past the end",
            inputs={
                "eps": "PBTZ",
                "z_0": "sZ",
                "inputs": "pBT(I-Z)",
                "weights": "driven_transition",
                "lengths": "lengths",
            },
            outputs={"z": "PBTZ"},
            has_backward=False,
        ),
        Op(
            "rnn_scan",
            "h_t = f(x_proj_t + W_hh h_{t+1}) from each row's own end, or forward from h_{t-1}; 0 past it",
            inputs={"x_proj": "PBTH", "w_hh": "HH:weight", "h_0": "sH", **_RECURRENCE},
            outputs={"h": "PBTH"},
            saved="h w_hh h_0 lengths nonlinearity direction",
        ),
        Op(
            "combiner_scan",
            "z_t = loc_t + softplus(pre_scale_t) eps_t with loc, pre_scale of the combiner; 0 past the end",
            leading="eps",
            inputs={"h": "pBTH", "eps": "PBTZ", "z_q_0": "sZ", "weights": "combiner", "lengths": "lengths"},
            outputs=_POSTERIOR,
            saved="h eps z_q_0 z pre_scale g weights lengths",
            kept={"g": "PBTH"},  # tanh(W_z z_{t-1} + b_z), in float32 at least
        ),
        Op(
            "flow_scan",
            "z_t = flows(loc_t + softplus(pre_scale_t) eps_t) and their log-determinants; 0 past the end",
            leading="eps",
            inputs={
                "h": "pBTH",
                "eps": "PBTZ",
                "z_q_0": "sZ",
                "weights": "combiner",
                "flow_weights": "flows",
                "lengths": "lengths",
            },
            outputs={**_POSTERIOR, "log_det": "PB"},
            saved="h eps z_q_0 z loc pre_scale g weights flow_weights lengths",
            kept={"g": "PBTH"},
        ),
    )
}
"""The ops of single steps and of sequences, by name."""


# In place, and without a gradient. If the list steps or lrs is empty, the number is used. With advance both
# lists have a tensor for each parameter, with the value before the step, which is updated.
CLIPPED_ADAM = Signature.parse(
    "clipped_adam",
    {
        **dict.fromkeys(("params", "grads", "exp_avgs", "exp_avg_sqs"), "tensors:changed"),
        "step": "int",
        **dict.fromkeys(("lr", "beta1", "beta2", "eps", "weight_decay", "clip_norm"), "float"),
        "centered_variance": "flag",
        "steps": "tensors:changed",
        "lrs": "tensors:changed",
        "lrd": "float",
        "advance": "flag",
        BACKEND.name: f"{BACKEND.kind}:{BACKEND.fact}",
    },
    {},
)

OTHERS = {
    signature.name: signature
    for signature in (
        CLIPPED_ADAM,
        # With advance the list has one ticket of dmm_fast.ops._tickets, otherwise none.
        Signature(
            "_launch_clipped_adam",
            (*CLIPPED_ADAM.arguments[:-1], Argument.parse("tickets", "tensors:changed")),
            (),
        ),
        # The sequential part of a scan on a GPU. The plan of dmm_fast.cuda.plan distributes the work.
        Signature.parse(
            "_launch_rnn_scan",
            {"x_proj": "PBTH", "w_hh": "HH:weight", "h_0": "PBH", **_RECURRENCE, "plan": "plan"},
            {"h": "PBTH"},
        ),
        Signature.parse(
            "_launch_rnn_scan_backward",
            {"dh": "PBTH", "h": "PBTH", "w_hh": "HH:weight", **_RECURRENCE, "plan": "plan"},
            {"dx_proj": "PBTH", "dh_0": "PBH"},
        ),
        # base is the contribution of h and the biases to loc and pre_scale, which needs no scan.
        Signature.parse(
            "_launch_combiner_scan",
            {"base": "PBT(2Z)", "eps": "PBTZ", "z_q_0": "PBZ", **_COMBINED, "keep_g": "flag"},
            {**_POSTERIOR, "g": "PBTH"},
        ),
        # da is the gradient of the argument of g's tanh; dout is [dloc, dpre_scale] including all paths.
        Signature.parse(
            "_launch_combiner_scan_backward",
            {
                **dict.fromkeys(("dz", "dloc", "dpre_scale", "eps", "pre_scale"), "PBTZ"),
                "g": "PBTH",
                **_COMBINED,
            },
            {"dh": "PBTH", "da": "PBTH", "dout": "PBT(2Z)", "deps": "PBTZ", "dz_q_0": "PBZ"},
        ),
    )
}
"""The other ops, by name."""


def signatures() -> Iterator[Signature]:
    """Every op registered with torch: forward, backward and the others."""
    for op in OPS.values():
        yield from op.signatures
    yield from OTHERS.values()
