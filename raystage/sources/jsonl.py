"""`source: jsonl`: files of JSON lines. A document is a field of a line: `field: text`, or `field: meta.body`.

Files that end in .gz and .zst are decompressed. Blank lines, and lines whose text is empty, are no documents.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from raystage.errors import InputError
from raystage.sources.chats import conversation
from raystage.sources.corpus import SCORE_KEY, Label, Sample, Scored, SourceOptions
from raystage.sources.labelled.classes import label_of, named, score_of
from raystage.sources.places import Place, refused
from raystage.sources.row_index import Block
from raystage.sources.rows import RowCorpus, read_rows
from raystage.units import shown

ENDINGS = tuple(
    f"{name}{packed}"
    for name in (".jsonl", ".ndjson", ".json")
    for packed in ("", ".gz", ".zst")
    if name + packed != ".json"  # a file of one object, or of a list
)
BLOCK_BYTES = 2**25
_MARK = b"\xef\xbb\xbf"  # that UTF-8 begins with on Windows


def read(paths: tuple[str, ...], options: SourceOptions) -> RowCorpus:
    """The documents below these paths. Raises InputError: the first line that is wrong, with its number."""
    return read_rows(__name__, ENDINGS, paths, options)


def blocks(place: Place, options: SourceOptions) -> list[Block]:
    """Parts of a file in bytes: a line belongs to the part in which it begins. A compressed file is one part."""
    if place.codec:
        return [Block(0, 0)]
    return [Block(start, min(start + BLOCK_BYTES, place.num_bytes)) for start in range(0, place.num_bytes, BLOCK_BYTES)]


def rows(place: Place, block: Block, options: SourceOptions) -> Iterator[bytes | Sample]:
    """The texts in a part, empty ones included; with labels or scores where those are asked for. Raises InputError."""
    field = options.field or "text"
    path = tuple(field.split("."))
    read = conversation if options.are_chats else _text
    label = options.label
    errors = "replace" if options.may_be_any else "strict"
    for number, line in enumerate(_lines(place, block)):
        if not line.strip():
            yield b""
            continue
        try:
            content = json.loads(line.decode("utf-8", errors))
            text = _encoded(read(_value(content, field, path), field), field, errors)
            if options.score and text:
                yield Scored(text, _score(content, options.score))
            else:
                yield Sample(text, _label(content, label, options)) if label and text else text
        except (ValueError, RecursionError) as error:
            where = f"{place}, line {_lines_before(place, block) + number + 1:,}"
            key = error.key if isinstance(error, _FieldError) else "data.path"
            raise InputError(f"{where}: {_problem(error, line)}", key=key) from None


class _FieldError(ValueError):
    """The line is JSON, but not what `data.field`, or another key, says."""

    def __init__(self, problem: str, key: str = "data.field") -> None:
        super().__init__(problem)
        self.key = key


def _label(content: Any, field: str, options: SourceOptions) -> Label:
    """Raises _FieldError."""
    value = _value(content, field, tuple(field.split(".")), "data.label")
    try:
        return label_of(value, options.classes)
    except ValueError as error:
        raise _FieldError(f"{error}, in the field {field!r}", "data.label") from None


def _score(content: Any, field: str) -> float:
    """Raises _FieldError."""
    value = _value(content, field, tuple(field.split(".")), SCORE_KEY)
    try:
        return score_of(value)
    except ValueError as error:
        raise _FieldError(f"{error}, in the field {field!r}", SCORE_KEY) from None


def _value(content: Any, field: str, path: tuple[str, ...], key: str = "data.field") -> Any:
    """What a field holds. A name with dots in it counts before a path. Raises ValueError."""
    if not isinstance(content, dict):
        raise ValueError(f'found {shown(content)}; expected an object such as {{"{field}": "..."}}')
    value: Any = content
    for step in (field,) if field in content else path:
        if not isinstance(value, dict) or step not in value:
            if not isinstance(value, dict):
                problem = f"found no field {field!r}; {step!r} is looked for in {shown(value)}"
                raise _FieldError(f"{problem}; expected one of the fields of the line in {key}", key)
            there = named(tuple(value)) or "nothing"
            raise _FieldError(f"found no field {field!r}; it has {there}; expected one of its fields in {key}", key)
        value = value[step]
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        found = "null" if value is None else shown(value)
        raise _FieldError(f"found {found} in the field {field!r}; expected text")
    return value


def _encoded(text: str, field: str, errors: str) -> bytes:
    """Raises ValueError for what UTF-8 cannot hold."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # half of a pair, written as \ud83d
        if errors == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        found = f"found half of a character, \\u{ord(text[error.start]):04x}, in the field {field!r}"
        raise ValueError(f"{found}; expected valid text, or data.encoding_errors: replace") from None


def _problem(error: Exception, line: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "found UTF-16 text; expected UTF-8 (iconv -f UTF-16 -t UTF-8)"
        found = f"found the byte 0x{error.object[error.start]:02x} at position {error.start}, which is no UTF-8"
        return f"{found}; expected UTF-8, or data.encoding_errors: replace"
    if isinstance(error, json.JSONDecodeError):
        begun = (
            " (does it go on in the next line, or is the file cut off?)" if error.pos >= len(error.doc.rstrip()) else ""
        )
        return (
            f"found broken JSON: {error.msg} at character {error.pos + 1}{begun}; expected one JSON object in each line"
        )
    if isinstance(error, RecursionError):
        return "found JSON that is nested too deeply; expected one JSON object in each line"
    if str(error).startswith("Exceeds the limit"):  # Python's, for a whole number
        return f"found a number of more than {sys.get_int_max_str_digits():,} digits; expected shorter ones"
    return str(error)


def _lines(place: Place, block: Block) -> Iterator[bytes]:
    """The lines that begin in a part of a file. Of a file's first line the mark of UTF-8 is cut off."""
    position = max(0, block.start - 1)  # a line begins at `start` where a line ends just before it
    rest, is_first = b"", block.start > 0
    try:
        for chunk in place.chunks(position):
            parts = (rest + chunk).split(b"\n") if b"\n" in chunk else [rest + chunk]
            rest = parts.pop()
            for line in parts:
                begins, position = position, position + len(line) + 1
                if is_first:  # it began in the part before
                    is_first = False
                    continue
                if begins >= block.stop > 0:
                    return
                yield line[3:] if begins == 0 and line.startswith(_MARK) else line
        if rest and not is_first and not position >= block.stop > 0:
            yield rest[3:] if position == 0 and rest.startswith(_MARK) else rest
    except OSError as error:
        raise refused(place, error) from None


def _lines_before(place: Place, block: Block) -> int:
    """The number of lines that begin before a part of a file."""
    return sum(1 for _ in _lines(place, Block(0, block.start))) if block.start else 0
