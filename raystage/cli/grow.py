"""`raystage grow`, `average`, `certify` and `export`: whole models, without a cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from raystage.cli.options import (
    exits,
    json_option,
    open_store,
    print_json,
    register_family,
    say,
    store_option,
)
from raystage.cli.output import DebugStream
from raystage.errors import InputError
from raystage.growth.depth import GrowthOptions
from raystage.growth.operators import OPTIMIZER_STATE_POLICIES, in_short, parse_operator


@click.command()
@click.argument("source")
@click.argument("target", required=False)
@click.option(
    "--set", "overrides", multiple=True, required=True, metavar="KEY=VALUE",
    help="A size of the grown model, e.g. num_layers=12 or hidden_size=1024.",
)  # fmt: skip
@click.option(
    "--operator", default="stack", show_default=True,
    help="One operator for all parts that grow, or one for each part: num_layers=stack,width=duplicate.",
)  # fmt: skip
@click.option(
    "--optimizer-state", type=click.Choice(OPTIMIZER_STATE_POLICIES), default="grow", show_default=True,
    help="What happens to the moments of a checkpoint; a Hugging Face folder has none.",
)  # fmt: skip
@click.option("--layers", metavar="LIST", help="The source layer of every target layer, e.g. 0,1,2,0,1,2.")
@click.option("--block", type=click.IntRange(min=1), help="How many layers the operator middle repeats as one block.")
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
    Face folder. TARGET is a new folder, and gets the same format. The model may be larger than the memory.

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
    from raystage.reports.growth_tables import growth_table
    from raystage.safe_console import SafeConsole
    from raystage.tools.grow import open_source, open_target, planned, write
    from raystage.units import format_bytes, format_count

    if target is None and not explain:
        raise InputError("missing; expected a new folder (or --explain)", key="TARGET")
    options = GrowthOptions(_layer_list(layers), block)
    request = GrowthRequest(overrides, _operator(operator), optimizer_state, options)
    if family is not None:
        register_family(family)
    opened = open_source(source, open_store(store))
    growth = planned(opened, request)
    if explain and not as_json:
        SafeConsole().print(growth_table(growth))
        return
    done = growth.to_json() if explain else write(opened, growth, open_target(target))
    if as_json:
        print_json(done)
        return
    say(
        f"{in_short(request.operator)}: {what_grows(growth.source, growth.target)}, "
        f"{format_count(done['num_params'])} parameters, {format_bytes(done['bytes'])} in {done['seconds']:.1f} s: "
        f"{done['target']}"
    )
    if done["own_code"] is not None:
        files = ", ".join(done["own_code"]) or "none is in the folder: put it beside the weights"
        say(f"config.json names code of the model's own (auto_map); copied, and not run: {files}")


def _operator(text: str) -> str:
    """The operator of `--operator` in canonical form. Raises InputError."""
    try:
        return parse_operator(text)
    except ValueError as error:
        raise InputError(str(error), key="--operator") from None


def _layer_list(text: str | None) -> tuple[int, ...] | None:
    """The layer numbers of `--layers 0,1,2`. Raises InputError."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"found {text!r}; expected layer numbers such as 0,1,2,0,1,2", key="--layers") from None


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--output", required=True, metavar="FOLDER", help="A new folder for the average.")
@click.option(
    "--weights", default="uniform", show_default=True, metavar="WEIGHTS",
    help="uniform, wsm, or a number for each model: 0.9,0.1.",
)  # fmt: skip
@click.option(
    "--decay-shape", type=click.Choice(["linear", "cosine", "1-sqrt"]), default="linear", show_default=True,
    help="The decay of the learning rate that wsm stands for, from the first model to the last.",
)  # fmt: skip
@store_option
@json_option
@exits
def average(
    checkpoints: tuple[str, ...], output: str, weights: str, decay_shape: str, store: str | None, as_json: bool
) -> None:
    """Average models of one shape into a new folder.

    Each CHECKPOINT is a raystage checkpoint, a stage of the store (its key, or mine/full: stage full of run mine) or a
    Hugging Face folder; all are of one kind, and so is the average. Weights are summed up in float64. A checkpoint gets
    the optimizer's state of the last one. Nothing is evaluated.

    \b
    Example:
      raystage average first/full second/full third/full --output averaged
      raystage average my/fine-tuned my/base --weights 0.9,0.1 --output my/soup
    """
    from raystage.tools.average import CHECKPOINT
    from raystage.tools.average import average as write
    from raystage.tools.grow import open_source, open_target
    from raystage.units import format_bytes, format_count

    opened = open_store(store)
    sources = [open_source(one, opened, CHECKPOINT) for one in checkpoints]
    done = write(sources, open_target(output, "--output"), weights, decay_shape)
    if as_json:
        print_json(done)
        return
    counts = ", ".join(f"{weight:.3g}" for weight in done["weights"])
    size = f"{format_count(done['num_params'])} parameters, {format_bytes(done['bytes'])} in {done['seconds']:.1f} s"
    say(f"average of {len(sources)} with weights {counts}: {size}: {done['target']}")


@click.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Text to run both models on; only for models whose tokens are bytes.",
)
@click.option("--family", metavar="FILE", help="A table of a model of your own, as in docs/families.md.")
@store_option
@json_option
@exits
def certify(source: str, target: str, text: Path | None, family: str | None, store: str | None, as_json: bool) -> None:
    """Measure what growing SOURCE into TARGET changed. Any tool may have grown it.

    Each is a raystage checkpoint, a stage of the store (its key, or mine/full) or a Hugging Face folder. Both are run
    on the same random tokens on this machine's CPU. Measured are loss, logits, activations, gradients against those
    that the growth predicts, moments, and whether duplicates become different in a few steps of training.

    \b
    Example:
      raystage grow    my/llama my/deeper --set num_layers=12 --operator identity
      raystage certify my/llama my/deeper
    """
    from raystage.reports.growth_tables import certificate_table
    from raystage.safe_console import SafeConsole
    from raystage.tools.certify import certify as measure
    from raystage.tools.grow import open_source

    if family is not None:
        register_family(family)
    opened = open_store(store)
    models = open_source(source, opened, "SOURCE"), open_source(target, opened, "TARGET")
    with contextlib.redirect_stderr(DebugStream()):  # hides the progress bars of transformers
        found = measure(*models, _read_text(text))
    if as_json:
        print_json(found)
        return
    SafeConsole().print(certificate_table(found))


def _read_text(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror}); expected a text file", key="--text", file=str(path)
        ) from None


@click.command()
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
    mine). TARGET is a new folder, which transformers loads. The model may be larger than the memory.

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
        print_json(done)
        return
    size = f"{format_count(done['num_params'])} parameters, {format_bytes(done['bytes'])} in {done['seconds']:.1f} s"
    say(f"{dtype}: {size}, tokenizer: {done['tokenizer'] or 'none'}: {done['target']}")
