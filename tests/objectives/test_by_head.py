"""A loss that the head of a model computes itself, some targets at a time: the same, in any family that has a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from growths import SOURCES, tiny
from raystage.errors import InputError
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, table_of
from raystage.objectives.by_head import ByHead, loss_head
from raystage.objectives.causal_lm import CausalLm
from raystage.objectives.instruct import Instruct
from raystage.objectives.judging import OfTokens, Tally
from raystage.objectives.learner import Batch, HeldOut
from raystage.objectives.masked_lm import MaskedLm
from raystage.objectives.metrics import MetricSums
from tiny_models import random_network

COUNT, LENGTH = 6, 9
MASKED = MaskedLm(0.3, 3, 31)


def bends_scores(shape: ModelShape) -> bool:
    return FAMILIES[shape.family].constants.get("final_logit_softcapping") is not None


WITH_HEAD = {name: shape for name, shape in SOURCES.items() if table_of(shape).head and not bends_scores(shape)}
# Every objective whose loss can be computed so, with documents told apart and across them.
OBJECTIVES = {"causal_lm": ("llama", CausalLm()), "instruct": ("llama", Instruct()), "masked_lm": ("bert", MASKED)}


def held_out(is_apart: bool = False) -> HeldOut:
    rng = np.random.default_rng(0)
    shape = COUNT, LENGTH + 1
    starts = {"starts": (rng.random(shape) < 0.3).astype(np.uint8)} if is_apart else {}
    marks = {"mask": (rng.random(shape) < 0.4).astype(np.uint8)}
    return HeldOut({"tokens": rng.integers(0, 31, shape), **marks, **starts})


def batch_of(objective: OfTokens, samples: HeldOut) -> Batch:
    found = objective.batch(samples, 0, COUNT, LENGTH)
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in found.items()}


def loss_and_gradients(learner: OfTokens | ByHead, network: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    loss = learner.loss(network, batch)
    trained = list(network.parameters())
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    whole = [torch.zeros_like(of) if one is None else one for one, of in zip(found, trained, strict=True)]
    return [loss.detach(), *whole]


def check_same(objective: OfTokens, shape: ModelShape, samples: HeldOut) -> None:
    network, batch = random_network(shape), batch_of(objective, samples)
    expected = loss_and_gradients(objective, network, batch)
    head = loss_head(network, shape, "chunked")
    found = loss_and_gradients(ByHead(objective, head), network, batch)
    # Softmax takes the key biases of BERT out: their gradients are nothing but rounding.
    largest = max(one.abs().max().item() for one in expected[1:])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=max(2e-5 * other.abs().max().item(), 1e-7 * largest))
    # Not asked for a loss, it says scores as before.
    assert torch.equal(objective.loss(network, batch), expected[0])


@pytest.mark.parametrize("name", WITH_HEAD)
def test_every_family_learns_the_same(name: str) -> None:
    shape = WITH_HEAD[name]
    objective = CausalLm() if FAMILIES[shape.family].objective == "next token" else MASKED
    check_same(objective, shape, held_out())


@pytest.mark.parametrize("is_apart", [False, True], ids=["across documents", "documents apart"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_the_same(name: str, is_apart: bool) -> None:
    family, objective = OBJECTIVES[name]
    check_same(objective, SOURCES[family], held_out(is_apart))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_held_out_text_is_judged_the_same(name: str) -> None:
    family, objective = OBJECTIVES[name]
    shape, samples = SOURCES[family], held_out(True)
    network, batch = random_network(shape), batch_of(objective, samples)
    in_chunks = ByHead(objective, loss_head(network, shape, "chunked"))
    found = []
    for judge in (objective, in_chunks):
        tally = Tally(judge, samples, 0, MetricSums(()))
        with torch.no_grad():
            tally.add(batch, judge.answer(network, batch), 1.0)
        found.append(tally.scores())
    plain, own = found
    assert own.means == pytest.approx(plain.means, rel=1e-6)
    assert own.halves == pytest.approx(plain.halves, rel=1e-6)
    assert own.figures.accuracy == pytest.approx(plain.figures.accuracy)


def test_a_model_that_changes_its_scores_is_refused() -> None:
    """Gemma 2 bends them behind its head, which a plan knows; a family of the user's own may do so unknown."""
    shape = tiny("gemma2")
    network, batch = random_network(shape), batch_of(CausalLm(), held_out())
    learner = ByHead(CausalLm(), loss_head(network, shape, "chunked"))
    with pytest.raises(InputError, match=r"training\.cross_entropy: found 'chunked', but the model changes the scores"):
        learner.loss(network, batch)
