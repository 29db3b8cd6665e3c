"""Held-out metrics of the user's own, and those for labels that are single tokens.

A metric is a function of a model's answers to some held-out text:

    def metric(logits: Tensor, targets: Tensor, **options) -> Mapping[str, tuple[sum, count]]

logits: fp32 of shape (targets, vocabulary). targets: int64 of shape (targets,), the right tokens. Both are on the
worker's device. Every worker calls the function for each of its micro batches. It returns by name a sum and a count,
numbers or tensors with one element. raystage adds both up over batches and workers and divides once, so the value is
that of all held-out text, with any number of workers. A name whose count adds up to 0 has no value. A ratio of sums can
be expressed like this (precision, F1); the mean of a ratio over classes cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch

from raystage.errors import InputError
from raystage.units import shown
from raystage.user_code import call, find

KEY = "training.evaluate.metrics"
Sums = dict[str, tuple[float, float]]

_NAME = re.compile(r"\w[\w./-]{0,99}")
_TAKEN = ("loss", "perplexity", "accuracy")
_EXPECTED = "expected a mapping of names to (sum, count)"


def per_class(logits: torch.Tensor, targets: torch.Tensor, *, tokens: Sequence[int]) -> dict[str, tuple]:
    """Precision, recall and F1 of some tokens, taken as classes: `precision/<token>` and so on.

    The answer of the model is the most probable of all tokens. Precision is missing for a token that is never answered,
    recall for a token that is never right.
    """
    answers, found = logits.argmax(-1), {}
    for token in tokens:
        answered, right = answers == token, targets == token
        hits, answered, right = (answered & right).sum(), answered.sum(), right.sum()
        found[f"precision/{token}"] = hits, answered
        found[f"recall/{token}"] = hits, right
        found[f"f1/{token}"] = 2 * hits, answered + right
    return found


class MetricSums:
    """The sums and counts of a stage's metrics on one worker. sums: by name."""

    def __init__(self, metrics: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """metrics: for each the reference of the function, and its options."""
        self._metrics = list(metrics)
        for name, _ in self._metrics:
            find(name)  # what is not there is said before anything is measured
        self.sums: Sums = {}

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add one micro batch. Raises InputError where a metric fails or returns something else."""
        names: set[str] = set()
        for name, options in self._metrics:
            before = logits._version, targets._version
            found = _read(name, call(name, KEY, (logits, targets), options))
            if (logits._version, targets._version) != before:  # others read them, and the text is evaluated again
                problem = f"{name} changed the tensors that it was given"
                raise InputError(f"{problem}; expected a function that works on copies of them", key=KEY)
            if twice := sorted(names & found.keys()):
                raise InputError(f"{name} returned {twice[0]!r}, as another metric did", key=KEY)
            names |= found.keys()
            self.sums = added([self.sums, found])


def added(parts: Iterable[Sums]) -> Sums:
    """The sums and counts of several batches or workers together."""
    together: Sums = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = together.get(name, (0.0, 0.0))
            together[name] = before[0] + total, before[1] + count
    return together


def values(sums: Sums) -> dict[str, float]:
    """The values of the metrics by name, without those whose count is 0."""
    return {name: total / count for name, (total, count) in sorted(sums.items()) if count}


def beside(known: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """The figures of an objective and the user's together. Raises InputError where both have one of a name."""
    if twice := sorted(known.keys() & own.keys()):
        raise InputError(f"a metric returned {twice[0]!r}, which the objective has; expected another name", key=KEY)
    return {**known, **own}


def _read(function: str, returned: Any) -> Sums:
    """What a metric returned, as numbers. Raises InputError."""
    if not isinstance(returned, Mapping):
        raise InputError(f"{function} returned {_kind(returned)}; {_EXPECTED}", key=KEY)
    found: Sums = {}
    for name, pair in returned.items():
        # W&B has the losses on sources as eval/loss/<source>.
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN or name.startswith("loss/"):
            problem = f"{function} returned the name {shown(name)}; expected letters, digits, '_', '.', '/' and '-', "
            raise InputError(f"{problem}and none of {', '.join(_TAKEN)}", key=KEY)
        numbers = [_number(value) for value in pair] if isinstance(pair, tuple | list) and len(pair) == 2 else [None]
        if None in numbers or numbers[1] < 0:
            raise InputError(f"{function} returned {_kind(pair)} for {name!r}; {_EXPECTED}", key=KEY)
        found[name] = numbers[0], numbers[1]
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() and not value.is_meta else None
    try:
        return float(value) if isinstance(value, Real) else None
    except OverflowError:
        return None


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_kind, value))})"
    return "nothing" if value is None else f"a {type(value).__name__}" if not isinstance(value, Real) else shown(value)
