"""Parquet: nested columns, kinds of text, and what is said about a column or a row that is wrong."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystage.errors import InputError
from raystage.sources.corpus import SourceOptions
from raystage.sources.table import read_corpus


def read(path: Path, **options: object) -> list[str]:
    corpus = read_corpus("parquet", (str(path),), SourceOptions(**options))
    return [one.content.decode() for piece in corpus.pieces(0) for one in piece.read()]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_kind_of_text_is_read(kind: pa.DataType, tmp_path: Path) -> None:
    texts = ["one", "two é", "one"]
    column = pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path) == texts


def test_nested_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"meta": [{"body": "one", "n": 1}, {"body": "two", "n": 2}]}), tmp_path / "a.parquet")
    assert read(tmp_path, field="meta.body") == ["one", "two"]
    for field, said in (("meta.text", "found 'body', 'n'"), ("meta", "has the type struct"), ("meta.n", "type int64")):
        with pytest.raises(InputError, match=f"^data.field: .*{said}"):
            read(tmp_path, field=field)


def test_a_column_of_another_type_is_refused_with_those_of_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "body": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"^data.field: .* the type int64; expected a column of text, such as 'body'"):
        read(tmp_path)


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 2000 + [None] + ["b"] * 10}), tmp_path / "a.parquet", row_group_size=300)
    with pytest.raises(InputError, match=r"^data.field: '.*a.parquet', row 2,001: found null in the column 'text'"):
        read(tmp_path)


def test_bytes_that_are_no_text_are_named_or_replaced(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"a", b"caf\xe9"], pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"^data.path: .*, row 2: found bytes that are no text \(0xe9 at position 3\)"):
        read(tmp_path)
    assert read(tmp_path, may_be_any=True) == ["a", "caf\ufffd"]


@pytest.mark.parametrize("content", [b"", b"no table", b"PAR1 cut off"])
def test_what_is_no_parquet_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"^data.path: '.*a.parquet' is no Parquet file, or damaged"):
        read(tmp_path)
