"""Training loops without raystage, as a user would write them: what raystage's own steps are compared with.

    deepspeed   DeepSpeed with torch's AdamW, as DeepSpeed's own examples have it
    torch       PyTorch alone: one process, fused AdamW, on a GPU compiled and under bf16 autocast

Both train the model of a stage from the same drawn weights on the same batches as the stage, which lie in memory.
The benchmarks beside import this.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from torch.nn.functional import cross_entropy

from raystage.data.tokens import TokenWindows, open_streams
from raystage.growth.apply import Grown
from raystage.growth.rules import initial_map
from raystage.models.build import build
from raystage.plans.stage import StagePlan

DEEPSPEED, TORCH = "deepspeed", "torch"
# The first steps allocate memory, and compile.
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """What a loop trains. windows: int64 of shape (steps * sequences, context_length + 1), in the order of training."""

    stage: StagePlan
    windows: np.ndarray
    on_gpu: bool

    @property
    def sequences(self) -> int:
        return len(self.windows) // self.stage.steps


@dataclass(frozen=True)
class Timed:
    """step_seconds: the mean after the warm-up. losses: of every step, in nats per token. peak_bytes: on the GPU."""

    step_seconds: float
    losses: list[float]
    peak_bytes: int | None = None


def task_of(stage: StagePlan, on_gpu: bool = False) -> Task:
    """The batches of a stage of equal steps that trains on one text from its first token on."""
    reader = TokenWindows(open_streams(stage.data, stage.shape.vocab_size).train, stage.window, stage.seed)
    length = stage.shape.context_length
    count = stage.steps * (stage.training.global_batch_tokens // length)
    return Task(stage, reader.sequences(0, count, length), on_gpu)


def run(kind: str, task: Task) -> Timed:
    """One run of a loop, in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "task.pickle").write_bytes(pickle.dumps(task))
        world = task.stage.training.workers.most if kind == DEEPSPEED else 1
        multiprocessing.spawn(_enter, args=(world, folder, kind), nprocs=world)
        return Timed(**json.loads((place / "timed.json").read_text()))


def _enter(rank: int, world: int, folder: str, kind: str) -> None:
    warnings.simplefilter("ignore")
    task = pickle.loads(Path(folder, "task.pickle").read_bytes())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    os.environ |= {"DS_ACCELERATOR": "cuda" if task.on_gpu else "cpu"}
    torch.set_num_threads(task.stage.training.cpus_per_worker)
    if world > 1 or kind == DEEPSPEED:
        backend = "nccl" if task.on_gpu else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=world)
    found = (_deepspeed if kind == DEEPSPEED else _torch)(task, rank, world)
    if rank == 0:
        Path(folder, "timed.json").write_text(json.dumps(vars(found)))
    if world > 1:
        torch.distributed.barrier()
    # Python's own teardown would destroy threads of gloo that DeepSpeed's groups still hold: now and then an abort.
    sys.stdout.flush()
    os._exit(0)


def _deepspeed(task: Task, rank: int, world: int) -> Timed:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    training, model = task.stage.training, _model(task)
    weight_decay = training.optimizer.weight_decay
    named = list(model.named_parameters())
    groups = [
        {"params": [one for _, one in named if one.dim() >= 2], "weight_decay": weight_decay},
        {"params": [one for _, one in named if one.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.optimizer.lr, betas=training.optimizer.betas,
                                  eps=training.optimizer.eps)  # fmt: skip
    micro, share = training.micro_batch_size, task.sequences // world
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_clipping": training.gradient_clipping,
        "zero_optimization": {"stage": training.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": training.precision == "bf16"},
        "steps_per_print": 2**31 - 1,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)

    def step(sequences: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=engine.device)
        for part in sequences[rank * share : (rank + 1) * share].split(micro):
            tokens = part.to(engine.device)
            loss = _loss(engine(input_ids=tokens[:, :-1]).logits, tokens)
            engine.backward(loss)
            engine.step()
            total += loss.detach() * len(part) / share
        return total

    timed = _timed(task, step)
    if world > 1:
        losses = torch.tensor(timed.losses)
        torch.distributed.all_reduce(losses)
        return Timed(timed.step_seconds, (losses / world).tolist(), timed.peak_bytes)
    return timed


def _torch(task: Task, rank: int, world: int) -> Timed:
    training, model = task.stage.training, _model(task)
    device = torch.device("cuda" if task.on_gpu else "cpu")
    options = training.optimizer
    groups = [
        {"params": [one for one in model.parameters() if one.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [one for one in model.parameters() if one.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=task.on_gpu)
    compiled = torch.compile(model) if task.on_gpu else model
    in_bf16 = torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")
    parts = -(-task.sequences // training.micro_batch_size)

    def step(sequences: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part in sequences.split(training.micro_batch_size):
            tokens = part.to(device, non_blocking=True)
            with in_bf16:
                loss = _loss(compiled(input_ids=tokens[:, :-1]).logits, tokens)
            (loss / parts).backward()
            total += loss.detach() / parts
        if training.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clipping)
        optimizer.step()
        return total

    return _timed(task, step)


def _timed(task: Task, step: Callable[[torch.Tensor], torch.Tensor]) -> Timed:
    """The batches one after the other. Losses are read at the end: reading one waits for its step."""
    windows = torch.from_numpy(task.windows)
    if task.on_gpu:
        windows = windows.pin_memory()
        torch.cuda.reset_peak_memory_stats()
    steps, losses = task.stage.steps, []
    warm = int(steps * WARM_UP_SHARE)
    for number, batch in enumerate(windows.split(task.sequences)):
        if number == warm:
            began = _now(task)
        losses.append(step(batch))
    seconds = (_now(task) - began) / (steps - warm)
    peak = torch.cuda.max_memory_allocated() if task.on_gpu else None
    return Timed(seconds, [loss.item() for loss in losses], peak)


def _now(task: Task) -> float:
    if task.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _loss(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return cross_entropy(scores.flatten(0, 1).float(), tokens[:, 1:].flatten())


def _model(task: Task) -> torch.nn.Module:
    """With the weights that the stage starts from."""
    shape = task.stage.shape
    model = build(shape)
    drawn = Grown(initial_map(shape), _nothing, task.stage.drawn_with)
    for name, weight in model.named_parameters():
        values = drawn.slice(name, "fp32", 0, weight.numel())
        weight.data.copy_(torch.from_numpy(values).view_as(weight))
    return model.to("cuda" if task.on_gpu else "cpu")


def _nothing(parameter: str, state: str, start: int, stop: int) -> np.ndarray:
    raise AssertionError("drawn weights read nothing")
