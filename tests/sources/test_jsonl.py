"""JSON lines: compressed files, nested fields, and what is said about a line that is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

import raystage.sources.jsonl
from raystage.errors import InputError
from raystage.sources.corpus import SourceOptions
from raystage.sources.table import read_corpus
from row_files import TEXTS, write_jsonl


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".json.gz"])
def test_compressed_files_are_read(ending: str, tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "plain/a.jsonl")
    content = plain.read_bytes()
    half = content.index(b"\n", 1000) + 1
    packed = tmp_path / f"packed/a{ending}"
    packed.parent.mkdir()
    if ending.endswith(".gz"):
        packed.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))  # as pigz and cat leave them
    else:
        with pa.CompressedOutputStream(str(packed), "zstd") as file:
            file.write(content)
    read = [read_corpus("jsonl", (str(path.parent),)) for path in (plain, packed)]
    assert read[0].fingerprint == read[1].fingerprint


def test_nested_fields_blank_lines_and_windows(tmp_path: Path) -> None:
    lines = ['{"meta": {"body": "one"}}', "", '  {"meta": {"body": "two \\u00e9"}, "text": 3}  ']
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    corpus = read_corpus("jsonl", (str(tmp_path),), SourceOptions(field="meta.body"))
    assert [one.content.decode() for piece in corpus.pieces(0) for one in piece.read()] == ["one", "two é"]


def test_bytes_that_are_no_utf8_are_replaced_where_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud83d!"}\n')
    corpus = read_corpus("jsonl", (str(tmp_path),), SourceOptions(may_be_any=True))
    assert [one.content.decode() for piece in corpus.pieces(0) for one in piece.read()] == ["caf\ufffd", "\ufffd!"]


WRONG = {
    b'{"text": "cut': ("data.path", "found broken JSON: Unterminated string starting at at character 10"),
    b'{"text": "a"} {"text": "b"}': ("data.path", "found broken JSON: Extra data at character 15"),
    b'{"text": ': ("data.path", "is the file cut off?"),
    b'["a"]': ("data.path", """found ['a']; expected an object such as {"text": "..."}"""),
    b'"a"': ("data.path", "found 'a'; expected an object"),
    b'{"body": "a", "id": 1}': ("data.field", "found no field 'text'; it has 'body', 'id'; expected one of its"),
    b"{}": ("data.field", "found no field 'text'; it has nothing"),
    b'{"text": null}': ("data.field", "found null in the field 'text'; expected text"),
    b'{"text": 3}': ("data.field", "found 3 in the field 'text'; expected text"),
    b'{"text": "caf\xe9"}': ("data.path", "found the byte 0xe9 at position 13, which is no UTF-8; expected UTF-8, or"),
    b'{"text": "\\ud83d"}': ("data.path", "found half of a character, \\ud83d, in the field 'text'"),
    b'{"text": "a"}'.decode().encode("utf-16"): ("data.path", "found UTF-16 text; expected UTF-8 (iconv"),
    b'{"text": ' + b"[" * 200_000: ("data.path", "found JSON that is nested too deeply"),
}


@pytest.mark.parametrize("line", WRONG, ids=[str(line[:30]) for line in WRONG])
@pytest.mark.parametrize("block_bytes", [2**26, 50])
def test_a_line_that_is_wrong_is_named(
    line: bytes, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raystage.sources.jsonl, "BLOCK_BYTES", block_bytes)
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:6])
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n" + json.dumps({"text": "after"}).encode())
    key, said = WRONG[line]
    with pytest.raises(InputError) as refused:
        read_corpus("jsonl", (str(tmp_path),))
    assert refused.value.key == key
    assert f"'{path}', line 8: " in str(refused.value)
    assert said in str(refused.value)


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"^data.path: '.*a.jsonl.gz' cannot be read \("):
        read_corpus("jsonl", (str(tmp_path),))
