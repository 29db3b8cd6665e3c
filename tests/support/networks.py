"""The networks of raystage's own, small: shapes with samples for them, and schedules for real workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from growths import SOURCES
from labelled_files import images, texts, write_jsonl, write_npz
from raystage.config.schedule import Schedule, parse
from raystage.files.filesystem import open_folder
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape
from raystage.planning.build import make_plan
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store

MODELS: dict[str, dict] = {
    "cnn": {"family": "cnn", "hidden_size": 4, "ffn_size": 6},
    "mlp": {"family": "mlp", "hidden_size": 6, "ffn_size": 8},
    "lstm": {"family": "lstm", "hidden_size": 6, "ffn_size": 5, "context_length": 24},
}
TRAINED = 70
# 12 samples of at most 2 to a micro batch are grouped alike on 1, 2 and 3 workers. With a large eps no gradient that is
# nearly nothing makes a step of full length, in which rounding would show.
TRAINING = {
    "optimizer": {"lr": 1e-2, "eps": 1e-3}, "global_batch_samples": 12, "micro_batch_size": 2,
    "checkpoint": {"every": 24}, "evaluate": {"samples": 17}, "lr_schedule": {"kind": "constant", "warmup": 0},
}  # fmt: skip


def schedule_of(
    folder: Path, family: str, stages: Sequence[Mapping] = (), wider: bool = False, **training: object
) -> Schedule:
    """Two stages, the second deeper, or also wider; classification. stages: what each has beside. training: of both."""
    if family == "lstm":
        path = str(write_jsonl(folder / "rows", texts(TRAINED)))
        data = {"source": "jsonl", "path": path, "tokenizer": "bytes"}
    else:
        data = {"source": "arrays", "path": str(write_npz(folder / "npz", images(TRAINED)))}
    hidden = 2 * MODELS[family]["hidden_size"] if wider else MODELS[family]["hidden_size"]
    both: list[dict] = [
        {"name": "first", "model": {"num_layers": 1}, "until": {"samples": 60}},
        {
            "name": "second", "model": {"num_layers": 2, "hidden_size": hidden}, "until": {"samples": 48},
            "grow": {"operator": "num_layers=identity,width=duplicate" if wider else "identity"},
        },
    ]  # fmt: skip
    for stage, more in zip(both, stages, strict=False):
        stage |= more
    return parse({
        "name": "networks", "data": {**data, "validation_fraction": 0.3}, "model": MODELS[family],
        "objective": "classification", "training": {**TRAINING, **training}, "stages": both,
    })  # fmt: skip


def saved(schedule: Schedule, store: Path) -> list[dict[tuple[str, str], np.ndarray]]:
    """By stage all that its last checkpoint holds, by name and state."""
    found = []
    for stage in make_plan(schedule).staged.stages:
        checkpoint = Checkpoint(Store(open_folder(str(store))).finished_checkpoint(stage.key))
        sizes = {entry.name: int(np.prod(entry.shape)) for entry in checkpoint.manifest.parameters}
        held = [(name, state) for name in sizes for state in checkpoint.states_of(name)]
        found.append({(name, state): checkpoint.read(name, state, 0, sizes[name]) for name, state in held})
        checkpoint.close()
    return found


# --- without training -------------------------------------------------------------------------

SAMPLES = 3
NETWORKS = {name: shape for name, shape in SOURCES.items() if FAMILIES[shape.family].module}


def inputs_of(shape: ModelShape) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if shape.image_size:
        sizes = (SAMPLES, shape.num_channels, shape.image_size, shape.image_size)
        return {"pixel_values": torch.randn(sizes, generator=generator)}
    return {"input_ids": torch.randint(0, shape.vocab_size, (SAMPLES, shape.context_length), generator=generator)}


def said(network: torch.nn.Module, shape: ModelShape) -> torch.Tensor:
    output = FAMILIES[shape.family].heads[shape.head].output if shape.head else "logits"
    return getattr(network(**inputs_of(shape)), output)
