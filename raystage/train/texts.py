"""The texts that a stage reads on a worker: what it trains on, by position, and what it is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raystage.data.plan import DataPlan, MixturePart
from raystage.data.tokens import MixedWindows, Streams, TokenWindows, open_streams
from raystage.objectives.learner import HeldOut, Reader
from raystage.plans.plan import StagePlan
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
    windows = {content: TokenWindows(streams[content].train, stage.window_tokens, stage.seed) for content in training}
    train = MixedWindows(stage.reading, windows, stage.seed) if stage.reading else next(iter(windows.values()))
    return StageTexts(
        train=train,
        held_out=tuple(_evaluation_set(stage, part, streams[part.data.content]) for part in stage.evaluated),
        counted={content: Counted.of_index(opened.index) for content, opened in streams.items()},
    )


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
    windows = TokenWindows(streams.held_out, stage.shape.context_length, stage.seed)
    held_out = HeldOut({"tokens": windows.spread(stage.evaluation_sequences)})
    return EvaluationSet(part.data.content, float(part.weight), held_out)
