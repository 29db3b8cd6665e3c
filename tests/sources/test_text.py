from __future__ import annotations

import gzip
import shutil
import sysconfig
from collections.abc import Iterable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest

from factories import write_documents
from raystage.errors import InputError
from raystage.sources import documents as corpus
from raystage.sources import text_files
from raystage.sources.corpus import SourceOptions
from raystage.sources.documents import Document, FileCorpus
from raystage.sources.python_stdlib import stdlib_files
from raystage.sources.table import read_corpus


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    write_documents(folder)
    return folder


def digests(folder: Path, fraction: float) -> tuple[set[str], set[str]]:
    training, held_out = read_corpus("text", (str(folder),)).split(fraction)
    return {document.digest for document in training}, {document.digest for document in held_out}


def test_a_document_is_its_content(texts: Path, tmp_path: Path) -> None:
    """Under other names, in other folders, found in another order: the same documents, split and fingerprint."""
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    for number, file in enumerate(sorted(texts.iterdir(), reverse=True)):
        shutil.copy(file, elsewhere / f"{number:03}.md" if number % 2 else elsewhere.parent / f"z{number}")
    first, second = read_corpus("text", (str(texts),)), read_corpus("text", (str(elsewhere.parent),))
    assert first.fingerprint == second.fingerprint
    assert [one.digest for one in first.documents] == [one.digest for one in second.documents]
    assert digests(texts, 0.5) == digests(elsewhere.parent, 0.5)


def test_the_order_of_paths_does_not_matter(texts: Path) -> None:
    files = tuple(str(file) for file in texts.iterdir())
    whole = read_corpus("text", (str(texts),)).fingerprint
    assert read_corpus("text", files).fingerprint == read_corpus("text", files[::-1]).fingerprint == whole


@pytest.mark.parametrize("change", ["more", "less", "other", "twice"])
def test_other_text_has_another_fingerprint(change: str, texts: Path) -> None:
    before = read_corpus("text", (str(texts),)).fingerprint
    match change:
        case "more":
            (texts / "new.txt").write_text("new")
        case "less":
            (texts / "0.txt").unlink()
        case "other":
            (texts / "0.txt").write_text("other")
        case "twice":
            shutil.copy(texts / "0.txt", texts / "again.txt")
    assert read_corpus("text", (str(texts),)).fingerprint != before


def test_the_split_is_by_the_hash_of_the_content(texts: Path) -> None:
    for file in texts.iterdir():
        digest = sha256(file.read_bytes()).hexdigest()
        training, held_out = digests(texts, 0.5)
        assert (digest in held_out) == (digest[0] in "01234567")
        assert (digest in training) == (digest[0] in "89abcdef")


def test_what_is_held_out_stays_so_at_larger_fractions(texts: Path) -> None:
    held = [digests(texts, fraction)[1] for fraction in (0.1, 0.3, 0.5, 0.9)]
    assert all(smaller <= larger for smaller, larger in pairwise(held))


def test_a_fraction_that_works(texts: Path) -> None:
    documents = read_corpus("text", (str(texts),))
    training, held_out = documents.split(documents.working_fraction())
    assert training
    assert held_out


def test_what_is_no_document(texts: Path) -> None:
    before = read_corpus("text", (str(texts),))
    (texts / "empty.txt").touch()
    (texts / ".hidden").write_text("hidden")
    (texts / "__pycache__").mkdir()
    (texts / "__pycache__" / "a.pyc").write_text("cached")
    assert read_corpus("text", (str(texts),)) == before


def test_links_are_followed_and_every_folder_is_read_once(texts: Path, tmp_path: Path) -> None:
    before = read_corpus("text", (str(texts),))
    start = tmp_path / "start"
    start.mkdir()
    (start / "link").symlink_to(texts)
    (start / "same").symlink_to(texts)
    (texts / "up").symlink_to(start)  # a cycle
    assert read_corpus("text", (str(start),)).fingerprint == before.fingerprint
    assert len(read_corpus("text", (str(start), str(texts))).documents) == 24  # a path that is named twice counts twice


def test_a_link_to_nothing_is_named(texts: Path) -> None:
    (texts / "broken").symlink_to(texts / "nowhere")
    with pytest.raises(InputError, match=r"^data.path: found the link '.*/broken' to '.*/nowhere', which is not there"):
        read_corpus("text", (str(texts),))


