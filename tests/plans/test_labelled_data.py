"""Samples as a plan finds them: what is read follows from the objective, and what cannot be learned is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labelled_files import CLASSES, LABELLED, images, texts, write_folders, write_jsonl, write_npz, write_parquet
from raystage.config.schedule import parse
from raystage.config.stage import Data
from raystage.data.plan import DataPlan, StageText
from raystage.data.samples import open_samples
from raystage.data.tokenizer_names import BYTE_TOKENIZER, NO_TOKENIZER
from raystage.errors import InputError
from raystage.objectives.table import Reads
from raystage.planning.inputs import Sources


def found(reads: Reads, **keys: Any) -> StageText:
    return Sources().data(Data.model_validate({"validation_fraction": 0.3, **keys}), reads)


@pytest.mark.parametrize("kind", LABELLED)
def test_every_source_of_labels_is_planned_and_opened(kind: str, tmp_path: Path) -> None:
    source, options, make, write = LABELLED[kind]
    data = found("labels", source=source, path=str(write(tmp_path / "a", make())), image=options.image)
    assert data.samples.classes == CLASSES
    assert sum(data.samples.train) == data.train.documents
    assert data.tokenizer == (NO_TOKENIZER if data.samples.image else BYTE_TOKENIZER)
    assert len(open_samples(data, cache=tmp_path / "cache").held_out) == data.held_out.documents


def test_images_are_the_same_data_with_and_without_an_objective_that_reads_their_labels(tmp_path: Path) -> None:
    keys = {"source": "images", "path": str(write_folders(tmp_path / "a", images()))}
    assert found("images", **keys).content == found("labels", **keys).content


def test_what_is_asked_of_samples_is_part_of_their_content(tmp_path: Path) -> None:
    keys = {"source": "arrays", "path": str(write_npz(tmp_path / "a", images()))}
    asked = ({}, {"resize": 4}, {"channels": 3}, {"classes": list(CLASSES[::-1])}, {"validation_fraction": 0.4})
    assert len({found("labels", **{**keys, **more}).content for more in asked}) == 5
    assert found("labels", **keys, resize=8).content == found("labels", **keys).content


def test_text_read_as_text_has_no_samples(tmp_path: Path) -> None:
    data = found("text", source="jsonl", path=str(write_jsonl(tmp_path / "a", texts())))
    assert data.samples is None
    assert data.content != found("labels", source="jsonl", path=data.path).content


def test_a_tokenizer_has_nothing_to_do_with_images(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path / "a", images()))
    data = found("images", source="arrays", path=path, tokenizer="org/model", end_token="[SEP]")
    assert replace(data, text=None) == replace(found("images", source="arrays", path=path), text=None)


def test_names_of_packages_are_no_paths(tmp_path: Path) -> None:
    content = {"name": "a", "stages": [{"name": "one", "until": {"tokens": 10}}]}
    data = {"source": "arrays", "path": ["sklearn-digits", "my.npz"]}
    schedule = parse({**content, "data": data}, tmp_path)
    assert schedule.data.path[0] == "sklearn-digits"
    assert Path(schedule.data.path[1]).is_absolute()


# --- bad data -----------------------------------------------------------------------------------


def mixture(one: Path, other: Path, **keys: Any) -> dict[str, Any]:
    entries = (("a", one, 0.5), ("b", other, "rest"))
    return {
        "mixture": [
            {"name": name, "source": "arrays", "path": str(path), "weight": weight, "validation_fraction": 0.3, **keys}
            for name, path, weight in entries
        ]
    }


def planned(content: dict[str, Any]) -> StageText:
    return Sources().data(Data.model_validate(content), "labels")


def test_the_sources_of_a_mixture_have_the_same_samples(tmp_path: Path) -> None:
    one = write_npz(tmp_path / "a", images())
    data = planned(mixture(one, write_npz(tmp_path / "b", images(seed=1))))
    assert data.samples.classes == CLASSES
    fewer = [(pixels, label) for pixels, label in images(seed=2) if label != CLASSES[0]]
    other = write_npz(tmp_path / "c", fewer)
    with pytest.raises(
        InputError,
        match=r"^data.mixture\[1\].path: found 2 classes \('cat', 'dog'\), but 3 classes .* in 'a'",
    ):
        planned(mixture(one, other))
    with pytest.raises(InputError, match=r"^data.mixture\[1\].path: found no sample of 'bird'"):
        planned(mixture(one, other, classes=list(CLASSES)))
    large = write_npz(tmp_path / "d", images(shape=(9, 9)))
    with pytest.raises(InputError, match=r"^data.mixture\[1\].path: found images of 9 x 9 pixels .*, but images"):
        planned(mixture(one, large))
    assert planned(mixture(one, large, resize=8)).samples.image == (1, 8, 8)


@pytest.mark.parametrize(
    ("reads", "keys", "said"),
    [
        ("labels", {"label": "kind"}, "data.label: .* has no column 'kind'"),
        ("text", {"label": "label"}, "data.label: found 'label' with an objective that reads text"),
        ("labels", {"resize": 8}, "data.resize: found 8 for text; expected data.image"),
        ("images", {}, "data.image: .* has no column 'image'; found 'text', 'label'"),
        ("labels", {"classes": ["bird", "cat", "dog", "wolf"]}, "data.path: found no sample of 'wolf'"),
    ],
)
def test_what_a_source_does_not_have_is_named(reads: Reads, keys: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        found(reads, source="parquet", path=str(write_parquet(tmp_path / "a", texts())), **keys)


def test_keys_of_other_sources_are_refused(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a", texts()))
    with pytest.raises(InputError, match=r"^data.image: found 'photo' for source jsonl; expected it with source: parq"):
        found("labels", source="jsonl", path=path, image="photo")
    with pytest.raises(ValueError, match="found both image and field; expected one of them"):
        found("labels", source="parquet", path=path, image="photo", field="text")
    for classes in (["one"], ["a", "a"], "a"):
        with pytest.raises(ValueError, match="expected a list of two or more different names of classes"):
            found("labels", source="jsonl", path=path, classes=classes)


def test_a_plan_of_text_is_no_plan_of_samples() -> None:
    assert isinstance(found("text"), DataPlan)
    assert found("text").samples is None
