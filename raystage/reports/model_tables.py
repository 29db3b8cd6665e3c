"""A report's tables about models beside its stages: averages of checkpoints, adapters, ensembles, delivered models."""

from __future__ import annotations

from collections.abc import Iterable

from raystage.reports.formats import Table, format_length, format_loss, known, length_name
from raystage.results.branches.family import DeliveredFamily, DeliveredModel
from raystage.results.branches.members import EnsembleMembers, MemberRow
from raystage.results.endings import AdapterRecord
from raystage.results.report import Ensemble, EnsembleRow, ResultRow, RunReport
from raystage.units import format_count, format_flops, format_share


def average_table(report: RunReport) -> Table:
    """The averages of last checkpoints. Empty where no stage has one."""
    columns = ("stage", "checkpoints", "weights", "loss of the average", "of the last alone", "ends with")
    rows = [_average_cells(row) for row in (*report.stages, *report.baseline.runs) if row.average]
    note = "An average whose held-out loss is no lower than that of the last checkpoint is not used."
    return Table("Averages of checkpoints", columns, rows, note)


def _average_cells(row: ResultRow) -> list[str]:
    average = row.average
    return [
        row.name,
        f"{', '.join(map(format_count, average.positions))} {row.unit}",
        ", ".join(f"{weight:.3g}" for weight in average.weights),
        known(average.eval_loss, format_loss),
        known(average.single_eval_loss, format_loss),
        "the average" if average.is_kept else "the last checkpoint",
    ]


def delivered_table(report: RunReport) -> Table:
    """The finished models of every size. Empty where no stage delivers one."""
    family = report.delivered
    unit = length_name(one.unit for one in family.models) if family else ""
    columns = (
        "stage", "model", "layers", "parameters", unit, "of it decay", "FLOPs", "from scratch", "loss before the decay",
        "loss",
    )  # fmt: skip
    rows = [_delivered_cells(one, unit) for one in family.models] if family else []
    return Table("Delivered models", columns, rows, family_line(family) if family else "")


def family_line(family: DeliveredFamily) -> str:
    """What the delivered models cost together, beside each of them from scratch."""
    together = f"Together they take {format_flops(family.flops)} FLOPs, and what they share counts once"
    if family.apart_flops is None:
        return f"{together}."
    compared = f"{format_share(abs(family.saved))} {'less' if family.saved >= 0 else 'more'}"
    return (
        f"{together}: {compared} than the {format_flops(family.apart_flops)} of each from scratch for as long. Equal "
        f"lengths are no equal losses."
    )


def _delivered_cells(one: DeliveredModel, title: str) -> list[str]:
    return [
        one.stage,
        one.name,
        str(one.num_layers),
        format_count(one.num_params),
        format_length(one.duration, one.unit, title),
        format_count(one.decay) if one.decay else "none",
        format_flops(one.flops),
        known(one.scratch_flops, format_flops),
        known(one.eval_loss_before, format_loss),
        known(one.eval_loss, format_loss),
    ]


def member_table(report: RunReport) -> Table:
    """The members of ensembles that are not measured, whose table would have them. Empty where there are none."""
    waiting = [one for one in report.members if one.stage not in report.ensembles]
    unit = length_name(row.unit for one in waiting for row in one.members)
    columns = ("ensemble", "member", unit, "FLOPs", "eval loss", "accuracy", "FLOPs of an answer")
    rows = [cells for one in waiting for cells in _ensemble_rows(one, unit)]
    return Table("Members of ensembles", columns, rows, " ".join(map(members_line, waiting)))


def members_line(one: EnsembleMembers) -> str:
    """What the members of a stage cost, and who learns from them."""
    answer = f"An answer of all together takes {len(one.members)} forward passes"
    whose = f"{' and '.join(one.teaches)} learn{'' if len(one.teaches) > 1 else 's'} from all of them"
    counted = f"{whose}, so that they count as part of the staged run" if one.teaches else "They are beside the run"
    return (
        f"{one.stage} has {len(one.members)} members (vary: {one.vary}). The further ones take "
        f"{format_flops(one.further_flops)} FLOPs; with the stages before, which they share, all take "
        f"{format_flops(one.flops)}. {answer}. {counted}."
    )


def _ensemble_rows(one: EnsembleMembers, title: str) -> list[list[str]]:
    """The members, and what all cost together with the stages before."""
    together = ["", format_flops(one.flops), "", "", format_flops(one.forward_flops)]
    return [*(_member_cells(one, row, title) for row in one.members), [one.stage, "all together", *together]]


def _member_cells(one: EnsembleMembers, row: MemberRow, title: str) -> list[str]:
    return [
        one.stage,
        row.name,
        format_length(row.duration, row.unit, title),
        format_flops(row.flops),
        known(row.eval_loss, format_loss),
        known(row.accuracy, format_share),
        format_flops(row.forward_flops),
    ]


def adapter_table(report: RunReport) -> Table:
    """The adapters that stages trained. Empty where none did."""
    columns = ("stage", "adapter", "matrices", "trained", "of the model", "loss when merged", "before")
    rows = [_adapter_cells(row, row.adapter) for row in report.stages if row.adapter]
    return Table("Adapters", columns, rows, "The optimizer's state of an adapter ends with its stage.")


def _adapter_cells(row: ResultRow, adapter: AdapterRecord) -> list[str]:
    return [
        row.name,
        f"LoRA, rank {adapter.rank}, alpha {adapter.alpha:g}",
        str(adapter.modules),
        format_count(adapter.num_trained),
        format_share(adapter.num_trained / row.num_params),
        format_loss(adapter.eval_loss),
        format_loss(adapter.unmerged_eval_loss),
    ]


def ensemble_table(report: RunReport) -> Table:
    """What was found of ensembles: of a run's own, and by `raystage ensemble`."""
    return table_of_ensembles(report.ensembles.values())


def table_of_ensembles(found: Iterable[Ensemble]) -> Table:
    columns = ("ensemble", "model", "eval loss", "accuracy", "FLOPs of training", "FLOPs of an answer")
    rows = [_ensemble_cells(one.name, row) for one in found for row in one.rows]
    note = (
        "Training counts all stages of a model, and what members share once. An answer is a forward pass for one token "
        "or sample."
    )
    return Table("Ensembles", columns, rows, note)


def _ensemble_cells(name: str, row: EnsembleRow) -> list[str]:
    return [
        name,
        row.name,
        known(row.eval_loss, format_loss),
        known(row.accuracy, format_share),
        known(row.training_flops, format_flops),
        format_flops(row.forward_flops),
    ]
