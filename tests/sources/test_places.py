"""Where files are found: also in an object store, read by pyarrow's real client from a real server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from factories import make_schedule
from raystage.config.schedule import parse
from raystage.data.tokens import open_streams
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.sources.corpus import SourceOptions
from raystage.sources.table import read_corpus
from row_files import TEXTS, WRITERS, write_jsonl
from s3_server import S3Server


@pytest.mark.parametrize("source", WRITERS)
def test_an_object_store_is_read_like_a_folder(source: str, s3: S3Server, tmp_path: Path) -> None:
    ending, write = WRITERS[source]
    write(tmp_path / f"a{ending}", TEXTS[:25])
    write(tmp_path / f"deep/b{ending}", TEXTS[25:])
    base = f"bucket/{source}"
    for name in (f"a{ending}", f"deep/b{ending}"):
        open_folder(s3.uri(base)).write_whole(name, (tmp_path / name).read_bytes())
    open_folder(s3.uri(base)).write_whole("notes.txt", b"no rows")
    here = read_corpus(source, (str(tmp_path),))
    for path in (s3.uri(base), s3.uri(f"{base}/**/*{ending}")):
        there = read_corpus(source, (path,))
        assert there.fingerprint == here.fingerprint
        read = [[one.content for piece in corpus.pieces(0.3) for one in piece.read()] for corpus in (here, there)]
        assert read[0] == read[1]
    assert len(read_corpus(source, (s3.uri(f"{base}/*{ending}"),))) == 25
    assert len(read_corpus(source, (s3.uri(f"{base}/a{ending}"),))) == 25
    assert len(read_corpus(source, (s3.uri(base),), SourceOptions(files=f"b{ending}"))) == 35
    with pytest.raises(InputError, match=r"^data.path: found no file "):
        read_corpus(source, (s3.uri(f"{base}/none"),))
    with pytest.raises(InputError, match=r"^data.path: no bucket 'none'"):
        read_corpus(source, (s3.uri("none"),))


@pytest.mark.parametrize("source", WRITERS)
def test_a_schedule_reads_rows(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the plan to the streams, with a glob beside the schedule."""
    ending, write = WRITERS[source]
    write(tmp_path / f"rows/a{ending}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    content = make_schedule(tmp_path / "elsewhere").content()
    content["data"] = {"source": source, "path": f"rows/*{ending}", "validation_fraction": 0.3}
    data = make_plan(parse(content, tmp_path)).staged.stages[0].data
    assert data.path == (str(tmp_path / f"rows/*{ending}"),)
    streams = open_streams(data, 257, tmp_path / "cache")
    assert len(streams.train) == data.train.num_bytes + data.train.documents
    assert len(streams.held_out) == data.held_out.num_bytes + data.held_out.documents
    assert data.train.documents + data.held_out.documents == len(TEXTS)
    assert parse(content | {"data": {"source": source, "path": "s3://b/*.x"}}, tmp_path).data.path == ("s3://b/*.x",)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match=r"^data.path: found the link '.*a.jsonl' to "):
        read_corpus("jsonl", (str(tmp_path),))
    os.unlink(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"^data.path: found no file \*\.jsonl.* in '.*'; expected files"):
        read_corpus("jsonl", (str(tmp_path),))


def test_a_stage_holds_out_no_row_that_an_earlier_one_was_trained_on(tmp_path: Path) -> None:
    """Rows, and then the same text as files: found by its content."""
    write_jsonl(tmp_path / "rows/a.jsonl")
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS[:40]):
        (tmp_path / f"texts/{number}.txt").write_text(text)
    content = make_schedule(tmp_path / "rows").content()
    content["data"] = {"source": "jsonl", "path": str(tmp_path / "rows"), "validation_fraction": 0.2}
    texts = {"source": "text", "path": str(tmp_path / "texts")}
    content["stages"][1]["data"] = texts | {"validation_fraction": 0.2}
    assert make_plan(parse(content)).staged.stages
    content["stages"][1]["data"] = texts | {"validation_fraction": 0.6}
    with pytest.raises(
        InputError, match=r"validation_fraction: found 0.6, which holds out \d+ documents that stage 'small'"
    ):
        make_plan(parse(content))
