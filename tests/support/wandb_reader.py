"""Reads back what W&B wrote offline: `offline-run-*/run-<id>.wandb`.

The file is seven bytes of header, then a LevelDB log: blocks of 32 KiB; in each, records of a header
(checksum, length, kind) and a payload, where kinds 2, 3 and 4 are the first, middle and last piece of one.
A joined payload is a protobuf Record.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_FILE_HEADER = struct.Struct("<4sHB")
_PIECE_HEADER = struct.Struct("<IHB")
_IDENTITY = (b":W&B", 0xBEE1)
_BLOCK_BYTES = 32 * 1024
_WHOLE, _LAST = 1, 4


@dataclass
class OfflineRun:
    """One W&B run. step_metrics: by glob; artifacts: as logged, in order; exit_code: None if it never finished."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    step_metrics: dict[str, str] = field(default_factory=dict)
    artifacts: list[OfflineArtifact] = field(default_factory=list)
    exit_code: int | None = None

    def curve(self, key: str, axis: str = "tokens") -> list[tuple[float, Any]]:
        """The rows that have `key`, as pairs of axis and value."""
        return [(row[axis], row[key]) for row in self.history if key in row]


@dataclass
class OfflineArtifact:
    """references: by name within the artifact; empty for a file that was added."""

    name: str
    type: str
    metadata: dict[str, Any]
    references: dict[str, str]


def run_files(directory: Path) -> list[Path]:
    """The offline files below `directory`, where W&B was told to write (or the working directory)."""
    return sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))


def read_runs(directory: Path) -> dict[str, OfflineRun]:
    """All runs below `directory`, by name."""
    runs = [read_run(path) for path in run_files(directory)]
    return {run.name: run for run in runs}


def read_run(path: Path) -> OfflineRun:
    """The run in a `.wandb` file, or in an `offline-run-*` folder that holds one."""
    file = next(path.glob("run-*.wandb")) if path.is_dir() else path
    run = OfflineRun()
    for payload in _payloads(file.read_bytes()):
        _take(run, Record.FromString(payload))
    return run


def _payloads(data: bytes) -> Iterator[bytes]:
    if _FILE_HEADER.unpack_from(data)[:2] != _IDENTITY:
        raise ValueError("not a W&B file")
    position, pieces = _FILE_HEADER.size, b""
    while position < len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _PIECE_HEADER.size:
            position += left
            continue
        _, length, kind = _PIECE_HEADER.unpack_from(data, position)
        position += _PIECE_HEADER.size
        pieces += data[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST):
            yield pieces
            pieces = b""


def _take(run: OfflineRun, record: Record) -> None:
    match record.WhichOneof("record_type"):
        case "run":
            run.run_id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
            run.group, run.job_type = record.run.run_group, record.run.job_type
            run.config |= _items(record.run.config.update)
        case "config":
            run.config |= _items(record.config.update)
        case "metric" if record.metric.glob_name:
            run.step_metrics[record.metric.glob_name] = record.metric.step_metric
        case "metric":
            run.metrics.append(record.metric.name)
        case "history":
            run.history.append(_items(record.history.item))
        case "summary":
            run.summary |= _items(record.summary.update)
        case "artifact":
            run.artifacts.append(_artifact(record.artifact))
        case "exit":
            run.exit_code = record.exit.exit_code


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _artifact(artifact: Any) -> OfflineArtifact:
    references = {entry.path: entry.ref for entry in artifact.manifest.contents}
    return OfflineArtifact(artifact.name, artifact.type, json.loads(artifact.metadata), references)
