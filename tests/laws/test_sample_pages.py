"""The sections that docs/data.md shows of labelled samples: each is planned, with files such as its comments name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from labelled_files import images, texts, write_folders, write_jsonl, write_saved
from pages import BLOCKS, Block
from raystage.config.schedule import parse
from raystage.planning.build import make_plan

SECTIONS = [block for block in BLOCKS if block.kind == "text" and block.text.startswith("data:\n")]
MODELS = {
    "text": {"family": "bert", "hidden_size": 16, "num_heads": 2, "num_layers": 1, "context_length": 32},
    "images": {"family": "vit", "hidden_size": 16, "num_heads": 2, "num_layers": 1, "patch_size": 4},
}


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_jsonl(tmp_path / "lines", texts())
    lines = "".join((tmp_path / "lines" / name).read_text() for name in ("a.jsonl", "b.jsonl"))
    (tmp_path / "my").mkdir()
    (tmp_path / "my/reviews.jsonl").write_text(lines.replace('"label"', '"stars"'))
    write_folders(tmp_path / "my/pets", images(shape=(40, 36, 3)))
    write_saved(tmp_path / "my/dataset", images())
    names = {"image": "photo", "label": "kind"}
    file = tmp_path / "my/dataset/data.arrow"
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    with pa.OSFile(str(file), "wb") as out:
        renamed = table.rename_columns([names[name] for name in table.column_names])
        with pa.ipc.new_stream(out, renamed.schema) as stream:
            stream.write_table(renamed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", SECTIONS, ids=[yaml.safe_load(one.text)["data"]["source"] for one in SECTIONS])
def test_every_section_of_samples_that_is_shown_can_be_planned(block: Block, user_folder: Path) -> None:
    data = yaml.safe_load(block.text)["data"]
    schedule = {
        "name": "shown",
        "data": {**data, "validation_fraction": 0.3},
        "model": MODELS["text" if data["source"] == "jsonl" else "images"],
        "objective": "classification",
        "training": {"workers": 1, "global_batch_samples": 4},
        "stages": [{"name": "only", "until": {"samples": 40}}],
    }
    (stage,) = make_plan(parse(schedule, user_folder)).staged.stages
    assert stage.data.samples.num_classes == (10 if data["source"] == "arrays" else 3)


def test_all_kinds_are_shown() -> None:
    assert {yaml.safe_load(one.text)["data"]["source"] for one in SECTIONS} == {
        "jsonl", "images", "huggingface", "arrays",
    }  # fmt: skip
