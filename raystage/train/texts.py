"""The texts that a stage reads on a worker: what it trains on, by position, and what it is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from raystage.data.order.curriculum import text_of
from raystage.data.order.documents import SortedDocuments, SortedStream, Starts, order_of
from raystage.data.order.pool import PacedOrder
from raystage.data.order.scores import scores_of
from raystage.data.plan import DataPlan, MixturePart
from raystage.data.samples import MixedSamples, SampleReader, SampleStreams, open_samples
from raystage.data.tokens import (
    MixedWindows,
    SampleWindows,
    Stream,
    Streams,
    TokenWindows,
    Windows,
    held_out_samples,
    num_windows,
    open_streams,
)
from raystage.errors import InputError
from raystage.objectives.learner import HeldOut, Reader
from raystage.objectives.opening import open_judge
from raystage.plans.stage import StagePlan
from raystage.results.data.data_use import Counted
from raystage.units import SAMPLES

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


def open_texts(stage: StagePlan, losses: Mapping[str, np.ndarray] = MappingProxyType({})) -> StageTexts:
    """Open the stage's texts, which are tokenized on first use. Raises InputError where they are not as planned.

    losses: by its name in `Reading` those of the documents of each text that is sorted by them (`find_losses`).
    """
    if stage.unit == SAMPLES:
        return _open_samples(stage)
    training = sources_read(stage)
    wanted = {data.content: data for data in (*training.values(), *(part.data for part in stage.evaluated))}
    streams = {content: open_streams(data, stage.shape.vocab_size) for content, data in wanted.items()}
    read = {name: _read(stage, name, data, streams[data.content], losses.get(name)) for name, data in training.items()}
    return StageTexts(
        train=_training_samples(stage, read),
        held_out=tuple(_evaluation_set(stage, part, streams[part.data.content]) for part in stage.evaluated),
        counted={content: Counted.of_index(opened.index) for content, opened in streams.items()},
    )


def open_held_out(stage: StagePlan) -> tuple[EvaluationSet, ...]:
    """What the stage is evaluated on alone. Raises InputError as above."""
    if stage.unit == SAMPLES:
        return _open_samples(stage).held_out
    opened = ((part, open_streams(part.data, stage.shape.vocab_size)) for part in stage.evaluated)
    return tuple(_evaluation_set(stage, part, streams) for part, streams in opened)


def _open_samples(stage: StagePlan) -> StageTexts:
    """The same of a stage that counts samples."""
    training, context = sources_read(stage), stage.shape.context_length
    wanted = training | {part.data.content: part.data for part in stage.evaluated}
    vocab_size = stage.shape.vocab_size or None
    opened = {content: open_samples(data, vocab_size) for content, data in wanted.items()}
    readers = {content: SampleReader(opened[content].train, stage.seed, context) for content in training}
    train = MixedSamples(stage.reading, readers, stage.seed) if stage.reading else next(iter(readers.values()))
    return StageTexts(
        train=train,
        held_out=tuple(_evaluation_samples(stage, part, opened[part.data.content]) for part in stage.evaluated),
        counted={content: _counted_samples(one, context) for content, one in opened.items()},
    )


def _counted_samples(opened: SampleStreams, context: int) -> Counted:
    counted = Counted.of_index(opened.index)
    return counted if opened.train.ends is None else replace(counted, cut_samples=opened.train.longer_than(context))


def _evaluation_samples(stage: StagePlan, part: MixturePart, opened: SampleStreams) -> EvaluationSet:
    held_out = HeldOut(opened.held_out.spread(stage.evaluation_sequences, stage.shape.context_length))
    return EvaluationSet(part.data.content, float(part.weight), held_out)


@dataclass(frozen=True)
class _TextRead:
    """A text as a stage reads it. documents, order: where a curriculum has sorted it."""

    streams: Streams
    documents: SortedDocuments | None = None
    order: PacedOrder | None = None

    def arranged(self, stream: np.ndarray) -> Stream:
        return SortedStream(stream, self.documents) if self.documents else stream

    @property
    def starts(self) -> Starts:
        return Starts(self.documents.spans if self.documents else self.streams.train_documents)


def _read(stage: StagePlan, name: str, data: DataPlan, streams: Streams, losses: np.ndarray | None) -> _TextRead:
    paces = stage.paces.get(name)
    if not paces:
        return _TextRead(streams)
    documents, curriculum = streams.train_documents, paces[0].curriculum
    scores = losses if curriculum.scorer else scores_of(data, curriculum, documents)
    order = order_of(scores, curriculum.is_hard_first)
    paced = PacedOrder(stage.seed, num_windows(streams.train, stage.window), paces)
    return _TextRead(streams, SortedDocuments(documents, order), paced)


def _training_samples(stage: StagePlan, texts: Mapping[str, _TextRead]) -> Reader:
    tokens = _windows(stage, texts, lambda one: one.arranged(one.streams.train))
    flags = {}
    if any(one.streams.train_marks is not None for one in texts.values()):
        flags["mask"] = _windows(stage, texts, lambda one: one.arranged(_marks(one.streams)))
    if stage.within_documents:
        flags["starts"] = _windows(stage, texts, lambda one: one.starts)
    return SampleWindows(tokens, flags) if flags else tokens


def _windows(stage: StagePlan, texts: Mapping[str, _TextRead], pick: Callable[[_TextRead], Stream]) -> Windows:
    windows = {name: TokenWindows(pick(one), stage.window, stage.seed, one.order) for name, one in texts.items()}
    return MixedWindows(stage.reading, windows, stage.seed) if stage.reading else next(iter(windows.values()))


def _marks(opened: Streams) -> np.ndarray:
    """In text that is no conversation every token is a target. It takes no memory."""
    if opened.train_marks is not None:
        return opened.train_marks
    return np.broadcast_to(np.uint8(1), opened.train.shape)


def sources_read(stage: StagePlan) -> dict[str, DataPlan]:
    """By their names in `Reading` the sources that the stage trains on, with the one whose window it finds begun."""
    names = [name for name, _ in (stage.reading or stage.data).shares]
    if stage.reading is not None and stage.reading.begun is not None:
        names.append(stage.reading.begun[0])
    texts = (stage.data, *(one.data for one in stage.earlier))
    known = {part.data.content: part.data for text in texts for part in text.parts}
    return {name: known[text_of(name)] for name in names}


def evaluation_set(stage: StagePlan) -> HeldOut:
    """The held-out sequences of a stage that reads one source, of context_length each, fixed by its data alone."""
    (part,) = stage.data.parts
    if stage.unit == SAMPLES:
        return _evaluation_samples(stage, part, open_samples(part.data, stage.shape.vocab_size or None)).held_out
    return _evaluation_set(stage, part, open_streams(part.data, stage.shape.vocab_size)).held_out


def _evaluation_set(stage: StagePlan, part: MixturePart, streams: Streams) -> EvaluationSet:
    length, count = stage.shape.context_length, stage.evaluation_sequences
    held_out = HeldOut(held_out_samples(streams, length, count, stage.within_documents))
    if not open_judge(stage.objective).num_targets(held_out, 0, held_out.count, held_out.length):
        problem = f"found no answer in the {held_out.count * held_out.length} held-out tokens that are evaluated"
        raise InputError(f"{problem}; expected more", key="training.evaluate.tokens")
    return EvaluationSet(part.data.content, float(part.weight), held_out)
