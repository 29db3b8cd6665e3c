"""What a growth did to a model: the answers of source and target to the same inputs, compared.

`ask` takes a model's answers: its logits, the RMS of its residual stream after every layer, and samples of its
gradients. It works with any transformers module, and with one under DeepSpeed at every ZeRO stage and precision, and it
leaves no trace: gradients are caught in the backward pass, sampled and dropped, and never reach the parameters. So the
answers of a source fit into a small file, and a grown model can be compared with them when the source is gone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from raystage.growth.apply import Grown, row_origins
from raystage.growth.rules import GrowthMap, Rule

# Of every parameter's gradient so many rows (all axes but the last) are kept, half of them those where it is largest
# (most tokens of an embedding are not among the inputs), at so many columns.
_ROWS, _COLUMNS = 16, 64
# A gradient this much smaller than the usual one of the model is rounding; the key biases of BERT have exactly none.
_NO_GRADIENT = 1e-3
# The prefix of a parameter's name in a file.
_PREFIX = "gradient/"

# Asks a model, and returns what it says, as fp32, and the mean loss whose gradients are sampled.
Question = Callable[[torch.nn.Module], tuple[torch.Tensor, torch.Tensor]]
# A parameter's gradient as (rows, columns) -> which of them to keep
Where = Callable[[str, torch.Tensor], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Sketch:
    """A sample of one parameter's gradient: `values` of shape (rows, columns) at these rows and columns.

    A row goes over all axes but the last. width: the length of the last axis.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    width: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop) of the gradient; NaN where it was not sampled."""
        found = np.full(stop - start, np.nan, dtype=np.float32)
        places = self.rows[:, None] * self.width + self.columns[None, :]
        inside = (places >= start) & (places < stop)
        found[places[inside] - start] = self.values[inside]
        return found


@dataclass(frozen=True)
class Answers:
    """A model's answers to fixed inputs.

    logits: what the model says, fp32; of a language model (batch, length, vocabulary). activation_rms: of the residual
    stream after each layer. gradients: by parameter, of the mean loss on the inputs; empty where none were asked for.
    """

    logits: np.ndarray
    activation_rms: tuple[float, ...]
    gradients: Mapping[str, Sketch]

    def to_tensors(self) -> dict[str, np.ndarray]:
        """As named arrays, for a file."""
        tensors = {"logits": self.logits, "activation_rms": np.array(self.activation_rms, dtype=np.float64)}
        for name, sketch in self.gradients.items():
            tensors[f"{_PREFIX}rows/{name}"] = sketch.rows
            tensors[f"{_PREFIX}columns/{name}"] = sketch.columns
            tensors[f"{_PREFIX}values/{name}"] = sketch.values
            tensors[f"{_PREFIX}width/{name}"] = np.array([sketch.width])
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Answers:
        """From named arrays, also those of an older version, which held the logits only."""
        names = [name.removeprefix(f"{_PREFIX}rows/") for name in tensors if name.startswith(f"{_PREFIX}rows/")]
        gradients = {
            name: Sketch(
                *(tensors[f"{_PREFIX}{part}/{name}"] for part in ("rows", "columns", "values")),
                int(tensors[f"{_PREFIX}width/{name}"][0]),
            )
            for name in names
        }
        return cls(tensors["logits"], tuple(tensors.get("activation_rms", np.zeros(0)).tolist()), gradients)


# --- asking -------------------------------------------------------------------------------------


def where_large(name: str, block: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest gradients and some others, at some columns, the same for all parameters."""
    norms = torch.linalg.vector_norm(block, dim=1, dtype=torch.float32)
    largest = norms.topk(min(_ROWS // 2, len(block))).indices.cpu().numpy()
    return np.union1d(largest, some_of(len(block), _ROWS // 2)), some_of(block.shape[1], _COLUMNS)


def where_predicted(rules: GrowthMap, source: Mapping[str, Sketch]) -> Where:
    """The rows and columns of a target's gradients that follow from sampled ones of the source."""
    rule_of = {rule.target: rule for rule in rules}

    def where(name: str, block: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        rule, none = rule_of.get(name), np.zeros(0, dtype=np.int64)
        if rule is None or rule.gradient == "none" or any(one not in source for one in rule.sources):
            return none, none
        sketches = [source[one] for one in rule.sources]
        rows, columns = range(len(block)), np.arange(block.shape[1])
        origins, last = (row_origins(rule, rows), rule.axes[-1].indices) if rule.axes else (np.array(rows), columns)
        each = math.prod(rule.source_shape[:-1]) // len(sketches) if len(rule.source_shape) > 1 else 1
        known = np.concatenate([sketch.rows + number * each for number, sketch in enumerate(sketches)])
        return _some(np.flatnonzero(np.isin(origins, known)), 2 * _ROWS), _some(
            np.flatnonzero(np.isin(last, sketches[0].columns)), 2 * _COLUMNS
        )

    return where


def ask(
    model: torch.nn.Module,
    inputs: np.ndarray,
    num_layers: int,
    vocab_size: int,
    *,
    mask: np.ndarray | None = None,
    shifted: bool = True,
    where: Where | None = where_large,
) -> Answers:
    """The answers of a model in evaluation mode to int64 `inputs` of shape (batch, length).

    Collective under ZeRO 3: every worker asks the same. The loss whose gradients are sampled is over the first
    `vocab_size` tokens, so that models with different vocabularies have the same loss: of the next token where
    `shifted`, else of the inputs themselves. mask: (batch, length), 0 for padding, which does not count. where: what is
    kept of each gradient; None computes no gradients.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.ascontiguousarray(inputs)).to(device)
    valid = torch.ones_like(ids) if mask is None else torch.from_numpy(mask).to(device)

    def question(network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        logits = network(input_ids=ids, **({} if mask is None else {"attention_mask": valid})).logits.float()
        return logits, masked_loss(logits[..., :vocab_size], ids, valid, shifted)

    return answers(model, question, num_layers, valid, where)


def answers(
    model: torch.nn.Module,
    question: Question,
    num_layers: int,
    valid: torch.Tensor | None,
    where: Where | None = where_large,
) -> Answers:
    """The answers of a model in evaluation mode to a question of any kind. Collective as `ask` is.

    valid: (batch, length), 0 where a position of the residual stream does not count; None where all count.
    """
    heard: dict[int, float] = {}
    with torch.set_grad_enabled(where is not None), hearing(model, num_layers, valid, heard):
        said, loss = question(model)
    gradients = {} if where is None else _sketches(loss, model, where)
    return Answers(said.detach().cpu().numpy(), tuple(heard[layer] for layer in sorted(heard)), gradients)


@contextmanager
def hearing(
    model: torch.nn.Module, num_layers: int, valid: torch.Tensor | None, heard: dict[int, float]
) -> Iterator[None]:
    """While it lasts, what the model computes is heard: by layer the RMS of the residual stream, without padding."""
    with ExitStack() as hooks:
        for layer, module in enumerate(_layers(model, num_layers)):
            hooks.callback(module.register_forward_hook(partial(_hear, heard, layer, valid)).remove)
        yield


def mean_loss(logits: np.ndarray, inputs: np.ndarray, mask: np.ndarray, shifted: bool = True) -> float:
    """The mean loss of logits over all targets that are not padding, in nats per token."""
    return masked_loss(*map(torch.from_numpy, (logits, inputs, mask)), shifted).item()


def masked_loss(logits: torch.Tensor, ids: torch.Tensor, valid: torch.Tensor, shifted: bool) -> torch.Tensor:
    """The mean loss over all targets that are valid: the next tokens where `shifted`, else the tokens themselves."""
    if shifted and ids.shape[1] > 1:
        logits, ids, valid = logits[:, :-1], ids[:, 1:], valid[:, 1:]
    losses = functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
    return (losses * valid.flatten()).sum() / valid.sum()


def _layers(model: torch.nn.Module, num_layers: int) -> torch.nn.ModuleList | tuple:
    """The model's layers: its outermost list with that many modules, whatever its name."""
    lists = (one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == num_layers)
    return next(lists, ())


def _hear(
    heard: dict[int, float], layer: int, valid: torch.Tensor | None, module: torch.nn.Module, inputs: Any, output: Any
) -> None:
    """Positions are the second axis, or in a model without a table the last one (convolutions). What is neither is
    heard as a whole, and what is no tensor of numbers not at all."""
    states = output[0] if isinstance(output, tuple) else output
    if not isinstance(states, torch.Tensor) or states.ndim < 2:
        return
    squares = states.detach().float().pow(2)
    by_position = squares.mean(dim=-1)
    if valid is not None and valid.shape != by_position.shape:
        are_last = states.ndim == 3 and (states.shape[0], states.shape[2]) == tuple(valid.shape)
        by_position, valid = (squares.mean(dim=1), valid) if are_last else (by_position, None)
    valid = torch.ones_like(by_position) if valid is None else valid
    heard[layer] = math.sqrt(((by_position * valid).sum() / valid.sum()).item())


def _sketches(loss: torch.Tensor, model: torch.nn.Module, where: Where) -> dict[str, Sketch]:
    """Samples of the gradients of `loss`.

    `torch.autograd.grad` does not reach the nodes that add to a parameter's `grad`, to which DeepSpeed attaches its own
    reductions. And since every hook passes on a gradient without memory, they are never all in memory at the same time.
    """
    sketches: dict[str, Sketch] = {}
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    with ExitStack() as hooks:
        for name, parameter in named:
            hooks.callback(parameter.register_hook(partial(_take, sketches, where, name)).remove)
        torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    return sketches


def _take(sketches: dict[str, Sketch], where: Where, name: str, gradient: torch.Tensor) -> torch.Tensor:
    block = gradient.detach().reshape(-1, gradient.shape[-1])
    rows, columns = where(name, block)
    picked = block[torch.from_numpy(rows).to(block.device)][:, torch.from_numpy(columns).to(block.device)]
    sketches[name] = Sketch(rows, columns, picked.float().cpu().numpy(), block.shape[1])
    return gradient.new_zeros(()).expand_as(gradient)


def some_of(size: int, most: int) -> np.ndarray:
    """At most `most` of `size` indices, in order and always the same."""
    return _some(np.arange(size), most)


def _some(indices: np.ndarray, most: int) -> np.ndarray:
    if len(indices) <= most:
        return indices
    return np.sort(np.random.default_rng(len(indices)).choice(indices, most, replace=False))


# --- comparing ----------------------------------------------------------------------------------


def logit_differences(before: np.ndarray, after: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    """The largest and the mean absolute difference, over the tokens that both models know, without padding."""
    common = min(before.shape[-1], after.shape[-1])
    differences = np.abs(after[..., :common] - before[..., :common])
    differences = differences if mask is None else differences[mask > 0]
    return float(differences.max()), float(differences.mean(dtype=np.float64))


def rms_ratios(
    before: tuple[float, ...], after: tuple[float, ...], layers: tuple[int | None, ...]
) -> tuple[float | None, ...]:
    """For each target layer its RMS divided by that of its source layer (`layers`). A layer without a source is
    compared with the nearest layer below that has one. None where there is nothing to compare with."""
    ratios: list[float | None] = []
    nearest: int | None = None
    for place, layer in enumerate(layers):
        nearest = nearest if layer is None else layer
        known = nearest is not None and nearest < len(before) and place < len(after) and before[nearest] > 0
        ratios.append(after[place] / before[nearest] if known else None)
    return tuple(ratios)


def gradient_errors(
    rules: GrowthMap, before: Mapping[str, Sketch], after: Mapping[str, Sketch]
) -> tuple[float | None, float | None]:
    """The differences between the gradients that the growth map predicts from the source's and the target's own.

    For each parameter the norm of the difference divided by the larger norm of the two, on a sample (`after` as
    `where_predicted` chose it). Returns the largest over all parameters whose rule says "exact", and over all that say
    "estimated"; None where nothing is predicted.
    """

    def read(parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        return before[parameter].read(start, stop)

    grown = Grown(rules, read, 0)
    pairs = {}
    for rule in rules:
        if rule.target in after and after[rule.target].values.size:
            predicted, real = _predicted(grown, rule, after[rule.target])
            if real.size:
                pairs[rule.target] = predicted, real
    usual = statistics.median([_rms(real) for _, real in pairs.values()] or [0.0])
    errors: dict[str, list[float]] = {"exact": [], "estimated": []}
    for name, (predicted, real) in pairs.items():
        scale = max(_rms(predicted), _rms(real), _NO_GRADIENT * usual)
        if scale > 0:
            errors[grown.rules[name].gradient].append(_rms(predicted - real) / scale)
    return max(errors["exact"], default=None), max(errors["estimated"], default=None)


def _predicted(grown: Grown, rule: Rule, sketch: Sketch) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the real gradient at the sampled places with a prediction: two flat arrays."""
    rows = [grown.predicted_gradient(rule.target, row * sketch.width, (row + 1) * sketch.width) for row in sketch.rows]
    predicted = np.stack(rows)[:, sketch.columns].astype(np.float64)
    known = ~np.isnan(predicted)
    return predicted[known], sketch.values[known].astype(np.float64)


def _rms(values: np.ndarray) -> float:
    return math.sqrt(np.square(values).mean())
