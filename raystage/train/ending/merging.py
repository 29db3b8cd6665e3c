"""The adapter of a stage at its end: merged into the model's weights, and kept beside them as files of peft.

A merged weight is `W + alpha / rank * B @ A`, summed up in fp64 from the weight that the stage began with, as the
checkpoint before has it: in fp32, also where the training computed in bf16. So nothing of a weight is lost by rounding
but once. Every worker reads the slices that it holds, and saves its share.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from deepspeed import comm
from safetensors.numpy import save as save_tensors

from raystage.files.filesystem import Folder
from raystage.growth.apply import Grown
from raystage.models.shape import ModelShape, Parameter, parameters
from raystage.plans.adapters import ADAPTER_FILES, BESIDE, AdapterPlan, is_input_first
from raystage.plans.stage import StagePlan
from raystage.results.endings import AdapterRecord
from raystage.results.record import Evaluation
from raystage.storage.store import Store
from raystage.train import partitions
from raystage.train.engine import StageEngine
from raystage.train.entry import find_start
from raystage.train.partitions import Partition
from raystage.train.state import adapters
from raystage.train.state.shards import in_pieces

_CONFIG, _WEIGHTS = ADAPTER_FILES
# The products are made for so many rows of a weight at a time, always the same ones: so their bits do not depend on
# which worker needs which slice.
_ROWS = 256

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Merged:
    """parts: what this worker saves of the merged model. trained: on all workers, by name what was trained, whole.
    seconds: of merging."""

    parts: list[Partition]
    trained: Arrays
    seconds: float


def merge(engine: StageEngine, store: Store) -> Merged:
    """Merge the adapter into the weights of the engine's model, and take it off. Collective; no step can follow.

    store: has what the stage began with. Memory beside the model: this worker's share of it in fp32.
    """
    began, stage = time.monotonic(), engine.stage
    start = find_start(stage, store)
    plan, shape = stage.adapter, stage.shape
    trained = _whole(engine, plan.trained(shape))
    grown, of = Grown(start.rules, start.source.read, stage.drawn_with), {one.name: one for one in parameters(shape)}
    parts = [
        replace(part, tensors={"fp32": part.tensors["fp32"]})
        for part in partitions.partitions(engine.deepspeed)
        if part.parameter in plan.in_full
    ]
    for part in partitions.untrained(engine.deepspeed):
        added = product(plan, of[part.parameter], trained) if part.parameter in plan.weights else None
        parts.append(_merged(part, partial(_slice, grown, part.parameter, added)))
    adapters.take_off(engine.deepspeed.module)
    partitions.refresh(engine.deepspeed)
    start.close()
    return Merged(parts, trained, time.monotonic() - began)


def _merged(part: Partition, values: Callable[[int, int], np.ndarray]) -> Partition:
    """Set what a worker holds of a weight, and keep its share in fp32 to be saved."""
    low, high = part.saves
    kept, held = torch.empty(high - low, dtype=torch.float32), part.tensors["fp32"]
    for first, last in in_pieces(0, part.stop - part.start):
        piece = torch.from_numpy(values(part.start + first, part.start + last))
        held[first:last].copy_(piece)
        begin, end = max(first, low), min(last, high)
        if begin < end:
            kept[begin - low : end - low] = piece[begin - first : end - first]
    begin = part.start + low
    return Partition(part.parameter, begin, begin + len(kept), {"fp32": kept}, (0, len(kept)), kept)


def _slice(grown: Grown, name: str, added: _Product | None, start: int, stop: int) -> np.ndarray:
    values = grown.slice(name, "fp32", start, stop)
    if added is None:
        return np.require(values, requirements=["C", "W"])
    return (values.astype(np.float64) + added.slice(start, stop)).astype(np.float32)


@dataclass(frozen=True)
class _Product:
    """What is added to a weight: scale * left @ right, of (rows, rank) and (rank, columns), in fp64."""

    left: np.ndarray
    right: np.ndarray
    scale: float

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Of the flat weight the slice [start, stop)."""
        width = self.right.shape[1]
        first = start // width // _ROWS * _ROWS
        blocks = [self.left[at : at + _ROWS] @ self.right for at in range(first, -(-stop // width), _ROWS)]
        return self.scale * np.concatenate(blocks).reshape(-1)[start - first * width : stop - first * width]


def product(plan: AdapterPlan, weight: Parameter, trained: Arrays) -> _Product:
    """What the adapter adds to a weight, which may be stored as (inputs, outputs). trained: A and B, among others."""
    module = weight.name.removesuffix(".weight")
    a, b = (trained[f"{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return _Product(a.T, b.T, plan.scale) if is_input_first(weight) else _Product(b, a, plan.scale)


def _whole(engine: StageEngine, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """The fp32 values of parameters that the optimizer knows, whole and on all workers. Collective."""
    found = {name: torch.zeros(shape, dtype=torch.float32, device=engine.device) for name, shape in shapes.items()}
    for part in partitions.partitions(engine.deepspeed):
        first, last = part.saves
        values = part.tensors["fp32"][first:last]
        found[part.parameter].view(-1)[part.start + first : part.start + last] = values.to(engine.device)
    for values in found.values():
        comm.all_reduce(values)
    return {name: values.cpu().numpy() for name, values in found.items()}


# --- beside ---------------------------------------------------------------------------------


def write_files(stage: StagePlan, trained: Arrays, folder: Folder) -> None:
    """On the first worker the adapter as peft's `save_pretrained` writes it, where the stage keeps it."""
    if stage.adapter.keep == BESIDE and comm.get_rank() == 0:
        tensors = {f"base_model.model.{name}": np.ascontiguousarray(one) for name, one in trained.items()}
        folder.write_whole(_WEIGHTS, save_tensors(tensors))
        folder.write_whole(_CONFIG, json.dumps(_config(stage.adapter, stage.shape), indent=2, default=sorted).encode())


def _config(plan: AdapterPlan, shape: ModelShape) -> dict[str, object]:
    """peft's description of the adapter, for inference."""
    modules = sorted({name.rpartition(".")[0] for name in plan.in_full})
    content = adapters.peft_config(plan, shape).to_dict()
    return {**content, "modules_to_save": modules or None, "inference_mode": True}


# --- the record -----------------------------------------------------------------------------


def record_of(stage: StagePlan, evaluations: Sequence[Evaluation], single: str, seconds: float) -> AdapterRecord:
    """What became of the adapter. evaluations: the last one is of the merged model, after that with the adapter on."""
    plan = stage.adapter
    return AdapterRecord(
        rank=plan.rank,
        alpha=plan.alpha,
        modules=len(plan.weights),
        num_trained=stage.num_trained,
        eval_loss=evaluations[-1].loss,
        unmerged_eval_loss=evaluations[-2].loss,
        keep=plan.keep,
        single=single,
        seconds=seconds,
    )
