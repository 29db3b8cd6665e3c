"""`raystage grow`: grow a whole model from one folder into another, in one process that holds only a small part of it.

A source is a raystage checkpoint or a Hugging Face folder; the target has the same format. The growth map is the one
that a stage's workers use. It is applied slice by slice, and each slice is written directly to its place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from typing import Any

from raystage.errors import CheckpointError, InputError, RaystageError, StorageError
from raystage.files.filesystem import Folder, open_folder
from raystage.files.safetensors import CHUNK_BYTES, cut_into_shards
from raystage.growth.apply import Grown, grown_steps
from raystage.growth.counts import as_runs, grown_head_starts
from raystage.growth.explain import layer_sources
from raystage.growth.request import GrowthRequest, PlannedGrowth, plan_growth
from raystage.growth.rules import Rule, slices
from raystage.models import hf_folder
from raystage.models.build import drawn_weights
from raystage.models.families import FAMILIES
from raystage.models.hf_folder import HuggingFaceModel
from raystage.models.shape import ModelShape, stored
from raystage.safe_text import visible
from raystage.storage import checkpoint, huggingface
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry
from raystage.storage.naming import STAGE_KEY, key_that_begins, stage_key
from raystage.storage.shards.contents import Shards
from raystage.storage.shards.writing import placed, shard_name, stream_shard
from raystage.storage.store import Store
from raystage.units import first_line, shown

MAX_SHARD_BYTES = 5 * 10**9
_ITEM_BYTES = 4


@dataclass(frozen=True)
class Source:
    """What is grown: a checkpoint or a Hugging Face model. seed: what new weights are drawn from."""

    uri: str
    model: Checkpoint | HuggingFaceModel
    stage_key: str | None = None

    @property
    def is_checkpoint(self) -> bool:
        return isinstance(self.model, Checkpoint)

    @property
    def shape(self) -> ModelShape:
        return self.model.manifest.model if self.is_checkpoint else self.model.shape

    @property
    def seed(self) -> int:
        return self.model.manifest.rng.get("seed", 0) if self.is_checkpoint else 0


def open_source(text: str, store: Store, argument: str = "SOURCE") -> Source:
    """The checkpoint or Hugging Face model at a path or URI, or that a stage of the store ends with: by its key, or the
    beginning of that, or its run's name and its own, mine/full. Only headers are read.

    Raises InputError, which names the `argument` of the command line.

    Files are not mapped into memory: pages that were looked at would stay resident, and count as this process's.
    """
    with as_input_errors(argument):
        folder = _folder(text, argument)
        if not folder.exists() and STAGE_KEY.fullmatch(text):
            return _stage_source(text, Store(store.folder.unmapped), argument)
        if key := _named_stage(text, store, argument, folder):
            return _stage_source(key, Store(store.folder.unmapped), argument, text)
        if checkpoint.exists(folder):
            return Source(folder.uri, _opened_checkpoint(folder))
        if hf_folder.is_model(folder):
            return Source(folder.uri, hf_folder.open_model(folder))
    found = f"no {checkpoint.MANIFEST} or {hf_folder.CONFIG} in it" if folder.exists() else "no such folder"
    expected = (
        "expected a raystage checkpoint, a Hugging Face folder, a stage key (8 hex digits or more) or a stage's name "
        "such as mine/full"
    )
    raise InputError(f"{found}; {expected}", key=argument, file=folder.uri)


def planned(source: Source, request: GrowthRequest) -> PlannedGrowth:
    """The growth of `source` that is asked for. Raises InputError."""
    growth = plan_growth(source.shape, request, None if source.is_checkpoint else source.model.tables)
    if not source.is_checkpoint:
        huggingface.configured(source.model, growth.target, _entries_from(growth))
    return growth


def open_target(text: str, argument: str = "TARGET") -> Folder:
    """A folder to write into, not there yet or empty. Raises InputError, which names the `argument`."""
    with as_input_errors(argument):
        folder = _folder(text, argument)
        if folder.is_file():
            raise InputError("is a file; expected a new folder", key=argument, file=folder.uri)
        if folder.names():
            raise InputError("exists and is not empty; expected a new folder", key=argument, file=folder.uri)
    return folder


def write(
    source: Source, growth: PlannedGrowth, target: Folder, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, Any]:
    """Write the grown model into `target`; what it came to, for --json.

    Where it fails nothing stays behind. Raises InputError where the source is damaged, RaystageError where the
    target cannot be written.
    """
    began = time.monotonic()
    grown_from = {"source": source.uri, "stage_key": source.stage_key, "num_layers": growth.source.num_layers,
                  "seed": source.seed, **growth.how()}  # fmt: skip
    try:
        with as_input_errors("SOURCE"):
            if source.is_checkpoint:
                _write_checkpoint(source, growth, target, grown_from, max_shard_bytes)
            else:
                layers = _entries_from(growth)
                huggingface.write_grown(source.model, target, growth, layers, grown_from, max_shard_bytes)
    except BaseException:
        target.delete()
        raise
    return {
        "source": source.uri,
        "target": target.uri,
        "kind": "checkpoint" if source.is_checkpoint else "huggingface",
        **growth.how(),
        "source_num_layers": growth.source.num_layers,
        "num_layers": growth.target.num_layers,
        "num_params": growth.num_params,
        "files": target.names(),
        "own_code": _own_code(source, target),
        "bytes": sum(target.size_of(name) or 0 for name in target.names()),
        "seconds": time.monotonic() - began,
    }


def _own_code(source: Source, target: Folder) -> list[str] | None:
    """The Python files of a model that is no class of transformers' own; None where it is one."""
    if source.is_checkpoint or "auto_map" not in source.model.config:
        return None
    return [name for name in target.names() if name.endswith(".py")]


