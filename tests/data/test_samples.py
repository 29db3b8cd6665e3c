"""Samples on a worker: what is kept on disk, what a batch holds, and that it follows from the number alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from factories import save_words
from labelled_files import CLASSES, LABELLED, images, planned, texts, write_jsonl, write_npz
from raystage.data import token_cache
from raystage.data.plan import DataPlan
from raystage.data.reading import Leg, reading_after
from raystage.data.samples import MixedSamples, SampleReader, SampleStreams, StoredSamples, open_samples
from raystage.data.token_cache import open_index
from raystage.data.token_index import cache_folder
from raystage.data.tokenizer_names import tokenizer_fingerprint
from raystage.data.tokens import epoch_order
from raystage.errors import InputError
from raystage.sources.corpus import SourceOptions

every_kind = pytest.mark.parametrize("kind", LABELLED)
LENGTH = 40
END = 256  # of a document, for the byte tokenizer


def data_of(kind: str, folder: Path) -> DataPlan:
    source, options, make, write = LABELLED[kind]
    return planned(source, str(write(folder, make())), options)


def opened(kind: str, tmp_path: Path) -> SampleStreams:
    return open_samples(data_of(kind, tmp_path / "a"), cache=tmp_path / "cache")


def named(samples: dict[str, np.ndarray]) -> list[tuple[bytes, str]]:
    """What is in a batch, as files have it, with the names of the classes."""
    labels = [CLASSES[label] for label in samples["label"]]
    if "image" in samples:
        return [(one.tobytes(), label) for one, label in zip(samples["image"], labels, strict=True)]
    whole = [tokens[mask == 1] for tokens, mask in zip(samples["tokens"], samples["mask"], strict=True)]
    assert all(tokens[-1] == END for tokens in whole)
    return [(bytes(tokens[:-1].tolist()), label) for tokens, label in zip(whole, labels, strict=True)]


@every_kind
def test_every_sample_is_on_one_side_with_its_class(kind: str, tmp_path: Path) -> None:
    streams = opened(kind, tmp_path)
    found = [named(side.spread(100, LENGTH)) for side in (streams.train, streams.held_out)]
    expected = [(one.encode() if isinstance(one, str) else one.tobytes(), name) for one, name in LABELLED[kind][2]()]
    assert sorted(found[0] + found[1]) == sorted(expected)
    assert (len(streams.train), len(streams.held_out)) == tuple(map(len, found))
    assert (streams.index.train_samples, streams.index.held_out_samples) == tuple(map(len, found))


@every_kind
def test_sample_n_follows_from_seed_and_n(kind: str, tmp_path: Path) -> None:
    """Read in one piece, by several workers and in any order."""
    stored = opened(kind, tmp_path).train
    size, whole = len(stored), SampleReader(stored, 5, LENGTH).read(0, 3 * len(stored))
    order = np.concatenate([epoch_order(5, epoch, size) for epoch in range(3)])
    expected = [stored.samples([index], LENGTH) for index in order]
    for name, values in whole.items():
        assert np.array_equal(values, np.concatenate([one[name] for one in expected]))
    for workers in (2, 3):
        for worker in range(workers):
            reader = SampleReader(stored, 5, LENGTH)
            for first in reversed(range(worker, 3 * size, 7 * workers)):
                for name, values in reader.read(first, 1).items():
                    assert np.array_equal(values[0], whole[name][first])


@every_kind
def test_every_epoch_reads_each_sample_once_in_an_order_of_its_own(kind: str, tmp_path: Path) -> None:
    stored = opened(kind, tmp_path).train
    reader = SampleReader(stored, seed=1)
    epochs = [[reader.place(epoch * len(stored) + number)[1] for number in range(len(stored))] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(len(stored))) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_what_a_batch_of_images_holds(tmp_path: Path) -> None:
    pairs = images(12, (6, 4, 3))
    data = planned("arrays", str(write_npz(tmp_path / "a", pairs)), SourceOptions())
    found = SampleReader(open_samples(data, cache=tmp_path / "cache").train, seed=0).read(3, 5)
    assert {name: (values.dtype.name, values.shape) for name, values in found.items()} == {
        "image": ("uint8", (5, 3, 6, 4)),
        "label": ("int64", (5,)),
    }
    without_classes = StoredSamples(np.zeros((3, 1, 2, 2), np.uint8), None)
    assert SampleReader(without_classes, seed=0).read(0, 2).keys() == {"image"}


def test_what_a_batch_of_texts_holds(tmp_path: Path) -> None:
    stored = opened("jsonl", tmp_path).train
    found = SampleReader(stored, 0, LENGTH).read(0, 4)
    assert {name: (values.dtype.name, values.shape) for name, values in found.items()} == {
        "tokens": ("int64", (4, LENGTH)),
        "mask": ("uint8", (4, LENGTH)),
        "label": ("int64", (4,)),
    }
    for tokens, mask in zip(found["tokens"], found["mask"], strict=True):
        count = int(mask.sum())
        assert mask.tolist() == [1] * count + [0] * (LENGTH - count)
        assert (tokens[count - 1], set(tokens[count:])) == (END, {0})


def test_a_long_text_loses_its_end_and_keeps_the_end_token(tmp_path: Path) -> None:
    pairs = [("x" * (20 + number), CLASSES[number % 3]) for number in range(40)]
    data = planned("jsonl", str(write_jsonl(tmp_path / "a", pairs)))
    train = open_samples(data, cache=tmp_path / "cache").train
    lengths = train.spread(100, 100)["mask"].sum(1)
    assert train.longer_than(30) == (lengths > 30).sum() > 0
    short = train.spread(100, 30)
    assert short["mask"].sum(1).tolist() == np.minimum(lengths, 30).tolist()
    assert {int(tokens[count - 1]) for tokens, count in zip(short["tokens"], short["mask"].sum(1), strict=True)} == {
        END
    }
    assert opened("images", tmp_path / "b").train.longer_than(1) == 0


def test_a_tokenizer_that_begins_texts_begins_samples(tmp_path: Path) -> None:
    """As BERT's: [CLS] words [SEP]. The classes are those of the tokens that a plain tokenizer has, too."""
    ids = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "sample": 3, "kind": 4}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bert = PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    bert.save_pretrained(tmp_path / "bert")
    plain = planned("jsonl", str(write_jsonl(tmp_path / "a", texts())))
    for folder, end, begins in (
        (tmp_path / "bert", "[SEP]", [1, 3]),
        (save_words(tmp_path / "w", "sample"), None, [2]),
    ):
        name = str(folder)
        data = replace(plain, tokenizer=name, tokenizer_fingerprint=tokenizer_fingerprint(name), end_token=end)
        train = open_samples(data, 5, tmp_path / "cache").train
        (tokens,) = train.spread(1, 9)["tokens"]
        (mask,) = train.spread(1, 9)["mask"]
        assert tokens[: len(begins)].tolist() == begins
        assert tokens[mask.sum() - 1] == (2 if end else 1)
        with pytest.raises(InputError, match=r"^model.vocab_size: found 2; expected at least"):
            open_samples(data, 2, tmp_path / "cache")


