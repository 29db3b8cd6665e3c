"""How the batch and the context of a stage grow while it trains, as pieces of steps that are alike.

A ramp doubles a value in equal shares of a stretch of tokens: of `n` doublings over T tokens, each value lower than the
stage's own has T / n of them. What counts is where a step begins: it is taken with the values of that place, whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raystage.config.schedule import RampOf, Training
from raystage.errors import InputError

# From a context length to the training FLOPs of a token in it.
TokenCost = Callable[[int], int]


@dataclass(frozen=True)
class Doubling:
    """A value that starts at `first` and has doubled `times` times after `over_tokens`; then it stays."""

    first: int
    times: int = 0
    over_tokens: int = 0

    def at(self, tokens: int) -> int:
        done = self.times if tokens >= self.over_tokens else tokens * self.times // self.over_tokens
        return self.first * 2**done

    def changes(self) -> tuple[int, ...]:
        """The first whole token of each value but the first."""
        return tuple(-(-number * self.over_tokens // self.times) for number in range(1, self.times + 1))


@dataclass(frozen=True)
class Piece:
    """Steps that are alike, up to the next piece. start_steps, start_tokens: from the stage's start."""

    start_steps: int
    start_tokens: int
    batch_tokens: int
    context_length: int


@dataclass(frozen=True)
class Course:
    """A stage's steps from its start on, however long it is; the last piece has no end."""

    pieces: tuple[Piece, ...]

    def at(self, step: float) -> Piece:
        """The piece of step number `step` of the stage, from 0."""
        return next(piece for piece in reversed(self.pieces) if piece.start_steps <= step)

    def tokens(self, steps: float) -> float:
        """Tokens of the first `steps` steps, or of a part of the last: whole for whole steps."""
        piece = self.at(steps)
        return piece.start_tokens + (steps - piece.start_steps) * piece.batch_tokens

    def steps_for(self, tokens: int) -> int:
        """The fewest whole steps that have so many tokens."""
        piece = next((one for one in reversed(self.pieces) if one.start_tokens < tokens), self.pieces[0])
        return piece.start_steps + -(-(tokens - piece.start_tokens) // piece.batch_tokens)

    def flops(self, steps: int, cost: TokenCost) -> int:
        """Training FLOPs of the first `steps` steps."""
        return sum(count * piece.batch_tokens * cost(piece.context_length) for piece, count in self._counted(steps))

    def steps_for_flops(self, flops: int, cost: TokenCost) -> int:
        """The fewest whole steps that take so many training FLOPs."""
        piece = next(
            (one for one in reversed(self.pieces) if self.flops(one.start_steps, cost) < flops), self.pieces[0]
        )
        left = flops - self.flops(piece.start_steps, cost)
        return piece.start_steps + -(-left // (piece.batch_tokens * cost(piece.context_length)))

    def _counted(self, steps: int) -> list[tuple[Piece, int]]:
        """Every piece that begins within the first `steps` steps, and how many of these it has."""
        ends = [piece.start_steps for piece in self.pieces[1:]] + [steps]
        return [
            (piece, min(end, steps) - piece.start_steps)
            for piece, end in zip(self.pieces, ends, strict=True)
            if piece.start_steps < steps
        ]


def course(batch: Doubling, context: Doubling) -> Course:
    """The pieces of a stage whose batch (in tokens) and context length double so."""
    pieces: list[Piece] = []
    steps = tokens = 0
    for change in sorted({0, *batch.changes(), *context.changes()}):
        if pieces:
            taken = max(0, -(-(change - tokens) // pieces[-1].batch_tokens))
            steps, tokens = steps + taken, tokens + taken * pieces[-1].batch_tokens
            if not taken:  # one long step passed two changes
                continue
        piece = Piece(steps, tokens, batch.at(tokens), context.at(tokens))
        pieces.append(piece)
    return Course(tuple(pieces))


def constant(batch_tokens: int, context_length: int) -> Course:
    """The course of a stage without a ramp."""
    return course(Doubling(batch_tokens), Doubling(context_length))


# --- of a stage ------------------------------------------------------------------------------


def course_of(training: Training, context_length: int) -> Course:
    """The steps of a stage of a resolved training, with its ramps."""
    batch, ramp = training.global_batch_tokens, training.ramp
    return course(
        _doubling(ramp.global_batch_tokens if ramp else None, batch),
        _doubling(ramp.context_length if ramp else None, context_length),
    )


def _doubling(ramp: RampOf | None, value: int) -> Doubling:
    if ramp is None:
        return Doubling(value)
    return Doubling(ramp.start, (value // ramp.start).bit_length() - 1, ramp.over.tokens)


def check_ramp(training: Training, context_length: int) -> None:
    """Refuse a ramp that does not lead to the stage's own values, or has steps that cannot be taken on the way."""
    if training.ramp is None:
        return
    given = {name: getattr(training.ramp, name) for name in type(training.ramp).model_fields}
    if not any(given.values()):
        raise InputError("found nothing; expected global_batch_tokens, context_length or both", key="training.ramp")
    values = {"global_batch_tokens": training.global_batch_tokens, "context_length": context_length}
    for name, ramp in given.items():
        if ramp is not None:
            _check_doubles(ramp, values[name], f"training.ramp.{name}")
    for piece in course_of(training, context_length).pieces:
        sequences, left = divmod(piece.batch_tokens, piece.context_length)
        step = f"steps of {piece.batch_tokens} tokens in a context of {piece.context_length}"
        if left:
            problem = f"found {step} on the way; expected whole sequences"
            raise InputError(f"{problem}, as with a larger batch or a ramp of context_length", key="training.ramp")
        if sequences < training.workers:
            problem = f"found {step} on the way, {sequences} sequence{'s' if sequences > 1 else ''}"
            raise InputError(f"{problem}; expected one for each of {training.workers} workers", key="training.ramp")


def _check_doubles(ramp: RampOf, value: int, key: str) -> None:
    times, left = divmod(value, ramp.start)
    if left or times < 2 or times & (times - 1):
        halves = [value >> number for number in (1, 2, 3) if not value % (1 << number)]
        such = f", such as {' or '.join(map(str, halves))}" if halves else ", and it is odd"
        expected = f"expected the stage's {value} halved once or several times{such}"
        raise InputError(f"found {ramp.start}; {expected}", key=f"{key}.from")


def check_ramp_fits(training: Training, stage_tokens: int) -> None:
    """Refuse a ramp that is not over at the end of a stage of so many tokens: it leads to the stage's own values."""
    ramp = training.ramp
    for name in type(ramp).model_fields if ramp else ():
        one = getattr(ramp, name)
        if one is not None and one.over.tokens > stage_tokens:
            problem = f"found {one.over.tokens} in a stage of {stage_tokens} tokens; expected at most as many"
            raise InputError(problem, key=f"training.ramp.{name}.over.tokens")
