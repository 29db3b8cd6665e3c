"""What an objective asks of its source: which columns are read of a row, and which classes there must be. No tensors.

An objective reads "text", "chats", "labels" (samples with a class, texts or images) or "images".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raystage.errors import InputError
from raystage.sources.corpus import SampleFacts
from raystage.sources.table import SOURCES
from raystage.units import shown

LABEL, IMAGE = "label", "image"  # what columns are called unless the user says otherwise
_SAMPLES = ("labels", "images")
_NAMES = {"labels": "samples with labels", "images": "images", "text": "text", "chats": "conversations"}
_FEW = 5  # of classes that a message names


class AskedColumns(NamedTuple):
    """`SourceOptions.label` and `SourceOptions.image`."""

    label: str | None
    image: str | None


def columns_asked(
    source: str, reads: str, label: str | None, image: str | None, only_classes: Sequence[str] = ()
) -> AskedColumns:
    """What is read of a row of the source, where the objective reads `reads`. label, image, only_classes: as the user
    gave them.

    Raises InputError where the source does not have what the objective reads.
    """
    gives = SOURCES[source].gives
    if reads not in gives and not (reads == "text" and "tokens" in gives):
        *others, last = [name for name, one in SOURCES.items() if reads in one.gives]
        problem = f"found {source} with an objective that reads {_NAMES[reads]}"
        fitting = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{problem}; expected {fitting}", key="data.source")
    if reads not in _SAMPLES:
        for key, given in ((LABEL, label), (IMAGE, image), ("only_classes", list(only_classes) or None)):
            if given is not None:
                problem = f"found {shown(given)} with an objective that reads {_NAMES[reads]}"
                raise InputError(f"{problem}; expected objective: classification or denoising", key=f"data.{key}")
        return AskedColumns(None, None)
    if "text" not in gives:  # the source itself knows where its labels are
        return AskedColumns(None, None)
    if reads == "images":
        return AskedColumns(label or (LABEL if only_classes else None), image or IMAGE)
    return AskedColumns(label or LABEL, image)


def check_pixels(source: str, asked: AskedColumns, given: Mapping[str, int | None]) -> None:
    """Refuse what is asked of images where text is read. given: by key what the user wrote. Raises InputError."""
    if asked.image is not None or "text" not in SOURCES[source].gives:
        return
    for key, value in given.items():
        if value is not None:
            raise InputError(f"found {value} for text; expected data.image, the column with images", key=key)


def check_classes(samples: SampleFacts, key: str = "data.path") -> None:
    """Refuse samples that nothing can be learned to be told apart from. Raises InputError."""
    if samples.num_classes < 2:
        found = f"only the class {shown(samples.classes[0])}" if samples.classes else "samples without classes"
        raise InputError(f"found {found}; expected samples of two classes or more", key=key)
    empty = [(name, held_out) for name, train, held_out in samples.counts() if not train]
    if nowhere := [name for name, held_out in empty if not held_out]:
        problem = f"found no sample of {_named(nowhere)}"
        raise InputError(f"{problem}; expected samples of every class, or other classes in data.classes", key=key)
    if empty:
        problem = f"found no sample to train on of {_named([name for name, _ in empty])}: all of them are held out"
        raise InputError(f"{problem}; expected more samples, or fewer to hold out", key="data.validation_fraction")


def not_held_out(samples: SampleFacts) -> tuple[str, ...]:
    """The classes of which no sample is held out: nothing is said about them. For a warning."""
    return tuple(name for name, _, held_out in samples.counts() if not held_out)


def check_agreement(first: SampleFacts, other: SampleFacts, named: str, key: str = "data.path") -> None:
    """Refuse samples that cannot stand in one run with others. named: the first source, for the message.

    Raises InputError.
    """
    if first.image != other.image:
        problem = f"found {_kind(other)}, but {_kind(first)} in {named!r}"
        raise InputError(f"{problem}; expected one kind and size, or data.resize and data.channels", key=key)
    if first.classes != other.classes:
        problem = f"found {_listed(other.classes)}, but {_listed(first.classes)} in {named!r}"
        raise InputError(f"{problem}; expected the same classes in one order, or data.classes", key=key)


def _kind(samples: SampleFacts) -> str:
    if samples.image is None:
        return "text"
    channels, height, width = samples.image
    return f"images of {height} x {width} pixels with {channels} of colour"


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes):,} classes ({_named(classes)})" if classes else "no classes"


def _named(classes: Sequence[str]) -> str:
    few = ", ".join(map(shown, classes[:_FEW]))
    return f"{few}, ... ({len(classes):,} classes)" if len(classes) > _FEW else few
