"""The laws of all entries of the objectives' table: what a sample gives depends on the seed and its position alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from labelled import CLASSES, CONFIGS, PATCH, WORDS, Samples, image_model, images, text_model, texts

from raystage.data.tokens import SampleWindows, TokenWindows
from raystage.objectives.judging import Tally
from raystage.objectives.learner import HeldOut, Models, Reader
from raystage.objectives.metrics import MetricSums
from raystage.objectives.opening import NO_MODELS, open_judge, open_learner
from raystage.objectives.plan import ObjectivePlan
from raystage.objectives.table import OBJECTIVES

COUNT, LENGTH = 24, 12
LOSS = """
from torch.nn import functional

def loss(model, batch):
    tokens = batch["tokens"]
    logits = model(input_ids=tokens[:, :-1]).logits.flatten(0, 1)
    return functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")
"""


@dataclass(frozen=True)
class Case:
    """options: what a plan opens it with. reader: of COUNT samples or more. models: what it needs beside."""

    options: dict[str, object]
    reader: Reader
    network: Callable[[], torch.nn.Module]
    models: Models = NO_MODELS


def windows() -> TokenWindows:
    stream = np.random.default_rng(0).integers(0, WORDS, COUNT * LENGTH + 1).astype(np.uint16)
    return TokenWindows(stream, LENGTH, 3)


def chats() -> SampleWindows:
    marks = (np.random.default_rng(1).random(COUNT * LENGTH + 1) < 0.4).astype(np.uint8)
    return SampleWindows(windows(), {"mask": TokenWindows(marks, LENGTH, 3)})


def decoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()


def masked() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForMaskedLM.from_config(CONFIGS["bert"]).eval()


def cases(folder: Path) -> dict[str, Case]:
    (folder / "own.py").write_text(LOSS)
    own = {"function": f"{folder / 'own.py'}:loss", "targets": None, "options": {}}
    classes = {"classes": CLASSES, "label_smoothing": 0.1}
    return {
        "causal_lm": Case({}, windows(), decoder),
        "masked_lm": Case({"mask_share": 0.3, "mask_id": 1, "num_ids": WORDS}, windows(), masked),
        "instruct": Case({}, chats(), decoder),
        "own": Case(own, windows(), decoder),
        "distillation": Case({"temperature": 2, "alpha": 0.5, "top_k": 4}, windows(), decoder, Models(decoder())),
        "classification": Case(classes, images(), image_model),
        "classification of texts": Case(classes, texts(), lambda: text_model("bert")),
        "denoising": Case({"noise": 0.3, "mask_share": None, "patch_size": PATCH}, images(), pixels),
        "denoising of patches": Case({"noise": None, "mask_share": 0.5, "patch_size": PATCH}, images(), pixels),
    }


def pixels() -> torch.nn.Module:
    return image_model("pixels")


NAMES = (*OBJECTIVES, "classification of texts", "denoising of patches")


@pytest.fixture(params=NAMES)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ObjectivePlan, Case, object]:
    """The objective, its case, and its learner."""
    case = cases(tmp_path)[request.param]
    objective = ObjectivePlan(request.param.partition(" ")[0], case.options)
    return objective, case, open_learner(objective, case.models)


def length_of(objective: ObjectivePlan) -> int:
    return LENGTH if objective.entry.unit == "tokens" else 1


def test_any_reading_in_parts_is_the_same(opened: tuple) -> None:
    """For any number of workers and micro batches, and from any position on."""
    objective, case, learner = opened
    length = length_of(objective)
    whole = learner.batch(case.reader, 0, COUNT, length)
    assert {len(values) for values in whole.values()} == {COUNT}
    for parts in ((7, 1, 16), (12, 12), (8, 8, 8)):
        first = 0
        for count in parts:
            for name, values in learner.batch(case.reader, first, count, length).items():
                np.testing.assert_array_equal(values, whole[name][first : first + count])
            first += count
        counts = [learner.num_targets(case.reader, sum(parts[:at]), part, length) for at, part in enumerate(parts)]
        assert sum(counts) == learner.num_targets(case.reader, 0, COUNT, length) > 0


def test_the_loss_of_all_is_the_sum_of_the_parts(opened: tuple) -> None:
    objective, case, learner = opened
    network = case.network()

    def loss(first: int, count: int) -> float:
        batch = learner.batch(case.reader, first, count, length_of(objective))
        found = learner.loss(network, {name: torch.from_numpy(values) for name, values in batch.items()})
        assert found.shape == ()
        assert found.dtype == torch.float32
        return found.item()

    assert loss(0, 7) + loss(7, 1) + loss(8, 16) == pytest.approx(loss(0, COUNT), rel=1e-5)


def test_every_weight_that_the_loss_depends_on_learns(opened: tuple) -> None:
    objective, case, learner = opened
    network = case.network()
    batch = learner.batch(case.reader, 0, COUNT, length_of(objective))
    learner.loss(network, {name: torch.from_numpy(values) for name, values in batch.items()}).backward()
    without = {name for name, one in network.named_parameters() if one.grad is None or not one.grad.any()}
    # ViT's token for hidden patches, and BERT's key biases, which softmax takes out.
    assert not {name for name in without if "mask_token" not in name and "key.bias" not in name}


def held_out(case: Case) -> HeldOut:
    if isinstance(case.reader, Samples):
        return HeldOut(case.reader.arrays)
    return HeldOut(case.reader.read(0, COUNT, LENGTH))


def scored(objective: ObjectivePlan, case: Case, workers: int) -> tuple:
    """As the engine does: each worker adds up its own part."""
    judge, data, network = open_judge(objective), held_out(case), case.network()
    tallies = []
    for worker in range(workers):
        first, end = worker * data.count // workers, (worker + 1) * data.count // workers
        tally = Tally(judge, data, first, MetricSums(()))
        while first < end:
            count = min(5, end - first)
            read = judge.batch(data, first, count, data.length)
            batch = {name: torch.from_numpy(values) for name, values in read.items()}
            with torch.no_grad():
                tally.add(batch, judge.answer(network, batch), 1.0)
            first += count
        tallies.append(tally)
    total, parts = sum(one.total for one in tallies), sum(one.parts for one in tallies)
    scores = replace(tallies[0], total=total, parts=parts).scores()
    return scores.loss, scores.figures, scores.halves


def test_the_figures_are_those_of_all_workers_together(opened: tuple) -> None:
    objective, case, _ = opened
    one, three = scored(objective, case, 1), scored(objective, case, 3)
    assert three[0] == pytest.approx(one[0], rel=1e-6)
    assert three[1].accuracy == one[1].accuracy
    assert three[1].metrics == pytest.approx(one[1].metrics)
    assert three[2] == pytest.approx(one[2], rel=1e-6)
    data, judge = held_out(case), open_judge(objective)
    counts = [judge.num_targets(data, *part, data.length) for part in ((0, COUNT // 2), (COUNT // 2, COUNT // 2))]
    mean = sum(half * count for half, count in zip(one[2], counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(one[0], rel=1e-6)


def test_the_table_says_which_figures_there_are(opened: tuple) -> None:
    objective, case, _ = opened
    _, figures, _ = scored(objective, case, 1)
    judged_by = OBJECTIVES[objective.entry.judge]
    assert ("accuracy" in judged_by.shows) == (figures.accuracy is not None)
    assert judged_by.unit == objective.entry.unit == ("samples" if isinstance(case.reader, Samples) else "tokens")
    assert judged_by.head == objective.entry.head
