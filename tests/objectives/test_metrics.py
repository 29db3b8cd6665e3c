"""Metrics of the user's own: found, called, added up, whatever the number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distributed import run_workers
from factories import make_schedule
from raystage import user_code as hooks
from raystage.config.schedule import Schedule, load
from raystage.errors import InputError
from raystage.objectives.causal_lm import CausalLm
from raystage.objectives.judging import halves, loss_and_hits
from raystage.objectives.learner import Answer
from raystage.objectives.metrics import MetricSums, added, beside, per_class, values
from raystage.planning.build import make_plan
from staged_runs import carry_out, train

OWN = """
import torch
from torch.nn.functional import cross_entropy

def right(logits, targets):
    return {"right": ((logits.argmax(-1) == targets).sum(), len(targets))}

def in_bits(logits, targets, base=2):
    loss = cross_entropy(logits, targets, reduction="sum")
    return {"bits": (loss / torch.log(torch.tensor(float(base))), targets.numel()), "never": (0, 0)}

def raises(logits, targets):
    return {"right": 1 / 0}

CONSTANT = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def tally(function: str, logits: torch.Tensor, targets: torch.Tensor, **options: object) -> MetricSums:
    made = MetricSums([(function, options)])
    made.add(logits, targets)
    return made


# --- finding it -------------------------------------------------------------------------------


