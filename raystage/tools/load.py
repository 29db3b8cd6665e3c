"""Trained models as modules of torch: of any family, from a checkpoint, a store or an exported folder."""

from __future__ import annotations

from pathlib import Path

import torch

from raystage.files.filesystem import open_folder
from raystage.models.hf_folder import open_trainable
from raystage.storage.huggingface import FolderWeights
from raystage.storage.store import Store
from raystage.tools.grow import as_input_errors, open_source
from raystage.train.teacher import frozen_model

_SOURCE = "source"


def load_model(source: str | Path, store: str = ".raystage") -> torch.nn.Module:
    """A trained model as a module of torch: in fp32, in evaluation mode, without gradients.

    source: a checkpoint, a stage of the store (its key, or mine/full), or a folder of `raystage export` or of Hugging
    Face. Models of tokens are called with `input_ids`, those of images with `pixel_values`: float32 (samples, channels,
    height, width) from -1 for black to 1 for white. Raises InputError.
    """
    found = open_source(str(source), Store(open_folder(store)), _SOURCE)
    with as_input_errors(_SOURCE):
        weights = found.model if found.is_checkpoint else FolderWeights(open_trainable(found.model.folder))
        try:
            return frozen_model(found.shape, weights, torch.float32)
        finally:
            weights.close()
