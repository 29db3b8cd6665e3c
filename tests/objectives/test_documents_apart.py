"""Documents that are told apart: in a window each is computed as if it stood alone, and its targets are its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from growths import tiny
from raystage.data.order.documents import DocumentSpans, Starts
from raystage.data.tokens import SampleWindows, TokenWindows, Windows
from raystage.models.build import build
from raystage.models.families import FAMILIES, TRANSFORMERS
from raystage.models.shape import ModelShape
from raystage.objectives.causal_lm import CausalLm
from raystage.objectives.distillation import Distillation
from raystage.objectives.instruct import Instruct
from raystage.objectives.judging import halves, loss_and_hits, summed_loss
from raystage.objectives.learner import Batch, HeldOut, Judge, Learner
from raystage.objectives.masked_lm import MaskedLm

LENGTH, WORDS, TOKENS = 12, 31, 241
# Of one token, of a window, longer than a window; 7 of them begin inside of a window's first half, others behind.
LENGTHS = np.array([5, 1, 7, 12, 3, 2, 1, 1, 9, 30, 4, 4, 5, 12, 24, 1, 60, 8, 6, 5, 5, 3, 2, 31])
SEED = 4
OF_TEXT = [name for name, family in TRANSFORMERS.items() if family.objective in ("next token", "masked tokens")]


def shape_of(family: str) -> ModelShape:
    return replace(tiny(family), context_length=LENGTH)


def network_of(family: str) -> torch.nn.Module:
    torch.manual_seed(1)
    network = build(shape_of(family))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def stream(kind: str = "tokens") -> np.ndarray:
    random = np.random.default_rng(0)
    tokens, marks = random.integers(0, WORDS, TOKENS).astype(np.uint16), random.random(TOKENS) < 0.4
    return tokens if kind == "tokens" else marks.astype(np.uint8)


def windows(of: np.ndarray | Starts) -> Windows:
    return TokenWindows(of, LENGTH, SEED)


def reader(**flags: np.ndarray) -> SampleWindows:
    assert LENGTHS.sum() == TOKENS
    given = {"starts": Starts(DocumentSpans(LENGTHS)), **flags}
    return SampleWindows(windows(stream()), {name: windows(one) for name, one in given.items()})


def batch_of(by: Learner | Judge, of: SampleWindows | HeldOut, count: int = 20, length: int = LENGTH) -> Batch:
    return {name: torch.from_numpy(values) for name, values in by.batch(of, 0, count, length).items()}


def pieces(starts: np.ndarray) -> list[tuple[int, int, int]]:
    """(sample, first, last) of every document in samples; starts: of their first tokens, (samples, length)."""
    found = []
    for row, flags in enumerate(starts):
        begins = sorted({0, *np.flatnonzero(flags).tolist()})
        found += [(row, first, last) for first, last in zip(begins, [*begins[1:], len(flags)], strict=True)]
    return found


@pytest.mark.parametrize("length", [12, 6])
@pytest.mark.parametrize("family", OF_TEXT)
def test_a_document_in_a_window_has_the_logits_that_it_has_alone(family: str, length: int) -> None:
    network = network_of(family)
    is_causal = FAMILIES[family].objective == "next token"
    learner = CausalLm() if is_causal else MaskedLm(0.2, 3, WORDS)
    batch = batch_of(learner, reader(), 240 // length, length)
    inputs = batch["tokens"][:, :length]
    with torch.no_grad():
        packed = network(**learner.inputs(batch)).logits
        across = network(input_ids=inputs).logits
        documents = pieces(batch["starts"][:, :length].numpy())
        assert len(documents) > len(LENGTHS)
        for row, first, last in documents:
            alone = network(input_ids=inputs[row : row + 1, first:last]).logits[0]
            torch.testing.assert_close(packed[row, first:last], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(packed, across, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_nothing_of_another_document_reaches_a_gradient(family: str) -> None:
    """The gradient of a packed batch is the sum of those of its documents, each computed alone."""
    network = network_of(family)
    learner = CausalLm() if family == "llama" else MaskedLm(0.2, 3, WORDS)
    batch = batch_of(learner, reader())
    inputs = batch["tokens"][:, :LENGTH]
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(*inputs.shape, WORDS)).astype(np.float32))
    found = torch.autograd.grad((network(**learner.inputs(batch)).logits * weights).sum(), list(network.parameters()))
    alone = [torch.zeros_like(one) for one in found]
    for row, first, last in pieces(batch["starts"][:, :LENGTH].numpy()):
        outputs = network(input_ids=inputs[row : row + 1, first:last]).logits[0]
        parts = torch.autograd.grad((outputs * weights[row, first:last]).sum(), list(network.parameters()))
        alone = [total + part for total, part in zip(alone, parts, strict=True)]
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_the_loss_of_a_batch_is_that_of_its_documents_alone() -> None:
    network, learner = network_of("llama"), CausalLm()
    batch = batch_of(learner, reader())
    tokens, total, count = batch["tokens"], torch.zeros(()), 0
    with torch.no_grad():
        for row, first, last in pieces(batch["starts"].numpy()):
            inputs, targets = tokens[row : row + 1, first : last - 1], tokens[row, first + 1 : last]
            if len(targets):
                outputs = network(input_ids=inputs).logits[0].float()
                total += torch.nn.functional.cross_entropy(outputs, targets, reduction="sum")
                count += len(targets)
        torch.testing.assert_close(learner.loss(network, batch), total)
    assert learner.num_targets(reader(), 0, 20, LENGTH) == count == 240 - np.count_nonzero(batch["starts"][:, 1:])


LEARNERS = {"causal_lm": CausalLm(), "instruct": Instruct(), "masked_lm": MaskedLm(0.2, 3, WORDS)}


@pytest.mark.parametrize("name", LEARNERS)
def test_the_targets_are_counted_without_a_model_and_in_any_parts(name: str) -> None:
    learner, network = LEARNERS[name], network_of("bert" if name == "masked_lm" else "llama")
    source = reader(mask=stream("marks")) if name == "instruct" else reader()
    for length in (12, 6, 3):
        count = 240 // length
        counted = [learner.num_targets(source, *part, length) for part in ((0, 7), (7, 0), (7, count - 7))]
        with torch.no_grad():
            answer = learner.answer(network, batch_of(learner, source, count, length))
        assert sum(counted) == len(answer.targets) == len(answer.outputs)


def test_the_first_token_of_a_document_is_no_target_of_an_answer() -> None:
    found = Instruct().batch(reader(mask=stream("marks")), 0, 20, LENGTH)
    assert not (found["mask"] & found["starts"]).any()
    marks = np.count_nonzero(stream("marks")[1:])
    first = np.count_nonzero(stream("marks")[1:] & (Starts(DocumentSpans(LENGTHS))[1:TOKENS]))
    assert Instruct().num_targets(reader(mask=stream("marks")), 0, 20, LENGTH) == marks - first < marks


def test_what_is_hidden_is_the_same_as_without_documents() -> None:
    learner = LEARNERS["masked_lm"]
    apart, across = learner.batch(reader(), 0, 20, LENGTH), learner.batch(windows(stream()), 0, 20, LENGTH)
    for name, values in across.items():
        np.testing.assert_array_equal(apart[name], values)


def test_a_teacher_keeps_documents_apart_too() -> None:
    """Of a teacher that is the student itself nothing is left to learn, and what is left is the next token."""
    network = network_of("llama")
    learner = Distillation(network, 2.0, 0.5, 5)
    batch = batch_of(learner, reader())
    with torch.no_grad():
        plain = summed_loss(CausalLm().answer(network, batch))
        torch.testing.assert_close(learner.loss(network, batch), 0.5 * plain)
    assert learner.num_targets(reader(), 0, 20, LENGTH) == CausalLm().num_targets(reader(), 0, 20, LENGTH)


def test_held_out_samples_are_judged_within_documents_and_in_halves() -> None:
    network, judge = network_of("llama"), CausalLm()
    held_out = HeldOut(reader().read(0, 20, LENGTH))
    with torch.no_grad():
        answer = judge.answer(network, batch_of(judge, held_out))
        scores = loss_and_hits(answer)
    assert judge.num_targets(held_out, 0, 20, LENGTH) == len(answer.targets)
    first = judge.num_targets(held_out, 0, 10, LENGTH)
    with torch.no_grad():
        expected = summed_loss(judge.answer(network, batch_of(judge, held_out, 10))).double()
    torch.testing.assert_close(halves(judge, answer, scores[0], first)[0], expected)
