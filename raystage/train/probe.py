"""Measures on a stage's workers what a growth did, against what the stage before has left for this.

The workers of a grown stage never hold the old model. So at its end a stage writes a probe beside its checkpoint: the
outputs of its model on fixed inputs (`growth.certificate`), the held-out text that it was evaluated on, and the norms
of its optimizer's moments. Nothing here changes the training: it has the same bits without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from deepspeed import comm
from deepspeed.utils import z3_leaf_module
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from raystage.files.filesystem import Folder
from raystage.growth.certificate import (
    Answers,
    Where,
    answers,
    ask,
    gradient_errors,
    hearing,
    logit_differences,
    rms_ratios,
    where_large,
    where_predicted,
)
from raystage.growth.checks import exchanges_head, is_exact
from raystage.growth.duplicates import DUPLICATE_STEPS, Sample, duplicate_distance, find_duplicates
from raystage.growth.operators import layer_origins
from raystage.growth.rules import GrowthMap
from raystage.models.shape import table_of
from raystage.objectives.learner import Batch, HeldOut, Judge
from raystage.objectives.opening import open_judge
from raystage.plans.stage import StagePlan
from raystage.results.record import Certificate, GrowthRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.train import partitions
from raystage.train.engine import StageEngine
from raystage.train.optimizer import growth_of
from raystage.train.state.compiled import uncompiled
from raystage.train.texts import WeightedSet

PROBE = "probe.safetensors"
PROBE_TOKENS = 256
PROBE_LOGITS = 4_000_000
PROBE_SAMPLES = 16
_MOMENT, _HELD_OUT, _WEIGHTS = "moment_norm/", "held_out", "held_out_weights"
_INPUTS = "input_ids"


def write_probe(engine: StageEngine, folder: Folder, judged: Sequence[WeightedSet]) -> None:
    """Collective; the first worker writes. judged: what the stage's loss is made of."""
    held_out, stage = judged[0][0], engine.stage
    inputs: dict[str, np.ndarray] = {}
    if stage.objective.entry.unit == "tokens":
        count = min(PROBE_TOKENS, max(1, PROBE_LOGITS // stage.shape.vocab_size))
        inputs = {_INPUTS: probe_inputs(held_out.tokens, count)}
        found = _answers(engine, inputs[_INPUTS], stage.shape.vocab_size, where_large)
    else:
        found = _judged_answers(engine, engine.judge, held_out, where_large)
    # A stage with an adapter ends with a merged model, of which there are no moments.
    moments = {} if stage.adapter else moment_norms(engine)
    norms = {f"{_MOMENT}{state}": np.array([norm]) for state, norm in moments.items()}
    if engine.rank == 0:
        tensors = {**inputs, **_named(judged), **found.to_tensors(), **norms}
        folder.write_whole(PROBE, save_tensors({name: np.ascontiguousarray(one) for name, one in tensors.items()}))


def certify(
    engine: StageEngine,
    rules: GrowthMap,
    source: Checkpoint,
    loss_before: float,
    loss_after: Callable[[Sequence[WeightedSet]], float],
    seconds: float,
) -> Certificate:
    """Measure what the growth did, with the probe beside the source's checkpoint. Collective.

    loss_after: the loss of the grown model on the data of `loss_before`. seconds: of growing. The distance of
    duplicates is measured later, because they have not been trained yet. Where the head was exchanged, the two models
    say different things: what is compared is the residual stream alone.
    """
    stage, probe = engine.stage, load_tensors(source.folder.read(PROBE))
    before, judged = Answers.from_tensors(probe), _judged(probe)
    is_exchanged = exchanges_head(stage.parent_shape, stage.shape)
    after = _after(engine, rules, before, probe) if not is_exchanged else _heard(engine, probe)
    largest, mean = (None, None) if is_exchanged else logit_differences(before.logits, after.logits)
    growth = stage.growth.operator, stage.growth.options
    layers = tuple(origin.source for origin in layer_origins(stage.parent_shape, stage.shape, *growth))
    exact, estimated = gradient_errors(rules, before.gradients, after.gradients)
    return Certificate(
        eval_loss_before=loss_before,
        eval_loss_after=None if is_exchanged else loss_after(judged),
        max_logit_difference=largest,
        mean_logit_difference=mean,
        activation_rms_ratio=rms_ratios(before.activation_rms, after.activation_rms, layers),
        gradient_error=exact,
        gradient_error_estimated=estimated,
        moment_norms=_side_by_side(probe, moment_norms(engine)),
        seconds=seconds,
        bytes_read=int(engine.sum_over_workers(torch.tensor(float(source.bytes_read), device=engine.device))),
        exact=is_exact(stage.parent_shape, stage.shape, *growth),
    )


def _named(judged: Sequence[WeightedSet]) -> dict[str, np.ndarray]:
    """Held-out samples as tensors of a probe: "held_out" are the tokens of windows of text, those of a second source
    "held_out.1"; other arrays are "held_out/image" and the like."""
    tensors = {}
    for index, (held_out, _) in enumerate(judged):
        place = _place(index)
        tensors |= {
            place if name == "tokens" and "label" not in held_out.arrays else f"{place}/{name}": one
            for name, one in held_out.arrays.items()
        }
    weights = {_WEIGHTS: np.array([weight for _, weight in judged])} if len(judged) > 1 else {}
    return tensors | weights


def _judged(probe: dict[str, np.ndarray]) -> list[WeightedSet]:
    found = []
    for index, weight in enumerate(probe.get(_WEIGHTS, [1.0])):
        place = _place(index)
        further = {name.removeprefix(f"{place}/"): one for name, one in probe.items() if name.startswith(f"{place}/")}
        tokens = {"tokens": probe[place]} if place in probe else {}
        found.append((HeldOut({**tokens, **further}), float(weight)))
    return found


def _place(index: int) -> str:
    return f"{_HELD_OUT}.{index}" if index else _HELD_OUT


def probe_inputs(held_out: np.ndarray, tokens: int) -> np.ndarray:
    """The first held-out sequences, `tokens` in all, or the start of one that is longer."""
    length = held_out.shape[1] - 1
    return held_out[: max(1, tokens // length), : min(length, tokens)]


def _answers(engine: StageEngine, inputs: np.ndarray, vocab_size: int, where: Where) -> Answers:
    """A language model's answers to `inputs`."""
    shape = engine.stage.shape
    shifted = engine.stage.objective.entry.model == "next token"
    where = _possible(engine, where)
    engine.deepspeed.eval()
    with engine.plain() as network:
        return ask(network, inputs, shape.num_layers, vocab_size, shifted=shifted, where=where)


def _judged_answers(engine: StageEngine, judge: Judge, held_out: HeldOut, where: Where) -> Answers:
    """A model's answers to the first held-out samples, and the gradients of what it is judged by."""
    batch = _first_samples(engine, judge, held_out)

    def question(network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        answer = judge.answer(network, batch)
        return answer.outputs, judge.summed_loss(answer) / len(answer.outputs)

    engine.deepspeed.eval()
    valid, where = judge.inputs(batch).get("attention_mask"), _possible(engine, where)
    with engine.plain() as network:
        return answers(network, question, engine.stage.shape.num_layers, valid, where)


def _first_samples(engine: StageEngine, judge: Judge, held_out: HeldOut) -> Batch:
    batch = judge.batch(held_out, 0, min(PROBE_SAMPLES, held_out.count), held_out.length)
    return {name: torch.from_numpy(values).to(engine.device) for name, values in batch.items()}


def _after(engine: StageEngine, rules: GrowthMap, before: Answers, probe: dict[str, np.ndarray]) -> Answers:
    """The grown model's answers to what the source was asked."""
    where = where_predicted(rules, before.gradients)
    if _INPUTS in probe:
        return _answers(engine, probe[_INPUTS], before.logits.shape[-1], where)
    return _judged_answers(engine, open_judge(engine.stage.parent_objective), _judged(probe)[0][0], where)


def _heard(engine: StageEngine, probe: dict[str, np.ndarray]) -> Answers:
    """The residual stream of a model with another head than the source's, on what the source was asked."""
    judge, held_out = open_judge(engine.stage.parent_objective), _judged(probe)[0][0]
    if _INPUTS in probe:
        inputs = {_INPUTS: torch.from_numpy(probe[_INPUTS]).to(engine.device)}
    else:
        inputs = judge.inputs(_first_samples(engine, judge, held_out))
    heard: dict[int, float] = {}
    engine.deepspeed.eval()
    layers, valid = engine.stage.shape.num_layers, inputs.get("attention_mask")
    with torch.no_grad(), uncompiled(engine.deepspeed.module) as network, hearing(network, layers, valid, heard):
        network(**inputs)
    return Answers(np.zeros(0, dtype=np.float32), tuple(heard[layer] for layer in sorted(heard)), {})


def _possible(engine: StageEngine, where: Where) -> Where | None:
    """None, for no gradients, for a mixture of experts under ZeRO 3.

    There DeepSpeed computes those of all experts of a layer at once, inside a backward pass of its own.
    """
    is_whole = engine.deepspeed.zero_optimization_stage() == 3
    return None if is_whole and any(map(z3_leaf_module, engine.deepspeed.module.modules())) else where


def moment_norms(engine: StageEngine) -> dict[str, float]:
    """The norm of each of the optimizer's states over all parameters and workers."""
    squares: dict[str, torch.Tensor] = {}
    for part in partitions.partitions(engine.deepspeed):
        first, last = part.saves
        for state, held in part.tensors.items():
            if state != "fp32":
                total = squares.setdefault(state, torch.zeros((), dtype=torch.float64, device=engine.device))
                total += held[first:last].double().square().sum().to(engine.device)
    # A worker may hold none of a small model's parameters.
    states = partitions.moments_of(engine.deepspeed.basic_optimizer)
    nothing = torch.zeros((), dtype=torch.float64, device=engine.device)
    return {state: engine.sum_over_workers(squares.get(state, nothing)) ** 0.5 for state in states}


def _side_by_side(probe: dict[str, np.ndarray], after: dict[str, float]) -> dict[str, dict[str, float]]:
    """For the states that exist on both sides."""
    return {
        state: {"before": float(probe[f"{_MOMENT}{state}"][0]), "after": norm}
        for state, norm in after.items()
        if f"{_MOMENT}{state}" in probe
    }


# --- duplicates ---------------------------------------------------------------------------------


def are_duplicates_due(stage: StagePlan, growth: GrowthRecord | None, step: int) -> bool:
    """Whether it is time, after `step` steps of the stage, to measure how different duplicates are. Once a stage."""
    if stage.growth is None or growth is None or growth.certificate.twin_steps is not None:
        return False
    return step >= min(DUPLICATE_STEPS, stage.steps)


def with_duplicates(engine: StageEngine, growth: GrowthRecord, step: int) -> GrowthRecord:
    """The record with the distance of duplicates after `step` steps of the stage. Collective."""
    stage = engine.stage
    pairs = find_duplicates(growth_of(stage), table_of(stage.shape).embeddings)
    values = _gathered(engine, [sample for pair in pairs for sample in (pair.one, pair.other)])
    distance = duplicate_distance(list(zip(values[::2], values[1::2], strict=True)))
    return replace(growth, certificate=replace(growth.certificate, twin_distance=distance, twin_steps=step))


def _gathered(engine: StageEngine, samples: Sequence[Sample]) -> list[np.ndarray]:
    """The fp32 weights at sampled positions, on all workers, whichever workers hold them. Collective."""
    if not samples:
        return []
    held: dict[str, list[partitions.Partition]] = {}
    for part in partitions.partitions(engine.deepspeed):
        held.setdefault(part.parameter, []).append(part)
    found = [np.zeros(len(places), dtype=np.float32) for _, places in samples]
    for values, (parameter, places) in zip(found, samples, strict=True):
        for part in held.get(parameter, ()):
            first, last = (part.start + border for border in part.saves)
            inside = (places >= first) & (places < last)
            chosen = torch.from_numpy(places[inside] - part.start).to(part.tensors["fp32"].device)
            values[inside] = part.tensors["fp32"][chosen].cpu().numpy()
    flat = torch.from_numpy(np.concatenate(found)).to(engine.device)
    comm.all_reduce(flat)
    return np.split(flat.cpu().numpy(), np.cumsum([len(values) for values in found])[:-1])
