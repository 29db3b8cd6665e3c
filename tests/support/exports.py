"""Checkpoints written by hand, and what `raystage export` makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from click.testing import CliRunner, Result

from growths import tiny
from raystage.cli.main import main
from raystage.data.tokenizer_names import tokenizer_fingerprint
from raystage.files.filesystem import open_folder
from raystage.models import build as model
from raystage.models.shape import ModelShape, stored
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Manifest, ParameterEntry
from raystage.storage.shards.writing import placed, shard_name, write_shard
from raystage.train.state.buffers import persistent_buffers

SEED = 5


def byte_shape(family: str, **changes: object) -> ModelShape:
    return replace(tiny(family), vocab_size=257, **changes)


def weights_of(shape: ModelShape) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(SEED)
    drawn = {one.name: generator.normal(scale=0.3, size=one.numel).astype("<f4") for one in stored(shape)}
    return {name: np.abs(one) if name.endswith("running_var") else one for name, one in drawn.items()}


def make_checkpoint(
    path: Path, shape: ModelShape, tokenizer: str | None = "bytes", scale: float = 1.0, **cursor: object
) -> Path:
    """A checkpoint in two shards, each of whose parameters is cut in two."""
    folder, weights = open_folder(path), weights_of(shape)
    halves = [
        [(name, "fp32", start, scale * values[start:stop]) for name, values in weights.items()
         for start, stop in [((0, values.size // 2), (values.size // 2, values.size))[rank]]]
        for rank in range(2)
    ]  # fmt: skip
    shards = placed(write_shard(folder, shard_name(rank, 2), half) for rank, half in enumerate(halves))
    named = {} if tokenizer is None else {"tokenizer": tokenizer, "tokenizer_fingerprint": fingerprint(tokenizer)}
    named |= cursor
    manifest = Manifest(
        model=shape,
        parameters=tuple(ParameterEntry(one.name, one.shape, "float32", 3) for one in stored(shape)),
        shards=shards,
        stage_key="",
        step=3,
        tokens=300,
        data_cursor={"tokens": 300, **named},
        rng={"seed": 0},
        optimizer={},
        progress={},
    )
    checkpoint.commit(folder, manifest)
    return path


def folder_of(shape: ModelShape, path: Path) -> Path:
    """A Hugging Face folder of a model of `shape`, without a tokenizer, within `path`."""
    exported(make_checkpoint(path / "saved", shape, tokenizer=None), path / "exported")
    return path / "exported"


def fingerprint(tokenizer: str) -> str:
    return tokenizer_fingerprint(tokenizer)


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, ["export", *map(str, arguments)])


def exported(*arguments: object) -> dict:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def network_of(shape: ModelShape) -> torch.nn.Module:
    """The model in the checkpoint, built without a folder."""
    network, weights = model.build(shape).eval(), weights_of(shape)
    with torch.no_grad():
        for name, one in (*network.named_parameters(), *persistent_buffers(network)):
            one.copy_(torch.from_numpy(weights[name]).view(one.shape))
    return network


def logits(network: torch.nn.Module, shape: ModelShape) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocab_size, (3, shape.context_length), generator=generator)
    with torch.no_grad():
        return network(input_ids=ids).logits


def load(path: Path) -> torch.nn.Module:
    """What plain transformers makes of the folder, every tensor found and none left over."""
    network, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return network.eval()
