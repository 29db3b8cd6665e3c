"""Tables for the commands `raystage grow` and `raystage certify`: a growth map, a certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from raystage.growth.explain import explain, what_grows
from raystage.growth.operators import in_short
from raystage.growth.request import PlannedGrowth
from raystage.reports.columns import name_column as _name
from raystage.reports.columns import table as _table
from raystage.reports.formats import format_jump, known


def growth_table(growth: PlannedGrowth) -> Table:
    """What every parameter of the target is made from. Layers whose parameters share a rule take one line."""
    request, grown = growth.request, what_grows(growth.source, growth.target)
    precision = growth.how()["exact_in"]
    kind = {None: "not exact", "any": "the same function"}.get(precision, f"the same function in {precision}")
    title = f"{in_short(request.operator)}: {grown} ({kind}; optimizer_state {request.optimizer_state})"
    table = _table(title, [Column(header, overflow="fold") for header in ("target", "<- source", "weights", "moments")])
    for line in explain(growth.source, growth.target, growth.rules, growth.families):
        table.add_row(*map(Text, (line.target, line.source, line.weights, line.moments)))
    return table


def certificate_table(found: Mapping[str, Any]) -> RenderableType:
    """What `raystage certify` found, a line for each figure. A dash means: it could not be measured."""
    kind = {True: ", which claims the same function", False: ", which is not exact", None: ""}[found["exact"]]
    kind += f" in {found['exact_in']}" if found["exact_in"] not in (None, "any") else ""
    how = f" by {in_short(found['operator'])}{kind}" if found["operator"] else ", it does not say how"
    table = _table(None, [_name("figure"), Column("found", overflow="fold")])
    for name, figure in _figures(found["certificate"]):
        table.add_row(Text(name), Text(figure))
    return Group(
        Text(f"{found['source']} -> {found['target']}"),
        Text(f"grown{how}; measured in {found['seconds']:.1f} s", style="dim"),
        "",
        table,
    )


def _figures(certificate: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "loss before -> after", format_jump(certificate["eval_loss_before"], certificate["eval_loss_after"])
    yield "logits differ by", known(certificate["max_logit_difference"], _two_digits)
    yield "... in the mean", known(certificate["mean_logit_difference"], _two_digits)
    ratios = [known(ratio, lambda ratio: f"{ratio:.3f}") for ratio in certificate["activation_rms_ratio"]]
    yield "activation RMS, layer by layer", " ".join(ratios) or "-"
    yield "gradients, exactly predicted: error", known(certificate["gradient_error"], _two_digits)
    yield "... estimated: error", known(certificate["gradient_error_estimated"], _two_digits)
    for state, sides in certificate["moment_norms"].items():
        yield f"norm of {state}", f"{_two_digits(sides['before'])} -> {_two_digits(sides['after'])}"
    after = f" after {certificate['twin_steps']} steps" if certificate["twin_steps"] else ""
    yield f"copies differ{after} by", known(certificate["twin_distance"], _two_digits)


def _two_digits(figure: float) -> str:
    return f"{figure:.2g}"
