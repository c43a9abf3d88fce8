"""The measured peaks of this device, and how near a time comes to them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

COPY, IEEE, TF32 = "copy", "fp32 matrix product", "tf32 matrix product"
SUITE = "ceilings"


class Ceilings(NamedTuple):
    """Bytes and operations a second, where they have been measured."""

    bytes_per_second: float | None = None
    flops_per_second: float | None = None

    def share(self, nbytes: int, flops: int, ms: float) -> dict[str, Any]:
        """What a row's ``extra`` says: the work, the least it could take, and that over what it took."""
        told: dict[str, Any] = {"bytes": nbytes, "flops": flops, "floor_ms": None, "share": None}
        if self.bytes_per_second and self.flops_per_second:
            floor = 1e3 * max(nbytes / self.bytes_per_second, flops / self.flops_per_second)
            told |= {"floor_ms": floor, "share": floor / ms if ms > 0 else None}
        return told


def measured(results: Path) -> Ceilings:
    """Those that the run has written so far."""
    if not results.is_file():
        return Ceilings()
    rows = json.loads(results.read_text(encoding="utf-8"))["cases"]
    rates = {row["case"]: row["extra"]["per_second"] for row in rows if row["suite"] == SUITE}
    return Ceilings(rates.get(COPY), rates.get(IEEE))
