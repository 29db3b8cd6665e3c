"""What a run reads: how much text there is, how much of it is held out, and how many passes a run makes over it.

A plan knows documents and bytes. It knows the number of tokens for the byte tokenizer, and where this machine tokenized
the text before. Otherwise it estimates a quarter of the bytes. A finished stage has the exact numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from raystage.data.order.curriculum import text_of
from raystage.data.plan import DataPlan
from raystage.data.token_index import TokenIndex, cache_folder, read_index, texts_longer_than
from raystage.files.typed_json import LEFT_OUT_IF_DEFAULT, LEFT_OUT_IF_EMPTY, unit_key
from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord, where_it_begins, with_real_ends
from raystage.units import SAMPLES, TOKENS, Unit, format_count, format_share

# In records of samples only.
_OF_SAMPLES = {"train_samples", "held_out_samples", "cut_samples"}


@dataclass(frozen=True)
class Counted:
    """The tokens of both sides, and of samples their numbers. is_estimate: from the bytes.

    repeated: how many of `pieces` of the held-out text occur in the training text, of which the share `looked_at` was
    searched. None where nobody searched. cut_samples: of texts that are samples, those to train on that are longer than
    the context of the stage and lose their end.
    """

    train_tokens: int
    held_out_tokens: int
    is_estimate: bool = False
    pieces: int | None = None
    repeated: int | None = None
    looked_at: float | None = None
    train_samples: int | None = None
    held_out_samples: int | None = None
    cut_samples: int | None = None

    @property
    def train_amount(self) -> int:
        """Of what is trained on: samples where they are counted, else tokens."""
        return self.train_tokens if self.train_samples is None else self.train_samples

    @property
    def unit(self) -> Unit:
        return TOKENS if self.train_samples is None else SAMPLES

    @property
    def held_out_amount(self) -> int:
        return self.held_out_tokens if self.held_out_samples is None else self.held_out_samples

    @property
    def repeated_share(self) -> float | None:
        return self.repeated / self.pieces if self.pieces else None

    @classmethod
    def of_index(cls, index: TokenIndex) -> Counted:
        return cls(index.train_tokens, index.held_out_tokens, False, index.pieces, index.repeated, index.looked_at,
                   index.train_samples, index.held_out_samples)  # fmt: skip

    @classmethod
    def of_record(cls, record: StageRecord | None, content: str | None = None) -> Counted | None:
        """None where the stage is not finished, or was trained by a version that counted nothing or other things.

        content: of a source, where the stage may have read several.
        """
        found = record.data if record else {}
        by_source = found.get("sources")
        if isinstance(by_source, dict):
            found = by_source.get(content, {})
        known = {one.name for one in fields(cls)} - _OF_SAMPLES == set(found) - _OF_SAMPLES
        return cls(**found) if known and all(isinstance(one, int | float | None) for one in found.values()) else None


@dataclass(frozen=True)
class DataUse:
    """A source, the stages of a run that read it, and what they read of it together. names: in mixtures."""

    data: DataPlan
    stages: tuple[str, ...]
    read: int
    counted: Counted
    names: tuple[str, ...] = ()

    @property
    def passes(self) -> float:
        return self.read / max(1, self.counted.train_amount)


def count(data: DataPlan) -> Counted:
    """The tokens of a text, without reading it."""
    index = read_index(cache_folder(data))
    if index is not None:
        return Counted.of_index(index)
    sides = data.train, data.held_out
    if data.samples is not None:
        return Counted(0, 0, train_samples=data.train.documents, held_out_samples=data.held_out.documents)
    if data.train_tokens is not None:
        return Counted(data.train_tokens, data.held_out_tokens)
    return Counted(*map(data.about_tokens, sides), is_estimate=True)


def counted_json(stage: StagePlan, counted: Mapping[str, Counted]) -> dict[str, Any]:
    """What a stage's record keeps of the sizes of its sources, which are given by content."""
    if isinstance(stage.data, DataPlan):
        return _counted_json(counted[stage.data.content])
    return {"sources": {content: _counted_json(one) for content, one in counted.items()}}


def _counted_json(counted: Counted) -> dict[str, Any]:
    return {name: value for name, value in asdict(counted).items() if name not in _OF_SAMPLES or value is not None}


def amounts_read(stage: StagePlan, records: Mapping[str, StageRecord] | None = None) -> dict[str, int]:
    """By content what a stage reads of each source, exactly and in its unit: as planned, or as its records say."""
    records = records or {}
    duration = records[stage.key].duration if stage.key in records else stage.duration
    if stage.reading is None:
        return {stage.data.content: duration}
    begun = with_real_ends(where_it_begins(stage, records.get(stage.parent_key)), records.get)
    found: dict[str, int] = {}
    for name, count in begun.reading.amounts(begun.start, begun.start + duration).items():
        found[text_of(name)] = found.get(text_of(name), 0) + count
    return found


def uses(run: RunPlan, records: Mapping[str, StageRecord] | None = None) -> list[DataUse]:
    """What a run reads, text by text, in the order in which its stages reach them."""
    records, texts, read, names = records or {}, {}, {}, {}
    readers: dict[str, list[StagePlan]] = {}
    for stage in run.stages:
        amounts = amounts_read(stage, records)
        texts |= {part.data.content: part.data for part in stage.data.parts}
        for part in stage.data.parts:
            names.setdefault(part.data.content, {})[part.name] = None
        for content in dict.fromkeys([*(part.data.content for part in stage.data.parts), *amounts]):
            readers.setdefault(content, []).append(stage)
            read[content] = read.get(content, 0) + amounts.get(content, 0)
    found = (_use(texts[content], stages, read[content], records) for content, stages in readers.items())
    return [replace(one, names=tuple(filter(None, names[one.data.content]))) for one in found]


