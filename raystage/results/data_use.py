"""What a run reads: how much text there is, how much of it is held out, and how many passes a run makes over it.

A plan knows documents and bytes. It knows the number of tokens for the byte tokenizer, and where this machine tokenized
the text before. Otherwise it estimates a quarter of the bytes. A finished stage has the exact numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from raystage.data.order.curriculum import text_of
from raystage.data.plan import DataPlan
from raystage.data.token_index import TokenIndex, cache_folder, read_index
from raystage.data.tokenizer_names import BYTE_TOKENIZER
from raystage.files.typed_json import LEFT_OUT_IF_EMPTY
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord, where_it_begins, with_real_ends
from raystage.units import format_count, format_share

# Of byte-level BPE on English text, roughly. On other text and on code it is less.
_BYTES_PER_TOKEN = 4
# Up to here a repeated token is worth about as much as a new one (Muennighoff et al., 2305.16264).
MOST_PASSES = 4
# The share of the held-out text that may occur word for word in the training text.
MOST_REPEATED = 0.01
# A step of Adam moves every weight by about the learning rate; initial weights are about 0.02.
_HIGHEST_RATES = {"adamw": 0.1, "adam": 0.1, "sgd": 10.0}


# In records of samples only.
_OF_SAMPLES = {"train_samples", "held_out_samples"}


@dataclass(frozen=True)
class Counted:
    """The tokens of both sides. is_estimate: from the bytes.

    repeated: how many of `pieces` of the held-out text occur in the training text, of which the share `looked_at` was
    searched. None where nobody searched.
    """

    train_tokens: int
    held_out_tokens: int
    is_estimate: bool = False
    pieces: int | None = None
    repeated: int | None = None
    looked_at: float | None = None
    train_samples: int | None = None
    held_out_samples: int | None = None

    @property
    def train_amount(self) -> int:
        """Of what is trained on: samples where they are counted, else tokens."""
        return self.train_tokens if self.train_samples is None else self.train_samples

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
    """A text, the stages of a run that read it, and the tokens that they read of it together. names: in mixtures."""

    data: DataPlan
    stages: tuple[str, ...]
    read_tokens: int
    counted: Counted
    names: tuple[str, ...] = ()

    @property
    def passes(self) -> float:
        return self.read_tokens / max(1, self.counted.train_amount)


def count(data: DataPlan) -> Counted:
    """The tokens of a text, without reading it."""
    index = read_index(cache_folder(data))
    if index is not None:
        return Counted.of_index(index)
    sides = data.train, data.held_out
    if data.samples is not None:
        samples = data.train.documents, data.held_out.documents
        return Counted(0, 0, train_samples=samples[0], held_out_samples=samples[1])
    if data.train.num_tokens is not None:
        return Counted(data.train.num_tokens, data.held_out.num_tokens)
    if data.tokenizer == BYTE_TOKENIZER:
        return Counted(*(side.num_bytes + side.documents for side in sides))
    return Counted(*(side.num_bytes // _BYTES_PER_TOKEN + side.documents for side in sides), is_estimate=True)


def counted_json(stage: StagePlan, counted: Mapping[str, Counted]) -> dict[str, Any]:
    """What a stage's record keeps of the sizes of its sources, which are given by content."""
    if isinstance(stage.data, DataPlan):
        return _counted_json(counted[stage.data.content])
    return {"sources": {content: _counted_json(one) for content, one in counted.items()}}


def _counted_json(counted: Counted) -> dict[str, Any]:
    return {name: value for name, value in asdict(counted).items() if name not in _OF_SAMPLES or value is not None}


def tokens_read(stage: StagePlan, records: Mapping[str, StageRecord] | None = None) -> dict[str, int]:
    """By content the tokens that a stage reads of each source, exactly: as planned, or as its records say."""
    records = records or {}
    tokens = records[stage.key].duration if stage.key in records else stage.duration
    if stage.reading is None:
        return {stage.data.content: tokens}
    begun = with_real_ends(where_it_begins(stage, records.get(stage.parent_key)), records.get)
    found: dict[str, int] = {}
    for name, count in begun.reading.tokens(begun.start, begun.start + tokens).items():
        found[text_of(name)] = found.get(text_of(name), 0) + count
    return found


