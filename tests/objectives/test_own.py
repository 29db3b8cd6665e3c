"""What a loss of the user's own must not return, or do: each is one message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from factories import make_schedule
from raystage.data.tokens import TokenWindows
from raystage.errors import InputError
from raystage.objectives.opening import open_learner
from raystage.objectives.own import Own
from raystage.objectives.plan import ObjectivePlan
from raystage.planning.build import make_plan

WEIGHT = torch.nn.Parameter(torch.ones(3))
READER = TokenWindows(np.zeros(50, np.uint16), 8, seed=0)


def opened(folder: Path, returned: str, **options: object) -> Own:
    """Both functions return that, of the arguments `given`."""
    file = folder / "own.py"
    file.write_text(f"import torch\ndef function(*given, **options): return {returned}\n")
    return Own(f"{file}:function", f"{file}:function", options)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "returned a NoneType; expected the summed loss: one number with a gradient"),
        ("3.0", "returned a float; expected"),
        ("given[0]", r"returned a tensor of shape \(3,\); expected"),
        ("given[0].sum().detach()", r"returned a tensor of shape \(\); expected"),
        ("given[0].sum() * 1j", r"returned a tensor of complex64 of shape \(\); expected"),
        ("given[0][:1].to_sparse()", r"returned a sparse tensor of shape \(1,\); expected"),
        ("1 / 0", r"failed \(ZeroDivisionError: division by zero at .*own.py:2\)"),
        ("exit(0)", r"failed \(SystemExit: 0 at .*own.py:2\)"),
    ],
)
def test_what_is_no_loss(tmp_path: Path, returned: str, said: str) -> None:
    with pytest.raises(InputError, match=f"objective.*own.py:function {said}"):
        opened(tmp_path, returned).loss(WEIGHT, {})


@pytest.mark.parametrize("returned", ["0", "-1", "3.0", "True", "torch.tensor(3)", "exit(0)"])
def test_what_is_no_number_of_targets(tmp_path: Path, returned: str) -> None:
    with pytest.raises(InputError, match=r"objective.*own.py:function (returned .*; expected a whole number|failed)"):
        opened(tmp_path, returned).num_targets(READER, 0, 2, 8)


def test_an_option_may_have_any_name(tmp_path: Path) -> None:
    own = opened(tmp_path, "given[0].sum() * options['key'] * options['reference']", key=2, reference=3)
    assert own.loss(WEIGHT, {}).item() == 18


# --- code that is edited between a plan and its use


def planned(folder: Path, factor: int) -> ObjectivePlan:
    """The plan of a loss that is so many times the sum of the weights."""
    (folder / "text").mkdir(exist_ok=True)
    (folder / "own.py").write_text(f"def loss(model, batch): return model.sum() * {factor}\n")
    objective = {"name": "own", "function": f"{folder / 'own.py'}:loss"}
    return make_plan(make_schedule(folder / "text", objective=objective, baseline=None)).staged.stages[0].objective


def test_a_loss_that_was_edited_after_the_plan_is_refused(tmp_path: Path) -> None:
    """The key of the stage is that of the code as it was; a worker loads the file when a stage begins."""
    before = planned(tmp_path, 2)
    after = planned(tmp_path, 3)
    with pytest.raises(InputError, match=r"objective.function: the code of .*own.py:loss .* is not what was planned"):
        open_learner(before)
    assert open_learner(after).loss(WEIGHT, {}).item() == 9


def test_a_process_that_plans_again_uses_the_code_as_it_is_now(tmp_path: Path) -> None:
    """In a notebook. The edits are of one length and of one second, which Python's own cache does not tell apart."""
    for factor in (2, 3, 4):
        assert open_learner(planned(tmp_path, factor)).loss(WEIGHT, {}).item() == 3 * factor


def test_code_that_was_loaded_as_planned_may_be_edited_for_the_next_run(tmp_path: Path) -> None:
    """The stages of a run on a worker that stays: the code in memory is the planned one."""
    before = planned(tmp_path, 2)
    open_learner(before)
    (tmp_path / "own.py").write_text("def loss(model, batch): return model.sum() * 3\n")
    assert open_learner(before).loss(WEIGHT, {}).item() == 6