def _use(data: DataPlan, stages: list[StagePlan], read: int, records: Mapping[str, StageRecord]) -> DataUse:
    found = (Counted.of_record(records.get(stage.key), data.content) for stage in stages)
    counted = next((one for one in found if one), None) or count(data)
    return DataUse(data, tuple(stage.name for stage in stages), read, counted)


@dataclass(frozen=True)
class DataRow:
    """A text and what a run reads of it, as a report holds it. documents, bytes, amount: of the training text. amount,
    held_out, read: in `unit`. names: of the source in mixtures.

    repeated_share: how much of the held-out text stands word for word in the training text; None where nobody searched.
    cut: of texts that are samples, by stage how many to train on are longer than its context and lose their end, as far
    as that is known.
    """

    source: str
    path: tuple[str, ...]
    tokenizer: str
    fingerprint: str
    stages: tuple[str, ...]
    documents: int
    bytes: int
    amount: int = field(metadata=unit_key())
    held_out_documents: int
    held_out_bytes: int
    held_out: int = field(metadata=unit_key("held_out_{}"))
    tokens_are_estimated: bool
    read: int = field(metadata=unit_key("read_{}"))
    passes: float
    repeated_share: float | None
    names: tuple[str, ...] = field(default=(), metadata=LEFT_OUT_IF_EMPTY)
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)
    cut: Mapping[str, int] = field(default_factory=dict, metadata=LEFT_OUT_IF_EMPTY)


def data_rows(run: RunPlan, records: Mapping[str, StageRecord] | None = None) -> tuple[DataRow, ...]:
    """What a run reads, a row for each text."""
    return tuple(_row(use, _cut(use, run, records or {})) for use in uses(run, records))


def _cut(use: DataUse, run: RunPlan, records: Mapping[str, StageRecord]) -> dict[str, int]:
    """By stage how many texts lose their end: as its record says, else where this machine has tokenized them."""
    if use.data.samples is None or use.data.samples.image:
        return {}
    found: dict[str, int | None] = {}
    for stage in run.stages:
        if stage.name in use.stages:
            counted = Counted.of_record(records.get(stage.key), use.data.content)
            found[stage.name] = counted.cut_samples if counted else None
            if found[stage.name] is None:
                found[stage.name] = texts_longer_than(use.data, stage.shape.context_length)
    return {name: number for name, number in found.items() if number is not None}


def _row(use: DataUse, cut: Mapping[str, int]) -> DataRow:
    return DataRow(
        source=use.data.source,
        path=tuple(use.data.path),
        tokenizer=use.data.tokenizer,
        fingerprint=use.data.fingerprint,
        stages=use.stages,
        documents=use.data.train.documents,
        bytes=use.data.train.num_bytes,
        amount=use.counted.train_amount,
        held_out_documents=use.data.held_out.documents,
        held_out_bytes=use.data.held_out.num_bytes,
        held_out=use.counted.held_out_amount,
        tokens_are_estimated=use.counted.is_estimate,
        read=use.read,
        passes=use.passes,
        repeated_share=use.counted.repeated_share,
        names=use.names,
        unit=use.counted.unit,
        cut=cut,
    )


def data_lines(rows: Sequence[DataRow]) -> list[str]:
    """One or two sentences for each text."""
    return [_line(one, is_alone=len(rows) == 1) for one in rows]


def _line(one: DataRow, is_alone: bool) -> str:
    about = "about " if one.tokens_are_estimated else ""
    held_share = one.held_out / max(1, one.amount + one.held_out)
    of = "" if is_alone else f" of {', '.join(one.stages)}"
    name = f" {' or '.join(map(repr, one.names))}" if one.names else ""
    repeated = ""
    if one.repeated_share is not None:
        share = _share(one.repeated_share).capitalize()
        repeated = f" {share} of the held-out text stands word for word in the training text."
    if one.unit == SAMPLES:
        return (
            f"Data{name}{of}: {format_count(one.amount)} samples to train on; {format_count(one.held_out)} samples "
            f"({_share(held_share)}) held out. {format_count(one.read)} samples are read: "
            f"{format_passes(one.passes, SAMPLES)}.{_cut_texts(one)}"
        )
    return (
        f"Data{name}{of}: {_documents(one.documents)}, {about}{format_count(one.amount)} tokens to train on; "
        f"{_documents(one.held_out_documents)}, {about}{format_count(one.held_out)} tokens "
        f"({_share(held_share)}) held out. {format_count(one.read)} tokens are read: "
        f"{about}{format_passes(one.passes)}.{repeated}"
    )


def _cut_texts(one: DataRow) -> str:
    """' Of the texts to train on 312 (21.8 %) are longer than the context of cls and lose their end.'"""
    lost = [
        f"{format_count(number)} ({format_share(number / max(1, one.amount))}) are longer than the context of {name}"
        for name, number in one.cut.items()
        if number
    ]
    return f" Of the texts to train on {', '.join(lost)} and lose their end." if lost else ""


def _documents(number: int) -> str:
    return f"{format_count(number)} document{'' if number == 1 else 's'}"


def _share(share: float) -> str:
    return "none" if share == 0 else format_share(share)


def format_passes(passes: float, unit: Unit = TOKENS) -> str:
    """'0.09 passes over the text', '1.2K passes over the text'; of samples '12 passes over the data'."""
    return f"{count_passes(passes)} over the {'data' if unit == SAMPLES else 'text'}"


def count_passes(passes: float) -> str:
    """'0.09 passes', '1 pass'."""
    number = format_number_of_passes(passes)
    return f"{number} pass{'' if number == '1' else 'es'}"


def format_number_of_passes(passes: float) -> str:
    return f"{passes:.2g}" if passes < 99.5 else format_count(passes)
