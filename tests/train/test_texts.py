"""The texts of a stage on a worker, where conversations follow on a mixture of texts; and held-out text to judge by."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from mixtures import WINDOW, mixed_schedule, mixture

from chats import conversations, save_chat_words, write_chats
from raystage.config.schedule import Schedule
from raystage.data.tokens import open_streams
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.train.texts import open_texts

LENGTH = 16


def chat_schedule(folder: Path, chats: dict, evaluated: int = 320) -> Schedule:
    """A mixture of texts, which ends within a window; then conversations."""
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(12):
            words = random.Random(f"{name}{number}").choices([f"w{one}" for one in range(9)], k=60)
            (folder / f"{name}/{number}.txt").write_text(" ".join(words))
    texts, shorter = mixture(folder, a=0.5, b=0.5), {"context_length": LENGTH}
    stages = [
        {"name": "long", "until": {"tokens": 64}, "data": texts, "model": {"context_length": WINDOW}},
        {"name": "texts", "until": {"tokens": 48}, "data": texts, "model": shorter},
        {"name": "tuned", "until": {"tokens": 240}, "data": chats, "model": shorter, "objective": "instruct"},
    ]
    for stage, batch in zip(stages, (64, 48, 48), strict=True):
        stage["training"] = {"global_batch_tokens": batch}
    training = {"global_batch_tokens": 48, "evaluate": {"tokens": evaluated}}
    return mixed_schedule(folder, stages, training=training, data={"tokenizer": str(save_chat_words(folder / "words"))})


def single(folder: Path) -> dict:
    return {"source": "jsonl", "path": str(write_chats(folder / "chats.jsonl", conversations(300)))}


def several(folder: Path) -> dict:
    entries = [
        {"name": name, "source": "jsonl", "path": str(write_chats(folder / f"{name}.jsonl", chats)), "weight": weight}
        for name, chats, weight in (("one", conversations(300)[::2], 0.25), ("two", conversations(300)[1::2], 0.75))
    ]
    return {"mixture": entries}


@pytest.mark.parametrize("chats", [single, several])
def test_a_window_that_is_begun_is_all_targets_and_then_only_answers_are(chats, tmp_path: Path) -> None:
    stage = make_plan(chat_schedule(tmp_path, chats(tmp_path))).staged.stages[2]
    texts = open_texts(stage)
    first = stage.start // LENGTH  # in the middle of a window
    read = texts.train.read(first, 15, LENGTH)
    assert read["mask"].shape == read["tokens"].shape == (15, LENGTH + 1)
    assert read["mask"][0].all()
    sources = [open_streams(part.data, stage.shape.vocab_size) for part in stage.data.parts]
    for tokens, mask in zip(read["tokens"][1:], read["mask"][1:], strict=True):
        assert any(has(one.train, one.train_marks, tokens, mask) for one in sources)
        assert 0 < mask.sum() < len(mask)
    for place in (0, 1, 7):
        np.testing.assert_array_equal(texts.train.read(first + place, 1, LENGTH)["mask"][0], read["mask"][place])
    assert all(one.held_out.arrays["mask"].any() for one in texts.held_out)


def has(stream: np.ndarray, marks: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> bool:
    """Whether these tokens stand in the stream with these marks."""
    windows = (np.lib.stride_tricks.sliding_window_view(one, len(tokens)) for one in (stream, marks))
    return bool(np.all([window == one for window, one in zip(windows, (tokens, mask), strict=True)], axis=(0, 2)).any())


def test_held_out_text_without_an_answer_is_refused(tmp_path: Path) -> None:
    """Of one window, which begins a long question."""
    asked = [{"role": "user", "content": "w1 " * 400}, {"role": "assistant", "content": "w2"}]
    held_out = write_chats(tmp_path / "held_out.jsonl", [asked])
    data = {**single(tmp_path), "validation_path": str(held_out)}
    stage = make_plan(chat_schedule(tmp_path, data, evaluated=LENGTH)).staged.stages[2]
    with pytest.raises(InputError, match=r"training\.evaluate\.tokens: found no answer in the 16 held-out tokens that"):
        open_texts(stage)
