"""Small plans and made-up records for tests that need no training."""

from __future__ import annotations

import math
from pathlib import Path

from raystage.config.schedule import Schedule, parse
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import Certificate, Evaluation, GrowthRecord, StageRecord, TrainPoint

FLOPS_PER_SECOND = 1e10


def make_schedule(folder: Path, **changes: object) -> Schedule:
    """2 layers, then 4, for 800 + 1,200 tokens, with baselines of 1,000, 1,500 and 2,000; the text lies in `folder`.

    `changes` replace sections of the file; a mapping changes only the keys it has.
    """
    write_documents(folder)
    content: dict = {
        "name": "tiny",
        "data": {"source": "text", "path": str(folder), "validation_fraction": 0.5},
        "model": {"hidden_size": 8, "num_heads": 2, "ffn_size": 16, "context_length": 10},
        "training": {
            "global_batch_tokens": 100,
            "optimizer": {"lr": 2e-3},
            "lr_schedule": {"kind": "wsd", "warmup": 100, "decay": 0.2},
        },
        "stages": [
            {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
            {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 1200}, "grow": {"operator": "stack"}},
        ],
        "baseline": {"budgets": [1000, 1500, 2000]},
    }
    for key, change in changes.items():
        content[key] = {**content.get(key, {}), **change} if isinstance(change, dict) else change
    return parse(content)


def write_documents(folder: Path, count: int = 12) -> None:
    """Texts of which, at a validation fraction of one half, some fall on either side."""
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"document {number}\n" * 10)


def save_words(folder: Path, *words: str, end: str | None = "</s>", end_id: int | None = None) -> Path:
    """A tokenizer of whole words: "<unk>" is 0, the end of a text 1 or `end_id`, the words follow from 2 on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<unk>": 0, **({end: 1 if end_id is None else end_id} if end else {})}
    ids |= {word: 2 + place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, unk_token="<unk>").save_pretrained(folder)
    return folder


def make_record(stage: StagePlan, eval_loss: float, **changes: object) -> StageRecord:
    """A finished `stage` with one evaluation, at its end; a grown stage had jumped up by 0.5 from 2.0."""
    end = Evaluation(stage.end, stage.start_steps + stage.steps, stage.end_flops, 1.0, eval_loss)
    facts: dict = {
        "key": stage.key,
        "parent_key": stage.parent_key,
        "name": stage.name,
        "shape": stage.shape,
        "num_params": stage.num_params,
        "num_workers": stage.training.workers.most,
        "zero_stage": stage.training.zero_stage,
        "duration": stage.duration,
        "steps": stage.steps,
        "flops": stage.flops,
        "seconds": stage.flops / FLOPS_PER_SECOND,
        "evaluation_seconds": 0.25,
        "evaluation_flops": 1000,
        "peak_memory_bytes": 2**20 * stage.shape.num_layers,
        "eval_loss": eval_loss,
        "checkpoint": "checkpoint",
        "growth": make_growth(stage, 2.0, 2.5) if stage.growth else None,
        "train": (TrainPoint(end.position, end.steps, end.flops, 1.0, eval_loss + 0.1, 2e-3, 0.5, 1e4),),
        "evaluations": (end,),
    }
    return StageRecord(**{**facts, "unit": stage.unit, **changes})


def make_growth(stage: StagePlan, before: float, after: float) -> GrowthRecord:
    certificate = Certificate(
        before,
        after,
        3.0,
        mean_logit_difference=0.5,
        activation_rms_ratio=(1.0, None),
        gradient_error_estimated=1.25,
        moment_norms={"exp_avg": {"before": 0.5, "after": 0.75}},
        twin_distance=0.02,
        twin_steps=min(20, stage.steps),
        seconds=0.5,
        bytes_read=4096,
        exact=False,
    )
    return GrowthRecord(stage.growth.operator, stage.growth.optimizer_state, 0.5, certificate)


def make_records(plan: Plan, staged_loss: float, baseline_losses: tuple[float, ...]) -> dict[str, StageRecord]:
    """Every stage of `plan` finished; each run ends with the loss given for it, what comes before it with 3.0."""
    records: dict[str, StageRecord] = {}
    for run, loss in zip(plan.runs(), (staged_loss, *baseline_losses), strict=True):
        for stage in run.stages[:-1]:
            records[stage.key] = make_record(stage, 3.0)
        records[run.stages[-1].key] = make_record(run.stages[-1], loss)
    return records


def make_curves(plan: Plan, points: int = 20, offset: float = 0.0) -> dict[str, StageRecord]:
    """Every stage finished, with curves such as training has: a power law in FLOPs, a drop in the decay, a jump
    at each growth that heals. `offset` is added to the staged run's losses."""
    return {
        record.key: record
        for run in reversed(plan.runs())
        for record in _curved_run(run, points, offset if run is plan.staged else 0.0)
    }


def _curved_run(run: RunPlan, points: int, offset: float) -> list[StageRecord]:
    records: list[StageRecord] = []
    for stage in run.stages:
        before = records[-1].eval_loss if records else 5.6
        jump = 0.4 if stage.growth else 0.0
        evaluations = tuple(
            _evaluation(stage, step, before, jump, offset) for step in _steps(stage, run.duration // points)
        )
        growth = make_growth(stage, before, before + jump) if stage.growth else None
        records.append(make_record(stage, evaluations[-1].loss, evaluations=evaluations, growth=growth))
    return records


def _steps(stage: StagePlan, every_tokens: int) -> list[int]:
    every = max(1, every_tokens // stage.training.global_batch_tokens)
    first = 0 if stage.start_steps == 0 else every
    return sorted({*range(first, stage.steps, every), stage.steps})


def _evaluation(stage: StagePlan, step: int, before: float, jump: float, offset: float) -> Evaluation:
    tokens = stage.start + step * stage.training.global_batch_tokens
    flops = stage.start_flops + stage.flops * step // stage.steps
    done = step / stage.steps
    healed = jump * math.exp(-8 * done)
    loss = min(5.6, 1.2 + 2.4 * (tokens / 4e5 + 0.02) ** -0.45 * (6 / (4 + stage.shape.num_layers)) ** 0.3)
    return Evaluation(
        tokens, stage.start_steps + step, flops, 30.0 * done, loss + healed + offset - _annealed(stage, tokens)
    )


def _annealed(stage: StagePlan, tokens: int) -> float:
    """What the decay of the rate has brought so far, at most 0.2 nats."""
    last = stage.rate[-1]
    if last.end_lr >= last.start_lr or tokens <= last.start:
        return 0.0
    return 0.2 * (tokens - last.start) / (last.end - last.start)
