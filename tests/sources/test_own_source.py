"""The source of one's own that docs/data.md shows, carried out: from its file and its line to the tokens."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from pages import block_with
from raystage.data.plan import DataPlan
from raystage.data.tokens import open_streams
from raystage.errors import InputError
from raystage.sources import table
from raystage.sources.table import DataSource, read_corpus

CHAPTERS = [f"chapter {number}" * 10 for number in range(40)]


@pytest.fixture
def chapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file and the line of the page, in their places; and a folder to read."""
    code, line = (block_with(start, "docs/data.md").text for start in ("# raystage/sources/chapters.py", "DataSource("))
    (tmp_path / "chapters.py").write_text(code)
    entry = eval(line.partition("\n")[2].strip(), {"DataSource": DataSource})
    spec = importlib.util.spec_from_file_location(entry.module, tmp_path / "chapters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, entry.module, module)
    monkeypatch.setitem(table.SOURCES, entry.name, entry)
    (tmp_path / "book").mkdir()
    for name, part in (("a", CHAPTERS[:25]), ("b", CHAPTERS[25:])):
        (tmp_path / f"book/{name}.chapters").write_text("".join(f"# {text}\n" for text in part))
    return str(tmp_path / "book")


def test_the_source_of_the_page_gives_documents_and_tokens(chapters: str, tmp_path: Path) -> None:
    corpus = read_corpus("chapters", (chapters,))
    read = [document.content.decode() for piece in corpus.pieces(0.3) for document in piece.read()]
    assert sorted(read) == sorted(CHAPTERS)
    data = DataPlan("chapters", (chapters,), "bytes", 0.3, corpus.fingerprint)
    streams = open_streams(data, 257, tmp_path / "cache")
    assert len(streams.train) + len(streams.held_out) == sum(len(text) + 1 for text in CHAPTERS)
    assert len(streams.train) == corpus.split(0.3)[0].size.num_bytes + len(corpus.split(0.3)[0])


def test_what_it_refuses_is_one_message(chapters: str) -> None:
    Path(chapters, "c.chapters").write_text("no chapter")
    with pytest.raises(
        InputError, match=r"^data.path: '.*c.chapters' begins without a chapter; expected a line with #"
    ):
        read_corpus("chapters", (chapters,))