def test_a_function_of_a_module_and_one_of_a_file(own: Path) -> None:
    assert hooks.find("raystage.objectives.metrics:per_class") is per_class
    assert hooks.find("raystage.metrics:per_class") is per_class  # as schedules of earlier versions have it
    logits, targets = torch.eye(3), torch.tensor([0, 1, 1])
    assert hooks.find(f"{own}:right")(logits, targets) == {"right": (2, 3)}
    assert hooks.find(f"{own}:right") is hooks.find(f"{own}:right")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nowhere_to_be_found:f", "nowhere_to_be_found:f cannot be imported (ModuleNotFoundError: No module named"),
        ("FOLDER/missing.py:f", "cannot be imported (FileNotFoundError: no file FOLDER/missing.py)"),
        ("FOLDER/broken.py:f", "cannot be imported (ValueError: not today at FOLDER/broken.py:2)"),
        ("FOLDER/leaves.py:f", "cannot be imported (SystemExit: 3 at FOLDER/leaves.py:1)"),
        ("FOLDER/own.py:rigth", "is no such function; did you mean 'right'?"),
        ("FOLDER/own.py:x", "is no such function; there are cross_entropy, in_bits, raises, right"),
        ("FOLDER/own.py:CONSTANT", "is a int, not a function"),
    ],
)
def test_what_is_not_there_or_cannot_be_imported(own: Path, reference: str, said: str) -> None:
    (own.parent / "broken.py").write_text("import math\nraise ValueError('not today')\n")
    (own.parent / "leaves.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(InputError) as raised:
        hooks.find(reference.replace("FOLDER", str(own.parent)))
    assert said.replace("FOLDER", str(own.parent)) in str(raised.value)


def test_what_the_code_of_others_prints_is_no_part_of_what_a_command_prints(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`raystage plan --json` imports it."""
    (own.parent / "loud.py").write_text("print('hello')\ndef metric(logits, targets): return {}\n")
    hooks.find(f"{own.parent}/loud.py:metric")
    assert capsys.readouterr() == ("", "hello\n")


# --- in a schedule ----------------------------------------------------------------------------

WRITTEN = """
name: tiny
data: {source: text, path: texts, validation_fraction: 0.5}
model: {hidden_size: 8, num_heads: 2, ffn_size: 16, context_length: 10}
training: {global_batch_tokens: 100, evaluate: {metrics: [own.py:right]}}
stages:
  - {name: small, model: {num_layers: 2}, until: {tokens: 800}}
  - name: full
    model: {num_layers: 4}
    until: {tokens: 800}
    grow: {operator: stack}
    training: {evaluate: {metrics: [{function: own.py:in_bits, options: {base: 10}}]}}
"""


@pytest.fixture
def file(own: Path) -> Path:
    texts = own.parent / "texts"
    texts.mkdir()
    for number in range(12):
        (texts / f"{number}.txt").write_text(f"document {number}\n" * 10)
    path = own.parent / "tiny.yaml"
    path.write_text(WRITTEN)
    return path


def test_a_file_is_found_beside_the_schedule_and_a_stage_has_its_own_metrics(file: Path) -> None:
    stages = make_plan(load(file)).staged.stages
    named = [[(one.function, one.options) for one in stage.training.evaluate.metrics] for stage in stages]
    folder = file.parent
    assert named == [[(f"{folder}/own.py:right", {})], [(f"{folder}/own.py:in_bits", {"base": 10})]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.evaluate.metrics=[right]", "training.evaluate.metrics[0].function: found 'right'; expected "
         "package.module:function or file.py:function"),
        ("training.evaluate.metrics=[own.py:left]", "training.evaluate.metrics: "),
        ("training.evaluate.metrics=[{function: own.py:right, options: {k: 3}}]",
         "own.py:right(logits, targets) cannot be called with 2 arguments and the options k: got an unexpected"),
        ("training.evaluate.metrics=[raystage.objectives.metrics:per_class]", "missing a required argument: 'tokens'"),
        ("stages[0].accept={metrics: {right: {}}}",
         "stages[0].accept.metrics.right: found nothing; expected above, below or both"),
        ("stages[0].accept={metrics: {right: {above: 0.5}}} | training.evaluate.metrics=[]",
         "stages[0].accept.metrics: found without training.evaluate.metrics, which would measure them"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_when_it_is_planned(file: Path, change: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        make_plan(load(file, tuple(change.split(" | "))))
    assert said in str(raised.value)


# --- what it returns --------------------------------------------------------------------------


def test_precision_recall_and_f1_by_hand() -> None:
    """Answers 1 1 2 2 2 to targets 1 2 2 2 0: token 1 is answered twice, once rightly; 2 thrice, twice rightly."""
    logits = torch.nn.functional.one_hot(torch.tensor([1, 1, 2, 2, 2]), 4).float()
    found = tally("raystage.objectives.metrics:per_class", logits, torch.tensor([1, 2, 2, 2, 0]), tokens=[0, 1, 2, 3])
    assert values(found.sums) == {
        "recall/0": 0.0, "f1/0": 0.0,  # never answered: no precision
        "precision/1": 1 / 2, "recall/1": 1.0, "f1/1": 2 / 3,
        "precision/2": 2 / 3, "recall/2": 2 / 3, "f1/2": 2 / 3,
    }  # fmt: skip


def test_sums_and_counts_are_added_before_they_are_divided() -> None:
    """Not the mean of the batches' values: 1 of 1 and 0 of 3 are 1 of 4."""
    assert values(added([{"a": (1.0, 1.0)}, {"a": (0.0, 3.0), "b": (1.0, 2.0)}, {}])) == {"a": 0.25, "b": 0.5}
    assert values({"none": (0.0, 0.0)}) == {}
    assert math.isnan(values({"bad": (math.nan, 2.0)})["bad"])


UNSPEAKABLE = """
import torch

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError

def unspeakable():
    raise Unspeakable

"""


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "returned nothing; expected a mapping of names to (sum, count)"),
        ("0.5", "returned 0.5; expected"),
        ("{'a': 0.5}", "returned 0.5 for 'a'; expected"),
        ("{'a': (1, 2, 3)}", "returned (1, 2, 3) for 'a'; expected"),
        ("{'a': (logits, 3)}", "returned (a tensor of shape (3, 3), 3) for 'a'; expected"),
        ("{'a': (1, -1)}", "returned (1, -1) for 'a'; expected"),
        ("{'a': ('1', 1)}", "returned (a str, 1) for 'a'; expected"),
        ("{'loss': (1, 1)}", "returned the name 'loss'; expected letters"),
        ("{'loss/code': (1, 1)}", "returned the name 'loss/code'; expected letters"),
        ("{'': (1, 1)}", "returned the name ''; expected letters"),
        ("{1: (1, 1)}", "returned the name 1; expected letters"),
        ("{'a': (10**400, 1)}", "returned (1"),
        ("{'a': (torch.ones((), device='meta'), 1)}", "returned (a tensor of shape (), 1) for 'a'; expected"),
        ("exit(0)", "failed (SystemExit: 0 at"),
        ("unspeakable()", "failed (Unspeakable at"),
        ("{'a': (targets.zero_().sum(), 1)}", "changed the tensors that it was given; expected a function that works"),
        ("{'a': (logits.mul_(2).sum(), 1)}", "changed the tensors that it was given; expected a function that works"),
        ("undefined", "failed (NameError: name 'undefined' is not defined at FOLDER/bad.py:11)"),
    ],
)
def test_what_is_no_mapping_of_sums_and_counts_is_named(tmp_path: Path, returned: str, said: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(f"{UNSPEAKABLE}def metric(logits, targets): return {returned}\n")
    with pytest.raises(InputError) as raised:
        tally(f"{file}:metric", torch.eye(3), torch.tensor([0, 1, 2]))
    assert f"training.evaluate.metrics: {file}:metric {said}".replace("FOLDER", str(tmp_path)) in str(raised.value)


def test_two_metrics_of_one_name(own: Path) -> None:
    twice = MetricSums([(f"{own}:right", {}), (f"{own}:right", {})])
    with pytest.raises(InputError, match="returned 'right', as another metric did"):
        twice.add(torch.eye(3), torch.tensor([0, 1, 2]))


# --- on workers -------------------------------------------------------------------------------


@pytest.fixture
def tiny(own: Path) -> Callable[..., Schedule]:
    texts = own.parent / "texts"
    texts.mkdir()

    def make(workers: int, *metrics: object) -> Schedule:
        training = {"workers": workers, "micro_batch_size": 1, "evaluate": {"tokens": 200, "metrics": list(metrics)}}
        return make_schedule(texts, training=training)

    return make


@pytest.mark.end_to_end
def test_the_values_are_those_of_all_held_out_text_whatever_the_workers(
    tiny: Callable[..., Schedule], own: Path, tmp_path: Path
) -> None:
    """20 sequences over 3 workers: one pads its share. The first evaluation is of the same weights for all."""
    asked = f"{own}:right", f"{own}:in_bits"
    one, three = (train(tiny(workers, *asked), tmp_path / f"store-{workers}") for workers in (1, 3))
    for record in (*one, *three):
        for point in record.evaluations:
            assert point.metrics.keys() == {"right", "bits"}
            assert point.metrics["right"] == point.accuracy
            assert point.metrics["bits"] == pytest.approx(point.loss / math.log(2), rel=1e-6)
            assert point.loss == pytest.approx((point.choosing_loss + point.judging_loss) / 2, rel=1e-9)
            assert point.choosing_loss != point.judging_loss
    begun, others = one[0].evaluations[0], three[0].evaluations[0]
    assert begun.choosing_loss == pytest.approx(others.choosing_loss, rel=1e-6)
    first, other = one[0].evaluations[0].metrics, three[0].evaluations[0].metrics
    assert first["right"] == other["right"]
    assert first["bits"] == pytest.approx(other["bits"], rel=1e-6)


def test_the_halves_by_hand() -> None:
    logits, targets = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 0])
    answer = Answer(logits, targets)
    loss = loss_and_hits(answer)[0]
    for border, first in ((-3, 0), (0, 0), (2, 2), (6, 6), (9, 6)):
        expected = [torch.nn.functional.cross_entropy(logits[a:b], targets[a:b], reduction="sum").item() if a < b else 0
                    for a, b in ((0, first), (first, 6))]  # fmt: skip
        assert halves(CausalLm(), answer, loss, border).tolist() == pytest.approx(expected)


def message_of(schedule: Schedule, store: str) -> str:
    try:
        carry_out(schedule, store)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.end_to_end
def test_one_that_fails_ends_the_stage_before_it_trains(
    tiny: Callable[..., Schedule], own: Path, tmp_path: Path
) -> None:
    schedule = tiny(1, f"{own}:raises")
    (said,) = run_workers(1, message_of, schedule, str(tmp_path / "store"), folder=tmp_path / "processes")
    where = f"{own}:{OWN.splitlines().index('def raises(logits, targets):') + 2}"
    assert said == f"training.evaluate.metrics: {own}:raises failed (ZeroDivisionError: division by zero at {where})"
    assert not list((tmp_path / "store").glob("stages/*/checkpoints/*"))


def test_a_metric_takes_no_name_of_the_objectives_own_figures() -> None:
    """It would take the place of that in the report, and nobody would see it."""
    assert beside({"macro_f1": 0.5}, {"mine": 1.0}) == {"macro_f1": 0.5, "mine": 1.0}
    with pytest.raises(InputError, match="a metric returned 'macro_f1', which the objective has; expected another"):
        beside({"macro_f1": 0.5}, {"macro_f1": 1.0})
