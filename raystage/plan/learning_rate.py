"""Learning rate as a function of the token position, in pieces.

A curve is the same whoever asks and whenever: a stage that is split in two, or resumed, sees the
rates it would have seen whole. `signature` says what a stretch of it depends on, so that two
schedules whose rates agree up to some token have equal stage keys up to there. For that to hold, a
curve has one form only: no empty piece, and no two constant pieces of one rate in a row.
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

    wsd: warm-up, constant, then a straight line to `min_ratio * lr` over the last `decay` tokens
    (MiniCPM, 2404.06395). cosine: warm-up, then half a cosine. linear: warm-up, then a straight
    line. constant: warm-up, then constant. `decay` counts for wsd alone. The caller sees to it that
    total > 0 and warmup + decay <= total.
    """
    end, low = start + total, lr * min_ratio
    warm = RateSegment(start, start + warmup, 0.0, lr)
    if kind == "wsd":
        rest = (RateSegment(start + warmup, end - decay, lr, lr), RateSegment(end - decay, end, lr, low))
    elif kind == "constant":
        rest = (RateSegment(start + warmup, end, lr, lr),)
    else:
        rest = (RateSegment(start + warmup, end, lr, low, "cosine" if kind == "cosine" else "line"),)
    return _joined(piece for piece in (warm, *rest) if piece.end_tokens > piece.start_tokens)


def _joined(pieces: Iterable[RateSegment]) -> Curve:
    """Neighbours at one constant rate as one piece: a decay to all of the rate is none."""
    curve: list[RateSegment] = []
    for piece in pieces:
        if curve and curve[-1].is_flat and piece.is_flat and curve[-1].end_lr == piece.start_lr:
            piece = RateSegment(curve.pop().start_tokens, piece.end_tokens, piece.start_lr, piece.end_lr)
        curve.append(piece)
    return tuple(curve)


def rate_at(curve: Curve, tokens: float) -> float:
    """The rate at a token position; before the first piece and after the last, that piece's end."""
    for piece in curve:
        if tokens < piece.end_tokens:
            return piece.at(max(tokens, piece.start_tokens))
    return curve[-1].end_lr


@dataclass(frozen=True)
class Rewarming:
    """What the rate of new parameters is multiplied by after a growth, while that of the old ones stays as it is.

    From 0 in a straight line to `factor` over `tokens` tokens, then in another to 1 over as many (SPARKLING,
    2602.02472, which rises to 1.3 over 250 steps).
    """

    factor: float
    tokens: int

    def at(self, tokens: float) -> float:
        """The multiplier `tokens` tokens after the growth."""
        if tokens <= self.tokens:
            return self.factor * max(tokens, 0.0) / self.tokens
        return self.factor + (1 - self.factor) * min(tokens / self.tokens - 1, 1.0)

    def is_over(self, tokens: float) -> bool:
        return tokens >= 2 * self.tokens


def signature(curve: Curve, start: int, end: int) -> list[list]:
    """All that decides the rates between two positions, as plain lists.

    A constant piece is cut to the stretch; of any other the whole counts, since it depends on both ends.
    """
    described = []
    for piece in curve:
        if piece.end_tokens <= start or piece.start_tokens >= end:
            continue
        if piece.is_flat:
            first, last = max(piece.start_tokens, start), min(piece.end_tokens, end)
            described.append(["constant", first, last, piece.start_lr])
        else:
            described.append([piece.form, piece.start_tokens, piece.end_tokens, piece.start_lr, piece.end_lr])
    return described


def moved(curve: Curve, by: int) -> Curve:
    """The same curve `by` tokens earlier."""
    return tuple(
        replace(piece, start_tokens=piece.start_tokens - by, end_tokens=piece.end_tokens - by) for piece in curve
    )


def shortened(curve: Curve, by: int) -> Curve:
    """The same with `by` tokens less at one height: all that comes after its last constant piece comes earlier.

    The caller sees to it that there is such a piece and that it is as long.
    """
    index = max(index for index, piece in enumerate(curve) if piece.is_flat)
    flat = replace(curve[index], end_tokens=curve[index].end_tokens - by)
    kept = (flat,) if flat.end_tokens > flat.start_tokens else ()
    return (*curve[:index], *kept, *moved(curve[index + 1 :], by))


def warmup_end(curve: Curve) -> int:
    """Where the rate has reached its height."""
    first = curve[0]
    return first.end_tokens if first.end_lr > first.start_lr else first.start_tokens


def stable_end(curve: Curve) -> int | None:
    """Up to where the rate is that of a longer run too: where a wsd curve begins to decay, or where a constant
    one ends. None where it depends on the total from its first token on, or from the warm-up on.
    """
    last = curve[-1]
    if last.is_flat:
        return last.end_tokens
    if len(curve) > 1 and curve[-2].is_flat and last.form == "line":
        return last.start_tokens
    return None


def prefix_signature(curve: Curve, start: int, end: int) -> tuple:
    """The signature of a stretch but for where a constant piece at its end is left; can be a key of a mapping.

    A stretch with the same start and stem that ends elsewhere in the same piece has equal rates as far as both go.
    """
    *whole, last = signature(curve, start, end)
    return (*map(tuple, whole), ("constant", last[1], last[3]) if last[0] == "constant" else tuple(last))


# --- of a schedule's section ------------------------------------------------------------------


def span_tokens(span: float, total: int) -> int:
    """A span of a run in tokens: below 1 a fraction of the whole."""
    return round(span * total) if span < 1 else round(span)


def decay_start(schedule: LrSchedule, total: int) -> int | None:
    """Up to where the rate of a run of `total` tokens stays at its height; None where it falls from the warm-up on."""
    if schedule.kind == "constant":
        return total
    return total - span_tokens(schedule.decay, total) if schedule.kind == "wsd" else None


def check_rate(schedule: LrSchedule, total: int, key: str) -> None:
    """Refuse a warm-up and decay that do not fit into `total` tokens."""
    warmup = span_tokens(schedule.warmup, total)
    decay = span_tokens(schedule.decay, total) if schedule.kind == "wsd" else 0
    if warmup + decay > total:
        stretches = f"a warm-up of {warmup}" + (f" and a decay of {decay}" if decay else "")
        raise InputError(f"found {stretches} tokens in a run of {total}; expected them to fit into it", key=key)
