"""Estimated time of a step of the scans, from the budgets of their kernels and the time of an exchange.

A step of a cluster takes the time of a warp from the end of its wait to its last store, or that of the
scheduler to issue it, whichever is longer, plus an exchange as measured on an H100. The exchange of a team,
which goes through device memory, is estimated from published figures: :mod:`dmm_fast.cuda.word_exchange`.
"""

from typing import NamedTuple

from dmm_fast.cuda.devices import H100, KNOWN, Device
from dmm_fast.cuda.lane_tiles import LaneTile
from dmm_fast.cuda.paths import SCANS
from dmm_fast.cuda.plan import Exchange, Plan, combiner_plans, rnn_plans
from dmm_fast.cuda.rnn_plans import WarpTiling
from dmm_fast.cuda.word_exchange import poll_cycles, read_cycles, travel_cycles, word_bytes

SIZES = (20, 600, 100)  # B, H, Z of the tutorial
GPUS = ("a100", "rtx3090", "rtx4090", "h100")

# Measured on an NVIDIA H100 80GB HBM3.
EXCHANGE = 310.0  # ns, and the bytes that a block receives
BYTES = 28.0  # per ns

Budget = dict[str, int]  # registers and stack; of a kernel that exchanges, also what a turn takes


class Launch(NamedTuple):
    """A kernel as a plan launches it."""

    kernel: str
    warps: int  # of a block
    groups: int  # of a cluster's rows, which take turns
    received: int  # bytes, by a block for a group and step
    blocks: int = 0  # that run at a time and exchange through device memory; 0: clusters
    device: Device = H100

    @property
    def latency(self) -> float:
        """Cycles from the last store of a block to the end of the others' waits, except for the bytes."""
        if self.blocks:
            return travel_cycles(self.device) + poll_cycles(self.device)
        return self.device.clock * EXCHANGE

    @property
    def bytes(self) -> float:
        """Cycles for the transfer of the bytes."""
        if self.blocks:
            return read_cycles(self.device, self.received, self.blocks)
        return self.device.clock * self.received / BYTES

    def issue(self, budget: Budget) -> int:
        """Cycles of the scheduler with the most warps to issue their instructions of a turn."""
        again = budget.get("ffma", 0) * (self.device.ffma_cycles - 1)
        return (budget["instructions"] + again) * -(-self.warps // 4)

    def step(self, budget: Budget) -> float:
        """Estimated cycles of a step, in which groups compute during the exchanges of other groups."""
        turns = -(-self.groups // budget["waits"])
        busy = max(budget["chain"], self.issue(budget))
        if self.blocks:  # the poll that succeeds and the transfer of words are not hidden by other groups
            busy += poll_cycles(self.device) + self.bytes
            return max(turns * busy, busy + travel_cycles(self.device))
        return max(turns * busy, busy + self.latency + self.bytes)


def launch_of(scan: str, plan: Plan, device: Device = H100) -> Launch:
    """The name of the kernel of a plan."""
    way = "bwd" if scan.endswith("_backward") else "fwd"
    rows, at_once, size = plan[:3]
    by_memory = plan.exchange == "memory"
    match plan.tilings:
        case (WarpTiling() as tiling,):
            sizes = ", ".join(map(str, (*tiling, at_once, "true" if rows > at_once else "false")))
            kernel = f"rnn_scan_{'words' if by_memory else 'warps'}_{way}_kernel<{sizes}>"
            # A block sends nothing to itself.
            received = (word_bytes(at_once) if by_memory else 4 * at_once) * plan.given * (size - 1)
        case (LaneTile() as to, LaneTile() as back):
            tiles = f"{to.group_outputs}, {to.lane_inputs}, {back.group_outputs}, {back.lane_inputs}"
            kernel = f"combiner_words_{way}_kernel<RowsKernel<{tiles}, {at_once}> >"
            if not by_memory:
                kernel = f"combiner_rows_{way}_kernel<{size}, {tiles}, {at_once}>"
            received = (8 if by_memory else 4) * at_once * plan.given * size
        case _:
            raise ValueError(f"plan: expected one of warps or of single rows, got {plan}")
    blocks = min(plan.clusters, device.teams_at_once(size)) * size if by_memory else 0
    return Launch(kernel, plan.threads // 32, -(-rows // at_once), received, blocks, device)


def launches(device: Device, exchange: Exchange) -> dict[str, tuple[Launch, int]]:
    """The launch of the best plan with this exchange for each scan, and the number of launches."""
    B, H, Z = SIZES
    found = {}
    for scan in SCANS:
        backward = scan.endswith("_backward")
        if scan.startswith("rnn"):
            plans = rnn_plans(B, H, device, backward)
        else:
            plans = combiner_plans(B, H, Z, device, backward)
        fitting = [p for p in plans if p.exchange == exchange and p.shared_bytes <= device.shared_bytes]
        best = min((p for p in fitting if not p.streamed), key=lambda p: p.step_cycles, default=None)
        if best is not None:
            size = best.cluster_size
            at_once = device.teams_at_once(size) if exchange == "memory" else device.at_once(size)
            found[scan] = launch_of(scan, best, device), -(-best.clusters // at_once)
    return found


def gpus_of(arch: str) -> list[tuple[Device, Exchange]]:
    """The GPUs of an architecture to print estimates for, with each of their exchanges."""
    devices = [KNOWN[name] for name in GPUS if KNOWN[name].arch == arch]
    ways: tuple[Exchange, ...] = ("cluster", "memory")
    return [(device, way) for device in devices for way in ways if way == "memory" or device.has_clusters]


def print_estimates(arch: str, budgets: dict[str, Budget]) -> None:
    """A row for each scan with an existing kernel: cycles and microseconds of a step."""
    for device, exchange in gpus_of(arch):
        print(f"\n{device.name}, exchange by {exchange}")
        columns = "".join(f"{c:>8}" for c in ("warps", "groups", "chain", "issue", "latency", "bytes", "us"))
        print(f"{'a step of':24}{columns}")
        for scan, (launch, waves) in launches(device, exchange).items():
            if (budget := budgets.get(launch.kernel, {})).get("waits"):
                us = device.us(waves * launch.step(budget))
                print(
                    f"{scan:24}{launch.warps:8}{launch.groups:8}{budget['chain']:8}{launch.issue(budget):8}"
                    f"{launch.latency:8.0f}{launch.bytes:8.0f}{us:8.2f}"
                )
            else:
                print(f"{scan:24} {launch.kernel}: expected among the kernels, got none")
