"""The learning rate as a function of the token position, in segments.

A curve is a pure function: a stage that is split in two, or resumed, sees the same rates as if it were whole.
`signature` says what the rates between two positions depend on, so that two schedules whose rates agree up to some
token have equal stage keys up to there. For that, each curve has exactly one form: no empty segment, and no two
constant segments of one rate in a row, and no form but a line for a constant rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raystage.config.training import LrSchedule
from raystage.errors import InputError
from raystage.frozen import replaced

# By form of a segment: from the share of its length that is done to the share of its change that is done.
FORMS: Mapping[str, Callable[[float], float]] = {
    "line": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
    "1-sqrt": math.sqrt,  # falls fast at first (Haegele et al., 2405.18392)
}
# The words of a schedule for them.
FORM_OF = {"linear": "line", "cosine": "cosine", "1-sqrt": "1-sqrt"}


@dataclass(frozen=True)
class RateSegment:
    """The rate between two token positions, in one of `FORMS`."""

    start: int
    end: int
    start_lr: float
    end_lr: float
    form: str = "line"

    @property
    def is_flat(self) -> bool:
        return self.start_lr == self.end_lr

    def at(self, position: float) -> float:
        if self.is_flat:
            return self.start_lr
        done = (position - self.start) / (self.end - self.start)
        return self.start_lr + (self.end_lr - self.start_lr) * FORMS[self.form](done)


Curve = tuple[RateSegment, ...]


@dataclass(frozen=True)
class Reached:
    """A rate that a piecewise curve reaches at a position, counted from its start: `ratio` of the highest rate.

    form: how it comes there from the position before; "step" keeps that rate up to the position, and then changes.
    """

    position: int
    ratio: float
    form: str = "line"


def build(
    kind: str, lr: float, start: int, total: int, warmup: int, decay: int, min_ratio: float, decay_form: str = "line"
) -> Curve:
    """The curve over a length of `total` from position `start`.

    wsd: warm-up, constant, then in `decay_form` to `min_ratio * lr` over the last `decay` (MiniCPM, 2404.06395).
    cosine, linear, 1-sqrt: warm-up, then in this form to `min_ratio * lr`. constant: warm-up, then constant. `decay`
    and `decay_form` are for wsd only. The caller makes sure that total > 0 and warmup + decay <= total.
    """
    end, low = start + total, lr * min_ratio
    warm = RateSegment(start, start + warmup, 0.0, lr)
    if kind == "wsd":
        falls = RateSegment(end - decay, end, lr, low, decay_form)
        rest = (RateSegment(start + warmup, end - decay, lr, lr), falls)
    elif kind == "constant":
        rest = (RateSegment(start + warmup, end, lr, lr),)
    else:
        rest = (RateSegment(start + warmup, end, lr, low, FORM_OF[kind]),)
    return _joined((warm, *rest))


def build_piecewise(lr: float, start: int, total: int, warmup: int, points: Sequence[Reached]) -> Curve:
    """The curve through `points` over a length of `total` from position `start`; after the last point it is constant.

    It begins at `lr`, or at the ratio of a point at 0; a warm-up leads there from 0. The caller makes sure that the
    others lie after the warm-up, in order, and not beyond the total.
    """
    rate = lr * points[0].ratio if points[0].position == 0 else lr
    position = start + warmup
    segments = [RateSegment(start, position, 0.0, rate)]
    for point in points:
        if point.position:
            reached, there = lr * point.ratio, start + point.position
            is_step = point.form == "step"
            way = RateSegment(position, there, rate, rate if is_step else reached, "line" if is_step else point.form)
            segments.append(way)
            position, rate = there, reached
    return _joined((*segments, RateSegment(position, start + total, rate, rate)))


def _joined(segments: Iterable[RateSegment]) -> Curve:
    """In their one form: no empty segment, and neighbouring segments of one constant rate as one. A decay to the full
    rate is no decay."""
    curve: list[RateSegment] = []
    for segment in segments:
        if segment.end <= segment.start:
            continue
        if segment.is_flat:
            segment = replaced(segment, form="line")
            if curve and curve[-1].is_flat and curve[-1].end_lr == segment.start_lr:
                segment = replaced(segment, start=curve.pop().start)
        curve.append(segment)
    return tuple(curve)


def rate_at(curve: Curve, position: float) -> float:
    """The rate at a position of the run; outside of the curve that of its nearest end."""
    for segment in curve:
        if position < segment.end:
            return segment.at(max(position, segment.start))
    return curve[-1].end_lr


def has_decayed(curve: Curve, position: float) -> bool:
    """Whether the curve ends at a position, or before it, with a rate that fell."""
    return curve[-1].end <= position and curve[-1].end_lr < curve[-1].start_lr


@dataclass(frozen=True)
class Rewarming:
    """A factor on the learning rate of new parameters after a growth; the rate of the others does not change.

    It rises from 0 in a straight line to `factor` over `rise`, then falls in a straight line to 1 over as much
    (SPARKLING, 2602.02472, which rises to 1.3 over 250 steps).
    """

    factor: float
    rise: int

    def at(self, position: float) -> float:
        """The factor at a distance from the growth."""
        if position <= self.rise:
            return self.factor * max(position, 0.0) / self.rise
        return self.factor + (1 - self.factor) * min(position / self.rise - 1, 1.0)

    def is_over(self, position: float) -> bool:
        return position >= 2 * self.rise


def signature(curve: Curve, start: int, end: int) -> list[list]:
    """Everything that decides the rates between two positions, as plain lists.

    A constant segment is cut to the two positions. Any other segment counts as a whole, because its rates depend on
    both of its ends.
    """
    described = []
    for segment in curve:
        if segment.end <= start or segment.start >= end:
            continue
        if segment.is_flat:
            first, last = max(segment.start, start), min(segment.end, end)
            described.append(["constant", first, last, segment.start_lr])
        else:
            described.append([segment.form, segment.start, segment.end, segment.start_lr, segment.end_lr])
    return described


def moved(curve: Curve, by: int) -> Curve:
    """The same curve earlier by `by`."""
    return tuple(replaced(segment, start=segment.start - by, end=segment.end - by) for segment in curve)


def shortened(curve: Curve, by: int) -> Curve:
    """The same curve with its last constant segment shorter by `by`; everything after it comes earlier.

    The caller makes sure that there is such a segment and that it is long enough.
    """
    index = max(index for index, segment in enumerate(curve) if segment.is_flat)
    flat = replaced(curve[index], end=curve[index].end - by)
    kept = (flat,) if flat.end > flat.start else ()
    return (*curve[:index], *kept, *moved(curve[index + 1 :], by))


def warmup_end(curve: Curve) -> int:
    """The position where the rate reaches its peak."""
    first = curve[0]
    return first.end if first.end_lr > first.start_lr else first.start


def stable_end(curve: Curve) -> int | None:
    """The position up to which a longer run has the same rates: where a wsd curve begins to decay, or a constant one
    ends.

    None where the rates depend on the total from the first token, or from the end of the warm-up, or where the rate
    changes more than once.
    """
    after_warmup = curve[1:] if curve[0].end_lr > curve[0].start_lr else curve
    if not after_warmup or not after_warmup[0].is_flat or len(after_warmup) > 2:
        return None
    is_decay = len(after_warmup) == 2 and not after_warmup[1].is_flat
    return after_warmup[0].end if is_decay or len(after_warmup) == 1 else None


def extremes(curve: Curve, start: int, end: int) -> tuple[float, float, float]:
    """The rates at the start, at the highest point and at the end of a stretch. At a step the end has the rate before
    it."""
    parts = [piece for piece in curve if piece.end > start and piece.start < end]
    if not parts:
        return (rate_at(curve, start),) * 3
    ends = [(piece.at(max(piece.start, start)), piece.at(min(piece.end, end))) for piece in parts]
    return ends[0][0], max(max(pair) for pair in ends), ends[-1][1]


def prefix_signature(curve: Curve, start: int, end: int) -> tuple:
    """The signature of a stretch without the end of its last segment, if that is constant; usable as a dictionary key.

    Two stretches with the same start and the same prefix signature have equal rates as far as the shorter one goes.
    """
    *whole, last = signature(curve, start, end)
    return (*map(tuple, whole), ("constant", last[1], last[3]) if last[0] == "constant" else tuple(last))


# --- of a schedule's section ------------------------------------------------------------------


def span_length(span: float, total: int) -> int:
    """A span of a run in its unit: below 1 it is a fraction of the whole."""
    return round(span * total) if span < 1 else round(span)


def decay_start(schedule: LrSchedule, total: int) -> int | None:
    """The position where the rate of a run of length `total` begins to fall; None where it falls right after the
    warm-up, or is piecewise."""
    if schedule.kind == "constant":
        return total
    return total - span_length(schedule.decay, total) if schedule.kind == "wsd" else None


def curve_of(schedule: LrSchedule, lr: float, start: int, total: int, key: str) -> Curve:
    """The curve of a schedule's section over a length of `total` from position `start`.

    lr: the highest rate: `optimizer.lr`, or where it begins for `from: current`. Raises InputError, with `key`, where
    the parts do not fit into the total.
    """
    warmup = span_length(schedule.warmup, total)
    if schedule.kind == "piecewise":
        return build_piecewise(lr, start, total, warmup, _reached(schedule, warmup, total, key))
    decay = span_length(schedule.decay, total) if schedule.kind == "wsd" else 0
    if warmup + decay > total:
        stretches = f"a warm-up of {warmup}" + (f" and a decay of {decay}" if decay else "")
        raise InputError(f"found {stretches} in a run of {total}; expected them to fit into it", key=key)
    form = FORM_OF[schedule.decay_shape]
    return build(schedule.kind, lr, start, total, warmup, decay, schedule.min_lr_ratio, form)


def _reached(schedule: LrSchedule, warmup: int, total: int, key: str) -> tuple[Reached, ...]:
    """The points of a piecewise rate as positions, checked."""
    if not schedule.points:
        example = "points: [{at: 0.8, ratio: 1}, {at: 1, ratio: 0.1, shape: cosine}]"
        raise InputError(f"found kind: piecewise without points; expected for example {example}", key=key)
    if warmup > total:
        problem = f"found a warm-up of {warmup} in a run of {total}; expected it to fit into it"
        raise InputError(problem, key=key)
    found: list[Reached] = []
    for number, point in enumerate(schedule.points):
        position = round(point.at * total) if point.at <= 1 else round(point.at)
        form = FORM_OF.get(point.shape, point.shape)
        before = max(found[-1].position if found else 0, warmup)
        what = "the end of the warm-up" if before == warmup else "the point before"
        problem = f"found points[{number}] at {position}"
        if position > total:
            raise InputError(f"{problem} in a run of {total}; expected at most as many, or a fraction of it", key=key)
        if position <= before and (number or position):
            raise InputError(f"{problem}, and {what} at {before}; expected it later", key=key)
        found.append(Reached(position, point.ratio, form))
    return tuple(found)