def test_the_held_out_samples_of_an_evaluation_are_spread_evenly(tmp_path: Path) -> None:
    held_out = opened("arrays", tmp_path).held_out
    size = len(held_out)
    some, every = held_out.spread(5, 0), held_out.spread(1000, 0)
    assert np.array_equal(some["image"], every["image"][[number * size // 5 for number in range(5)]])
    assert len(every["image"]) == size


# --- mixtures -----------------------------------------------------------------------------------


def test_a_mixture_reads_every_sample_of_a_source_before_it_repeats_one(tmp_path: Path) -> None:
    """Over two stages with other weights: each source is read in its own order, and goes on where it stopped."""
    stored = {name: opened(kind, tmp_path / name).train for name, kind in (("a", "images"), ("b", "arrays"))}
    first = (("a", Fraction(1, 4)), ("b", Fraction(3, 4)))
    second = (("a", Fraction(2, 3)), ("b", Fraction(1, 3)))
    readings = [reading_after([], 1, first, True), reading_after([Leg(30, first, True)], 1, second, True)]
    sources = {name: SampleReader(one, seed=7) for name, one in stored.items()}
    stages = [MixedSamples(reading, sources, seed=7) for reading in readings]
    read = [(stages[number >= 30], number) for number in range(60)]
    found: dict[str, list[int]] = {"a": [], "b": []}
    for stage, number in read:
        content, index = stage.reading.at(number)
        found[content].append(sources[content].place(index)[1])
        for name, values in stage.read(number, 1).items():
            assert np.array_equal(values, stored[content].samples(found[content][-1:], 0)[name])
    for name, places in found.items():
        size = len(stored[name])
        expected = np.concatenate([epoch_order(7, epoch, size) for epoch in range(2)])
        assert places == expected[: len(places)].tolist()
    for stage, first, count in ((stages[0], 0, 30), (stages[1], 31, 17)):  # many at once, as one by one
        for name, values in stage.read(first, count).items():
            assert np.array_equal(values, np.concatenate([stage.read(first + n, 1)[name] for n in range(count)]))
    assert Counter(readings[0].at(number)[0] for number in range(30)) == {"a": 8, "b": 22}


# --- what a machine keeps -----------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json"}


@every_kind
def test_several_processes_keep_the_bytes_that_one_does(kind: str, tmp_path: Path) -> None:
    data = data_of(kind, tmp_path / "a")
    folders = [cache_folder(data, tmp_path / name) for name in ("one", "two")]
    for workers, folder in enumerate(folders, 1):
        open_index(data, folder, workers)
    assert files_of(folders[0]) == files_of(folders[1])
    sides = ["labels", "lengths"]
    expected = {f"{side}{part}.bin" for side in ("train", "held_out") for part in ("", *(f"_{one}" for one in sides))}
    assert files_of(folders[0]).keys() == expected


@every_kind
def test_samples_are_made_once_for_a_machine(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(kind, tmp_path / "a")
    before = open_samples(data, cache=tmp_path / "cache")
    monkeypatch.setattr(token_cache, "_make", lambda *_: pytest.fail("made again"))
    after = open_samples(data, cache=tmp_path / "cache")
    assert (after.index, len(after.train)) == (before.index, len(before.train))
    for name, values in before.train.spread(99, LENGTH).items():
        assert np.array_equal(values, after.train.spread(99, LENGTH)[name])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-4])])
@pytest.mark.parametrize("file", ["train.bin", "held_out_labels.bin", "train_lengths.bin"])
def test_a_damaged_file_is_made_anew(damage: Callable[[Path], object], file: str, tmp_path: Path) -> None:
    data = data_of("jsonl", tmp_path / "a")
    folder = cache_folder(data, tmp_path / "cache")
    open_index(data, folder)
    whole = files_of(folder)
    damage(folder / file)
    open_samples(data, cache=tmp_path / "cache")
    assert files_of(folder) == whole


@every_kind
def test_other_samples_than_were_planned_with_are_refused(kind: str, tmp_path: Path) -> None:
    _, _, make, write = LABELLED[kind]
    data = data_of(kind, tmp_path / "a")
    changed = make()
    changed[0] = (changed[0][0], CLASSES[2])
    other = replace(data, path=(str(write(tmp_path / "b", changed)),))
    with pytest.raises(InputError, match="is not the one that was planned with"):
        open_samples(other, cache=tmp_path / "cache")
