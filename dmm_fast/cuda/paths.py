"""Explanations of plans: the kernel that computes each scan on a GPU, and the reason for it."""

from dmm_fast.cuda.devices import Device
from dmm_fast.cuda.plan import Plan, combiner_plan, combiner_plans, rnn_plan, rnn_plans

SCANS = ("rnn_scan", "rnn_scan_backward", "combiner_scan", "combiner_scan_backward")
LAST_RESORT = (
    "Triton's scans launch kernels for every step, which read all weights again from the L2 cache; use them "
    "on GPUs and for sizes without a plan"
)


def plan_of(scan: str, rows: int, units: int, latents: int, device: Device) -> Plan:
    """The plan for one of :data:`SCANS`.

    Raises:
        ValueError: no plan fits, or the fastest measured one does not.
    """
    backward = scan.endswith("_backward")
    if scan.startswith("rnn"):
        return rnn_plan(rows, units, device, backward)
    return combiner_plan(rows, units, latents, device, backward)


def path(scan: str, rows: int, units: int, latents: int, device: Device) -> str:
    """The backend that computes a scan, the kind of exchange, and the reason, as text."""
    try:
        chosen = plan_of(scan, rows, units, latents, device)
    except ValueError as error:
        return f"triton, on request: because no plan fits: {error}"
    backward = scan.endswith("_backward")
    if scan.startswith("rnn"):
        plans = rnn_plans(rows, units, device, backward)
    else:
        plans = combiner_plans(rows, units, latents, device, backward)
    best: dict[str, float] = {}  # smallest estimated cycles of a step for each kind of exchange
    for plan in plans:
        if plan.shared_bytes <= device.shared_bytes:
            best[_way(plan)] = min(plan.step_cycles, best.get(_way(plan), plan.step_cycles))
    return f"cuda: {_how(chosen)}, because {_why(chosen, best, device)}"


def _way(plan: Plan) -> str:
    return "streamed" if plan.streamed else plan.exchange


def _how(plan: Plan) -> str:
    return {
        "cluster": f"exchange in clusters of {plan.cluster_size} blocks",
        "memory": "exchange through device memory",
        "none": "no exchange",
        "streamed": "weights streamed from L2 at every step",
    }[_way(plan)]


def _why(chosen: Plan, best: dict[str, float], device: Device) -> str:
    if chosen.us_per_step is not None:
        return f"it is the fastest measured plan on {device.name}"
    way = _way(chosen)
    no_cluster = (
        f"no cluster of up to {device.most_blocks} blocks keeps the weights on chip"
        if device.has_clusters
        else f"{device.arch} has no clusters of more than one block"
    )
    if way == "memory" and "cluster" not in best:
        return no_cluster
    others = {other: cycles for other, cycles in best.items() if other not in (way, "streamed")}
    if way == "streamed" and not others:
        return f"{no_cluster}, nor does any team of up to {device.multiprocessors} blocks with a kernel"
    if way == "none":
        return "a block has room for all weights"
    if not others:
        return "it keeps the weights on chip"
    names = {"memory": "through device memory", "cluster": "in clusters", "none": "with blocks alone"}
    told = (f"{names[other]} {device.us(cycles):.2f}" for other, cycles in others.items())
    doubt = (
        ", which has not been measured" if best.get("memory", chosen.step_cycles) < chosen.step_cycles else ""
    )
    return f"a step is estimated to take {device.us(chosen.step_cycles):.2f} us, {', '.join(told)}{doubt}"
