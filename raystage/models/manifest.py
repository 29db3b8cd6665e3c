"""Whether a checkpoint's manifest, as read from JSON, can be what a worker wrote.

A manifest that passes cannot lead to wrong numbers: every fragment lies within its parameter, and no two fragments hold
the same elements. Missing elements are found when they are read, and shards of another size when they are opened.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from raystage.models.families import family_of
from raystage.models.own import is_own_model
from raystage.models.rope import is_scaling
from raystage.models.shape import ModelShape
from raystage.units import shown

ITEM_BYTES = 4
_MOST_EXPERTS, _MOST_AXES, _LARGEST_COUNT = 400_000, 16, 2**63
_LARGEST_NUMEL = 2**56  # their bytes are added up in 64 bits
_FEW_LAYERS = 1000  # the limit for a checkpoint without parameters
_SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
_CHECKSUM = re.compile(r"[0-9a-f]{32}")
_WHOLE_CHECKSUM = re.compile(r"xxh3_128:[0-9a-f]{32}")


def check_manifest(content: Mapping[str, Any]) -> None:
    """Raises ValueError, which says what was found and expected, or KeyError for a missing key."""
    for key in ("data_cursor", "rng", "optimizer", "progress", "model"):
        _expect(content[key], _is_mapping, "a mapping", key)
    for key in ("grown_from", "averaged_from", "adapter"):
        if content.get(key) is not None:
            _expect(content[key], _is_mapping, "a mapping", key)
    _expect(content["stage_key"], _is_text, "text", "stage_key")
    for key in ("step", "tokens"):
        _expect(content[key], _is_count, "a count", key)
    check_model(content["model"])
    sizes = _check_parameters(_list(content["parameters"], "parameters"))
    # Beside an adapter the model's own parameters are in another checkpoint.
    _check_counts(content["model"], 0 if content.get("adapter") else len(sizes))
    shards = _list(content["shards"], "shards")
    _check_files(shards)
    if content.get("version") == 1:
        _check_listed(shards, sizes)
        return
    for place, shard in enumerate(shards):
        where, size = f"shards[{place}]", shard["size_bytes"]
        _expect(shard["header_bytes"], lambda found, size=size: _is_count(found) and found <= size,
                f"a count of at most {size}", f"{where}.header_bytes")  # fmt: skip
        _expect(shard["index_checksum"], lambda found: _matches(_CHECKSUM, found), "32 hex digits",
                f"{where}.index_checksum")  # fmt: skip
    _expect(content["fragment_numel"], lambda found: _is_count(found) and found, "a count", "fragment_numel")
    _check_layout(_list(content["layout"], "layout"), sizes, len(shards))


def check_model(model: Mapping[str, Any]) -> None:
    """Raises ValueError for a wrong value. Unknown and missing keys are found when a ModelShape is made."""
    kinds = {
        "str": (_is_text, "text"),
        "bool": (lambda value: isinstance(value, bool), "true or false"),
        "int": (_is_count, "a count"),
        "float": (_is_finite, "a finite number"),
    }
    for field in fields(ModelShape):
        if field.name in model:
            _expect(model[field.name], *kinds[field.type], f"model.{field.name}")
    _expect(model.get("module", ""), is_own_model, "a model as it is written", "model.module")
    heads = {"", *family_of(model.get("family", "")).heads}
    _expect(model.get("head", ""), heads.__contains__, f"one of {', '.join(sorted(heads))}", "model.head")
    marks = model.get("layer_kinds", "")
    is_whole = not marks or (set(marks) <= {"f", "s"} and len(marks) == model.get("num_layers"))
    _expect(marks, lambda _: is_whole, "an f or an s for every layer", "model.layer_kinds")
    _expect(model.get("rope_scaling", ""), is_scaling, "scaled positions as they are written", "model.rope_scaling")


def _check_counts(model: Mapping[str, Any], num_parameters: int) -> None:
    """Refuse counts that are too large for the parameters: code that reads a manifest lists layers and experts."""
    layers, limit = model.get("num_layers", 0), num_parameters or _FEW_LAYERS
    most = f"at most {limit}, for so many parameters are in it"
    _expect(layers, lambda found: found <= limit, most, "model.num_layers")
    _expect(model.get("num_experts", 0), lambda found: layers * found <= _MOST_EXPERTS,
            f"at most {_MOST_EXPERTS} in all {layers} layers", "model.num_experts")  # fmt: skip


def _check_parameters(entries: list[Any]) -> dict[str, int]:
    """The number of elements of every parameter."""
    sizes: dict[str, int] = {}
    for place, entry in enumerate(entries):
        where = f"parameters[{place}]"
        _expect(entry, _is_mapping, "a mapping", where)
        _expect(
            entry["name"], lambda name: _is_text(name) and name and name not in sizes, "a new name", f"{where}.name"
        )
        _expect(entry["dtype"], lambda dtype: dtype == "float32", "float32", f"{where}.dtype")
        _expect(entry["step"], _is_count, "a count", f"{where}.step")
        shape = _list(entry["shape"], f"{where}.shape")
        _expect(
            shape, lambda found: len(found) <= _MOST_AXES and all(map(_is_count, found)), "counts", f"{where}.shape"
        )
        if "head_starts" in entry:
            _check_head_starts(entry["head_starts"], shape, entry["step"], f"{where}.head_starts")
        sizes[entry["name"]] = math.prod(shape)
    return sizes


def _check_head_starts(axes: Any, shape: list[int], step: int, where: str) -> None:
    """For each axis either nothing, or runs of indices with the steps that the parameter had seen when they
    were added."""
    _expect(axes, lambda found: isinstance(found, list) and len(found) == len(shape), "a list for each axis", where)
    for axis, size in zip(axes, shape, strict=True):
        for run in _list(axis, where):
            whole = isinstance(run, list) and len(run) == 2 and all(map(_is_count, run)) and run[0] and run[1] <= step
            _expect(run, lambda _, whole=whole: whole, f"[length, head start of at most {step}]", where)
        covered = sum(length for length, _ in axis)
        _expect(covered, lambda found, size=size: found in (0, size), f"{size} indices", where)


def _check_files(shards: list[Any]) -> None:
    files: set[str] = set()
    for place, shard in enumerate(shards):
        where = f"shards[{place}]"
        _expect(shard, _is_mapping, "a mapping", where)
        _expect(shard["file"], lambda file: _matches(_SHARD_NAME, file) and file not in files,
                "the name of another file beside the manifest", f"{where}.file")  # fmt: skip
        files.add(shard["file"])
        _expect(shard["size_bytes"], _is_count, "a count", f"{where}.size_bytes")
        _expect(shard["checksum"], lambda text: _matches(_WHOLE_CHECKSUM, text), "xxh3_128:...", f"{where}.checksum")


def _check_layout(layout: list[Any], sizes: Mapping[str, int], num_shards: int) -> None:
    """Each state of a parameter is in it once, in runs that lie within the parameter and in shards that there are."""
    known: set[tuple[str, str]] = set()
    numel = 0
    for place, held in enumerate(layout):
        where = f"layout[{place}]"
        _expect(held, _is_mapping, "a mapping", where)
        parameter, states = held["parameter"], _list(held["states"], f"{where}.states")
        _expect(parameter, lambda name: _is_text(name) and name in sizes, "one of the parameters", f"{where}.parameter")
        for state in states:
            _expect(state, lambda name, owner=parameter: _is_text(name) and name and (owner, name) not in known,
                    "another state's name", f"{where}.states")  # fmt: skip
            known.add((parameter, state))
        end = 0
        for run in _list(held["runs"], f"{where}.runs"):
            _check_run(run, sizes[parameter], num_shards, f"{where}.runs")
            _expect(run[0], lambda start, end=end: end <= start, f"{end} or more, for no two shards hold one element",
                    f"{where}.runs")  # fmt: skip
            end = run[1]
            numel += len(states) * (run[1] - run[0])
    _expect(numel, lambda found: found < _LARGEST_NUMEL, f"fewer than {_LARGEST_NUMEL} elements", "layout")


def _check_run(run: Any, size: int, num_shards: int, where: str) -> None:
    is_run = isinstance(run, list) and len(run) == 4 and all(map(_is_count, run))
    _expect(run, lambda _: is_run, "start, stop, length and shard", where)
    start, stop, length, shard = run
    _expect(run, lambda _: start < stop <= size and length, f"a stretch within [0, {size})", where)
    last = shard + (stop - start - 1) // length
    _expect(last, lambda found: found < num_shards, f"a shard below {num_shards}", where)


def _check_listed(shards: list[Any], sizes: Mapping[str, int]) -> None:
    """Of version 1, which lists every fragment."""
    held: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for place, shard in enumerate(shards):
        where = f"shards[{place}]"
        _check_fragments(_list(shard["fragments"], f"{where}.fragments"), shard["size_bytes"], sizes, held, where)
    for (parameter, state), spans in held.items():
        _check_overlap(spans, f"{state} of {parameter}")


def _check_fragments(
    fragments: list[Any],
    size_bytes: int,
    sizes: Mapping[str, int],
    held: dict[tuple[str, str], list[tuple[int, int]]],
    shard: str,
) -> None:
    """Each lies within its parameter, one behind the other up to the end of the file. They are added to `held`."""
    end = None
    for place, fragment in enumerate(fragments):
        where = f"{shard}.fragments[{place}]"
        _expect(fragment, _is_mapping, "a mapping", where)
        _expect(fragment["parameter"], lambda name: _is_text(name) and name in sizes,
                "one of the parameters", f"{where}.parameter")  # fmt: skip
        _expect(fragment["state"], lambda state: _is_text(state) and state, "a state's name", f"{where}.state")
        _expect(fragment["checksum"], lambda text: _matches(_CHECKSUM, text), "32 hex digits", f"{where}.checksum")
        start, stop, size = fragment["start"], fragment["stop"], sizes[fragment["parameter"]]
        whole = _is_count(start) and _is_count(stop) and start <= stop <= size
        _expect((start, stop), lambda _, whole=whole: whole, f"a stretch within [0, {size})", f"{where}.start, .stop")
        _expect(fragment["offset"], lambda offset, end=end: _is_count(offset) and offset == (end or offset),
                f"{'a count' if end is None else end}", f"{where}.offset")  # fmt: skip
        end = fragment["offset"] + ITEM_BYTES * (stop - start)
        held.setdefault((fragment["parameter"], fragment["state"]), []).append((start, stop))
    if end is not None:
        _expect(
            end, lambda found: found == size_bytes, f"size_bytes, {size_bytes}", f"{shard}: the last fragment's end"
        )


def _check_overlap(spans: Iterable[tuple[int, int]], what: str) -> None:
    for (_, stop), (start, _) in itertools.pairwise(sorted(spans)):
        if start < stop:
            raise ValueError(f"{what}: found two fragments that both hold element {start}; expected one")


def _expect(value: Any, fits: Callable[[Any], Any], expected: str, where: str) -> None:
    if not fits(value):
        raise ValueError(f"{where}: found {shown(value)}; expected {expected}")


def _list(value: Any, where: str) -> list[Any]:
    _expect(value, lambda found: isinstance(found, list), "a list", where)
    return value


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_COUNT


def _is_finite(value: Any) -> bool:
    return _is_count(value) or (type(value) is float and math.isfinite(value))


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
