"""`data.only_classes`: the samples of some classes, on the sides and with the numbers that they have among all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labelled_files import CLASSES, FRACTION, LABELLED, images, pairs_of, texts, write_folders, write_jsonl, write_saved
from raystage.config.schedule import parse
from raystage.config.stage import Data
from raystage.data.plan import StageText
from raystage.data.samples import open_samples
from raystage.errors import InputError
from raystage.objectives.table import Reads
from raystage.planning.build import make_plan
from raystage.planning.inputs import Sources
from raystage.sources.table import read_corpus

SOME = ("dog", "bird")
every_kind = pytest.mark.parametrize("kind", LABELLED)


def found(reads: Reads = "labels", **keys: Any) -> StageText:
    return Sources().data(Data.model_validate({"validation_fraction": FRACTION, **keys}), reads)


@every_kind
def test_what_is_read_of_some_classes_is_what_is_read_of_them_among_all(kind: str, tmp_path: Path) -> None:
    source, options, make, write = LABELLED[kind]
    path = (str(write(tmp_path / "a", make())),)
    whole = read_corpus(source, path, options)
    part = read_corpus(source, path, replace(options, only_classes=SOME))
    for all_of_them, read in zip(pairs_of(whole), pairs_of(part), strict=True):
        assert read == [(content, label) for content, label in all_of_them if label in SOME]
    assert part.samples(FRACTION).classes == CLASSES
    assert part.samples(FRACTION).train[1] == 0
    assert sum(part.samples(FRACTION).train) == len(part.split(FRACTION)[0]) < len(whole.split(FRACTION)[0])
    assert len(part) == 40


@every_kind
def test_separate_held_out_samples_are_chosen_too_and_no_copy_is_trained_on(kind: str, tmp_path: Path) -> None:
    source, options, make, write = LABELLED[kind]
    samples = make()
    relabelled = [(content, "cat") for content, _ in samples[:9]]
    paths = [str(write(tmp_path / name, part)) for name, part in (("a", samples), ("b", relabelled + samples[9:12]))]
    chosen = replace(options, only_classes=SOME, validation_path=(paths[1],))
    training, held_out = pairs_of(read_corpus(source, (paths[0],), chosen))
    assert [label for _, label in held_out] == [label for _, label in samples[9:12] if label in SOME]
    # The first nine are held out as cats, which are not read; their copies of other classes are not trained on either.
    assert len(training) == sum(label in SOME for _, label in samples[12:])


def test_a_selection_is_part_of_the_content_whatever_its_order(tmp_path: Path) -> None:
    keys = {"source": "images", "path": str(write_folders(tmp_path / "a", images()))}
    whole = found(**keys)
    assert found(**keys, only_classes=SOME).content == found(**keys, only_classes=SOME[::-1]).content != whole.content
    assert found(**keys, only_classes=CLASSES).content == found(**keys, only_classes=[]).content == whole.content
    assert found("images", **keys, only_classes=["cat"]).train.documents == whole.samples.train[1]


def test_streams_have_the_numbers_of_all_classes(tmp_path: Path) -> None:
    data = found(source="jsonl", path=str(write_jsonl(tmp_path / "a", texts())), only_classes=["dog"])
    streams = open_samples(data, cache=tmp_path / "cache")
    assert set(streams.train.labels.tolist()) == {2}
    assert (len(streams.train), len(streams.held_out)) == (data.train.documents, data.held_out.documents)


def test_whole_numbers_are_names(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {number}", "label": number % 10}) for number in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    keys = {"source": "jsonl", "path": str(tmp_path / "a.jsonl")}
    assert found(**keys, only_classes=[3, 7]).content == found(**keys, only_classes=["7", "3"]).content


def test_the_column_of_labels_is_read_where_an_objective_reads_images(tmp_path: Path) -> None:
    """For the choice alone: denoising some classes."""
    path = str(write_saved(tmp_path / "a", images()))
    keys = {"source": "huggingface", "path": path, "only_classes": ["cat"]}
    assert found("images", **keys).content == found("labels", **keys, image="image").content


def test_a_stage_of_some_classes_has_a_head_for_all(tmp_path: Path) -> None:
    path = str(write_folders(tmp_path / "a", images()))
    stages = [
        {"name": "old", "until": {"epochs": 1}, "data": {"only_classes": ["cat"]}},
        {"name": "new", "until": {"epochs": 1}, "data": {"only_classes": SOME}},
    ]
    content = {
        "name": "continual",
        "data": {"source": "images", "path": path, "validation_fraction": FRACTION},
        "model": {"family": "mlp", "num_layers": 1, "hidden_size": 8},
        "objective": "classification",
        "training": {"workers": 1, "global_batch_samples": 1},
        "stages": stages,
    }
    old, new = make_plan(parse(content)).staged.stages
    assert (old.shape.num_classes, new.shape.num_classes) == (3, 3)
    assert old.objective == new.objective
    assert old.duration == old.data.train.documents
    assert old.duration + new.duration == found(source="images", path=path).train.documents


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "keys", "said"),
    [
        ("labels", {"only_classes": ["cat", "wolf"]},
         r"data.only_classes: found 'wolf'; expected some of its classes \('bird', 'cat', 'dog'\)"),
        ("labels", {"only_classes": ["cow"], "classes": ["cow", *CLASSES]},
         "data.only_classes: found no sample of 'cow' in data.path; expected classes of which there are some"),
        ("labels", {"only_classes": ["cow", "cat"], "classes": ["cow", *CLASSES]},
         "data.path: found no sample of 'cow'; expected samples of every class"),
        ("text", {"only_classes": ["cat"]}, r"data.only_classes: found \['cat'\] with an objective that reads text; "),
    ],
)  # fmt: skip
def test_what_leaves_nothing_is_refused(reads: Reads, keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        found(reads, source="jsonl", path=str(write_jsonl(tmp_path / "a", texts())), **keys)


def test_images_without_classes_have_none_to_choose_from(tmp_path: Path) -> None:
    write_folders(tmp_path, images(30))
    with pytest.raises(InputError, match=r"^data.only_classes: found 'cat'; expected samples with classes"):
        found("images", source="images", path=str(tmp_path / "cat"), only_classes=["cat"])


def test_held_out_samples_of_other_classes_alone_are_refused(tmp_path: Path) -> None:
    paths = [
        str(write_jsonl(tmp_path / name, part)) for name, part in (("a", texts()), ("b", [("another text", "dog")]))
    ]
    keys = {"source": "jsonl", "path": paths[0], "validation_path": [paths[1]], "only_classes": ["cat"]}
    with pytest.raises(InputError, match=r"found no sample of 'cat' in data\.validation_path"):
        Sources().data(Data.model_validate(keys), "labels")


def test_a_fraction_that_holds_out_none_of_some_classes_is_refused_with_one_that_does(tmp_path: Path) -> None:
    keys = {"source": "jsonl", "path": str(write_jsonl(tmp_path / "a", texts())), "only_classes": ["cat"]}
    with pytest.raises(InputError, match=r"holds out none of 20 documents; .*, or for example 0\.\d"):
        found(**keys, validation_fraction=0.001)


@pytest.mark.parametrize("written", ["cat", ["cat", "cat"], [1, "1"]])
def test_the_key_is_a_list_of_different_names(written: object) -> None:
    with pytest.raises(ValueError, match="expected a list of different names of classes"):
        Data.model_validate({"only_classes": written})
