"""What to beware of in the data of a plan: the key, what is the matter, who says so."""

from __future__ import annotations

import math
from collections.abc import Iterable

from raystage.plans.plan import Plan
from raystage.results.data.data_use import Counted, DataUse, format_passes, uses
from raystage.sources.labelled.asked import not_held_out
from raystage.units import SAMPLES, TOKENS, format_count, format_share

# Up to here a repeated token is worth about as much as a new one (Muennighoff et al., 2305.16264).
MOST_PASSES = 4
# The share of the held-out text that may occur word for word in the training text.
MOST_REPEATED = 0.01
_MOST_NAMES = 5
# A step of Adam, or of Muon, moves every weight by about the learning rate; initial weights are about 0.02.
_HIGHEST_RATES = {"adamw": 0.1, "adam": 0.1, "muon": 0.1, "sgd": 10.0}


def data_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    return [
        *_rate_warnings(plan),
        *_passes_warnings(plan),
        *_seed_warnings(plan),
        *_control_warnings(plan),
        *_repeat_warnings(plan),
        *_class_warnings(plan),
    ]


def _rate_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    optimizers = [stage.training.optimizer for run in plan.runs() for stage in run.stages]
    too_high = [one for one in optimizers if one.lr > _HIGHEST_RATES[one.name]]
    if not too_high:
        return []
    highest = max(too_high, key=lambda one: one.lr)
    text = (
        f"is {highest.lr:g}, at which no model learns: a step of {highest.name} then moves weights by far more than "
        f"their size; usual are 1e-4 to 5e-3 for adamw and adam, up to 2e-2 for muon, up to 1 for sgd"
    )
    return [("training.optimizer.lr", text, "raystage's own rule of thumb: initial weights are about 0.02")]


def _passes_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    """One for each text, about the run that makes the most passes over it. max_repeats of a source takes the place of
    the usual limit, which is that of language models: samples are usually read many times."""
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
        if use.passes > limits.get(content, MOST_PASSES if use.counted.unit == TOKENS else math.inf)
    ]


def _passes_warning(use: DataUse, run: str, source: str | None, limit: float) -> tuple[str, str, str]:
    unit, key = use.counted.unit, f"data.mixture.{source}" if source else "data"
    about = "about " if use.counted.is_estimate else ""
    read = (
        f"has {about}{format_count(use.counted.train_amount)} {unit} to train on, and run {run!r} reads "
        f"{format_count(use.read)}: {format_passes(use.passes, unit)}"
    )
    if unit == SAMPLES:  # only where the file sets a limit
        return key, f"{read}. Use more data, or fewer samples", f"the file's max_repeats: {limit:g}"
    worth = f"Beyond {limit:g} passes, repeated text is worth less and less. Use more text, or fewer tokens"
    return key, f"{read}. {worth}", "2305.16264: up to 4 passes are about as good as new text"


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


def _class_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    """About classes that no held-out sample has."""
    data = {part.data.content: part.data for stage in plan.staged.stages for part in stage.data.parts}
    unheard = [name for one in data.values() if one.samples is not None for name in not_held_out(one.samples)]
    if not unheard:
        return []
    names = ", ".join(unheard[:_MOST_NAMES]) + (", ..." if len(unheard) > _MOST_NAMES else "")
    text = f"holds out no sample of {names}, so that the report says nothing about them; hold out more"
    return [("data.validation_fraction", text, "a class is judged by its held-out samples")]


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
