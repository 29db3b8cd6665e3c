"""What only a GPU can show, in one command of under 8 minutes: `make gpu`, or

    python benchmarks/gpu.py [--cpu] [--out build/gpu.json] [--seconds 470] [--only speed,zero]

speed        step time, tokens/s, MFU, peak memory against the plan's estimate, and energy of `raystage run` at 10M, 30M
             and 124M parameters in bf16, each grown from the one before on the device; beside the same batches in a
             bare loop of DeepSpeed, and in one of PyTorch, compiled, with fused AdamW
zero         ZeRO 0, 1, 2, 3 in a row, in fp32 and in bf16: what each growth did to the loss
offload      the optimizer in host memory against that on the device: losses, step time, peak memory
resume       a worker is killed within a stage: whether the resumed run has the bits of one that was not
memory       with a large vocabulary, the loss of all targets at once and of some at a time, and activations kept or
             computed again: losses, step time, peak memory
checkpoints  saving 124M parameters with Adam's moments from the device, and loading them, against `cp`

Every part writes its lines into the JSON file as soon as it has them, so that a run that is cut off loses nothing.
--cpu takes the same way with small models and gloo, compiles nothing, and names what it cannot show.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.multiprocessing
from bare_loops import DEEPSPEED, TORCH, run, task_of
from own_runs import COMMAND, checksums_of, losses_of, records, step_seconds, train, write_schedule, write_text
from tokenizers import ByteLevelBPETokenizer

from raystage.files.filesystem import open_folder
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.shards.writing import placed
from raystage.storage.store import CHECKPOINTS

# Layers, width and heads of each size, a vocabulary of bytes added; the batch in sequences and their length.
GPU_SIZES = {"10M": (6, 384, 6), "30M": (8, 576, 9), "124M": (12, 960, 15)}
CPU_SIZES = {"0.1M": (2, 64, 2), "0.4M": (3, 96, 3), "1M": (4, 128, 4)}
GPU_BATCH, CPU_BATCH = (64, 1024), (8, 64)
GROW = {"operator": {"width": "zero_pad", "num_layers": "identity"}}
MEMORY = {
    "as by default": {}, "loss of some targets at a time": {"cross_entropy": "chunked"},
    "loss by Liger's kernel": {"cross_entropy": "liger"},
    "activations: matrix products kept": {"activation_checkpointing": "selective"},
    "activations: all computed again": {"activation_checkpointing": True},
}  # fmt: skip
NO_GPU = "needs an NVIDIA GPU"
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where and how large. deadline: by `time.monotonic`."""

    folder: Path
    on_gpu: bool
    steps: int
    deadline: float

    @property
    def sizes(self) -> dict[str, tuple[int, int, int]]:
        return GPU_SIZES if self.on_gpu else CPU_SIZES

    @property
    def batch(self) -> tuple[int, int]:
        return GPU_BATCH if self.on_gpu else CPU_BATCH

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def training(self, **changes: Any) -> dict[str, Any]:
        sequences, length = self.batch
        every = {"every": self.steps * sequences * length}
        return {
            "workers": 1, "gpus_per_worker": int(self.on_gpu), "global_batch_tokens": sequences * length,
            "precision": "bf16" if self.on_gpu else "fp32", "lr_schedule": {"kind": "constant", "warmup": 0},
            "optimizer": {"lr": 3e-4}, "evaluate": {**every, "tokens": 4 * length * 16}, "checkpoint": every, **changes,
        }  # fmt: skip

    def model(self, size: str) -> dict[str, int]:
        layers, width, heads = self.sizes[size]
        return {"num_layers": layers, "hidden_size": width, "num_heads": heads, "num_kv_heads": heads,
                "ffn_size": 8 * width // 3 // 64 * 64 or 128}  # fmt: skip


# --- parts ------------------------------------------------------------------------------------


def speed(at: Setting) -> Iterator[Row]:
    """Steps of raystage beside those of bare loops, and what they need."""
    stages = [
        {"name": size, "model": at.model(size), "until": {"steps": at.steps},
         **({"grow": GROW} if number else {})}
        for number, size in enumerate(at.sizes)
    ]  # fmt: skip
    path, planned = write_schedule(at.folder, "speed", _content(at, stages, at.training(zero_stage=1)))
    found = train(path, planned, at.folder / "speed", at.left)
    for stage, record in zip(planned, found, strict=True):
        row = _own_row(stage, record)
        yield row
        task = replace(task_of(stage), on_gpu=at.on_gpu)
        for kind in (DEEPSPEED, TORCH):
            bare = run(kind, task)
            name = f"{kind}{', compiled' if at.on_gpu and kind == TORCH else ''}"
            yield {
                "what": f"{stage.name}: bare {name}", "step_ms": 1000 * bare.step_seconds,
                "tokens_per_second": stage.training.global_batch_tokens / bare.step_seconds,
                "of_bare": bare.step_seconds / (row["step_ms"] / 1000), "peak_bytes": bare.peak_bytes,
            }  # fmt: skip
    fast = at.training(zero_stage=1, compile=at.on_gpu, optimizer={"lr": 3e-4, "fused": True})
    path, (stage,) = write_schedule(at.folder, "fast", _content(at, [{**stages[-1], "grow": None}], fast))
    (record,) = train(path, [stage], at.folder / "fast", at.left)
    row = {name: value for name, value in _own_row(stage, record).items() if "estimate" not in name}
    kind = "fused AdamW, compiled" if at.on_gpu else "fused AdamW"
    yield {**row, "what": f"{stage.name}: raystage run, {kind}", "graphs": record.compiled_graphs}


def _own_row(stage: StagePlan, record: StageRecord) -> Row:
    seconds = step_seconds(record.train, stage)
    row = {
        "what": f"{stage.name}: raystage run", "parameters": stage.num_params, "step_ms": 1000 * seconds,
        "tokens_per_second": stage.training.global_batch_tokens / seconds, "mfu": record.train[-1].mfu,
        "peak_bytes": record.peak_memory_bytes, "joules": record.energy_joules,
    }  # fmt: skip
    if not stage.training.gpus_per_worker:
        return row  # the peak of a process that has torch and Ray in it as well
    estimate = stage.memory.total_bytes
    return {**row, "estimated_bytes": estimate, "peak_of_estimate": record.peak_memory_bytes / estimate}


def zero(at: Setting) -> Iterator[Row]:
    """ZeRO stages in a row; every stage grows by layers, exactly."""
    size = next(iter(at.sizes))
    for precision in ("fp32", "bf16"):
        stages = [
            {"name": f"zero{number}", "model": {**at.model(size), "num_layers": 2 + number},
             "until": {"steps": max(5, at.steps // 4)},
             "training": {"zero_stage": number}, **({"grow": {"operator": "identity"}} if number else {})}
            for number in range(4)
        ]  # fmt: skip
        if precision == "bf16" and not at.on_gpu:
            stages = stages[1:]  # DeepSpeed's bf16 on a CPU needs ZeRO
            stages[0].pop("grow")
        path, planned = write_schedule(
            at.folder, f"zero-{precision}", _content(at, stages, at.training(precision=precision))
        )
        for stage, record in zip(planned, train(path, planned, at.folder / f"zero-{precision}", at.left), strict=True):
            growth = record.growth.certificate if record.growth else None
            yield {
                "what": f"{precision}, ZeRO {stage.training.zero_stage}", "loss": record.eval_loss,
                "loss_at_growth": [growth.eval_loss_before, growth.eval_loss_after] if growth else None,
                "step_ms": 1000 * step_seconds(record.train, stage), "peak_bytes": record.peak_memory_bytes,
            }  # fmt: skip


def offload(at: Setting) -> Iterator[Row]:
    """The same stage with its optimizer on the device and in host memory."""
    size = list(at.sizes)[1]
    for place in ("none", "cpu"):
        stages = [{"name": "only", "model": at.model(size), "until": {"steps": max(10, at.steps // 4)}}]
        training = at.training(zero_stage=2, offload_optimizer=place)
        path, planned = write_schedule(at.folder, f"offload-{place}", _content(at, stages, training))
        (record,) = train(path, planned, at.folder / f"offload-{place}", at.left)
        yield {
            "what": f"{size}, optimizer {'offloaded' if place == 'cpu' else 'on the device'}",
            "loss": record.eval_loss, "step_ms": 1000 * step_seconds(record.train, planned[0]),
            "peak_bytes": record.peak_memory_bytes,
        }  # fmt: skip


def memory(at: Setting) -> Iterator[Row]:
    """Stages of one run that differ in what they hold in memory at once."""
    size, ways = list(at.sizes)[1], dict(MEMORY)
    if not at.on_gpu or find_spec("liger_kernel") is None:
        del ways["loss by Liger's kernel"]
    _write_tokenizer(at.folder, 32_768 if at.on_gpu else 8_192)
    stages = [
        {"name": f"way{number}", "model": at.model(size), "until": {"steps": max(10, at.steps // 4)}, "training": way}
        for number, way in enumerate(ways.values())
    ]
    data = {"source": "text", "path": "text", "tokenizer": "tokenizer", "end_token": "</s>"}
    content = {**_content(at, stages, at.training(zero_stage=1)), "data": data}
    path, planned = write_schedule(at.folder, "memory", content)
    found = train(path, planned, at.folder / "memory", at.left)
    for way, stage, record in zip(ways, planned, found, strict=True):
        yield {
            "what": f"{size}, {way}", "vocabulary": stage.shape.vocab_size, "loss": record.eval_loss,
            "step_ms": 1000 * step_seconds(record.train, stage), "peak_bytes": record.peak_memory_bytes,
        }  # fmt: skip


def _write_tokenizer(folder: Path, words: int) -> None:
    """Learnt from the text, which may hold fewer words."""
    (folder / "tokenizer").mkdir()
    learnt = ByteLevelBPETokenizer()
    learnt.train([str(file) for file in sorted((folder / "text").iterdir())], words, show_progress=False,
                 special_tokens=["</s>"])  # fmt: skip
    learnt.save(str(folder / "tokenizer/tokenizer.json"))


def resume(at: Setting) -> Iterator[Row]:
    """A worker killed after a checkpoint, and the same run without that."""
    size, (sequences, length) = next(iter(at.sizes)), at.batch
    checkpoint = {"every": 10 * sequences * length}
    stages = [{"name": "only", "model": at.model(size), "until": {"steps": 40 if at.on_gpu else 120}}]
    content = _content(at, stages, at.training(checkpoint=checkpoint, deterministic=True))
    path, planned = write_schedule(at.folder, "resume", content)
    whole = train(path, planned, at.folder / "whole", at.left)
    restarts = _train_and_kill(path, at.folder / "killed", planned[0], at.left)
    killed = records(planned, at.folder / "killed")
    yield {
        "what": "a worker killed within a stage", "restarts": restarts,
        "same_losses": losses_of(whole[0]) == losses_of(killed[0]),
        "same_bits": checksums_of(at.folder / "whole", whole[0]) == checksums_of(at.folder / "killed", killed[0]),
    }  # fmt: skip


def _train_and_kill(schedule: Path, store: Path, stage: StagePlan, seconds: float) -> int:
    """`raystage run` whose worker is killed as soon as it has written a checkpoint; how often that was."""
    command = [*COMMAND, "run", str(schedule), "--store", str(store), "--wandb", "disabled"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        folder, end = store / "stages" / stage.key / CHECKPOINTS, time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end and not list(folder.glob("*/manifest.json")):
            time.sleep(0.02)
        killed = 0
        for one in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            if "RayTrainWorker" in " ".join(one.cmdline()):
                one.kill()
                killed += 1
        said = process.communicate(timeout=max(1.0, end - time.monotonic()))[1]
    if process.returncode:
        raise SystemExit(said)
    return killed


def checkpoints(at: Setting) -> Iterator[Row]:
    """Saving from the device and loading to it, each brought to the disk, against `cp` of the same bytes."""
    size = list(at.sizes)[-1]
    stages = [{"name": "only", "model": at.model(size), "until": {"steps": 2}}]
    _, (stage,) = write_schedule(at.folder, "checkpoints", _content(at, stages, at.training(zero_stage=1)))
    place = at.folder / "saved"
    torch.multiprocessing.spawn(_save_and_load, args=(stage, str(place), at.on_gpu), nprocs=1)
    seconds = json.loads((at.folder / "saved.json").read_text())
    began = time.monotonic()
    subprocess.run(["cp", "-r", place, at.folder / "copied"], check=True)
    subprocess.run(["sync", *(at.folder / "copied").rglob("*")], check=True)
    copied = time.monotonic() - began
    total = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    yield {"what": f"{size}: cp", "bytes": total, "seconds": copied}
    for what, taken in seconds.items():
        yield {"what": f"{size}: {what}", "bytes": total, "seconds": taken, "of_cp": taken / copied}


def _save_and_load(rank: int, stage: StagePlan, place: str, on_gpu: bool) -> None:
    from raystage.growth.apply import grown_steps
    from raystage.growth.rules import growth_map, initial_map
    from raystage.results.record import Progress
    from raystage.storage import checkpoint
    from raystage.storage.checkpoint import Checkpoint
    from raystage.train.engine import StageEngine
    from raystage.train.entry import Entry, fill
    from raystage.train.state.shards import make_manifest, write_own_shard
    from raystage.train.texts import open_texts
    from raystage.train.worker import join_process_group

    warnings.simplefilter("ignore")
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    backend = "nccl" if on_gpu else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{place}.group", rank=0, world_size=1)
    join_process_group()
    entry = Entry(initial_map(stage.shape), None, resumed=False)
    steps = grown_steps(entry.rules, {})
    engine = StageEngine(stage, steps)
    fill(engine, entry, steps, stage.seed)
    count = stage.training.global_batch_tokens // stage.shape.context_length
    engine.train_step(engine.batches(open_texts(stage).train, 0, count, stage.shape.context_length), 1e-3, 0)
    folder, seconds = open_folder(place), {}
    began = time.monotonic()
    shard, known = write_own_shard(engine, folder)
    checkpoint.commit(folder, make_manifest(stage, placed([shard]), known, Progress.at_start(stage)))
    seconds["raystage saves"] = time.monotonic() - began
    began = time.monotonic()
    source = Checkpoint(folder)
    rules = growth_map(stage.shape, stage.shape, "identity", "grow")
    fill(engine, Entry(rules, source, resumed=False), grown_steps(rules, source.steps), stage.seed)
    if on_gpu:
        torch.cuda.synchronize()
    seconds["raystage loads"] = time.monotonic() - began
    Path(f"{place}.json").write_text(json.dumps(seconds))
    os._exit(0)


def _content(at: Setting, stages: list[dict], training: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"family": "llama", "context_length": at.batch[1]}, "training": training, "stages": stages}


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "speed": speed, "zero": zero, "offload": offload, "resume": resume, "checkpoints": checkpoints,
    "memory": memory,
}  # fmt: skip
# What the parts do not show on a CPU.
ONLY_ON_GPU = {
    "speed": "MFU, energy, torch.compile, fused AdamW, peak memory of the device against the estimate",
    "offload": "what offloading saves on the device",
    "memory": "Liger's kernel, and the peaks of the device",
    "resume": "whether NCCL and cuBLAS give the same bits",
}


# --- carrying them out ------------------------------------------------------------------------


class Results:
    """Lines, written down as they come."""

    def __init__(self, path: Path, facts: Row) -> None:
        self._path, self._content = path, {**facts, "rows": []}
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, row: Row) -> None:
        self._content["rows"].append({"part": part, **row})
        self._path.write_text(json.dumps(self._content, indent=1))
        figures = ", ".join(f"{name} {_shown(value)}" for name, value in row.items() if name != "what")
        print(f"| {part} | {row['what']} | {figures} |", flush=True)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def facts_of(on_gpu: bool) -> Row:
    import deepspeed
    import ray

    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({NO_GPU} for what is skipped)",
        "python": platform.python_version(), "torch": torch.__version__, "deepspeed": deepspeed.__version__,
        "ray": ray.__version__, "date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="the same on a CPU, with small models")
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--seconds", type=float, default=470, help="when to begin no further part")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", default=",".join(PARTS))
    asked = parser.parse_args()
    on_gpu = not asked.cpu
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit(
            f"benchmarks/gpu.py {NO_GPU}; found none (torch {torch.__version__}). --cpu takes the same way"
        )
    os.environ |= {"DS_ACCELERATOR": "cuda" if on_gpu else "cpu", "OMP_NUM_THREADS": "1"}
    results = Results(asked.out, facts_of(on_gpu))
    deadline = time.monotonic() + asked.seconds
    print("| part | what | figures |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        at = Setting(Path(name), on_gpu, asked.steps, deadline)
        write_text(at.folder, copies=4 if on_gpu else 1)
        for part in asked.only.split(","):
            if at.left < 0:
                results.add(part, {"what": part, "skipped": f"{asked.seconds:g} s were over"})
                continue
            try:
                for row in PARTS[part](at):
                    results.add(part, row)
                if not on_gpu and part in ONLY_ON_GPU:
                    results.add(part, {"what": ONLY_ON_GPU[part], "skipped": NO_GPU})
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                results.add(part, {"what": part, "failed": str(error)[-500:]})


if __name__ == "__main__":
    main()
