"""Data sets of Hugging Face: saved folders, and a cache laid out as the Hub's own. There is no network."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from factories import make_schedule
from raystage.config.schedule import Schedule, parse
from raystage.data.plan import DataPlan
from raystage.data.tokens import open_streams
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.sources import hub_files, huggingface
from raystage.sources.corpus import Corpus, SourceOptions
from raystage.sources.hub_files import choose
from raystage.sources.table import read_corpus
from row_files import TEXTS, write_jsonl, write_parquet, write_saved

OLD, NEW = "a" * 40, "b" * 40


def texts_of(corpus: Corpus, fraction: float = 0.3) -> tuple[list[str], list[str]]:
    found = [document for piece in corpus.pieces(fraction) for document in piece.read()]
    return tuple([one.content.decode() for one in found if one.is_held_out is side] for side in (False, True))


def schedule(folder: Path, path: str, **data: object) -> Schedule:
    content = make_schedule(folder).content()
    content["data"] = {"source": "huggingface", "path": path, **data}
    return parse(content, folder)


def planned(folder: Path, path: str, **data: object) -> DataPlan:
    return make_plan(schedule(folder, path, **data)).staged.stages[0].data


# --- saved folders


@pytest.mark.parametrize("piece_bytes", [2**26, 1000])
def test_a_saved_data_set_is_read(piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "PIECE_BYTES", piece_bytes)
    corpus = read_corpus("huggingface", (str(write_saved(tmp_path / "saved")),))
    training, held_out = texts_of(corpus)
    assert sorted(training + held_out) == sorted(TEXTS)
    as_rows = [
        write_parquet(tmp_path / f"rows/{name}.parquet", part) for name, part in (("a", TEXTS[:30]), ("b", TEXTS[30:]))
    ]
    assert corpus.fingerprint == read_corpus("parquet", tuple(map(str, as_rows))).fingerprint


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    for split, texts in (("train", TEXTS[:40]), ("validation", TEXTS[30:])):
        write_saved(folder / split, texts, split=split)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    assert len(read_corpus("huggingface", (str(folder),))) == 40
    assert len(read_corpus("huggingface", (str(folder),), SourceOptions(split="validation"))) == 30
    with pytest.raises(InputError, match=r"^data.split: found no split 'test' in .*; there are 'train', 'validation'"):
        read_corpus("huggingface", (str(folder),), SourceOptions(split="test"))
    data = planned(tmp_path, "saved", validation_split="validation")
    assert (data.train.documents, data.held_out.documents) == (30, 30)  # what is held out, too, is not trained on
    assert data.facts()["validation_fraction"] is None
    streams = open_streams(data, 257, tmp_path / "cache")
    assert len(streams.held_out) == sum(len(text) + 1 for text in TEXTS[30:])


def damage(folder: Path, **changes: object) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_data_files": []}, "found no list of Arrow files in state.json; expected what save_to_disk wrote"),
        ({"_data_files": [{"filename": "../a"}]}, "found no list of Arrow files"),
        ({"_indices_files": [{"filename": "i"}]}, "is a selection of rows; expected flatten_indices"),
        ({"_data_files": [{"filename": "none.arrow"}]}, "none.arrow cannot be read"),
        ({"_data_files": [{"filename": "dataset_info.json"}]}, "is no stream of Arrow data, or damaged"),
    ],
)
def test_what_is_no_saved_data_set_is_named(changes: dict, said: str, tmp_path: Path) -> None:
    damage(write_saved(tmp_path / "saved"), **changes)
    with pytest.raises(InputError) as refused:
        read_corpus("huggingface", (str(tmp_path / "saved"),))
    assert refused.value.key == "data.path"
    assert said in str(refused.value)


def test_a_folder_without_a_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: '.*' is no saved data set \(it has no state.json\)"):
        read_corpus("huggingface", (str(tmp_path),))
    with pytest.raises(InputError, match=r"^data.path: found 's3://b/c', no folder here; expected a folder that"):
        planned(tmp_path, "s3://b/c")


# --- the Hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, and a machine that is not online."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def commit(cache: Path, name: str, revision: str, ref: str = "main") -> Path:
    """The folder of a commit of a data set, which `ref` means from now on."""
    place = cache / f"datasets--{name.replace('/', '--')}"
    (place / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (place / "refs" / ref).write_text(revision)
    folder = place / "snapshots" / revision
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# a data set")
    return folder


def test_a_name_is_pinned_to_its_commit(cache: Path, tmp_path: Path) -> None:
    write_parquet(commit(cache, "org/data", OLD) / "data/train-00000-of-00001.parquet", TEXTS)
    data = planned(tmp_path, "org/data")
    assert data.path == (f"org/data@{OLD}",)
    assert data.train.documents + data.held_out.documents == 60
    write_parquet(commit(cache, "org/data", NEW) / "data/train-00000-of-00001.parquet", TEXTS[:50])
    assert planned(tmp_path, "org/data").path == (f"org/data@{NEW}",)
    again = planned(tmp_path, f"org/data@{OLD}")
    assert (again.path, again.fingerprint) == (data.path, data.fingerprint)
    assert open_streams(data, 257, tmp_path / "cache").train.size == data.train.num_bytes + data.train.documents


def test_splits_and_subsets_of_the_hub(cache: Path, tmp_path: Path) -> None:
    folder = commit(cache, "org/data", OLD)
    declared = "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/*.jsonl\n"
    declared += (
        "  - split: validation\n    path: [en/held/*.jsonl]\n- config_name: de\n  data_files: de/*.jsonl\n---\ntext"
    )
    (folder / "README.md").write_text(declared)
    write_jsonl(folder / "en/a.jsonl", TEXTS[:40])
    write_jsonl(folder / "en/held/b.jsonl", TEXTS[40:])
    write_jsonl(folder / "de/a.jsonl", TEXTS[:20])
    with pytest.raises(InputError, match=r"^data.subset: found none; expected one of .* subsets: 'en', 'de'"):
        planned(tmp_path, "org/data")
    data = planned(tmp_path, "org/data", subset="en", validation_split="validation")
    assert (data.train.documents, data.held_out.documents) == (40, 20)
    english = planned(tmp_path, "org/data", subset="en", validation_fraction=0.5)
    assert english.train.documents + english.held_out.documents == 40
    assert planned(tmp_path, "org/data", subset="de", validation_fraction=0.5).train.documents < 20
    with pytest.raises(InputError, match=r"^data.split: found no Parquet or JSON-lines files for the split 'test'"):
        planned(tmp_path, "org/data", subset="en", split="test")


def test_what_the_hub_converted_is_read_where_a_repository_has_no_rows(cache: Path, tmp_path: Path) -> None:
    (commit(cache, "org/old", OLD) / "old.py").write_text("raise SystemExit('a script of a data set ran')")
    converted = commit(cache, "org/old", NEW, hub_files.CONVERTED)
    write_parquet(converted / "default/train/0000.parquet", TEXTS)
    data = planned(tmp_path, "org/old")
    assert data.path == (f"org/old@{NEW}",)
    assert data.train.documents + data.held_out.documents == 60


def test_an_incomplete_copy_is_refused(cache: Path, tmp_path: Path) -> None:
    write_parquet(commit(cache, "org/data", OLD) / "data/train-00001-of-00003.parquet", TEXTS)
    with pytest.raises(InputError, match=r"^data.path: found 1 of the 3 files 'data/train' of 'org/data@a+' in this"):
        planned(tmp_path, "org/data")


def test_a_name_that_nobody_knows_is_one_message(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: found 'org/none', no folder here, and the hub did not give it"):
        planned(tmp_path, "org/none")


@pytest.mark.parametrize(
    ("names", "split", "subset", "chosen"),
    [
        (["a.parquet", "b.jsonl.gz", "notes.txt"], "train", None, ["a.parquet", "b.jsonl.gz"]),
        (["a.parquet"], "test", None, []),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], "validation", None, ["dev.jsonl"]),
        (["data/train-0.parquet", "data/test-0.parquet"], "train", None, ["data/train-0.parquet"]),
        (["training/a.parquet", "constraint/b.parquet"], "train", None, ["training/a.parquet"]),
        (["en/train/0.parquet", "de/train/0.parquet"], "train", "de", ["de/train/0.parquet"]),
        (["default/sft/0.parquet", "default/train/0.parquet"], "sft", None, ["default/sft/0.parquet"]),
        (["eval/a.parquet"], "train", None, []),
    ],
)
def test_files_belong_to_splits_by_their_names(
    names: list[str], split: str, subset: str | None, chosen: list[str]
) -> None:
    assert choose(names, {}, subset, split) == chosen


@pytest.mark.parametrize("readme", ["---\n- [\n---", "---\nconfigs: 3\n---", "no dashes", "---", "---\n---\n"])
def test_a_readme_that_declares_nothing_is_no_matter(readme: str, cache: Path, tmp_path: Path) -> None:
    folder = commit(cache, "org/data", OLD)
    (folder / "README.md").write_text(readme)
    write_parquet(folder / "a.parquet", TEXTS)
    assert planned(tmp_path, "org/data").path == (f"org/data@{OLD}",)
