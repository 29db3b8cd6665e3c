"""Numbers beside the rows of a text: read together with the documents, in every format, and known by their values."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factories import make_schedule
from raystage.config.schedule import parse
from raystage.data.order.curriculum import CurriculumPlan
from raystage.data.order.scores import scores_of
from raystage.data.plan import DataPlan
from raystage.data.tokens import open_streams
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.sources import jsonl
from raystage.train.texts import open_texts

# Some are equal, some rows have no text, and some texts occur twice.
TEXTS = [f"document {number % 50}" * (number % 5 + 1) if number % 9 else "" for number in range(60)]
SCORES = [((number * 37) % 23) / 2 - 3 for number in range(60)]
KEY = r"stages\[0\]\.data\.curriculum\.by\.column: "


def as_jsonl(folder: Path, scores: list, name: str = "quality") -> dict:
    lines = [json.dumps({"text": text, "meta": {name: score}}) for text, score in zip(TEXTS, scores, strict=True)]
    lines[7:7] = ["", "  "]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return {"source": "jsonl", "path": str(folder / "rows.jsonl")}


def as_gzip(folder: Path, scores: list, name: str = "quality") -> dict:
    as_jsonl(folder, scores, name)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress((folder / "rows.jsonl").read_bytes()))
    return {"source": "jsonl", "path": str(folder / "packed.jsonl.gz")}


def table(scores: list, name: str) -> pa.Table:
    return pa.table({"text": TEXTS, "meta": [{name: score} for score in scores]})


def as_parquet(folder: Path, scores: list, name: str = "quality") -> dict:
    pq.write_table(table(scores, name), folder / "rows.parquet", row_group_size=7)
    return {"source": "parquet", "path": str(folder / "rows.parquet")}


def as_saved(folder: Path, scores: list, name: str = "quality") -> dict:
    saved = folder / "saved"
    saved.mkdir(exist_ok=True)
    with pa.ipc.new_stream(str(saved / "a.arrow"), table(scores, name).schema) as writer:
        writer.write_table(table(scores, name), max_chunksize=11)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": None}))
    return {"source": "huggingface", "path": str(saved)}


FORMATS = {"jsonl": as_jsonl, "gzip": as_gzip, "parquet": as_parquet, "saved": as_saved}
every_format = pytest.mark.parametrize("written", FORMATS.values(), ids=FORMATS)


def stage_of(folder: Path, data: dict, column: str = "meta.quality", **curriculum: object) -> StagePlan:
    (folder / "other").mkdir(exist_ok=True)
    content = make_schedule(folder / "other").content() | {"baseline": None}
    by = {"by": {"column": column}, **curriculum}
    content["data"] = data | {"validation_fraction": 0.4}
    content["stages"] = [
        {"name": "s", "model": {"num_layers": 1}, "until": {"tokens": 800}, "data": {"curriculum": by}}
    ]
    return make_plan(parse(content)).staged.stages[0]


def texts_of(data: DataPlan, cache: Path) -> list[str]:
    """The documents to train on, in their order."""
    streams = open_streams(data, 257, cache)
    parts = np.split(np.asarray(streams.train), streams.train_documents.begins[1:-1])
    return [part[:-1].astype(np.uint8).tobytes().decode() for part in parts]


@every_format
def test_every_document_has_the_number_of_its_row(written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", 300)
    scores = [float(TEXTS.index(text)) + 0.25 for text in TEXTS]  # so that a text tells its number
    stage = stage_of(tmp_path, written(tmp_path, scores))
    found = scores_of(stage.data, stage.curriculum, open_streams(stage.data, 257, tmp_path / "cache").train_documents)
    texts = texts_of(stage.data, tmp_path / "cache")
    assert 20 < len(texts) < 55
    assert found.tolist() == [TEXTS.index(text) + 0.25 for text in texts]


def test_the_numbers_are_the_same_in_every_format(tmp_path: Path) -> None:
    stages = [stage_of(tmp_path, written(tmp_path, SCORES)) for written in FORMATS.values()]
    assert len({stage.key for stage in stages}) == 1


def test_numbers_count_and_names_do_not(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, as_jsonl(tmp_path, SCORES))
    renamed = stage_of(tmp_path, as_jsonl(tmp_path, SCORES, "other"), "meta.other")
    assert renamed.key == stage.key
    assert stage_of(tmp_path, as_jsonl(tmp_path, [-score for score in SCORES])).key != stage.key
    assert stage_of(tmp_path, as_jsonl(tmp_path, SCORES), **{"from": "hard"}).key != stage.key


def test_numbers_are_kept_and_none_that_are_damaged_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    stage = stage_of(tmp_path, as_jsonl(tmp_path, SCORES))
    spans = open_streams(stage.data, 257, tmp_path / "cache").train_documents
    found = scores_of(stage.data, stage.curriculum, spans)
    (kept,) = (tmp_path / "home").rglob("*.f8")
    kept.write_bytes(kept.read_bytes()[:-8])
    np.testing.assert_array_equal(scores_of(stage.data, stage.curriculum, spans), found)
    assert len(kept.read_bytes()) == 8 * len(found)
    Path(stage.data.path[0]).unlink()
    np.testing.assert_array_equal(scores_of(stage.data, stage.curriculum, spans), found)


def test_other_numbers_than_were_planned_with_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    stage = stage_of(tmp_path, as_jsonl(tmp_path, SCORES))
    spans = open_streams(stage.data, 257, tmp_path / "cache").train_documents
    as_jsonl(tmp_path, [score + 1 for score in SCORES])
    with pytest.raises(InputError, match=r"the numbers in 'meta\.quality' on this machine are not those"):
        scores_of(stage.data, stage.curriculum, spans)


@every_format
@pytest.mark.parametrize(
    ("wrong", "column", "said"),
    [
        (None, "meta.quality", "found null; expected a number, in the (field|column) 'meta.quality'"),
        (None, "meta.quantity", "'meta.quantity'.*expected one of its (fields|columns)"),
        (float("nan"), "meta.quality", "found nan; expected a number"),
    ],
)
def test_what_is_no_number_is_one_message(written, wrong: object, column: str, said: str, tmp_path: Path) -> None:
    scores = [*SCORES[:31], wrong, *SCORES[32:]]
    with pytest.raises(InputError, match=f"{KEY}.*{said}"):
        stage_of(tmp_path, written(tmp_path, scores), column)


def test_a_text_without_rows_has_no_column(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(12):
        (tmp_path / "text" / f"{number}.txt").write_text(f"document {number}\n" * 10)
    said = "found a column with source text, which has none; expected by: length, or source: jsonl or parquet or hugg"
    with pytest.raises(InputError, match=KEY + said):
        stage_of(tmp_path, {"source": "text", "path": str(tmp_path / "text")})


def test_the_order_is_another_one_for_other_numbers() -> None:
    plan = CurriculumPlan("column", False, 0.2, "sqrt", 100, None, "a", (("text", "1" * 32),))
    assert plan.order != replace(plan, digests=(("text", "2" * 32),)).order
    assert plan.order == replace(plan, column="b", start=0.5).order


def test_a_stage_reads_documents_by_their_numbers(tmp_path: Path) -> None:
    """The first windows are of the documents with the smallest numbers, packed in their order."""
    scores = [float(TEXTS.index(text)) for text in TEXTS]
    stage = stage_of(tmp_path, as_parquet(tmp_path, scores), start=0.2, over=800)
    texts = sorted(texts_of(stage.data, tmp_path / "cache"), key=TEXTS.index)
    packed = np.frombuffer("\0".join([*texts, ""]).encode(), np.uint8).astype(np.int64)
    packed[packed == 0] = 256
    read = open_texts(stage).train.read(0, 80, 10)["tokens"]
    windows = [packed[start : start + 11].tolist() for start in range(0, len(packed) - 10, 10)]
    places = [windows.index(one) for one in read.tolist()]
    assert places[0] < 0.2 * len(windows) + 1
    assert max(places[:20]) < 0.6 * len(windows) < max(places)
