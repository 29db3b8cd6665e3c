"""What the stages of a run read of each source of their mixtures, in their unit and in passes over it, and in which
order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystage.data.order.curriculum import CurriculumPlan
from raystage.data.plan import MixturePlan
from raystage.files.typed_json import LEFT_OUT_IF_DEFAULT, unit_key
from raystage.plans.plan import RunPlan
from raystage.results.data.data_use import amounts_read, count_passes, uses
from raystage.results.record import Evaluation, StageRecord
from raystage.units import SAMPLES, TOKENS, Unit, format_count, format_share


@dataclass(frozen=True)
class SourceRead:
    """What a stage reads of a source of its mixture. passes: over the source, by the run up to the stage's end."""

    name: str
    weight: float
    amount: int = field(metadata=unit_key())
    passes: float
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)


def sources_read(run: RunPlan, records: Mapping[str, StageRecord] | None = None) -> dict[str, list[SourceRead]]:
    """By stage what is read of each source of its mixture, and of sources whose window it finds begun."""
    sizes = {use.data.content: max(1, use.counted.train_amount) for use in uses(run, records)}
    total: dict[str, int] = {}
    found: dict[str, list[SourceRead]] = {}
    for stage in run.stages:
        amounts = amounts_read(stage, records)
        total = {content: total.get(content, 0) + amounts.get(content, 0) for content in {**total, **amounts}}
        if isinstance(stage.data, MixturePlan):
            found[stage.name] = [
                SourceRead(
                    part.name,
                    float(part.weight),
                    amounts.get(content, 0),
                    total.get(content, 0) / sizes[content],
                    stage.unit,
                )
                for part in stage.data.parts
                for content in (part.data.content,)
            ]
    return found


def losses_by_name(point: Evaluation, run: RunPlan) -> dict[str, float]:
    """The losses of an evaluation on sources of mixtures, by their names in the run's plan. `accept` may have asked for
    one that the stage itself does not read."""
    names = {part.data.content: part.name for stage in run.stages for part in stage.evaluated if part.name}
    return {names[content]: loss for content, loss in point.sources.items() if content in names}


def mixture_lines(run: RunPlan) -> list[str]:
    """One sentence for each stage with a mixture: what it reads of every source."""
    lines, of_stages = [], sources_read(run)
    for stage in run.stages:
        reads = of_stages.get(stage.name)
        if reads is None:
            continue
        windows = stage.training.global_batch // stage.window
        is_few = windows < sum(1 for one in reads if one.weight)
        what = ("sample" if stage.unit == SAMPLES else "window") + ("" if windows == 1 else "s")
        few = f" A batch has {windows} {what}, fewer than there are sources: no batch reads all." if is_few else ""
        lines.append(f"Mixture of {stage.name}: {', '.join(map(_of_source, reads))}.{few}")
    return lines


def order_lines(run: RunPlan) -> list[str]:
    """One sentence for each stage with a curriculum, and one about the stages that keep documents apart."""
    lines = [f"Order of {stage.name}: {_order(stage.curriculum)}." for stage in run.stages if stage.curriculum]
    apart = [stage.name for stage in run.stages if stage.within_documents]
    return [*lines, f"Documents are kept apart in {', '.join(apart)}."] if apart else lines


def _order(curriculum: CurriculumPlan) -> str:
    by = "their length" if curriculum.column is None else f"the numbers in {curriculum.column!r}"
    by = f"their loss under {curriculum.scorer.name}" if curriculum.scorer else by
    first = "highest" if curriculum.is_hard_first else "lowest"
    share, end = format_share(curriculum.start), format_count(curriculum.over_tokens)
    return f"documents by {by}, the {first} first; {share} of the text at its start, all of it after {end} tokens"


def _of_source(one: SourceRead) -> str:
    if not one.weight:
        return f"{one.name} 0 (evaluated only)"
    read = f"{format_count(one.amount)} {one.unit}, {count_passes(one.passes)} so far"
    return f"{one.name} {one.weight:g} ({read})"
