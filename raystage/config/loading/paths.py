"""Makes the paths in a schedule absolute: workers have another working directory."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection
from pathlib import Path
from typing import Protocol, TypeVar

from raystage.config.objective import ObjectiveSection
from raystage.config.section import Section
from raystage.config.stage import Data, Model, Stage, TextSource
from raystage.config.training import Training, UserMetric
from raystage.data.tokenizer_names import BYTE_TOKENIZER
from raystage.sources.table import SOURCES
from raystage.user_code import file_of, split_reference

S = TypeVar("S", bound=Section)


class Parts(Protocol):
    """The sections of a schedule that name files."""

    data: Data
    init: Section | None
    model: Model
    objective: ObjectiveSection
    training: Training
    stages: tuple[Stage, ...]


def absolute_paths(schedule: Parts, beside: Path | None) -> dict[str, object]:
    """The changes to a schedule. Relative paths are looked for in the working directory, then in `beside`."""
    names = {stage.name for stage in schedule.stages}
    return {
        "data": _located(schedule.data, beside, schedule.data),
        "init": _located_init(schedule.init, beside),
        **_located_model(schedule.model, beside),
        **_located_objective(schedule.objective, beside, names),
        **_located_metrics(schedule.training, beside),
        "stages": tuple(_located_stage(stage, beside, schedule.data, names) for stage in schedule.stages),
    }


def _located(data: Data, beside: Path | None, resolved: Data) -> Data:
    """The section with absolute paths. A tokenizer, or a data set, is a path where there is such a folder.

    resolved: the section as the stage has it, with its sources.
    """
    changes = _located_paths(data, beside, resolved.source)
    if data.tokenizer != BYTE_TOKENIZER and os.path.isdir(_locate(data.tokenizer, beside)):
        changes["tokenizer"] = _locate(data.tokenizer, beside)
    if data.chat_template is not None:
        changes["chat_template"] = _locate(data.chat_template, beside)
    if data.mixture is not None:
        entries = zip(data.mixture, resolved.mixture, strict=True)
        changes["mixture"] = tuple(_with(entry, _located_paths(entry, beside, full.source)) for entry, full in entries)
    return _with(data, changes)


def _with(section: S, changes: dict[str, object]) -> S:
    """The section with changes; itself where its paths are absolute already."""
    found = {name: value for name, value in changes.items() if value != getattr(section, name)}
    return section.model_copy(update=found) if found else section


def _located_paths(text: TextSource, beside: Path | None, source: str) -> dict[str, object]:
    """The changes to a section that names texts: their absolute paths."""
    return {
        name: tuple(_locate_files(path, beside, source) for path in getattr(text, name))
        for name in ("path", "validation_path")
        if getattr(text, name)
    }


def _located_stage(stage: Stage, beside: Path | None, over: Data, names: Collection[str]) -> Stage:
    changes: dict[str, object] = {**_located_objective(stage.objective, beside, names)}
    changes |= _located_metrics(stage.training, beside) | _located_model(stage.model, beside)
    data = _located(stage.data, beside, over.overlaid(stage.data))
    if data is not stage.data:
        changes["data"] = data
    return stage.model_copy(update=changes) if changes else stage


def _located_model(model: Model, beside: Path | None) -> dict[str, Model]:
    """The changes to a model of the user's own: absolute paths of its file or its configuration."""
    found = {"build": _located_reference(model.build, beside)} if model.build else {}
    if model.config and os.path.exists(_locate(model.config, beside)):
        found["config"] = _locate(model.config, beside)
    return {"model": _with(model, found)} if found else {}


def _located_metrics(training: Training, beside: Path | None) -> dict[str, Training]:
    """The changes to a training section that has metrics: absolute paths of their files."""
    if not training.evaluate.metrics:
        return {}
    metrics = tuple(_located_metric(metric, beside) for metric in training.evaluate.metrics)
    evaluate = training.evaluate.model_copy(update={"metrics": metrics})
    return {"training": training.model_copy(update={"evaluate": evaluate})}


def _located_metric(metric: UserMetric, beside: Path | None) -> UserMetric:
    return metric.model_copy(update={"function": _located_reference(metric.function, beside)})


def _located_objective(
    objective: ObjectiveSection, beside: Path | None, names: Collection[str]
) -> dict[str, ObjectiveSection]:
    """The changes to an objective that names functions or a teacher: absolute paths of their files and folders.

    names: of all stages. A teacher of such a name is that stage.
    """
    if not (objective.function or objective.targets or objective.teacher):
        return {}
    named = {name: getattr(objective, name) for name in ("function", "targets")}
    found = {name: _located_reference(one, beside) for name, one in named.items() if one}
    located = [_located_teacher(one, beside, names) for one in objective.teachers]
    if located != list(objective.teachers):
        found["teacher"] = objective.taught_by(located).teacher
    return {"objective": objective.model_copy(update=found)} if found else {}


def _located_teacher(teacher: str, beside: Path | None, names: Collection[str]) -> str:
    place = _locate(teacher, beside)
    return place if teacher not in names and os.path.isdir(place) else teacher


def _located_reference(reference: str, beside: Path | None) -> str:
    """A reference to a function, with an absolute path where it names a file."""
    file = file_of(reference)
    if file is None:
        return reference
    _, name = split_reference(reference)
    return f"{_locate(file, beside)}:{name}"


def _located_init(init: Section | None, beside: Path | None) -> Section | None:
    """The section with an absolute path where there is such a folder; else it is a name on the Hub."""
    if init is None or not os.path.isdir(_locate(init.source, beside)):
        return init
    return init.model_copy(update={"source": _locate(init.source, beside)})


def _locate_files(path: str, beside: Path | None, source: str) -> str:
    """The same for a file, a folder or a glob; a place in an object store, or a name, stays as it is."""
    if (
        "://" in path
        or path in SOURCES[source].names
        or (source == "huggingface" and not os.path.isdir(_locate(path, beside)))
    ):
        return path
    first, second = (os.path.abspath(os.path.join(root, os.path.expanduser(path))) for root in ("", beside or ""))
    if glob.has_magic(path) and not os.path.exists(first) and not glob.glob(first) and glob.glob(second):
        return second
    return _locate(path, beside)


def _locate(path: str, beside: Path | None) -> str:
    here = os.path.abspath(os.path.expanduser(path))
    there = os.path.abspath(os.path.join(beside or "", os.path.expanduser(path)))
    return here if os.path.exists(here) or not os.path.exists(there) else there
