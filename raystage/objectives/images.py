"""Images as models see them."""

from __future__ import annotations

import numpy as np


def pixels_of(images: np.ndarray) -> np.ndarray:
    """float32 from -1 (0) to 1 (255), the range of the ViT models on the Hub. images: uint8, or such floats already."""
    if images.dtype != np.uint8:
        return images.astype(np.float32)
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)
