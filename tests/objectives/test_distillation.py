"""The loss of a student, against its formula written out in double precision."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from raystage.objectives.distillation import Distillation, divergence
from raystage.train.teacher import MeanModel

WORDS = 11


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Of a teacher and of a student: (targets, vocabulary)."""
    torch.manual_seed(0)
    return 3 * torch.randn(6, WORDS, dtype=torch.float64), 2 * torch.randn(6, WORDS, dtype=torch.float64)


def written_out(told: torch.Tensor, said: torch.Tensor, top_k: int | None) -> torch.Tensor:
    """KL with one event for each of the teacher's `top_k` tokens, and one for all others: row by row, sum by sum."""
    total = torch.zeros((), dtype=torch.float64)
    for p, q in zip(told.softmax(-1), said.softmax(-1), strict=True):
        apart = set(range(len(p)) if top_k is None else sorted(range(len(p)), key=lambda word: -p[word])[:top_k])
        events = [{word} for word in apart] + ([set(range(len(p))) - apart] if len(apart) < len(p) else [])
        for event in events:
            ours, theirs = sum(p[word] for word in event), sum(q[word] for word in event)
            total = total + ours * torch.log(ours / theirs)
    return total


@pytest.mark.parametrize("top_k", [None, 1, 3, WORDS - 1, WORDS, 64])
def test_the_divergence_and_its_gradient_are_those_of_the_formula(scores: tuple, top_k: int | None) -> None:
    told, said = scores
    found, expected = said.clone().requires_grad_(), said.clone().requires_grad_()
    value, other = divergence(told, found, top_k), written_out(told, expected, top_k)
    value.backward()
    other.backward()
    torch.testing.assert_close(value, other)
    torch.testing.assert_close(found.grad, expected.grad)
    assert value > 0.1


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_student_that_says_the_same_has_nothing_to_learn(scores: tuple, top_k: int | None) -> None:
    said = scores[0].clone().requires_grad_()
    value = divergence(scores[0], said, top_k)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert said.grad.abs().max() < 1e-12


def test_fewer_events_are_never_further_apart(scores: tuple) -> None:
    values = [divergence(*scores, top_k).item() for top_k in (1, 3, 7, None)]
    assert values == sorted(values)
    assert values[0] < values[-1]


@pytest.mark.parametrize("top_k", [None, 3])
def test_ids_that_only_one_of_them_has_are_padding(scores: tuple, top_k: int | None) -> None:
    told, said = scores
    more = torch.full((len(told), 5), 4.0, dtype=torch.float64)
    whole = divergence(told, said, top_k)
    torch.testing.assert_close(divergence(torch.cat([told, more], -1), said, top_k), whole)
    wider = divergence(told, torch.cat([said, more], -1), top_k)
    assert torch.isfinite(wider)
    assert wider > whole  # of what the student says beyond the teacher's ids nothing is right


class Scores(torch.nn.Module):
    """A model that says the same of every token."""

    def __init__(self, of_words: torch.Tensor) -> None:
        super().__init__()
        self.of_words = torch.nn.Parameter(of_words)

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.of_words.expand(*input_ids.shape, -1))


def test_the_loss_weighs_the_teacher_and_the_next_token() -> None:
    torch.manual_seed(1)
    teacher, student = Scores(torch.randn(WORDS)), Scores(torch.randn(WORDS))
    batch = {"tokens": torch.tensor([[1, 4, 2], [0, 9, 9]])}
    loss = Distillation(teacher, temperature=2.0, alpha=0.3, top_k=None).loss(student, batch)
    loss.backward()
    p, q = (model.of_words.detach().double() for model in (teacher, student))
    soft = 4 * ((p / 2).softmax(0) * ((p / 2).log_softmax(0) - (q / 2).log_softmax(0))).sum()
    plain = -q.log_softmax(0)[[4, 2, 9, 9]].sum()
    assert loss.item() == pytest.approx((0.3 * 2**2 * soft + 0.7 * plain).item(), rel=1e-6)
    assert student.of_words.grad.abs().sum() > 0.1
    assert teacher.of_words.grad is None


# --- several teachers -------------------------------------------------------------------------


def says(scores: torch.Tensor) -> Callable[..., SimpleNamespace]:
    return lambda **inputs: SimpleNamespace(logits=scores)


def test_several_teachers_say_the_mean_of_their_probabilities(scores: tuple) -> None:
    first, second = (one.float()[None] for one in scores)
    mean = (first.softmax(-1) + second.softmax(-1)) / 2
    torch.testing.assert_close(MeanModel([says(first), says(second)])(input_ids=None).logits.exp(), mean)
    same = MeanModel([says(first)] * 3)(input_ids=None).logits
    torch.testing.assert_close(same, first.log_softmax(-1))


def test_ids_that_only_one_teacher_has_are_left_out(scores: tuple) -> None:
    first, second = (one.float()[None] for one in scores)
    padded = torch.cat([second, torch.full((1, len(second[0]), 3), 9.0)], -1)
    torch.testing.assert_close(
        MeanModel([says(first), says(padded)])(input_ids=None).logits,
        MeanModel([says(first), says(second)])(input_ids=None).logits,
    )
