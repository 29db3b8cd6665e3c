"""Every growth operator on the quickstart's data at equal FLOPs: the loss right after growth, later, and at the end.

    python benchmarks/operators.py [--store URI] [--only stack,identity] [--json FILE]

Three groups, each from one small model that the store trains once: 3 -> 6 layers; half -> full width (hidden size,
heads and feed-forward layer at once); a dense model -> four experts, of which each token sees one. Within a group all
runs have the same tokens and the same FLOPs, but for `learned`, whose fitting comes on top. The last line of a group
is the target from scratch for as many FLOPs. Every run is a `raystage run` of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystage.config.schedule import load
from raystage.files.filesystem import open_folder
from raystage.models.shape import flops_per_token
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.storage.store import Store

HERE = Path(__file__).parent
SCHEDULE = HERE / "operators.yaml"
LATER_STEPS = 200

# At twice the depth `last` and `first` are `stack`, and so is `middle` with one block; `layers` is what one lists.
DEPTH = {"stack": "", "interleave": "", "middle": ", block: 1", "random": "", "identity": ""}
WIDTH = ("zero_pad", "duplicate", "aki", "rms")
OF_BOTH = {"masked": "grow_tokens: 200K", "learned": "fit_steps: 100"}

NARROW = "stages[0].model={num_layers: 3, hidden_size: 32, num_heads: 2, ffn_size: 96}"
WIDE = "stages[1].model={num_layers: 3, hidden_size: 64, num_heads: 4, ffn_size: 192}"
EXPERTS = "stages[1].model={family: mixtral, num_layers: 3, num_experts: 4, experts_per_token: 1}"


@dataclass(frozen=True)
class Variant:
    """One run: the settings that make it of `operators.yaml`. operator None: the target from scratch."""

    group: str
    operator: str | None
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.group}-{self.operator or 'scratch'}"


def variants() -> list[Variant]:
    depth = [_grown("depth", name, f"operator: {name}{options}") for name, options in DEPTH.items()]
    depth += [_grown("depth", name, f"operator: {name}, {option}") for name, option in OF_BOTH.items()]
    width = [_grown("width", name, f"operator: {name}", NARROW, WIDE) for name in WIDTH]
    width += [_grown("width", name, f"operator: {name}, {option}", NARROW, WIDE) for name, option in OF_BOTH.items()]
    experts = [_grown("experts", "upcycle", "operator: upcycle", EXPERTS)]
    return [*depth, _scratch(depth[0]), *width, _scratch(width[0]), *experts, _scratch(experts[0])]


def _grown(group: str, operator: str, grow: str, *overrides: str) -> Variant:
    return Variant(group, operator, (*overrides, f"stages[1].grow={{{grow}}}"))


def _scratch(grown: Variant) -> Variant:
    """The target alone, for as many whole steps as the staged run has FLOPs for."""
    plan = plan_of(grown)
    last = plan.staged.stages[-1]
    steps = round(plan.staged.flops / (last.training.global_batch_tokens * flops_per_token(last.shape)))
    shape = last.shape
    model = {
        "family": shape.family, "num_layers": shape.num_layers, "hidden_size": shape.hidden_size,
        "num_heads": shape.num_heads, "ffn_size": shape.ffn_size,
    }  # fmt: skip
    if shape.num_experts:
        model |= {"num_experts": shape.num_experts, "experts_per_token": shape.experts_per_token}
    stage = {"name": "scratch", "model": model, "until": {"steps": steps}}
    return Variant(grown.group, None, (f"stages=[{json.dumps(stage)}]",))


def plan_of(variant: Variant) -> Plan:
    return make_plan(load(SCHEDULE, variant.overrides), variant.name)


def run(variant: Variant, store: str) -> None:
    settings = [part for override in variant.overrides for part in ("--set", override)]
    command = [sys.executable, str(HERE.parent / "jobs/run.py"), str(SCHEDULE), *settings]
    subprocess.run([*command, "--name", variant.name, "--store", store, "--wandb", "disabled"], check=True)


def measured(variant: Variant, store: Store) -> dict[str, Any]:
    """The figures of a finished variant; None where a run from scratch has none."""
    stage = plan_of(variant).staged.stages[-1]
    record = store.record(stage.key)
    after = {point.steps - stage.start_steps: point.loss for point in record.evaluations}
    certificate = record.growth.certificate if record.growth else None
    return {
        "group": variant.group,
        "operator": variant.operator,
        "flops": plan_of(variant).staged.flops,
        "eval_loss_before": certificate and certificate.eval_loss_before,
        "eval_loss_after": certificate and certificate.eval_loss_after,
        "eval_loss_later": _nearest(after, LATER_STEPS) if certificate else None,
        "eval_loss": record.eval_loss,
        "growth_seconds": record.growth.seconds if record.growth else None,
    }


def _nearest(losses: dict[int, float], step: int) -> float:
    return losses[min(losses, key=lambda at: abs(at - step))]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, each group by its loss at the end."""
    lines = [
        f"| group | operator | FLOPs | before | right after | {LATER_STEPS} steps later | at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (list(GROUPS).index(row["group"]), row["eval_loss"])):
        losses = (row[key] for key in ("eval_loss_before", "eval_loss_after", "eval_loss_later", "eval_loss"))
        shown = " | ".join("-" if loss is None or math.isnan(loss) else f"{loss:.3f}" for loss in losses)
        name = f"`{row['operator']}`" if row["operator"] else "scratch"
        lines.append(f"| {GROUPS[row['group']]} | {name} | {row['flops']:.3g} | {shown} |")
    return "\n".join(lines)


GROUPS = {"depth": "3 -> 6 layers", "width": "width 32 -> 64", "experts": "1 -> 4 experts"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=".raystage/operators")
    parser.add_argument("--only", help="names of runs such as depth-stack, separated by commas")
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else None
    chosen = [variant for variant in variants() if wanted is None or variant.name in wanted]
    for variant in chosen:
        run(variant, arguments.store)
    rows = [measured(variant, Store(open_folder(arguments.store))) for variant in chosen]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
