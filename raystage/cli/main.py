"""The command line. Imports of torch, ray and the like wait until a command needs them: `plan` is quick."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from raystage.cli.doctor import doctor
from raystage.cli.evaluate import evaluate
from raystage.cli.init import init_command
from raystage.cli.options import (
    DebugStream,
    address_option,
    cluster_address,
    exits,
    finished_in,
    in_job_copy,
    init_source,
    json_option,
    open_store,
    print_result,
    say,
    store_option,
    wandb_mode_for,
    wandb_option,
)
from raystage.cli.output import Commands
from raystage.cli.report import report
from raystage.cli.status import status_command
from raystage.cli.store import store_group
from raystage.cli.sweep import print_sweep_plan, sweep
from raystage.cluster.shutdown import SHUTDOWN
from raystage.errors import InputError
from raystage.growth.depth import GrowthOptions
from raystage.growth.operators import OPTIMIZER_STATE_POLICIES, in_short, parse_operator


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raystage")
def main() -> None:
    """Staged training on Ray Train and DeepSpeed, with the compute it saves measured.

    \b
    Example:
      raystage init --example quickstart
      raystage plan quickstart.yaml
      raystage run  quickstart.yaml
      raystage report quickstart
    """


main.add_command(doctor)
main.add_command(evaluate)
main.add_command(init_command)
main.add_command(report)
main.add_command(store_group)
main.add_command(status_command)
main.add_command(sweep)

_set = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, e.g. stages[1].until.tokens=2M."
)


@main.command()
@click.argument("schedule", type=click.Path(path_type=Path), metavar="SCHEDULE|SWEEP")
@_set
@click.option("--suggest", "suggested", is_flag=True, help="Also propose lengths for the stages, by published rules.")
@click.option("--store", metavar="URI", help="Also say what of it this store has: a path, s3://..., gs://...")
@click.option("--no-code", "without_code", is_flag=True, help="Import no metric that it names; for a file of others.")
@json_option
@exits
def plan(
    schedule: Path,
    overrides: tuple[str, ...],
    suggested: bool,
    store: str | None,
    without_code: bool,
    as_json: bool,
) -> None:
    """Print what a schedule would do and cost, and what to beware of, without doing it.

    Of a sweep: its trials, the tree of their stages, and how much these share.

    The functions of training.evaluate.metrics are imported, to see that they can be called: that runs the files that
    the schedule names. With --no-code nothing of it runs.

    \b
    Example:
      raystage plan jobs/schedules/quickstart.yaml --set stages[1].until.tokens=600K
      raystage plan jobs/schedules/quickstart.yaml --suggest
      raystage plan jobs/schedules/quickstart.yaml --store .raystage
      raystage plan jobs/sweeps/quickstart.yaml
    """
    from raystage.cli.plan_json import left_json, plan_json, suggestions_json, unchecked_line, unchecked_of
    from raystage.config.yaml_file import read_mapping
    from raystage.report.plan_tables import left_line, plan_table, suggestion_table
    from raystage.report.suggestions import suggest
    from raystage.report.terminal import SafeConsole
    from raystage.sweep.config import is_sweep

    content = read_mapping(schedule)
    if is_sweep(content):
        if suggested:
            raise InputError("found with a sweep; expected a schedule", key="--suggest", file=str(schedule))
        print_sweep_plan(schedule, content, overrides, store, not without_code, as_json)
        return
    _, made = _load(schedule, content, overrides, None, store, with_code=not without_code)
    finished = finished_in(store, made.stages_by_key())
    if as_json:
        suggestions = {"suggestions": suggestions_json(made)} if suggested else {}
        left = {} if finished is None else left_json(made, finished)
        unchecked = {"unchecked": unchecked_of(made)} if without_code else {}
        click.echo(json.dumps(plan_json(made) | suggestions | left | unchecked, indent=1))
        return
    SafeConsole().print(plan_table(made))
    if finished is not None:
        SafeConsole().print(left_line(made, finished))
    if without_code:
        SafeConsole().print(unchecked_line(unchecked_of(made)), soft_wrap=True)
    if suggested:
        SafeConsole().print("", suggestion_table(made, suggest(made)), sep="\n")


@main.command()
@click.argument("schedule", type=click.Path(path_type=Path))
@_set
@store_option
@click.option("--name", help="The run's name; the schedule's own unless given.")
@address_option
@wandb_option
@json_option
@exits
def run(
    schedule: Path,
    overrides: tuple[str, ...],
    store: str | None,
    name: str | None,
    address: str | None,
    wandb_mode: str | None,
    as_json: bool,
) -> None:
    """Train a schedule stage by stage, then its baselines, and report what was saved.

    What is finished is kept; the same command goes on where it was stopped.

    \b
    Example:
      raystage run jobs/schedules/quickstart.yaml --set training.optimizer.lr=4e-3 --name faster
    """
    from raystage.config.yaml_file import read_mapping

    SHUTDOWN.install()
    mode = wandb_mode_for(wandb_mode)
    parsed, made = _load(schedule, read_mapping(schedule), overrides, name, store)
    # The driver computes nothing: without this DeepSpeed looks for a GPU here, and says so. Workers have their own.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from raystage.report.terminal import final_table
    from raystage.run.console import make_display
    from raystage.run.earlier import make_way
    from raystage.run.log import next_steps, run_command
    from raystage.run.session import RunSession, Tracking

    opened = open_store(store)
    folder = opened.run_folder(made.name)
    if aside := make_way(opened, made.name, [stage.key for run in made.runs() for stage in run.stages]):
        say(f"raystage: {aside}", err=True)
    command = run_command(str(schedule), overrides, store, name, address, wandb_mode)
    tracking = Tracking(mode, folder.path if in_job_copy() and folder.is_local else None)
    session = RunSession(made, parsed, opened, command=command, address=cluster_address(address), tracking=tracking)
    # What Ray prints (a worker died) the display tells in its own words.
    with contextlib.redirect_stdout(DebugStream()), session:
        report = session.run([make_display(made, sys.stderr, session.finished)])
    print_result(report, final_table(report), as_json)
    where = f" --store {store}" if store else ""
    click.echo(f"report: {folder.uri}/report.html (and report.md, curves.png, report.json)", err=as_json)
    click.echo(f"compare: raystage report {made.name} OTHER --html both.html{where}", err=as_json)
    for line in next_steps(session.invocation, None):
        click.echo(line, err=as_json)


@main.command()
@click.argument("source")
@click.argument("target", required=False)
@click.option(
    "--set", "overrides", multiple=True, required=True, metavar="KEY=VALUE",
    help="A size of the grown model, e.g. num_layers=12 or hidden_size=1024.",
)  # fmt: skip
@click.option(
    "--operator", default="stack", show_default=True,
    help="One for all that grows, or one for each part: num_layers=stack,width=duplicate.",
)  # fmt: skip
@click.option(
    "--optimizer-state", type=click.Choice(OPTIMIZER_STATE_POLICIES), default="grow", show_default=True,
    help="What becomes of a checkpoint's moments; a Hugging Face folder has none.",
)  # fmt: skip
@click.option("--layers", metavar="LIST", help="The source layer of every target layer, e.g. 0,1,2,0,1,2.")
@click.option("--block", type=click.IntRange(min=1), help="How many layers are repeated as one, for middle.")
@click.option("--family", metavar="FILE", help="A table of a model of your own, as in docs/families.md.")
@click.option("--explain", is_flag=True, help="Print where every parameter would come from; write nothing.")
@store_option
@json_option
@exits
def grow(
    source: str,
    target: str | None,
    overrides: tuple[str, ...],
    operator: str,
    optimizer_state: str,
    layers: str | None,
    block: int | None,
    family: str | None,
    explain: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Grow a whole model into a new folder.

    SOURCE is a raystage checkpoint, a stage of the store (its key, or mine/full: stage full of run mine) or a Hugging
    Face folder; TARGET, a new folder, becomes the same kind. The model may be larger than the memory.

    \b
    Example:
      raystage grow my/llama my/deeper --set num_layers=12 --operator stack
      raystage grow my/gpt2 my/wider --set hidden_size=1536 --set ffn_size=6144 --operator duplicate
      raystage grow my/llama my/both --set num_layers=24 --set hidden_size=2048 \\
          --operator depth=identity,width=zero_pad
      raystage grow my/mistral my/mixtral --set num_experts=4 --operator upcycle
      raystage grow 3f9a2c41 grown --set num_layers=12 --explain
    """
    from raystage.growth.explain import what_grows
    from raystage.growth.request import GrowthRequest
    from raystage.report.growth_tables import growth_table
    from raystage.report.terminal import SafeConsole
    from raystage.tools.grow import open_source, open_target, planned, write
    from raystage.units import format_bytes, format_count

    if target is None and not explain:
        raise InputError("missing; expected a new folder (or --explain)", key="TARGET")
    options = GrowthOptions(_layer_list(layers), block)
    request = GrowthRequest(overrides, _operator(operator), optimizer_state, options)
    if family is not None:
        _register_family(family)
    opened = open_source(source, open_store(store))
    growth = planned(opened, request)
    if explain and not as_json:
        SafeConsole().print(growth_table(growth))
        return
    done = growth.to_json() if explain else write(opened, growth, open_target(target))
    if as_json:
        click.echo(json.dumps(done, indent=1))
        return
    click.echo(
        f"{in_short(request.operator)}: {what_grows(growth.source, growth.target)}, "
        f"{format_count(done['num_params'])} parameters, {format_bytes(done['bytes'])} in {done['seconds']:.1f} s: "
        f"{done['target']}"
    )
    if done["own_code"] is not None:
        files = ", ".join(done["own_code"]) or "none is in the folder: put it beside the weights"
        click.echo(f"config.json names code of the model's own (auto_map); copied, and not run: {files}")