def uses(run: RunPlan, records: Mapping[str, StageRecord] | None = None) -> list[DataUse]:
    """What a run reads, text by text, in the order in which its stages reach them."""
    records, texts, read, names = records or {}, {}, {}, {}
    readers: dict[str, list[StagePlan]] = {}
    for stage in run.stages:
        tokens = tokens_read(stage, records)
        texts |= {part.data.content: part.data for part in stage.data.parts}
        for part in stage.data.parts:
            names.setdefault(part.data.content, {})[part.name] = None
        for content in dict.fromkeys([*(part.data.content for part in stage.data.parts), *tokens]):
            readers.setdefault(content, []).append(stage)
            read[content] = read.get(content, 0) + tokens.get(content, 0)
    found = (_use(texts[content], stages, read[content], records) for content, stages in readers.items())
    return [replace(one, names=tuple(filter(None, names[one.data.content]))) for one in found]


def _use(data: DataPlan, stages: list[StagePlan], read: int, records: Mapping[str, StageRecord]) -> DataUse:
    found = (Counted.of_record(records.get(stage.key), data.content) for stage in stages)
    counted = next((one for one in found if one), None) or count(data)
    return DataUse(data, tuple(stage.name for stage in stages), read, counted)


@dataclass(frozen=True)
class DataRow:
    """A text and what a run reads of it, as a report holds it. documents, bytes, tokens: of the training text. names:
    of the source in mixtures.

    repeated_share: how much of the held-out text stands word for word in the training text; None where nobody searched.
    """

    source: str
    path: tuple[str, ...]
    tokenizer: str
    fingerprint: str
    stages: tuple[str, ...]
    documents: int
    bytes: int
    tokens: int
    held_out_documents: int
    held_out_bytes: int
    held_out_tokens: int
    tokens_are_estimated: bool
    read_tokens: int
    passes: float
    repeated_share: float | None
    names: tuple[str, ...] = field(default=(), metadata=LEFT_OUT_IF_EMPTY)


def data_rows(run: RunPlan, records: Mapping[str, StageRecord] | None = None) -> tuple[DataRow, ...]:
    """What a run reads, a row for each text."""
    return tuple(map(_row, uses(run, records)))


def _row(use: DataUse) -> DataRow:
    return DataRow(
        source=use.data.source,
        path=tuple(use.data.path),
        tokenizer=use.data.tokenizer,
        fingerprint=use.data.fingerprint,
        stages=use.stages,
        documents=use.data.train.documents,
        bytes=use.data.train.num_bytes,
        tokens=use.counted.train_tokens,
        held_out_documents=use.data.held_out.documents,
        held_out_bytes=use.data.held_out.num_bytes,
        held_out_tokens=use.counted.held_out_tokens,
        tokens_are_estimated=use.counted.is_estimate,
        read_tokens=use.read_tokens,
        passes=use.passes,
        repeated_share=use.counted.repeated_share,
        names=use.names,
    )


def data_lines(rows: Sequence[DataRow]) -> list[str]:
    """One or two sentences for each text."""
    return [_line(one, is_alone=len(rows) == 1) for one in rows]


def _line(one: DataRow, is_alone: bool) -> str:
    about = "about " if one.tokens_are_estimated else ""
    held_share = one.held_out_tokens / max(1, one.tokens + one.held_out_tokens)
    of = "" if is_alone else f" of {', '.join(one.stages)}"
    name = f" {' or '.join(map(repr, one.names))}" if one.names else ""
    repeated = ""
    if one.repeated_share is not None:
        share = _share(one.repeated_share).capitalize()
        repeated = f" {share} of the held-out text stands word for word in the training text."
    return (
        f"Data{name}{of}: {_documents(one.documents)}, {about}{format_count(one.tokens)} tokens to train on; "
        f"{_documents(one.held_out_documents)}, {about}{format_count(one.held_out_tokens)} tokens "
        f"({_share(held_share)}) held out. {format_count(one.read_tokens)} tokens are read: "
        f"{about}{format_passes(one.passes)}.{repeated}"
    )


def _documents(number: int) -> str:
    return f"{format_count(number)} document{'' if number == 1 else 's'}"


