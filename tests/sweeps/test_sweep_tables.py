"""What `raystage plan SWEEP` says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from factories import make_record
from raystage.cli.main import main
from raystage.cli.views.plan_json import sweep_json
from raystage.files.filesystem import open_folder
from raystage.storage.store import Store
from raystage.sweeps.terminal import MOST_TREE_LINES, sweep_table
from raystage.sweeps.trials import SweepPlan, plan_sweep
from raystage.units import format_flops
from sweeps import SPACE, make_sweep, write_sweep

QUICKSTART = Path(__file__).parents[2] / "jobs/sweeps/quickstart.yaml"


def planned(folder: Path, space: str = SPACE, *changes: str, **sections: object) -> SweepPlan:
    return plan_sweep(make_sweep(folder, space, *changes, **sections))


def render(plan: SweepPlan, width: int = 120) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(sweep_table(plan))
    return [line.rstrip() for line in capture.get().splitlines()]


def plan_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plan", *map(str, arguments)])


# --- for people -------------------------------------------------------------------------------


def test_the_whole_of_a_small_sweep(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    tree = plan.tree
    short, long = (format_flops(node.own_flops) for node in list(tree.nodes.values()) if node.stage.name == "small")
    middle, full = (
        format_flops(next(node.own_flops for node in tree.nodes.values() if node.stage.name == name))
        for name in ("middle", "full")
    )
    apart, shared, longest = map(format_flops, (tree.flops_apart, tree.flops_shared, tree.longest_flops))
    first, second = (format_flops(plan.trials[number].plan.staged.flops) for number in (0, 2))
    lines = render(plan)
    table = lines.index("trials")
    assert lines[:table] == [
        "search",
        "4 trials (grid), 8 different stages among 12.",
        f"FLOPs: {apart} apart, {shared} with every stage trained once: a sharing factor of "
        f"{tree.sharing_factor:.2f}, {100 * (1 - 1 / tree.sharing_factor):.1f} % saved.",
        f"The longest row of stages that wait for each other: {longest}.",
        "",
        f"small until.tokens=400: 400 tokens, {short} FLOPs, trials 0, 1",
        f"└── middle: 400 tokens, {middle} FLOPs, trials 0, 1",
        f"    ├── full grow.operator=stack: 400 tokens, {full} FLOPs, trial 0",
        f"    └── full grow.operator=interleave: 400 tokens, {full} FLOPs, trial 1",
        f"small until.tokens=800: 400 tokens after 400, {long} FLOPs, trials 2, 3",
        f"└── middle: 400 tokens, {middle} FLOPs, trials 2, 3",
        f"    ├── full grow.operator=stack: 400 tokens, {full} FLOPs, trial 2",
        f"    └── full grow.operator=interleave: 400 tokens, {full} FLOPs, trial 3",
        "",
    ]
    assert [line.split() for line in lines[table + 1 :] if "─" not in line] == [
        ["stages[0]", "stages[2]"],
        [".until", ".grow"],
        ["trial", ".tokens", ".operator", "stages", "FLOPs"],
        ["0", "400", "stack", "3", first],
        ["1", "400", "interleave", "3", first],
        ["2", "800", "stack", "3", second],
        ["3", "800", "interleave", "3", second],
    ]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_it_fits(tmp_path: Path, width: int) -> None:
    lines = render(planned(tmp_path), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "\n".join(lines)


def test_a_large_tree_is_cut_at_every_fork(tmp_path: Path) -> None:
    space = "stages[0].until.tokens: {integer: [100, 1M]}\nstages[1].grow.operator: {choice: [stack, interleave]}"
    plan = planned(tmp_path, space, search={"algorithm": "random", "num_trials": 300})
    lines = render(plan, 200)
    drawn = lines[lines.index("") + 1 : lines.index("trials") - 1]
    assert MOST_TREE_LINES / 2 <= len(drawn) <= MOST_TREE_LINES
    roots = [line for line in drawn if line.startswith("small")]
    assert drawn[-1] == f"... {len(plan.tree.roots) - len(roots)} more"
    assert "... 280 more" in lines


def test_what_is_to_be_known_is_said(tmp_path: Path) -> None:
    lengths = "stages[0].until.tokens: {grid: [400, 399, 800]}"
    text = "\n".join(render(planned(tmp_path, lengths, "training.lr_schedule.kind=cosine"), 200))
    assert "Repeats: 1 of the trials are the same, stage by stage, as another one." in text
    assert "Not shared: trials 0 and 2 share no part of stage small: under cosine the rate depends on" in text
    optuna = planned(tmp_path, SPACE, search={"algorithm": "optuna", "num_trials": 3})
    assert "Optuna chooses as results come in" in render(optuna, 200)[-1]
    compared = planned(tmp_path, SPACE, objective={"metric": "compute_saved"})
    baselines = f"Their baselines come to {format_flops(compared.baselines.flops_shared)} more, each trained once."
    assert baselines in render(compared)


def test_what_the_store_has(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    root = plan_sweep(sweep).tree.roots[0]
    plan = plan_sweep(sweep, {root})
    lines = render(plan)
    assert f"The store has {format_flops(plan.tree.nodes[root].own_flops)} of them already." in lines
    assert "small until.tokens=400: 400 tokens, in the store, trials 0, 1" in lines


def test_what_the_store_has_of_the_baselines(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, SPACE, objective={"metric": "compute_saved"})
    first = plan_sweep(sweep).baselines.roots[0]
    plan = plan_sweep(sweep, {first})
    more, finished = plan.baselines.flops_shared, plan.baselines.nodes[first].own_flops
    line = f"Their baselines come to {format_flops(more)} more, each trained once; the store has "
    assert f"{line}{format_flops(finished)} of them already." in render(plan, 200)


# --- for machines -----------------------------------------------------------------------------


def test_the_json_adds_up(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    found = json.loads(json.dumps(sweep_json(plan)))
    assert found["flops_shared"] == sum(stage["own_flops"] for stage in found["stages"])
    assert found["flops_apart"] == sum(trial["flops"] for trial in found["trials"])
    assert found["sharing_factor"] == pytest.approx(found["flops_apart"] / found["flops_shared"])
    flops = {stage["key"]: stage["flops"] for stage in found["stages"]}
    for trial in found["trials"]:
        assert trial["flops"] == sum(flops[key] for key in trial["stages"])
    assert found["trials"][3]["config"] == {"stages[0].until.tokens": 800, "stages[2].grow.operator": "interleave"}
    assert sorted(found["order"]) == [0, 1, 2, 3]


# --- the command ------------------------------------------------------------------------------


def test_the_quickstart_shares_what_the_issue_asks_for() -> None:
    done = plan_command(QUICKSTART, "--json")
    found = json.loads(done.stdout)
    assert len(found["trials"]) == 12
    assert found["sharing_factor"] >= 2.5
    costs = [trial["flops"] for trial in found["trials"]]
    assert max(costs) / min(costs) < 1.01
    assert done.exit_code == 0


def test_a_sweep_is_known_by_its_space(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    assert "4 trials (grid)" in plan_command(path).stdout
    assert "Predicted saving" in plan_command(tmp_path / "tiny.yaml").stdout


def test_overrides_are_of_the_sweep(tmp_path: Path) -> None:
    done = plan_command(write_sweep(tmp_path), "--set", "search={algorithm: random, num_trials: 2}")
    assert "2 trials (random)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "serch.seed=1"), "sweep.yaml: serch: unknown key; did you mean 'search'?"),
        (("--suggest",), "sweep.yaml: --suggest: found with a sweep; expected a schedule"),
    ],
)
def test_what_is_wrong_ends_with_2_and_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = plan_command(write_sweep(tmp_path), *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"raystage: {tmp_path}/{message}\n"


def test_a_sweep_is_planned_without_torch_or_ray() -> None:
    script = (
        "import sys; from raystage.cli.main import main; main(['plan', sys.argv[1]], standalone_mode=False);"
        "print([name for name in ('torch', 'ray', 'optuna', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, QUICKSTART], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_a_store_has_is_left_out_where_one_is_named(tmp_path: Path) -> None:
    plan, store = planned(tmp_path), Store(open_folder(tmp_path / "store"))
    first = plan.trials[0].plan.staged.stages[0]
    store.commit_record(make_record(first, 2.0))
    file, flops = tmp_path / "sweep.yaml", plan.tree.flops_shared
    assert json.loads(plan_command(file, "--json").stdout)["flops_left"] == flops
    found = plan_command(file, "--json", "--store", tmp_path / "store")
    assert json.loads(found.stdout)["flops_left"] == flops - first.flops
    shown = plan_command(file, "--store", tmp_path / "store").stdout
    assert f"The store has {format_flops(first.flops)} of them already." in shown


def test_baselines_in_a_store_are_left_out_too(tmp_path: Path) -> None:
    plan = planned(tmp_path, SPACE, objective={"metric": "compute_saved"})
    first = plan.baselines.nodes[plan.baselines.roots[0]].stage
    Store(open_folder(tmp_path / "store")).commit_record(make_record(first, 2.0))
    found = json.loads(plan_command(tmp_path / "sweep.yaml", "--json", "--store", tmp_path / "store").stdout)
    assert found["baseline_flops_left"] == found["baseline_flops"] - first.flops


def test_what_optuna_will_draw_no_store_can_have(tmp_path: Path) -> None:
    planned(tmp_path, search={"algorithm": "optuna", "num_trials": 2})
    refused = plan_command(tmp_path / "sweep.yaml", "--store", tmp_path / "store")
    assert refused.exit_code == 2
    assert "--store: found with trials that Optuna draws as it goes" in refused.stderr
