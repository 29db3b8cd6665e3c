"""The learning rate as a function of the token position, in segments.

A curve is a pure function: a stage that is split in two, or resumed, sees the same rates as if it were whole.
`signature` says what the rates between two positions depend on, so that two schedules whose rates agree up to some
token have equal stage keys up to there. For that, each curve has exactly one form: no empty segment, and no two
constant segments of one rate in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from raystage.config.training import LrSchedule
from raystage.errors import InputError

KINDS = ("wsd", "cosine", "linear", "constant")


@dataclass(frozen=True)
class RateSegment:
    """The rate between two token positions: a straight line, or half a cosine."""

    start_tokens: int
    end_tokens: int
    start_lr: float
    end_lr: float
    form: str = "line"  # or "cosine"

    @property
    def is_flat(self) -> bool:
        return self.start_lr == self.end_lr

    def at(self, tokens: float) -> float:
        if self.is_flat:
            return self.start_lr
        done = (tokens - self.start_tokens) / (self.end_tokens - self.start_tokens)
        if self.form == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start_lr + (self.end_lr - self.start_lr) * done


Curve = tuple[RateSegment, ...]


def build(kind: str, lr: float, start: int, total: int, warmup: int, decay: int, min_ratio: float) -> Curve:
    """The curve over `total` tokens from position `start`.

    wsd: warm-up, constant, then a straight line to `min_ratio * lr` over the last `decay` tokens (MiniCPM, 2404.06395).
    cosine: warm-up, then half a cosine. linear: warm-up, then a straight line. constant: warm-up, then constant.
    `decay` is for wsd only. The caller makes sure that total > 0 and warmup + decay <= total.
    """
    end, low = start + total, lr * min_ratio
    warm = RateSegment(start, start + warmup, 0.0, lr)
    if kind == "wsd":
        rest = (RateSegment(start + warmup, end - decay, lr, lr), RateSegment(end - decay, end, lr, low))
    elif kind == "constant":
        rest = (RateSegment(start + warmup, end, lr, lr),)
    else:
        rest = (RateSegment(start + warmup, end, lr, low, "cosine" if kind == "cosine" else "line"),)
    return _joined(segment for segment in (warm, *rest) if segment.end_tokens > segment.start_tokens)


def _joined(segments: Iterable[RateSegment]) -> Curve:
    """Neighbouring segments of one constant rate as one: a decay to the full rate is no decay."""
    curve: list[RateSegment] = []
    for segment in segments:
        if curve and curve[-1].is_flat and segment.is_flat and curve[-1].end_lr == segment.start_lr:
            segment = RateSegment(curve.pop().start_tokens, segment.end_tokens, segment.start_lr, segment.end_lr)
        curve.append(segment)
    return tuple(curve)


def rate_at(curve: Curve, tokens: float) -> float:
    """The rate at a token position; outside of the curve that of its nearest end."""
    for segment in curve:
        if tokens < segment.end_tokens:
            return segment.at(max(tokens, segment.start_tokens))
    return curve[-1].end_lr


@dataclass(frozen=True)
class Rewarming:
    """A factor on the learning rate of new parameters after a growth; the rate of the others does not change.

    It rises from 0 in a straight line to `factor` over `tokens` tokens, then falls in a straight line to 1 over as many
    (SPARKLING, 2602.02472, which rises to 1.3 over 250 steps).
    """

    factor: float
    tokens: int

    def at(self, tokens: float) -> float:
        """The factor `tokens` tokens after the growth."""
        if tokens <= self.tokens:
            return self.factor * max(tokens, 0.0) / self.tokens
        return self.factor + (1 - self.factor) * min(tokens / self.tokens - 1, 1.0)

    def is_over(self, tokens: float) -> bool:
        return tokens >= 2 * self.tokens


def signature(curve: Curve, start: int, end: int) -> list[list]:
    """Everything that decides the rates between two positions, as plain lists.

    A constant segment is cut to the two positions. Any other segment counts as a whole, because its rates depend on
    both of its ends.
    """
    described = []
    for segment in curve:
        if segment.end_tokens <= start or segment.start_tokens >= end:
            continue
        if segment.is_flat:
            first, last = max(segment.start_tokens, start), min(segment.end_tokens, end)
            described.append(["constant", first, last, segment.start_lr])
        else:
            described.append([segment.form, segment.start_tokens, segment.end_tokens, segment.start_lr, segment.end_lr])
    return described


def moved(curve: Curve, by: int) -> Curve:
    """The same curve `by` tokens earlier."""
    return tuple(
        replace(segment, start_tokens=segment.start_tokens - by, end_tokens=segment.end_tokens - by)
        for segment in curve
    )


def shortened(curve: Curve, by: int) -> Curve:
    """The same curve with its last constant segment shorter by `by` tokens; everything after it comes earlier.

    The caller makes sure that there is such a segment and that it is long enough.
    """
    index = max(index for index, segment in enumerate(curve) if segment.is_flat)
    flat = replace(curve[index], end_tokens=curve[index].end_tokens - by)
    kept = (flat,) if flat.end_tokens > flat.start_tokens else ()
    return (*curve[:index], *kept, *moved(curve[index + 1 :], by))


def warmup_end(curve: Curve) -> int:
    """The position where the rate reaches its peak."""
    first = curve[0]
    return first.end_tokens if first.end_lr > first.start_lr else first.start_tokens


def stable_end(curve: Curve) -> int | None:
    """The position up to which a longer run has the same rates: where a wsd curve begins to decay, or a constant one
    ends.

    None where the rates depend on the total from the first token, or from the end of the warm-up.
    """
    last = curve[-1]
    if last.is_flat:
        return last.end_tokens
    if len(curve) > 1 and curve[-2].is_flat and last.form == "line":
        return last.start_tokens
    return None


def prefix_signature(curve: Curve, start: int, end: int) -> tuple:
    """The signature of a stretch without the end of its last segment, if that is constant; usable as a dictionary key.

    Two stretches with the same start and the same prefix signature have equal rates as far as the shorter one goes.
    """
    *whole, last = signature(curve, start, end)
    return (*map(tuple, whole), ("constant", last[1], last[3]) if last[0] == "constant" else tuple(last))


# --- of a schedule's section ------------------------------------------------------------------


def span_tokens(span: float, total: int) -> int:
    """A span of a run in tokens: below 1 it is a fraction of the whole."""
    return round(span * total) if span < 1 else round(span)


def decay_start(schedule: LrSchedule, total: int) -> int | None:
    """The position where the rate of a run of `total` tokens begins to fall; None where it falls right after the
    warm-up."""
    if schedule.kind == "constant":
        return total
    return total - span_tokens(schedule.decay, total) if schedule.kind == "wsd" else None


def check_rate(schedule: LrSchedule, total: int, key: str) -> None:
    """Refuse a warm-up and a decay that are longer than `total` tokens together."""
    warmup = span_tokens(schedule.warmup, total)
    decay = span_tokens(schedule.decay, total) if schedule.kind == "wsd" else 0
    if warmup + decay > total:
        stretches = f"a warm-up of {warmup}" + (f" and a decay of {decay}" if decay else "")
        raise InputError(f"found {stretches} tokens in a run of {total}; expected them to fit into it", key=key)
