"""Schedules drawn by a seeded generator over the keys of a schedule: what `tests/golden/keys.json` was made of.

`python tests/support/golden_schedules.py` writes that file anew, with the keys that the code gives now. Do so only
where a key has to change, and look at what else the difference shows.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from factories import write_documents
from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.planning import build as plans
from raystage.planning.inputs import Sources

FILE = Path(__file__).parents[1] / "golden" / "keys.json"
JOBS = Path(__file__).parents[2] / "jobs"
TEXTS = "TEXTS"  # stands for a folder of `write_documents`
COUNT = 200

DEPTH = ["stack", "interleave", "last", "random", "identity"]
WIDTH = ["zero_pad", "duplicate", "aki", "rms"]
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral"]


def draw(rng: random.Random) -> dict[str, Any]:
    """One schedule of one to three stages; it may be one that cannot be planned."""
    family = rng.choice(FAMILIES)
    hidden = rng.choice([16, 32])
    length = rng.choice([8, 16])
    content: dict[str, Any] = {
        "name": "drawn",
        "seed": rng.randrange(5),
        "data": {"source": "text", "path": TEXTS, "validation_fraction": rng.choice([0.4, 0.5])},
        "model": _some(rng, {
            "family": family, "hidden_size": hidden, "num_heads": 4, "context_length": length,
            "ffn_size?": rng.choice([24, 48]), "tied_embeddings?": rng.random() < 0.5, "norm_eps?": 1e-5,
            "num_kv_heads?": 2, "head_size?": 8, "vocab_size?": 300,
        }),
        "training": _training(rng),
        "stages": [],
    }  # fmt: skip
    if family == "gpt2":
        content["model"].pop("num_kv_heads", None), content["model"].pop("head_size", None)
    if family == "mixtral":
        content["model"] |= {"num_experts": 4, "experts_per_token": 2}
    layers = rng.choice([1, 2, 3])
    for index in range(rng.choice([1, 2, 2, 3])):
        stage: dict[str, Any] = {"name": f"s{index}", "model": {}, "until": _until(rng)}
        if index:
            stage |= _grown(rng, layers, hidden)
            layers = stage["model"].get("num_layers", layers)
            hidden = stage["model"].get("hidden_size", hidden)
        stage["model"]["num_layers"] = layers
        stage["model"]["hidden_size"] = hidden
        if rng.random() < 0.3:
            stage["training"] = rng.choice([
                {"optimizer": {"lr": 5e-4}}, {"lr_schedule": {"kind": "linear"}}, {"zero_stage": 3},
                {"global_batch_tokens": 256}, {"precision": "bf16"}, {"workers": 2},
                {"evaluate": {"tokens": "1K"}}, {"optimizer": {"weight_decay": 0}},
            ])  # fmt: skip
        if rng.random() < 0.2:
            stage["seed"] = rng.randrange(9)
        if rng.random() < 0.15:
            stage["accept"] = {"eval_loss_below": 5.0}
            stage["on_reject"] = rng.choice(["abort", {"retry": {"set": {"training.optimizer.lr": "*0.5"}}}])
        content["stages"].append(stage)
    if rng.random() < 0.6:
        content["baseline"] = {"budgets": rng.choice([[2048], [1024, 2048, 4096]])}
        if rng.random() < 0.2 and not any("accept" in stage for stage in content["stages"]):
            content["baseline"]["tune"] = {"training.optimizer.lr": [1e-3, 2e-3, 4e-3]}
            content["seeds"] = rng.choice([1, 2])
    return content


def _some(rng: random.Random, written: dict[str, Any]) -> dict[str, Any]:
    """The same with one in three of the keys that end in '?'."""
    return {key.rstrip("?"): value for key, value in written.items() if not key.endswith("?") or rng.random() < 1 / 3}


def _training(rng: random.Random) -> dict[str, Any]:
    optimizer = rng.choice([
        {"name": "adamw", "lr": 2e-3}, {"name": "adam", "betas": [0.9, 0.999]}, {"name": "sgd", "momentum": 0.8},
        {"lr": 1e-3, "eps": 1e-6, "weight_decay": 0.01},
    ])  # fmt: skip
    schedule = rng.choice([
        {"kind": "wsd", "warmup": 256, "decay": 0.25}, {"kind": "cosine", "warmup": 0.1, "min_lr_ratio": 0.1},
        {"kind": "constant"}, {"kind": "linear", "warmup": 128},
    ])  # fmt: skip
    # Where no tokens are given they follow from the stage's length since; these keys are of before.
    return {"evaluate": {"tokens": 65_536}} | _some(rng, {
        "global_batch_tokens": rng.choice([64, 128]), "optimizer": optimizer, "lr_schedule": schedule,
        "workers?": rng.choice([2, {"min": 1, "max": 3}]), "zero_stage?": rng.choice([0, 2, 3]),
        "precision?": "bf16", "offload_optimizer?": "cpu", "micro_batch_size?": 2, "gradient_clipping?": 0.5,
        "activation_checkpointing?": True, "cpus_per_worker?": 2, "evaluate?": {"every": 256, "tokens": 512},
        "checkpoint?": {"every": 256}, "ramp?": {"global_batch_tokens": {"from": 16, "over": {"tokens": 256}}},
        "deepspeed?": {"prescale_gradients": True}, "max_failures?": 1, "hang_seconds?": "10m",
    })  # fmt: skip


def _until(rng: random.Random) -> dict[str, Any]:
    return rng.choice([
        {"tokens": 1024}, {"steps": 12}, {"tokens": 2048, "eval_loss": 2.0},
        {"tokens": 2048, "plateau": {"min_delta": 0.01, "patience": 3}},
    ])  # fmt: skip


def _grown(rng: random.Random, layers: int, hidden: int) -> dict[str, Any]:
    """What of a stage makes its model larger than that of `layers` layers and `hidden` units."""
    kind = rng.choice(["depth", "depth", "width", "both", "masked", "learned", "nothing"])
    deeper, wider = {"num_layers": layers * 2}, {"hidden_size": hidden * 2}
    grow: dict[str, Any] = {}
    if kind == "depth":
        grow, model = {"operator": rng.choice(DEPTH)}, deeper
    elif kind == "width":
        grow, model = {"operator": rng.choice(WIDTH)}, wider
    elif kind == "both":
        grow, model = {"operator": {"depth": rng.choice(DEPTH), "width": rng.choice(WIDTH)}}, deeper | wider
    elif kind == "masked":
        grow, model = {"operator": "masked", "grow_tokens": 256}, deeper
    elif kind == "learned":
        grow, model = {"operator": "learned", "fit_steps": 3}, deeper
    else:
        return {"model": {}}
    grow |= _some(rng, {
        "optimizer_state?": rng.choice(["grow", "reset"]), "rewarm?": {"tokens": 128},
        "require?": {"loss_increase_below": 9.0},
    })  # fmt: skip
    stage: dict[str, Any] = {"model": dict(model), "grow": grow}
    if kind == "depth" and rng.random() < 0.2:
        stage["freeze"] = rng.choice([{"layers": "old"}, {"layers": "old", "for": {"tokens": 256}}])
    return stage


def shipped() -> Iterator[tuple[str, dict[str, Any]]]:
    """The schedules in `jobs/` that read the library alone, on the text of the tests in its place: the library differs
    with the version of Python. What reads several sources, labels or images, no text can take the place of."""
    for path in sorted((JOBS / "schedules").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if content["data"].get("source") != "python-stdlib" or any("data" in stage for stage in content["stages"]):
            continue
        yield path.name, content | {"data": {"source": "text", "path": TEXTS, "validation_fraction": 0.5}}


def keys_of(content: dict[str, Any], texts: Path, sources: Sources | None = None) -> dict[str, list[str]]:
    """Of every run of the plan, by name, the first 16 digits of its stages' keys."""
    written = json.loads(json.dumps(content).replace(f'"{TEXTS}"', json.dumps(str(texts))))
    plan = plans.make_plan(parse(written), sources=sources)
    return {run.name: [stage.key[:16] for stage in run.stages] for run in plan.runs()}


def make() -> list[dict[str, Any]]:
    """Every shipped schedule, and so many drawn ones as can be planned."""
    rng, found = random.Random(13), []
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder))
        for name, content in shipped():
            found.append({"file": name, "schedule": content, "keys": keys_of(content, Path(folder))})
        while len(found) < COUNT:
            content = draw(rng)
            try:
                found.append({"schedule": content, "keys": keys_of(content, Path(folder))})
            except InputError:
                continue
    return found


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("[\n" + ",\n".join(json.dumps(one) for one in make()) + "\n]\n")
