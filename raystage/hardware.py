"""What the machine at hand can do at best."""

from __future__ import annotations

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
