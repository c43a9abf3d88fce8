"""Precisions that the settings of torch allow for the scans on a GPU."""

import subprocess
import sys

import pytest

SETTINGS = {
    "torch.set_float32_matmul_precision('high')": (True, False),
    "torch.set_float32_matmul_precision('medium')": (True, True),
    # With the newer setting alone the older one cannot be read: torch raises an error.
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": (True, False),
}
ASK = "from dmm_fast.ops._scan_gemms import allows_bf16, allows_tf32; print(allows_tf32(), allows_bf16())"


@pytest.mark.parametrize("setting", SETTINGS)
def test_only_medium_precision_allows_bf16(setting: str) -> None:
    """Each in a process of its own, as the setting is global."""
    code = f"import torch; {setting}\n{ASK}"
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.split() == [str(allowed) for allowed in SETTINGS[setting]]
