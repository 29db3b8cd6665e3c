"""Texts of random letters, whose every piece stands in one place only, and schedules that read several of them."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

from raystage.config.schedule import Schedule, parse

WINDOW = 32
NAMES = ("a", "b", "c")


def write_texts(folder: Path, names: tuple[str, ...] = NAMES, documents: int = 12, size: int = 60) -> None:
    """A folder of documents for each name. At half of the text held out, some fall on either side."""
    for name in names:
        rng = random.Random(name)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(documents):
            (folder / name / f"{number}.txt").write_text("".join(rng.choices(string.ascii_letters, k=size)))


def entry(folder: Path, name: str, weight: object, **more: object) -> dict[str, Any]:
    text = {"source": "text", "path": str(folder / name), "validation_fraction": 0.5}
    return {"name": name, "weight": weight, **text, **more}


def mixture(folder: Path, **weights: object) -> dict[str, Any]:
    return {"mixture": [entry(folder, name, weight) for name, weight in weights.items()]}


def mixed_schedule(folder: Path, stages: list[dict], **changes: object) -> Schedule:
    """A schedule of one small layer over the texts in `folder`, in a context of 16 and steps of 64 tokens."""
    content: dict[str, Any] = {
        "name": "mixed",
        "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "ffn_size": 16, "context_length": 16},
        "training": {"global_batch_tokens": 64, "evaluate": {"tokens": 96, "every": 10_000}},
        "stages": stages,
    }
    return parse(content | changes)


def changing_schedule(folder: Path, workers: tuple[int, int, int] = (2, 3, 2)) -> Schedule:
    """Three stages with other mixtures, contexts, batches and numbers of workers; the second ends within a window. The
    third grows. The sources have few windows, so that epochs end on the way."""
    stages = [
        {"name": "one", "until": {"tokens": 320}, "data": mixture(folder, a=0.5, b=0.5)},
        {"name": "two", "until": {"tokens": 240}, "data": mixture(folder, b=0.25, c="rest")},
        {"name": "three", "until": {"tokens": 800}, "data": mixture(folder, a=0.3, b=0.3, c=0.4)},
    ]
    for stage, count, context, batch in zip(stages, workers, (WINDOW, 16, 8), (64, 48, 40), strict=True):
        stage["model"] = {"context_length": context}
        stage["training"] = {"workers": count, "global_batch_tokens": batch, "checkpoint": {"every": 100}}
    stages[2]["model"]["num_layers"] = 2
    stages[2]["grow"] = {"operator": "stack"}
    stages[1]["accept"] = {"forgetting_below": {"source": "a", "by": 100}}
    return mixed_schedule(folder, stages)
