"""`source: images`: image files in a folder for each class, `path/<class>/*.png`, or without classes in one folder.

A folder of a class is what other sources have as a file with rows: its images are the rows, in the order of their
names.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from raystage.errors import InputError
from raystage.sources.corpus import PIECE_BYTES, Sample, SourceOptions, cut
from raystage.sources.labelled.classes import label_of
from raystage.sources.labelled.decoding import decoded
from raystage.sources.places import Place, is_remote, place_of
from raystage.sources.row_index import Block, FileIndex, index_files
from raystage.sources.rows import RowCorpus
from raystage.sources.text_files import refuse_folder, text_files

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
# `SourceOptions.label` where the name of a folder is the class.
_FOLDER = "the folder"


def read(paths: tuple[str, ...], options: SourceOptions) -> RowCorpus:
    """The images below these paths. Raises InputError: the first image that is wrong, with its file."""
    options, files = _indexed(paths, options, "data.path")
    if not options.validation_path:
        return RowCorpus(__name__, options, files)
    apart, held_out = _indexed(options.validation_path, replace(options, label=None), "data.validation_path")
    if apart.label != options.label:
        problem = "found folders of classes on one side only (data.path, data.validation_path)"
        raise InputError(f"{problem}; expected them on both", key="data.validation_path")
    return RowCorpus(__name__, options, files, held_out)


def _indexed(paths: tuple[str, ...], options: SourceOptions, key: str) -> tuple[SourceOptions, tuple[FileIndex, ...]]:
    found = [_folders(path, options, key) for path in paths]
    if len({has_classes for has_classes, _ in found}) > 1:
        raise InputError("found folders of classes beside folders of images; expected one of both", key=key)
    if found[0][0]:
        options = replace(options, label=_FOLDER)
    places = [_place(folder, options.files, key) for _, folders in found for folder in folders]
    return options, index_files(__name__, places, options, ", ".join(paths), key)


def _folders(path: str, options: SourceOptions, key: str) -> tuple[bool, list[Path]]:
    """(whether there are classes, the folders whose images are rows). Raises InputError."""
    if is_remote(path) or not os.path.isdir(path):
        problem = f"found no folder {path!r}"
        raise InputError(f"{problem}; expected one with a folder of images for each class", key=key)
    try:
        entries = sorted(entry for entry in Path(path).iterdir() if not entry.name.startswith((".", "__")))
    except OSError as error:
        refuse_folder(error)
    folders = [entry for entry in entries if entry.is_dir()]
    loose = next((entry for entry in entries if entry.is_file() and _is_wanted(entry.name, options.files)), None)
    if folders and loose:
        problem = f"found the image {str(loose)!r} beside the folder {folders[0].name!r}"
        raise InputError(f"{problem}; expected each image in the folder of its class", key=key)
    return bool(folders), folders or [Path(path)]


def _is_wanted(name: str, pattern: str | None) -> bool:
    return fnmatch.fnmatchcase(name, pattern) if pattern else name.lower().endswith(ENDINGS)


def _place(folder: Path, pattern: str | None, key: str) -> Place:
    """A folder as a file with rows: it changes where the size or the time stamp of an image does."""
    files = [place_of(file, key) for file in _files(str(folder), pattern)]
    if not files:
        what = pattern or ", ".join(f"*{ending}" for ending in ENDINGS)
        problem = f"found no image {what} in {str(folder)!r}"
        raise InputError(f"{problem}; expected images of every class, or no such folder", key=key)
    listing = "\n".join(f"{file.uri} {file.num_bytes} {file.stamp}" for file in files)
    times = (max(file.stamp[which] for file in files) for which in range(2))
    digest = int(hashlib.sha256(os.fsencode(listing)).hexdigest()[:15], 16)
    return Place(str(folder), sum(file.num_bytes for file in files), (*times, digest))


def _files(folder: str, pattern: str | None) -> list[Path]:
    """All images below a folder, in the order of their names."""
    return [file for file in text_files((folder,), pattern) if _is_wanted(file.name, pattern)]


@lru_cache(maxsize=8)
def _listed(place: Place, pattern: str | None) -> tuple[Path, ...]:
    return tuple(_files(place.uri, pattern))


def blocks(place: Place, options: SourceOptions) -> list[Block]:
    """Ranges of images."""
    sizes = (max(1, place_of(file, "data.path").num_bytes) for file in _listed(place, options.files))
    return [Block(*range_) for range_ in cut(sizes, PIECE_BYTES)]


def rows(place: Place, block: Block, options: SourceOptions) -> Iterator[Sample]:
    """The images of a range. Raises InputError."""
    label = _class_of(place, options) if options.label else None
    for file in _listed(place, options.files)[block.start : block.stop]:
        try:
            content = file.read_bytes()
        except OSError as error:
            refuse_folder(error)
        yield Sample(decoded(content, repr(str(file)), options), label, repr(str(file)))


def _class_of(place: Place, options: SourceOptions) -> str:
    try:
        return str(label_of(place.name, options.classes))
    except ValueError as error:
        raise InputError(f"{place}: {error}", key="data.classes") from None
