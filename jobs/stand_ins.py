"""Write random tokens in place of those that a recipe reads, so that it can be planned before there is any data:

    python jobs/stand_ins.py jobs/schedules/recipes/smollm3.yaml FOLDER
    cd FOLDER && raystage plan smollm3.yaml

FOLDER gets a copy of the schedule and small files at the paths that it names. Shapes, FLOPs, lengths and rates of the
plan are those of the recipe. How often it reads each text, and the keys of its stages, are not.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from raystage.config.yaml_file import read_mapping

DOCUMENT_TOKENS = 4096
FIRST_TOKEN = 1000  # beyond the control tokens of a vocabulary


def paths(schedule: dict[str, Any]) -> list[str]:
    """Every path of tokens that the file names, training and held-out."""
    data = schedule["data"]
    entries = [entry for entry in data.get("mixture", [data]) if entry["source"] == "tokens"]
    return [entry[key] for entry in entries for key in ("path", "validation_path")]


def longest_context(schedule: dict[str, Any]) -> int:
    models = [schedule["model"], *(stage.get("model", {}) for stage in schedule["stages"])]
    return max(model.get("context_length", 0) for model in models)


def write_tokens(folder: Path, vocabulary: int, end_token: int, documents: int, seed: int) -> None:
    """A file with random documents. Each source has a seed of its own: raystage refuses the same text twice."""
    tokens = np.random.default_rng(seed).integers(FIRST_TOKEN, vocabulary, documents * DOCUMENT_TOKENS, np.uint32)
    tokens[tokens == end_token] = FIRST_TOKEN
    tokens[DOCUMENT_TOKENS - 1 :: DOCUMENT_TOKENS] = end_token
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "stand-in.npy", tokens)


def write(recipe: Path, folder: Path) -> Path:
    """All of it; the path of the copied schedule."""
    schedule = read_mapping(recipe)
    documents = longest_context(schedule) // DOCUMENT_TOKENS + 2
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, end_token = schedule["model"]["vocab_size"], schedule["data"]["end_token"]
    for seed, path in enumerate(paths(schedule)):
        write_tokens(folder / path, vocabulary, end_token, documents, seed)
    return Path(shutil.copy(recipe, folder))


if __name__ == "__main__":
    print(f"raystage plan {write(Path(sys.argv[1]), Path(sys.argv[2]))}")
