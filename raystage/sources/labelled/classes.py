"""The classes of samples: what a label may be, and which classes the files of a source have together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from raystage.errors import InputError
from raystage.sources.corpus import Label
from raystage.sources.row_index import FileIndex, mixed_images
from raystage.units import shown

_FEW = 8  # of classes that a message names
_LONGEST_NAME = 4_096  # as in data.classes


def score_of(value: Any) -> float:
    """The number that stands beside a document. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"found {'null' if value is None else shown(value)}; expected a number")
    return float(value)


def label_of(value: Any, declared: Sequence[str] = (), names: Sequence[str] = ()) -> Label:
    """The label of a row: a text, or a whole number where nothing says the names of classes.

    declared: the names in order as the user gives them; names: as the file gives them for its numbers. Raises
    ValueError.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        value = str(value).lower()
    if value is None or not isinstance(value, int | str) or value == "":
        found = "null" if value is None else "no text" if value == "" else shown(value)
        raise ValueError(f"found {found}; expected the name, or the number, of a class")
    if isinstance(value, int) and (names or declared):
        value = _name_of(value, names or declared)
    if isinstance(value, str):
        _check_name(value)
    if declared and value not in declared:
        raise ValueError(f"found {shown(value)}; expected one of data.classes ({named(declared)})")
    return value


def _check_name(name: str) -> None:
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"found {len(name):,} characters; expected the name of a class, at most {_LONGEST_NAME:,}")
    try:
        name.encode()
    except UnicodeEncodeError:  # of a folder whose name is no UTF-8, or "\ud800" in JSON
        raise ValueError(f"found {ascii(name)[:60]}, which is no valid text; expected the name of a class") from None


def _name_of(number: int, names: Sequence[str]) -> str:
    if not 0 <= number < len(names):
        raise ValueError(f"found the label {number}; expected 0 to {len(names) - 1} ({named(names)})")
    return names[number]


def named(classes: Sequence[object]) -> str:
    """Some classes, for messages."""
    shown_ = ", ".join(shown(one) for one in classes[:_FEW])
    return f"{shown_}, ... ({len(classes):,})" if len(classes) > _FEW else shown_


def classes_of(files: Sequence[FileIndex], declared: Sequence[str]) -> tuple[Label, ...]:
    """All classes in the order of their numbers: as declared, or as the files say, else in sorted order.

    Raises InputError where labels are of two kinds, or where files say different names.
    """
    found = {label for file in files for label in file.samples.classes}
    said = {file.samples.names for file in files}
    if declared and found:
        return tuple(declared)
    if len(said) > 1:
        one, other = sorted(said)[:2]
        problem = f"found files with other classes: {named(one) or 'none'}; {named(other)}"
        raise InputError(f"{problem}; expected the same, in one order, or data.classes", key="data.label")
    if names := next(iter(said)):
        return names
    if len({type(label) for label in found}) > 1:
        number, text = (next(one for one in found if isinstance(one, kind)) for kind in (int, str))
        problem = f"found the label {number} and the label {shown(text)}"
        raise InputError(f"{problem}; expected whole numbers or text, not both", key="data.label")
    return tuple(sorted(found))


def find_only(wanted: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The classes of `data.only_classes`, in the order of their numbers. Raises InputError for names of no class."""
    unknown = [name for name in wanted if name not in classes]
    if unknown:
        there = f"some of its classes ({named(classes)})" if classes else "samples with classes"
        raise InputError(f"found {named(unknown)}; expected {there}", key="data.only_classes")
    return tuple(name for name in classes if name in wanted)


def class_names(classes: Iterable[Label]) -> tuple[str, ...]:
    return tuple(map(str, classes))


def numbered(file: FileIndex, classes: Sequence[Label], where: slice = slice(None)) -> np.ndarray:
    """The number of the class of each document: int32; zeros without classes."""
    labels = file.samples.labels[where]
    if not classes:
        return np.zeros(len(labels), np.int32)
    numbers = {label: number for number, label in enumerate(classes)}
    return np.array([numbers[label] for label in file.samples.classes], np.int32)[labels]


def image_size(files: Sequence[FileIndex]) -> tuple[int, int, int] | None:
    """Of all samples; None where they are text. Raises InputError where two files have other ones."""
    first = files[0].samples
    for file in files[1:]:
        if file.samples.image != first.image:
            raise mixed_images(first.first, first.image, file.samples.first, file.samples.image)
    return first.image
