"""The laws of labelled samples, for every source that gives them: what is read, split, counted and hashed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from labelled_files import CLASSES, FRACTION, LABELLED, Pair, pairs_of
from raystage.errors import InputError
from raystage.files import file_facts
from raystage.sources import row_cache, row_index
from raystage.sources.corpus import Corpus
from raystage.sources.table import read_corpus

every_kind = pytest.mark.parametrize("kind", LABELLED)


def written(kind: str, folder: Path, samples: list[Pair] | None = None) -> Corpus:
    source, options, make, write = LABELLED[kind]
    return read_corpus(source, (str(write(folder, samples or make())),), options)


def expected_of(kind: str, samples: list[Pair] | None = None) -> list[tuple[bytes, str]]:
    found = samples or LABELLED[kind][2]()
    return [(one.encode() if isinstance(one, str) else one.tobytes(), label) for one, label in found]


@every_kind
def test_every_sample_is_read_once_with_its_class(kind: str, tmp_path: Path) -> None:
    training, held_out = pairs_of(written(kind, tmp_path / "a"))
    assert sorted(training + held_out) == sorted(expected_of(kind))
    assert min(len(training), len(held_out)) > 8


@every_kind
def test_the_digest_of_the_content_decides_the_side_whatever_the_label(kind: str, tmp_path: Path) -> None:
    _, held_out = pairs_of(written(kind, tmp_path / "a"))
    for content, label in expected_of(kind):
        whole = content if LABELLED[kind][2]()[0][0].__class__ is str else b"image (1, 8, 8)" + content
        assert ((content, label) in held_out) == (int(sha256(whole).hexdigest()[:8], 16) / 2**32 < FRACTION)


@every_kind
def test_what_a_plan_knows_of_samples(kind: str, tmp_path: Path) -> None:
    corpus = written(kind, tmp_path / "a")
    found, (training, held_out) = corpus.samples(FRACTION), pairs_of(corpus)
    assert found.classes == CLASSES
    for counts, side in ((found.train, training), (found.held_out, held_out)):
        assert counts == tuple([label for _, label in side].count(name) for name in CLASSES)
    assert found.image == (None if isinstance(LABELLED[kind][2]()[0][0], str) else (1, 8, 8))
    assert found.majority == max(found.held_out) / len(held_out)
    assert [len(side) for side in corpus.split(FRACTION)] == [len(training), len(held_out)]


@every_kind
def test_another_label_is_another_content_on_the_same_sides(kind: str, tmp_path: Path) -> None:
    _, _, make, _ = LABELLED[kind]
    before = written(kind, tmp_path / "a")
    changed = make()
    changed[7] = (changed[7][0], CLASSES[0])
    after = written(kind, tmp_path / "b", changed)
    assert after.fingerprint != before.fingerprint
    contents = [{content for content, _ in pairs_of(corpus)[1]} for corpus in (before, after)]
    assert contents[0] == contents[1]


@every_kind
def test_the_fingerprint_does_not_depend_on_the_place(kind: str, tmp_path: Path) -> None:
    source, options, _, _ = LABELLED[kind]
    before = written(kind, tmp_path / "a")
    pairs = pairs_of(before)
    moved = shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    after = read_corpus(source, (str(moved),), options)
    assert (after.fingerprint, pairs_of(after)) == (before.fingerprint, pairs)


@every_kind
def test_no_copy_of_a_held_out_sample_is_trained_on_whatever_its_label(kind: str, tmp_path: Path) -> None:
    samples = LABELLED[kind][2]()
    both = samples + [(content, CLASSES[1]) for content, _ in samples]
    training, held_out = pairs_of(written(kind, tmp_path / "a", both))
    assert len(training) + len(held_out) == 120
    assert not {content for content, _ in training} & {content for content, _ in held_out}


@every_kind
def test_separate_samples_are_held_out(kind: str, tmp_path: Path) -> None:
    source, options, make, write = LABELLED[kind]
    samples = make()
    whole, apart = write(tmp_path / "a", samples), write(tmp_path / "b", samples[:9])
    corpus = read_corpus(source, (str(whole),), replace(options, validation_path=(str(apart),)))
    training, held_out = pairs_of(corpus)
    assert sorted(held_out) == sorted(expected_of(kind, samples[:9]))
    assert sorted(training) == sorted(expected_of(kind, samples[9:]))


@every_kind
def test_classes_are_numbered_as_the_user_says(kind: str, tmp_path: Path) -> None:
    source, options, make, write = LABELLED[kind]
    path, declared = str(write(tmp_path / "a", make())), CLASSES[::-1]
    corpus = read_corpus(source, (path,), replace(options, classes=declared))
    assert corpus.samples(FRACTION).classes == declared
    assert sorted(chain(*pairs_of(corpus))) == sorted(expected_of(kind))
    assert corpus.fingerprint != read_corpus(source, (path,), options).fingerprint
    with pytest.raises(InputError, match=r"^data\.(label|classes): .*'dog'; expected one of data.classes \('bird', "):
        read_corpus(source, (path,), replace(options, classes=("bird", "cat")))


@every_kind
def test_a_kept_index_is_as_good_as_a_new_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, options, make, write = LABELLED[kind]
    path = write(tmp_path / "a", make())
    monkeypatch.setattr(file_facts, "FRESH_SECONDS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(row_cache, "SMALL_BYTES", 0)
    before = read_corpus(source, (str(path),), options)
    monkeypatch.setattr(row_index, "_hashed", lambda *_: pytest.fail("hashed again"))
    after = read_corpus(source, (str(path),), options)
    assert (after.fingerprint, after.samples(FRACTION)) == (before.fingerprint, before.samples(FRACTION))
    assert pairs_of(after) == pairs_of(before)


@every_kind
def test_several_processes_index_what_one_does(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, options, make, write = LABELLED[kind]
    path = str(write(tmp_path / "a", make()))
    alone = read_corpus(source, (path,), options)
    monkeypatch.setattr(row_index, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(row_index, "num_cpus", lambda: 2)
    together = read_corpus(source, (path,), options)
    assert (together.fingerprint, pairs_of(together)) == (alone.fingerprint, pairs_of(alone))


@every_kind
def test_a_label_that_changes_in_between_is_noticed(kind: str, tmp_path: Path) -> None:
    source, options, make, write = LABELLED[kind]
    samples = make()
    corpus = read_corpus(source, (str(write(tmp_path / "a", samples)),), options)
    corpus.fingerprint  # noqa: B018
    shutil.rmtree(tmp_path / "a")
    write(tmp_path / "a", [(content, CLASSES[0] if label == CLASSES[1] else label) for content, label in samples])
    with pytest.raises(InputError, match=r"changed after it was planned with|cannot be read|found no file"):
        pairs_of(corpus)


@pytest.mark.parametrize("labels", [[3, 1, 2], [10, 9, 2], [-1, 1, 5]])
def test_numbers_are_classes_in_their_order(labels: list[int], tmp_path: Path) -> None:
    samples = [(f"text {number}", labels[number % 3]) for number in range(30)]
    corpus = written("jsonl", tmp_path / "a", samples)
    assert corpus.samples(FRACTION).classes == tuple(map(str, sorted(labels)))


def test_the_index_of_a_sample_takes_sixteen_bytes(tmp_path: Path) -> None:
    corpus = written("arrays", tmp_path / "a")
    for file in corpus.files:
        arrays = file.digests, file.lengths, file.samples.labels
        assert sum(one.nbytes for one in arrays) == 16 * len(file.digests)
        assert all(isinstance(one, np.ndarray) for one in arrays)
