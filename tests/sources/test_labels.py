"""Labels of rows: which values are classes, and what is said about those that are none; what an objective asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelled_files import images, png
from raystage.errors import InputError
from raystage.sources.corpus import SampleFacts, SourceOptions
from raystage.sources.labelled.asked import AskedColumns, check_agreement, check_classes, columns_asked, not_held_out
from raystage.sources.table import read_corpus

TEXTS = [f"text {number}" for number in range(30)]
LABEL = SourceOptions(label="label")
IMAGE = SourceOptions(label="label", image="image")


def write_lines(folder: Path, *labels: Any, field: str = "label") -> str:
    lines = [json.dumps({"text": text, field: labels[n % len(labels)]}) for n, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return str(folder / "a.jsonl")


def write_table(folder: Path, names: list[str] | None = None, **columns: Any) -> str:
    table = pa.table(columns)
    if names is not None:
        info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, folder / "a.parquet")
    return str(folder / "a.parquet")


def classes_of(source: str, path: str, options: SourceOptions = LABEL) -> tuple[str, ...]:
    return read_corpus(source, (path,), options).samples(0.2).classes


@pytest.mark.parametrize(
    ("labels", "classes"),
    [((2, 10, 3), ("2", "3", "10")), (("b", "a"), ("a", "b")), ((True, False), ("false", "true")), ((0,), ("0",))],
)
def test_every_value_is_a_class_in_sorted_order(labels: tuple, classes: tuple[str, ...], tmp_path: Path) -> None:
    assert classes_of("jsonl", write_lines(tmp_path, *labels)) == classes


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_every_kind_of_column_is_a_label(kind: pa.DataType, tmp_path: Path) -> None:
    labels = pa.array([1, 2, 3] * 10).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    column = labels.dictionary_encode() if pa.types.is_dictionary(kind) else labels
    assert classes_of("parquet", write_table(tmp_path, text=TEXTS, label=column)) == ("1", "2", "3")


def test_nested_labels_are_read(tmp_path: Path) -> None:
    meta = [{"kind": number % 2} for number in range(30)]
    path = write_table(tmp_path, text=TEXTS, meta=meta)
    assert classes_of("parquet", path, SourceOptions(label="meta.kind")) == ("0", "1")
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": t, "m": m}) for t, m in zip(TEXTS, meta, strict=True))
    )
    assert classes_of("jsonl", str(tmp_path / "a.jsonl"), SourceOptions(label="m.kind")) == ("0", "1")


def test_the_names_that_a_data_set_has_are_the_classes_in_its_order(tmp_path: Path) -> None:
    path = write_table(tmp_path, ["zebra", "ant", "mole"], text=TEXTS, label=[2, 0, 1] * 10)
    assert classes_of("parquet", path) == ("zebra", "ant", "mole")
    chosen = SourceOptions(label="label", classes=("ant", "mole", "zebra"))
    assert classes_of("parquet", path, chosen) == ("ant", "mole", "zebra")


@pytest.mark.parametrize("info", ["no JSON", "[]", '{"info": 3}', '{"info": {"features": {"label": {"names": [1]}}}}'])
def test_names_that_are_none_do_not_count(info: str, tmp_path: Path) -> None:
    table = pa.table({"text": TEXTS, "label": [0, 1] * 15}).replace_schema_metadata({"huggingface": info})
    pq.write_table(table, tmp_path / "a.parquet")
    assert classes_of("parquet", str(tmp_path / "a.parquet")) == ("0", "1")


# --- bad data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "found null; expected the name, or the number, of a class"),
        (1.5, "found 1.5; expected the name"),
        ("", "found no text; expected the name"),
        ([1], r"found \[1\]; expected the name"),
        ("x" * 5000, "found 5,000 characters; expected the name of a class, at most 4,096"),
        ("half \ud800", r"found 'half \\ud800', which is no valid text; expected the name"),
    ],
)
def test_a_line_without_a_label_is_named(value: Any, said: str, tmp_path: Path) -> None:
    path = Path(write_lines(tmp_path, "a", "b"))
    lines = path.read_text().splitlines()
    lines[6] = json.dumps({"text": "more", "label": value})
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"^data.label: '.*a.jsonl', line 7: {said}.*, in the field 'label'"):
        read_corpus("jsonl", (str(path),), LABEL)
    path.write_text("\n".join([*lines[:6], json.dumps({"text": "more"})]))
    with pytest.raises(InputError, match=r"^data.label: .*line 7: found no field 'label'; it has 'text'; .*data.label"):
        read_corpus("jsonl", (str(path),), LABEL)


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path, text=TEXTS, label=[*[0, 1] * 14, None, 1])
    with pytest.raises(InputError, match=r"^data.label: '.*a.parquet', row 29: found null.*, in the column 'label'"):
        read_corpus("parquet", (path,), LABEL)
    with pytest.raises(InputError, match=r"^data.label: '.*a.parquet' has no column 'kind'; found 'text', 'label'"):
        read_corpus("parquet", (path,), SourceOptions(label="kind"))
    with pytest.raises(InputError, match=r"^data.field: .*row 3: found null in the column 'text'; expected text"):
        read_corpus("parquet", (write_table(tmp_path, text=["a", "b", None], label=[0, 1, 0]),), LABEL)
    path = write_table(tmp_path, text=TEXTS, label=np.arange(30) / 2)
    with pytest.raises(InputError, match=r"^data.label: .* has the type double; expected a column of whole numbers or"):
        read_corpus("parquet", (path,), LABEL)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_beyond_the_names_of_a_data_set_are_named(label: int, tmp_path: Path) -> None:
    path = write_table(tmp_path, ["a", "b", "c"], text=TEXTS, label=[*[0, 1, 2] * 9, 0, label, 1])
    with pytest.raises(
        InputError, match=rf"^data.label: .*row 29: found the label {label}; expected 0 to 2 \('a', 'b'"
    ):
        read_corpus("parquet", (path,), LABEL)


def test_numbers_beside_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^data.label: found the label 1 and the label 'a'; expected whole numbers or"
    ):
        read_corpus("jsonl", (write_lines(tmp_path, 1, "a"),), LABEL).samples(0.1)


def test_names_that_differ_between_files_are_refused(tmp_path: Path) -> None:
    for number, names in enumerate((["a", "b"], ["b", "a"])):
        (tmp_path / str(number)).mkdir()
        write_table(tmp_path / str(number), names, text=[f"{number} {text}" for text in TEXTS], label=[0, 1] * 15)
    corpus = read_corpus("parquet", (str(tmp_path),), LABEL)
    with pytest.raises(InputError, match=r"^data.label: found files with other classes: 'a', 'b'; 'b', 'a'; expected"):
        corpus.samples(0.1)


def test_what_looks_like_no_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystage.sources.row_index.MOST_CLASSES", 5)
    with pytest.raises(InputError, match=r"^data.label: .*found more than 5 different labels, such as 'x5'; expected"):
        read_corpus("jsonl", (write_lines(tmp_path, *(f"x{number}" for number in range(9))),), LABEL)


# --- columns with images ------------------------------------------------------------------------

PNGS = [png(pixels) for pixels, _ in images(30)]


@pytest.mark.parametrize("kind", ["bytes", "large bytes", "struct"])
def test_every_kind_of_column_with_images(kind: str, tmp_path: Path) -> None:
    column = pa.array([{"bytes": one, "path": "a.png"} for one in PNGS]) if kind == "struct" else pa.array(PNGS)
    column = column.cast(pa.large_binary()) if kind == "large bytes" else column
    corpus = read_corpus("parquet", (write_table(tmp_path, image=column, label=[0, 1] * 15),), IMAGE)
    assert corpus.samples(0.2).image == (1, 8, 8)
    found = [one.content.content for piece in corpus.pieces(0.2) for one in piece.read()]
    assert sorted(one.tobytes() for one in found) == sorted(one.tobytes() for one, _ in images(30))


def test_images_need_no_label(tmp_path: Path) -> None:
    path = write_table(tmp_path, image=PNGS)
    found = read_corpus("parquet", (path,), SourceOptions(image="image")).samples(0.2)
    assert (found.classes, sum(found.train + found.held_out)) == ((), 30)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (TEXTS, "data.image: .*the column 'image' has the type string; expected the bytes of image files"),
        ([*PNGS[:29], b"none"], "data.image: '.*a.parquet', row 30 is no image, or damaged"),
        ([*PNGS[:29], None], "data.image: '.*a.parquet', row 30: found no bytes of an image in the column 'image'"),
        ([{"bytes": None, "path": "a.png"}] * 30, "data.image: .*has the type null; expected the bytes"),
        ([*PNGS[:29], png(np.zeros((9, 9), np.uint8))], "data.path: .*row 1 has 8 x 8 pixels, but .*row 30 has 9 x 9"),
    ],
)
def test_rows_without_an_image_are_named(column: list, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        read_corpus("parquet", (write_table(tmp_path, image=column, label=[0, 1] * 15),), IMAGE)


# --- what an objective asks for -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reads", "given", "asked"),
    [
        ("jsonl", "labels", (None, None), ("label", None)),
        ("jsonl", "labels", ("stars", None), ("stars", None)),
        ("parquet", "labels", (None, "photo"), ("label", "photo")),
        ("parquet", "images", (None, None), (None, "image")),
        ("huggingface", "images", ("kind", "photo"), ("kind", "photo")),
        ("images", "labels", (None, None), (None, None)),
        ("arrays", "images", (None, None), (None, None)),
        ("jsonl", "text", (None, None), (None, None)),
        ("tokens", "text", (None, None), (None, None)),
        ("jsonl", "chats", (None, None), (None, None)),
    ],
)
def test_the_columns_that_an_objective_reads(source: str, reads: str, given: tuple, asked: tuple) -> None:
    assert columns_asked(source, reads, *given) == AskedColumns(*asked)


@pytest.mark.parametrize(
    ("source", "reads", "given", "said"),
    [
        ("text", "labels", (None, None), "data.source: found text with an objective that reads samples with labels; "
         "expected jsonl, parquet, huggingface, images or arrays"),
        ("jsonl", "images", (None, None), "data.source: found jsonl with an objective that reads images; expected"),
        ("images", "text", (None, None), "data.source: found images with an objective that reads text; expected"),
        ("arrays", "chats", (None, None), "data.source: found arrays with an objective that reads conversations"),
        ("jsonl", "text", ("stars", None), "data.label: found 'stars' with an objective that reads text; expected"),
        ("parquet", "text", (None, "photo"), "data.image: found 'photo' with an objective that reads text"),
    ],
)  # fmt: skip
def test_a_source_without_what_is_read_is_refused(source: str, reads: str, given: tuple, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        columns_asked(source, reads, *given)


ALL = SampleFacts(("a", "b", "c"), None, (4, 3, 2), (1, 0, 2))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (SampleFacts((), None, (9,), (3,)), "data.path: found samples without classes; expected samples of two"),
        (SampleFacts(("a",), None, (9,), (3,)), "data.path: found only the class 'a'; expected samples of two"),
        (SampleFacts(("a", "b"), None, (9, 0), (3, 0)), "data.path: found no sample of 'b'; expected samples of every"),
        (SampleFacts(("a", "b"), None, (9, 0), (3, 2)),
         "data.validation_fraction: found no sample to train on of 'b': all of them are held out; expected more"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_learned_are_refused(facts: SampleFacts, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        check_classes(facts)


def test_a_class_that_is_not_held_out_is_known() -> None:
    check_classes(ALL)
    assert not_held_out(ALL) == ("b",)
    assert not_held_out(SampleFacts((), None, (9,), (3,))) == ()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (SampleFacts(("a", "b"), None, (1, 1), (1, 1)), r"found 2 classes \('a', 'b'\), but 3 classes"),
        (SampleFacts((), None, (1,), (1,)), "found no classes, but 3 classes"),
        (SampleFacts(("a", "b", "c"), (1, 8, 8), (1,), (1,)), "found images of 8 x 8 pixels with 1 of colour, but"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_mixed_are_refused(other: SampleFacts, said: str) -> None:
    check_agreement(ALL, SampleFacts(("a", "b", "c"), None, (1, 1, 1), (0, 0, 0)), "web")
    with pytest.raises(InputError, match=f"^data.path: {said}"):
        check_agreement(ALL, other, "web")


def test_two_columns_of_one_name_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    for names, key in ((["text", "text", "label"], "data.field"), (["text", "label", "label"], "data.label")):
        pq.write_table(pa.Table.from_arrays([pa.array(TEXTS)] * 3, names=names), file)
        with pytest.raises(InputError, match=rf"^{key}: '.*a.parquet' has 2 columns '.*'; expected names that differ"):
            read_corpus("parquet", (str(file),), LABEL)


def test_a_message_lists_a_few_fields_of_many(tmp_path: Path) -> None:
    many = {f"field-{number}": "text" for number in range(10_000)}
    (tmp_path / "a.jsonl").write_text(json.dumps(many))
    pq.write_table(pa.Table.from_pylist([many]), tmp_path / "b.parquet")
    for source, name in (("jsonl", "a.jsonl"), ("parquet", "b.parquet")):
        with pytest.raises(InputError, match=r"'field-7', \.\.\. \(10,000\); expected one of its") as error:
            read_corpus(source, (str(tmp_path / name),), LABEL)
        assert len(str(error.value)) < 500
