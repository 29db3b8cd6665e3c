"""`raystage evaluate`: downstream tasks on a finished stage, through lm-eval. `raystage ensemble`: several as one."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import click

from raystage.cli.options import (
    exits,
    json_option,
    open_store,
    plan_schedule,
    print_json,
    say,
    set_option,
    store_option,
)
from raystage.cli.output import DebugStream
from raystage.errors import InputError


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--stage", metavar="NAME", help="A stage, or a baseline such as baseline-1000000. [the last stage]")
@click.option("--tasks", required=True, metavar="NAME,...", help="Tasks as lm-eval names them, with commas.")
@click.option("--limit", type=click.IntRange(min=1), help="The number of examples of each task; all by default.")
@click.option(
    "--num-fewshot",
    type=click.IntRange(min=0),
    help="Examples in the prompt; by default the number that the task sets.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="The device, as torch names it: cpu, cuda:0.")
@click.option("--include-path", type=click.Path(path_type=Path), metavar="FOLDER", help="Task files of your own.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Also write the result to this file, as JSON."
)
@store_option
@json_option
@exits
def evaluate(
    run: str, stage: str | None, tasks: str, limit: int | None, num_fewshot: int | None, batch_size: int, device: str,
    include_path: Path | None, out: Path | None, store: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Run downstream tasks on a finished stage of RUN. Reports of the run show the results from then on.

    It needs lm-eval: pip install 'raystage[lm-eval]'.

    \b
    Example:
      raystage evaluate quickstart --tasks lambada_openai,arc_easy --limit 200
      raystage evaluate quickstart --stage baseline-1600000 --tasks mine --include-path my/tasks
    """
    from raystage.files.typed_json import to_json
    from raystage.tools.lm_eval import Asked, downstream_lines
    from raystage.tools.lm_eval import evaluate as run_tasks

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise InputError(f"found {tasks!r}; expected names of tasks", key="--tasks")
    asked = Asked(names, limit, num_fewshot, batch_size, device, include_path)
    with contextlib.redirect_stdout(DebugStream()):
        made = run_tasks(open_store(store), run, stage, asked)
    content = to_json(made)
    text = json.dumps(content, indent=1)
    if out is not None:
        try:
            out.write_text(text + "\n")
        except OSError as error:
            problem = f"cannot be written ({error.strerror}); expected a file in a folder that is there"
            raise InputError(problem, key="--out", file=str(out)) from None
    if as_json:
        print_json(content)
    else:
        say("\n".join(downstream_lines(made, list(made.tasks))))


@click.command()
@click.argument("schedule", type=click.Path(path_type=Path))
@click.argument("checkpoints", nargs=-1, metavar="[CHECKPOINT]...")
@set_option
@click.option("--stage", metavar="NAME", help="The stage whose held-out data and objective count. [the last stage]")
@click.option("--name", metavar="NAME", help="The name of the result. [the stage's]")
@store_option
@json_option
@exits
def ensemble(
    schedule: Path, checkpoints: tuple[str, ...], overrides: tuple[str, ...], stage: str | None, name: str | None,
    store: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Evaluate several finished models as one, on the held-out data of a stage of SCHEDULE.

    Each CHECKPOINT is a raystage checkpoint, a stage of the store (its key, or mine/full: stage full of run mine) or a
    Hugging Face folder. Without any, the members are those of the stage's `ensemble`, or else what the runs of all
    seeds of SCHEDULE end with. Shown are each member, the mean of their probabilities, the model with the mean of their
    weights where they have one shape, and the FLOPs of each. All members are in memory at once. If the store has a run
    of SCHEDULE, its reports show the result from then on.

    \b
    Example:
      raystage ensemble my/schedule.yaml                     # with seeds: 4 in it
      raystage ensemble my/schedule.yaml first/full second/full third/full --name of-three
    """
    from raystage.config.schedule import load
    from raystage.config.types import check_name
    from raystage.files.typed_json import to_json
    from raystage.reports.terminal import ensemble_view
    from raystage.safe_console import SafeConsole
    from raystage.storage.evaluations import keep_ensemble
    from raystage.tools.ensemble import measure, members_of

    opened = open_store(store)
    plan = plan_schedule(load(schedule, overrides), schedule, None, store)[1]
    judged = next((one for one in plan.staged.stages if one.name == (stage or plan.staged.stages[-1].name)), None)
    if judged is None:
        names = ", ".join(one.name for one in plan.staged.stages)
        raise InputError(f"no stage {stage!r} in the schedule; expected one of {names}", key="--stage")
    try:
        named = check_name(name) if name else judged.name
    except ValueError as error:
        raise InputError(str(error), key="--name") from None
    with contextlib.redirect_stdout(DebugStream()):
        made = measure(judged, members_of(plan, checkpoints, opened, judged), opened, named)
    if plan.name in opened.run_names():
        keep_ensemble(opened, plan.name, made)
    if as_json:
        print_json(to_json(made))
    else:
        SafeConsole().print(ensemble_view(made))
