"""What is known of the machine."""

from __future__ import annotations

import numpy as np

from raystage.train.hardware import forget_peak_memory, peak_flops_per_second, peak_memory_bytes

BLOCK_BYTES = 256 * 2**20


def test_the_peak_of_memory_counts_from_where_it_was_forgotten() -> None:
    """So that a stage's figure is its own, though a larger one came before in the same process."""
    forget_peak_memory()
    before = peak_memory_bytes()
    np.ones(BLOCK_BYTES, dtype=np.uint8)
    assert peak_memory_bytes() - before > 0.9 * BLOCK_BYTES
    forget_peak_memory()
    assert peak_memory_bytes() - before < 0.5 * BLOCK_BYTES


def test_no_peak_speed_is_made_up_for_a_cpu() -> None:
    assert peak_flops_per_second("fp32") is None