def _entries_from(growth: PlannedGrowth) -> tuple[int, ...]:
    """For each layer the source layer whose entries in a config it takes; new layers go on with the pattern."""
    layers = layer_sources(growth.source, growth.target, growth.rules, growth.families)
    return tuple(i % growth.source.num_layers if layer is None else layer for i, layer in enumerate(layers))


def _folder(text: str, argument: str) -> Folder:
    try:
        return open_folder(text).unmapped
    except InputError as error:
        raise InputError(error.problem, key=argument) from None


# --- raystage checkpoints -----------------------------------------------------------------------


def _stage_source(beginning: str, store: Store, argument: str, name: str | None = None) -> Source:
    if name and beginning not in store.stage_keys():
        problem = f"found stage {visible(name)!r}, of which nothing is trained yet; expected a finished stage"
        raise InputError(problem, key=argument, file=store.folder.uri)
    key = key_that_begins(store, beginning, argument)
    folder = store.finished_checkpoint(key)
    return Source(folder.uri, _opened_checkpoint(folder), key)


def _named_stage(text: str, store: Store, argument: str, folder: Folder) -> str | None:
    """The key of the stage that `text` names, unless it is a model's folder. Raises InputError where it is both."""
    is_model = checkpoint.exists(folder) or hf_folder.is_model(folder)
    try:
        key = stage_key(store, text, argument)
    except RaystageError:
        if is_model:
            return None
        raise
    if key and is_model:
        problem = f"found a folder and a stage of {store.folder.uri}; expected ./{text} or the stage's key, {key}"
        raise InputError(problem, key=argument, file=text)
    return key


def _opened_checkpoint(folder: Folder) -> Checkpoint:
    """Raises CheckpointError where it is damaged or lacks a parameter."""
    opened = Checkpoint(folder)
    if opened.manifest.adapter:
        problem = "found an adapter without its model, from within a stage; expected what the finished stage ends with"
        raise CheckpointError(f"{folder.uri}: {problem}")
    family = opened.manifest.model.family
    if family not in FAMILIES:
        raise CheckpointError(
            f"{(folder / checkpoint.MANIFEST).uri}: found the family {shown(family)}; expected {', '.join(FAMILIES)}"
        )
    found = {entry.name: entry.shape for entry in opened.manifest.parameters}
    for parameter in stored(opened.manifest.model):
        if found.get(parameter.name) != parameter.shape:
            raise CheckpointError(f"{(folder / checkpoint.MANIFEST).uri}: damaged ({parameter.name} is not in it)")
    return opened


def _write_checkpoint(
    source: Source, growth: PlannedGrowth, target: Folder, grown_from: dict[str, Any], max_shard_bytes: int
) -> None:
    """Every state of every parameter in fragments of bounded size, then the manifest."""
    opened = source.model
    grown = Grown(growth.rules, opened.read, source.seed, partial(drawn_weights, growth.target, source.seed))
    spans = sorted(
        (rule.target, state, start, stop)
        for rule in growth.rules
        for state in _states_of(opened, rule)
        for start, stop in slices(rule, CHUNK_BYTES // _ITEM_BYTES)
    )
    parts = cut_into_shards([_ITEM_BYTES * (stop - start) for *_, start, stop in spans], max_shard_bytes)
    shards = []
    for number, places in enumerate(parts):
        chosen = [spans[place] for place in places]
        values = partial(starmap, grown.slice, chosen)
        shards.append(stream_shard(target, shard_name(number, len(parts)), chosen, values))
    opened.close()
    counts_apart = opened.has(("exp_avg_sq",))  # of nothing else does a step depend on the count
    starts = grown_head_starts(growth.rules, opened.head_starts, opened.steps) if counts_apart else {}
    steps = grown_steps(growth.rules, opened.steps)
    entries = tuple(
        ParameterEntry(rule.target, rule.shape, "float32", steps[rule.target], as_runs(starts.get(rule.target, ())))
        for rule in growth.rules
    )
    checkpoint.commit(target, _grown_manifest(opened.manifest, growth.target, entries, placed(shards), grown_from))


def _states_of(opened: Checkpoint, rule: Rule) -> tuple[str, ...]:
    """Those that the target of a rule gets: of a buffer none but its values."""
    if rule.moments == "none":
        return ("fp32",)
    return opened.states_of(rule.source) if rule.source else opened.states


def _grown_manifest(
    source: Manifest,
    shape: ModelShape,
    entries: tuple[ParameterEntry, ...],
    shards: Shards,
    grown_from: dict[str, Any],
) -> Manifest:
    """Steps, tokens and FLOPs stand where the source's stand, for growing trains nothing."""
    return replace(
        source,
        model=shape,
        parameters=entries,
        shards=shards,
        stage_key="",
        progress=source.progress | fresh_progress(),
        grown_from=grown_from,
    )


def fresh_progress() -> dict[str, Any]:
    """For the progress of a checkpoint that was made of others: curves and time were those of a stage, to which it does
    not belong."""
    return {"seconds": 0.0, "evaluation_seconds": 0.0, "evaluation_flops": 0, "pending_losses": [], "pending_steps": 0,
            "pending_seconds": 0.0, "num_workers": 0, "resizes": 0, "growth": None, "train": [],
            "evaluations": []}  # fmt: skip


@contextmanager
def as_input_errors(argument: str) -> Iterator[None]:
    """What the user named and is damaged or unfinished is wrong input; what the system refuses is a failure."""
    try:
        yield
    except (InputError, StorageError):
        raise
    except RaystageError as error:
        raise InputError(str(error), key=argument) from None
    except OSError as error:
        raise RaystageError(first_line(error)) from None
