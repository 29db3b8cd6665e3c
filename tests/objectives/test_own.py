"""What a loss of the user's own must not return, or do: each is one message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raystage.data.tokens import TokenWindows
from raystage.errors import InputError
from raystage.objectives.own import Own

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
