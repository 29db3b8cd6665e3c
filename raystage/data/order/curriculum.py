"""A curriculum: the documents of a text in the order of a score, of which a stage reads the easiest share first.

Documents are sorted, and then packed into windows: a window holds documents of about one score, also where windows are
long and documents short. (Bengio et al., 2009; the pacing is the competence of Platanios et al., 1903.09848.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from raystage.data.reading import Leg, Shares, reading_after

# Between the content of a text and the order that its documents are sorted in.
_SORTED = "/"
LENGTH = "length"
LOSS_KEY = "data.curriculum.by.loss"


@dataclass(frozen=True)
class Scorer:
    """The stage whose model documents are sorted by. name: as written. key: empty until keys are known."""

    name: str = field(compare=False)
    key: str = ""


@dataclass(frozen=True)
class CurriculumPlan:
    """by: what documents are sorted by: "length", in tokens, "column" or "loss". is_hard_first: whether the highest
    score comes first.

    At the start of a stage windows are drawn from the share `start` of the text that comes first, and after
    `over_tokens` of the stage from all of it. pacing: how the share grows in between. levels: of the pacing "step".

    column: of the numbers to sort by. digests: by content of the text that of its numbers. scorer: whose loss to sort
    by; the losses are known only when the stage begins.
    """

    by: str
    is_hard_first: bool
    start: float
    pacing: str
    over_tokens: int
    levels: int | None = None
    column: str | None = None
    digests: tuple[tuple[str, str], ...] = ()
    scorer: Scorer | None = None

    def digest(self, content: str) -> str:
        """Of the numbers beside a text."""
        return dict(self.digests)[content]

    def share(self, tokens: float) -> float:
        """The share of the text that is read after so many tokens of the stage.

        linear, sqrt: equations 3 and 4 of 1903.09848. step: in equal steps, the last one at `over_tokens`.
        """
        done = min(1.0, tokens / self.over_tokens)
        if done >= 1:
            return 1.0
        if self.pacing == "sqrt":
            return (done * (1 - self.start**2) + self.start**2) ** 0.5
        if self.pacing == "step":
            done = int(done * self.levels) / self.levels
        return self.start + done * (1 - self.start)

    def facts(self) -> dict[str, Any]:
        """For a stage's key."""
        facts = {"by": self.by, "start": self.start, "pacing": self.pacing, "over_tokens": self.over_tokens}
        facts |= {"numbers": dict(self.digests)} if self.digests else {}
        facts |= {"model": {"stage": self.scorer.key}} if self.scorer else {}
        return (
            facts | ({"from": "hard"} if self.is_hard_first else {}) | ({"levels": self.levels} if self.levels else {})
        )

    @property
    def order(self) -> str:
        """What tells orders of documents apart: 8 hex digits. Pacings of one order share its cursor."""
        told = [self.by, self.is_hard_first, *self.digests, *([self.scorer.key] if self.scorer else ())]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class TextPace:
    """From window `first` of a sorted text on its share is that of a curriculum; None for all of it. window_tokens: of
    the stage that pass with each window of the text, more than its own where the stage reads other texts beside it."""

    first: int
    curriculum: CurriculumPlan | None
    window_tokens: Fraction

    def share(self, number: int) -> float:
        """At window `number` of the text, which is `first` or a later one."""
        tokens = float((number - self.first) * self.window_tokens)
        return 1.0 if self.curriculum is None else self.curriculum.share(tokens)


@dataclass(frozen=True)
class TextRead:
    """What a stage reads. end: the position of the run where it ends, in tokens; of no meaning for the last one."""

    shares: Shares
    is_mixture: bool
    curriculum: CurriculumPlan | None
    end: int = -1


def digest_of_scores(scores: Any) -> str:
    """scores: an array of float64, one for each document."""
    return hashlib.sha256(scores.tobytes()).hexdigest()[:32]


def text_of(name: str) -> str:
    """The content of a text, by the name that it has in a `Reading`."""
    return name.partition(_SORTED)[0]


def is_sorted(name: str) -> bool:
    return _SORTED in name


def legs_of(texts: Iterable[TextRead]) -> list[Leg]:
    """What a run reads, stage by stage. A text that a curriculum has sorted is another source than before, with a
    cursor of its own, for all stages from there on."""
    order, found = {}, []
    for text in texts:
        if text.curriculum is not None:
            order |= {content: f"{content}{_SORTED}{text.curriculum.order}" for content, _ in text.shares}
        shares = tuple((order.get(content, content), share) for content, share in text.shares)
        found.append(Leg(text.end, shares, text.is_mixture or text.curriculum is not None))
    return found


def paces_of(texts: Sequence[TextRead], window: int) -> dict[str, tuple[TextPace, ...]]:
    """By name all sorted texts up to the last stage, with what of them is read from which of their windows on."""
    legs, found = legs_of(texts), {}
    for index, (leg, text) in enumerate(zip(legs, texts, strict=True)):
        reading = reading_after(legs[:index], window, leg.shares, leg.is_mixture)
        start = legs[index - 1].end if index else 0
        cursors = reading.cursors_at(max(-(-start // window), reading.first))
        for name, share in leg.shares:
            if is_sorted(name):
                pace = TextPace(cursors[name], text.curriculum, window / Fraction(share))
                found[name] = (*found.get(name, ()), pace)
    return found
