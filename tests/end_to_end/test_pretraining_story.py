"""The shipped example of pre-training without labels is trained on real sentences, and learns what its page says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    """A copy beside the sentences, as the script writes them of Django's translations."""
    subprocess.run([sys.executable, JOBS / "text/languages.py", tmp_path / "text/languages"], check=True)
    (tmp_path / "schedules").mkdir()
    return Path(shutil.copy(JOBS / "schedules/languages.yaml", tmp_path / "schedules"))


def test_hidden_words_teach_more_of_languages_than_few_labels_alone(schedule: Path, raystage: Raystage) -> None:
    raystage("run", schedule, "--json", "--wandb", "disabled")
    report = raystage.report("languages")
    read, classify = report["stages"]
    scratch = report["baseline"]["runs"]
    assert sum(stage["flops"] for stage in report["stages"]) == pytest.approx(scratch[-1]["flops"], rel=0.05)
    assert read["eval_loss"] < 5.2, "by the frequency of each token it is 6.0"
    assert classify["eval_loss"] < min(run["eval_loss"] for run in scratch) - 0.3
    accuracy = classify["evaluations"][-1]["accuracy"]
    alone, *_, at_equal_flops = (run["evaluations"][-1]["accuracy"] for run in scratch[1:])
    assert accuracy > alone + 0.08, "as many passes over the labels"
    assert accuracy > at_equal_flops - 0.02
