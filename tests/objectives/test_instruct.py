"""The answers of conversations as targets: the same in any reading, counted without a model, and none at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raystage.data.tokens import SampleWindows, TokenWindows
from raystage.objectives.causal_lm import CausalLm
from raystage.objectives.instruct import Instruct
from raystage.objectives.judging import halves, loss_and_hits
from raystage.objectives.learner import Batch, HeldOut

LENGTH, WORDS = 20, 50
LEARNER = Instruct()
CONFIG = LlamaConfig(vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


def reader(share: float = 0.3) -> SampleWindows:
    """share: of the tokens, those that are part of an answer."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, WORDS, 4001).astype(np.uint16)
    marks = (random.random(4001) < share).astype(np.uint8)
    return SampleWindows(TokenWindows(tokens, LENGTH, 3), {"mask": TokenWindows(marks, LENGTH, 3)})


def batch_of(share: float, count: int = 6) -> Batch:
    found = LEARNER.batch(reader(share), 0, count, LENGTH)
    return {name: torch.from_numpy(values) for name, values in found.items()}


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG)


def test_any_reading_in_parts_has_the_same_marks() -> None:
    whole = LEARNER.batch(reader(), 0, 30, LENGTH)
    for first, count in ((0, 7), (7, 1), (8, 22)):
        for name, values in LEARNER.batch(reader(), first, count, LENGTH).items():
            np.testing.assert_array_equal(values, whole[name][first : first + count])
    parts = [LEARNER.num_targets(reader(), *part, LENGTH) for part in ((0, 7), (7, 0), (7, 23))]
    assert sum(parts) == LEARNER.num_targets(reader(), 0, 30, LENGTH) == np.count_nonzero(whole["mask"][:, 1:])


def test_every_mark_is_a_target_once_in_an_epoch() -> None:
    """At the end of a sequence, too, and with sequences that are shorter than windows."""
    marks = np.count_nonzero(reader().flags["mask"].stream[1:])
    assert LEARNER.num_targets(reader(), 0, 200, LENGTH) == LEARNER.num_targets(reader(), 0, 800, 5) == marks


def test_the_loss_is_that_of_transformers(network: LlamaForCausalLM) -> None:
    batch = batch_of(0.3)
    labels = torch.where(batch["mask"].bool(), batch["tokens"], -100)
    theirs = network(input_ids=batch["tokens"], labels=labels).loss
    loss, hits = loss_and_hits(LEARNER.answer(network, batch)).tolist()
    targets = LEARNER.num_targets(reader(), 0, 6, LENGTH)
    assert loss / targets == pytest.approx(theirs.item(), rel=1e-5)
    assert 0 <= hits <= targets


def test_a_batch_without_answers_has_no_loss_and_no_gradient(network: LlamaForCausalLM) -> None:
    network.zero_grad()
    batch = batch_of(0.0)
    assert LEARNER.num_targets(reader(0.0), 0, 6, LENGTH) == 0
    loss = LEARNER.loss(network, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(not one.grad.any() for one in network.parameters() if one.grad is not None)
    answer = LEARNER.answer(network, batch)
    assert loss_and_hits(answer).tolist() == [0.0, 0.0]
    assert halves(LEARNER, answer, loss.double(), 0).tolist() == [0.0, 0.0]


def test_text_without_marks_is_learned_as_by_causal_lm(network: LlamaForCausalLM) -> None:
    held_out = HeldOut({"tokens": reader().tokens.spread(4)})
    found = {name: torch.from_numpy(one) for name, one in LEARNER.batch(held_out, 0, 4, LENGTH).items()}
    assert LEARNER.num_targets(held_out, 0, 4, LENGTH) == 4 * LENGTH
    assert torch.equal(LEARNER.loss(network, found), CausalLm().loss(network, found))