NO_TEXT = {
    "a.txt.gz": (gzip.compress(b"text"), "is a gzip archive"),
    "b": (b"PAR1\x15\x04", "is a Parquet file"),
    "c.jsonl": (b'{"text": "a"}\n', "is JSON lines; expected plain text, or source: jsonl"),
    "d": (b"\x7fELF\x02", "is a program"),
    "e.txt": ("text".encode("utf-16"), "is UTF-16 text; expected UTF-8"),
    "f.txt": ("text".encode("utf-16-le"), "has a byte 0 at position 1, so it is no text"),
    "g.png": (b"\x89PNG\r\n", "is an image; expected plain text, or data.files with a pattern"),
    "h.zip": (b"PK\x03\x04", "is a zip archive"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_refused(name: str, texts: Path) -> None:
    content, said = NO_TEXT[name]
    (texts / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_corpus("text", (str(texts),))
    assert refused.value.key == "data.path"
    assert f"{str(texts / name)!r} {said}" in str(refused.value)


def test_a_pattern_chooses_files(texts: Path) -> None:
    before = read_corpus("text", (str(texts),))
    (texts / "figure.png").write_bytes(b"\x89PNG\r\n")
    assert read_corpus("text", (str(texts),), SourceOptions(files="*.txt")) == before


def contents(documents: Iterable[Document]) -> list[bytes]:
    return sorted(document.read() for document in documents)


def test_a_file_is_cut_where_the_separator_stands(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("one<|end|>two<|end|><|end|>three")
    cut = read_corpus("text", (str(tmp_path),), SourceOptions(document_separator="<|end|>"))
    assert contents(cut.documents) == [b"one", b"three", b"two"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("aaa\nbb\nccccc\n", [b"aaa\nbb\n", b"ccccc\n"]),
        ("aaa bb cccccc dd", [b"aaa bb ", b"cccccc ", b"dd"]),
        ("\u20ac" * 5, ["\u20ac\u20ac".encode()] * 2 + ["\u20ac".encode()]),
        ("short", [b"short"]),
    ],
)
def test_a_file_is_cut_at_a_length(text: str, pieces: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(text)
    cut = read_corpus("text", (str(tmp_path),), SourceOptions(document_bytes=7))
    assert [document.read() for document in sorted(cut.documents, key=lambda one: one.start)] == pieces


def test_more_documents_than_a_plan_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all.txt").write_text("\n".join(map(str, range(1000))))
    monkeypatch.setattr(corpus, "MOST_DOCUMENTS", 999)
    with pytest.raises(InputError, match="found more than 999 documents; expected longer ones, or fewer"):
        read_corpus("text", (str(tmp_path),), SourceOptions(document_separator="\n"))


def test_text_of_its_own_is_held_out(texts: Path, tmp_path: Path) -> None:
    """What is in both is not trained on; the fingerprint knows what is held out."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(texts / "0.txt", other / "copy.txt")
    (other / "new.txt").write_text("new")
    read = read_corpus("text", (str(texts),), SourceOptions(validation_path=(str(other),)))
    training, held_out = read.split(0.3)
    assert contents(held_out) == sorted([b"new", (texts / "0.txt").read_bytes()])
    assert len(training) == 11
    assert read.fingerprint != read_corpus("text", (str(texts),)).fingerprint


def test_a_document_that_changed_is_not_read(texts: Path) -> None:
    (document, *_) = read_corpus("text", (str(texts),)).documents
    content = document.path.read_bytes()
    document.path.write_bytes(content + b"more")
    assert document.read() == content
    document.path.write_bytes(content[::-1])
    with pytest.raises(InputError, match=r"changed while it was read; expected text that stays"):
        document.read()


def test_control_tokens_are_found_across_chunks(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 7)
    read = read_corpus("text", (str(texts),))
    assert not read.holds_any([b"<|eos|>", b"<|bos|>"])
    assert not read.holds_any([])
    (texts / "0.txt").write_text("some text <|eos|> more")
    assert read.holds_any([b"<|eos|>", b"<|bos|>"])
    assert read.holds_any([b"</s>", b"<|eos|>"])


def test_the_standard_library_is_that_of_the_running_python_without_its_tests() -> None:
    stdlib, files = Path(sysconfig.get_path("stdlib")), stdlib_files()
    assert {stdlib / "os.py", stdlib / "json" / "decoder.py"} <= set(files)
    assert all(file.suffix == ".py" for file in files)
    folders = {part for file in files for part in file.relative_to(stdlib).parts[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert len(read_corpus("python-stdlib", ()).documents) > 300


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.2, 0.5])
def test_files_of_one_package_of_the_library_are_on_one_side(fraction: float) -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    training, held_out = read_corpus("python-stdlib", ()).split(fraction)
    trained, held = (
        {document.path.relative_to(stdlib).parts[0].removesuffix(".py") for document in side}
        for side in (training, held_out)
    )
    assert len(held) > 1
    assert not trained & held


def test_of_the_library_a_fraction_of_the_bytes_is_held_out() -> None:
    """Packages are of very different size: a fraction of their names may be any share of the text."""
    whole = read_corpus("python-stdlib", ())
    total = sum(document.num_bytes for document in whole.documents)
    held = [whole.split(fraction)[1] for fraction in (0.02, 0.05, 0.1, 0.2, 0.5)]
    shares = [sum(document.num_bytes for document in side) / total for side in held]
    assert shares == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5], abs=0.06)
    assert all({*smaller} < {*larger} for smaller, larger in pairwise(held))


def test_a_text_that_two_packages_hold_is_not_trained_on_where_it_is_held_out(tmp_path: Path) -> None:
    def file(name: str, digest: str, package: str) -> Document:
        return Document(tmp_path / name, digest, 10, package)

    files = [file("a", "0" * 64, "one"), file("b", "0" * 64, "two"), file("c", "1" * 64, "two")]
    training, held_out = FileCorpus(tuple(files)).split(0.5)
    assert len(held_out) + len(training) == 2
    assert {document.digest for document in training}.isdisjoint(document.digest for document in held_out)


def test_an_unreadable_folder_is_not_an_empty_one(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, onerror, **__: object) -> list:
        onerror(PermissionError(13, "Permission denied", str(texts)))
        return []

    monkeypatch.setattr(text_files.os, "walk", refuse)
    with pytest.raises(InputError, match=r"^data.path: .* cannot be read \(Permission denied\)"):
        read_corpus("text", (str(texts),))
