"""What the machine at hand can do at best."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

# Dense peak FLOP/s by (part of the) device name, bf16 and fp32 (TF32 off); vendors' data sheets.
_PEAKS = (
    ("H200", 989e12, 67e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("A10", 125e12, 31.2e12),
)


def peak_flops_per_second(precision: str) -> float | None:
    """Peak FLOP/s of one device at a precision, or None where it is not known (any CPU)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    for part, bf16, fp32 in _PEAKS:
        if part in name:
            return bf16 if precision == "bf16" else fp32
    return None


def forget_peak_memory() -> None:
    """Let `peak_memory_bytes` count from here on; where Linux does not allow that, from the process's start."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The most memory this process has held: on its GPU where it has one, else resident in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