@main.command()
@click.argument("checkpoint")
@click.argument("target")
@click.option("--format", "_", type=click.Choice(["huggingface"]), default="huggingface", show_default=True,
              help="What to write.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
              help="The type of the weights; float32 is exact.")  # fmt: skip
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="The most bytes in one file.")
@click.option(
    "--tokenizer", metavar="NAME", help="A folder or hub name in place of the stage's own tokenizer, or none."
)
@store_option
@json_option
@exits
def export(
    checkpoint: str, target: str, _: str, dtype: str, max_shard_size: str, tokenizer: str | None, store: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a checkpoint as a Hugging Face folder, with config and tokenizer.

    CHECKPOINT is a raystage checkpoint or a finished stage of the store (its key, or mine/full: stage full of run
    mine); TARGET a new folder, which plain transformers loads. The model may be larger than the memory.

    \b
    Example:
      raystage export 3f9a2c41 my/model
      raystage export quickstart/full my/model
      raystage export .raystage/stages/3f9a2c41.../checkpoints/000000000400000-1c2d my/model --dtype bfloat16
    """
    from raystage.tools.export import ExportOptions
    from raystage.tools.export import export as write
    from raystage.tools.grow import open_source, open_target
    from raystage.units import format_bytes, format_count, parse_bytes

    try:
        options = ExportOptions(dtype, parse_bytes(max_shard_size), tokenizer)
    except ValueError as error:
        raise InputError(str(error), key="--max-shard-size") from None
    done = write(open_source(checkpoint, open_store(store), "CHECKPOINT"), open_target(target), options)
    if as_json:
        click.echo(json.dumps(done, indent=1))
        return
    size = f"{format_count(done['num_params'])} parameters, {format_bytes(done['bytes'])} in {done['seconds']:.1f} s"
    click.echo(f"{dtype}: {size}, tokenizer: {done['tokenizer'] or 'none'}: {done['target']}")


@main.command()
@click.argument("source")
@click.argument("target")
@click.option("--text", type=click.Path(path_type=Path), help="Text to try both on; for models whose tokens are bytes.")
@click.option("--family", metavar="FILE", help="A table of a model of your own, as in docs/families.md.")
@store_option
@json_option
@exits
def certify(source: str, target: str, text: Path | None, family: str | None, store: str | None, as_json: bool) -> None:
    """Measure what growing SOURCE into TARGET did, whoever did it.

    Each is a raystage checkpoint, a stage of the store (its key, or mine/full) or a Hugging Face folder. Both are run
    on the same random tokens on this machine's CPU: loss, logits, activations, gradients against what the growth
    predicts, moments, and
    whether copies part in a few steps of training.

    \b
    Example:
      raystage grow    my/llama my/deeper --set num_layers=12 --operator identity
      raystage certify my/llama my/deeper
    """
    from raystage.report.growth_tables import certificate_table
    from raystage.report.terminal import SafeConsole
    from raystage.tools.certify import certify as measure
    from raystage.tools.grow import open_source

    if family is not None:
        _register_family(family)
    opened = open_store(store)
    models = open_source(source, opened, "SOURCE"), open_source(target, opened, "TARGET")
    with contextlib.redirect_stderr(DebugStream()):  # the progress bars of transformers
        found = measure(*models, _read_text(text))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    SafeConsole().print(certificate_table(found))


def _read_text(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror}); expected a text file", key="--text", file=str(path)
        ) from None


def _register_family(path: str) -> None:
    """Make the family in the file at `path` known to this command."""
    from raystage.config.family import read_family
    from raystage.models.families import register

    try:
        register(read_family(Path(path)))
    except ValueError as error:
        raise InputError(str(error), key="name", file=path) from None


def _operator(text: str) -> str:
    """The operator of `--operator`, in its one form."""
    try:
        return parse_operator(text)
    except ValueError as error:
        raise InputError(str(error), key="--operator") from None


def _layer_list(text: str | None) -> tuple[int, ...] | None:
    """The numbers of `--layers 0,1,2`."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"found {text!r}; expected layer numbers such as 0,1,2,0,1,2", key="--layers") from None


def _load(
    path: Path,
    content: dict[str, Any],
    overrides: tuple[str, ...],
    name: str | None,
    store: str | None,
    with_code: bool = True,
) -> tuple[Any, Any]:
    from raystage.config.schedule import load
    from raystage.plan.build import make_plan
    from raystage.plan.inputs import Sources
    from raystage.sweep.config import is_sweep

    if is_sweep(content):
        raise InputError(f"found a sweep; expected a schedule, or the command: raystage sweep {path}", file=str(path))
    parsed = load(path, overrides, content)
    try:
        if parsed.init is not None:
            init = parsed.init.model_copy(update={"source": init_source(parsed.init.source, store)})
            parsed = parsed.model_copy(update={"init": init})
        return parsed, make_plan(parsed, name, Sources(with_code=with_code))
    except InputError as error:
        raise error.inside(str(path)) from None
