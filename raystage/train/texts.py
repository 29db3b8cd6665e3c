"""The texts that a stage reads on a worker: what it trains on, by position, and what it is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raystage.data.order.documents import Starts
from raystage.data.plan import DataPlan, MixturePart
from raystage.data.tokens import (
    MixedWindows,
    SampleWindows,
    Stream,
    Streams,
    TokenWindows,
    Windows,
    held_out_samples,
    open_streams,
)
from raystage.errors import InputError
from raystage.objectives.learner import HeldOut, Reader
from raystage.objectives.opening import open_judge
from raystage.plans.stage import StagePlan
from raystage.results.data_use import Counted

# Held-out sequences, and the weight of their loss.
WeightedSet = tuple[HeldOut, float]


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out sequences of one source. weight: of its loss in the stage's loss; 0 where it is only watched."""

    content: str
    weight: float
    held_out: HeldOut


@dataclass(frozen=True)
class StageTexts:
    """train: the samples of the run. held_out: one set for each source, those of the stage first. counted: by content
    the size of each source."""

    train: Reader
    held_out: tuple[EvaluationSet, ...]
    counted: Mapping[str, Counted]


def open_texts(stage: StagePlan) -> StageTexts:
    """Open the stage's texts, which are tokenized on first use. Raises InputError where they are not as planned."""
    training = sources_read(stage)
    wanted = training | {part.data.content: part.data for part in stage.evaluated}
    streams = {content: open_streams(data, stage.shape.vocab_size) for content, data in wanted.items()}
    return StageTexts(
        train=_training_samples(stage, {content: streams[content] for content in training}),
        held_out=tuple(_evaluation_set(stage, part, streams[part.data.content]) for part in stage.evaluated),
        counted={content: Counted.of_index(opened.index) for content, opened in streams.items()},
    )


def _training_samples(stage: StagePlan, streams: Mapping[str, Streams]) -> Reader:
    tokens, flags = _windows(stage, {content: opened.train for content, opened in streams.items()}), {}
    if any(opened.train_marks is not None for opened in streams.values()):
        flags["mask"] = _windows(stage, {content: _marks(opened) for content, opened in streams.items()})
    if stage.within_documents:
        starts = {content: Starts(opened.train_documents) for content, opened in streams.items()}
        flags["starts"] = _windows(stage, starts)
    return SampleWindows(tokens, flags) if flags else tokens


def _windows(stage: StagePlan, streams: Mapping[str, Stream]) -> Windows:
    windows = {content: TokenWindows(one, stage.window, stage.seed) for content, one in streams.items()}
    return MixedWindows(stage.reading, windows, stage.seed) if stage.reading else next(iter(windows.values()))


def _marks(opened: Streams) -> np.ndarray:
    """In text that is no conversation every token is a target. It takes no memory."""
    if opened.train_marks is not None:
        return opened.train_marks
    return np.broadcast_to(np.uint8(1), opened.train.shape)


def sources_read(stage: StagePlan) -> dict[str, DataPlan]:
    """By content the sources that the stage trains on, with the one whose window it finds begun."""
    names = [content for content, _ in stage.data.shares]
    if stage.reading is not None and stage.reading.begun is not None:
        names.append(stage.reading.begun[0])
    texts = (stage.data, *(one.data for one in stage.earlier))
    known = {part.data.content: part.data for text in texts for part in text.parts}
    return {name: known[name] for name in names}


def evaluation_set(stage: StagePlan) -> HeldOut:
    """The held-out sequences of a stage that reads one source, of context_length each, fixed by its data alone."""
    (part,) = stage.data.parts
    return _evaluation_set(stage, part, open_streams(part.data, stage.shape.vocab_size)).held_out


def _evaluation_set(stage: StagePlan, part: MixturePart, streams: Streams) -> EvaluationSet:
    length, count = stage.shape.context_length, stage.evaluation_sequences
    held_out = HeldOut(held_out_samples(streams, length, count, stage.within_documents))
    if not open_judge(stage.objective).num_targets(held_out, 0, held_out.count, held_out.length):
        problem = f"found no answer in the {held_out.count * held_out.length} held-out tokens that are evaluated"
        raise InputError(f"{problem}; expected more", key="training.evaluate.tokens")
    return EvaluationSet(part.data.content, float(part.weight), held_out)
