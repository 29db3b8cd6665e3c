"""The module that docs/architectures.md shows, as a user takes it through everything: planned, trained, grown, killed
and continued, reported, exported and loaded."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import Raystage, losses_in
from pages import block_with

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

PAGE = "docs/architectures.md"


def test_a_module_of_ones_own_goes_all_the_way(raystage: Raystage) -> None:
    folder = raystage.folder
    (folder / "reader.py").write_text(block_with("class Reader", PAGE).text)
    (folder / "reader.yaml").write_text(block_with("name: reader", PAGE).text)
    planned = json.loads(raystage("plan", "reader.yaml", "--json").stdout)
    assert [stage["num_layers"] for stage in planned["stages"]] == [1, 2, 2]

    calm = raystage("run", "reader.yaml", "--json", "--wandb", "disabled", "--store", "calm").stdout
    killed = ("run", "reader.yaml", "--json", "--wandb", "disabled", "--store", "killed")
    assert raystage.stop_at("deep] step 0", signal.SIGKILL, *killed) == -signal.SIGKILL
    assert losses_in(raystage(*killed).stdout) == losses_in(calm)

    stages = raystage.report_in("killed", "reader")["stages"]
    assert [stage["eval_loss"] for stage in stages] == sorted((stage["eval_loss"] for stage in stages), reverse=True)
    assert stages[-1]["eval_loss"] < 2.7  # 5.6 at random, 3.2 by the frequencies of bytes
    for stage in stages[1:]:
        assert stage["growth"]["certificate"]["exact"]
        assert stage["growth"]["certificate"]["max_logit_difference"] < 1e-4

    raystage("export", "reader/wide", "exported", "--store", "killed")
    network = made_from(folder / "exported", folder / "reader.py")
    logits = network(torch.arange(64)[None])
    assert logits.shape == (1, 64, 257)
    assert torch.isfinite(logits).all()


def made_from(exported: Path, file: Path) -> torch.nn.Module:
    """The user's module with the exported weights, without raystage."""
    spec = importlib.util.spec_from_file_location("reader", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json.loads((exported / "config.json").read_text())
    network = getattr(module, config["function"])(config["vocab_size"], **config["options"])
    network.load_state_dict(load_file(exported / "model.safetensors"))
    return network