def _share(share: float) -> str:
    return "none" if share == 0 else format_share(share)


def format_passes(passes: float) -> str:
    """'0.09 passes over the text', '12 passes over the text', '1.2K passes over the text'."""
    return f"{format_number_of_passes(passes)} passes over the text"


def format_number_of_passes(passes: float) -> str:
    return f"{passes:.2g}" if passes < 99.5 else format_count(passes)


# --- what to beware of: the key, what is the matter, who says so --------------------------------


def data_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    return [
        *_rate_warnings(plan),
        *_passes_warnings(plan),
        *_seed_warnings(plan),
        *_control_warnings(plan),
        *_repeat_warnings(plan),
    ]


def _rate_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    optimizers = [stage.training.optimizer for run in plan.runs() for stage in run.stages]
    too_high = [one for one in optimizers if one.lr > _HIGHEST_RATES[one.name]]
    if not too_high:
        return []
    highest = max(too_high, key=lambda one: one.lr)
    text = (
        f"is {highest.lr:g}, at which no model learns: a step of {highest.name} then moves weights by far more than "
        f"their size; usual are 1e-4 to 5e-3 for adamw and adam, up to 1 for sgd"
    )
    return [("training.optimizer.lr", text, "raystage's own rule of thumb: initial weights are about 0.02")]


def _passes_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    """One for each text, about the run that makes the most passes over it. max_repeats of a source takes the place of
    the usual limit."""
    parts = [part for run in plan.runs() for stage in run.stages for part in stage.data.parts]
    limits = {part.data.content: part.max_repeats for part in parts if part.max_repeats is not None}
    names = {part.data.content: part.name for part in parts if part.name}
    most: dict[str, tuple[DataUse, str]] = {}
    for run in plan.runs():
        for use in uses(run):
            text = use.data.content
            if text not in most or use.passes > most[text][0].passes:
                most[text] = use, run.name
    return [
        _passes_warning(use, name, names.get(content), limits.get(content, MOST_PASSES))
        for content, (use, name) in most.items()
        if use.passes > limits.get(content, MOST_PASSES)
    ]


def _passes_warning(use: DataUse, run: str, source: str | None, limit: float) -> tuple[str, str, str]:
    about = "about " if use.counted.is_estimate else ""
    return (
        f"data.mixture.{source}" if source else "data",
        f"has {about}{format_count(use.counted.train_tokens)} tokens to "
        f"train on, and run {run!r} reads {format_count(use.read_tokens)}: "
        f"{format_passes(use.passes)}. Beyond {limit:g} passes, repeated text is worth less and less. Use "
        f"more text, or fewer tokens",
        "2305.16264: up to 4 passes are about as good as new text",
    )


def _seed_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    """A seed decides the order of the windows: with another one a source's cursor leads to other text."""
    stages = plan.staged.stages
    others = [stage.name for stage in stages if stage.reading is not None and stage.seed != stages[0].seed]
    if not others:
        return []
    text = (
        f"of {', '.join(others)} is not that of the first stage, so its sources are read in another order: some text "
    )
    return [("stages.seed", f"{text}is read a second time and some is left out", "the order follows from the seed")]


def _control_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    if not any(stage.data.has_controls for stage in plan.staged.stages):
        return []
    text = (
        "contains text that looks like control tokens of its tokenizer; it is encoded as text. Where one of them "
        "ends a document, name it in data.document_separator"
    )
    return [("data", text, "a control token within a document would end it, or begin a role")]


def _repeat_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    """About held-out text that was trained on, where this machine tokenized the text before."""
    found = repeat_doubts(use.counted for use in uses(plan.staged))
    return [("data", text, f"measured; raystage's limit is {format_share(MOST_REPEATED)}") for text in found]


def repeat_doubts(counted: Iterable[Counted]) -> list[str]:
    """Sentences about held-out text that was trained on."""
    return [
        f"has held-out text of which {'at least ' if one.looked_at < 1 else ''}{format_share(one.repeated_share)} "
        f"stands word for word in the training text ({one.repeated} of {one.pieces} pieces of 64 tokens), so that "
        f"losses are lower than on new text"
        for one in counted
        if one.repeated_share is not None and one.repeated_share > MOST_REPEATED
    ]
