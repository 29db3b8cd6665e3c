"""The text that a model was trained on, as its checkpoints know it, so that no run evaluates it on the same text.

For each corpus the training documents with the smallest digests are kept, up to `SAMPLE` of them. Documents are held
out in the order of their digests, so these are the first ones that a larger validation fraction would hold out. For
another corpus they are a random sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raystage.sources.corpus import SHORT_DIGEST, Side
from raystage.units import shown

SAMPLE = 2048
_DIGEST = re.compile(f"[0-9a-f]{{{SHORT_DIGEST}}}")


@dataclass(frozen=True)
class TrainingText:
    """fingerprint: of the corpus. validation_fraction: the share that was held out; None where separate text was.
    num_documents: how many were trained on.

    sample: the first hex digits of those with the smallest digests.
    """

    fingerprint: str
    validation_fraction: float | None
    num_documents: int
    sample: frozenset[str]

    @classmethod
    def of(cls, fingerprint: str, validation_fraction: float | None, training: Side) -> TrainingText:
        count, sample = training.smallest(SAMPLE)
        return cls(fingerprint, validation_fraction, count, frozenset(sample))

    def count_in(self, held_out: Side) -> int:
        """How many of these documents are known to have been trained on; of large corpora it may be more."""
        return held_out.count_among(self.sample)


@dataclass(frozen=True)
class TrainedOn:
    """All text that a model was trained on. is_whole: whether that is everything; False for a model that started from
    one of which nothing is known, such as a Hugging Face folder."""

    texts: tuple[TrainingText, ...] = ()
    is_whole: bool = True

    def and_on(self, text: TrainingText) -> TrainedOn:
        return self if text in self.texts else TrainedOn((*self.texts, text), self.is_whole)

    def and_of(self, other: TrainedOn) -> TrainedOn:
        """With everything that another model was trained on."""
        further = tuple(text for text in other.texts if text not in self.texts)
        return TrainedOn((*self.texts, *further), self.is_whole and other.is_whole)

    def to_json(self) -> dict[str, Any]:
        texts = [{**vars(text), "sample": sorted(text.sample)} for text in self.texts]
        return {"is_whole": self.is_whole, "texts": texts}

    @classmethod
    def from_json(cls, content: object) -> TrainedOn:
        """From a checkpoint; NOT_KNOWN where it has no such entry. Raises ValueError where it is damaged."""
        if content is None:
            return NOT_KNOWN
        if not isinstance(content, Mapping) or not isinstance(content.get("texts"), list):
            raise ValueError(f"trained_on: found {shown(content)}; expected a mapping with texts")
        return cls(tuple(map(_text, content["texts"])), content.get("is_whole") is True)


NOTHING = TrainedOn()
NOT_KNOWN = TrainedOn(is_whole=False)


def _text(content: object) -> TrainingText:
    match content:
        case {
            "fingerprint": str(fingerprint),
            "validation_fraction": float() | None as fraction,
            "num_documents": int(count),
            "sample": list(sample),
        } if all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in sample):
            return TrainingText(fingerprint, fraction, count, frozenset(sample))
    raise ValueError(f"trained_on: found {shown(content)}; expected a text that was trained on")
