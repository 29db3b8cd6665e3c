"""The shipped examples of raystage's own networks are trained, as a user would, and learn what their page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

SCHEDULES = Path(__file__).parents[2] / "jobs" / "schedules"


@pytest.mark.parametrize("name", ["digits_cnn", "lstm"])
def test_staged_is_better_than_from_scratch_at_equal_flops(raystage: Raystage, name: str) -> None:
    """For digits by a convolutional network and for text by an LSTM."""
    raystage("run", SCHEDULES / f"{name}.yaml", "--json", "--wandb", "disabled")
    report = raystage.report(name)
    staged, scratch = report["stages"], report["baseline"]["runs"]
    assert sum(stage["flops"] for stage in staged) == pytest.approx(scratch[1]["flops"], rel=0.01)
    assert staged[-1]["eval_loss"] < scratch[1]["eval_loss"] - 0.01
    for grown in staged[1:]:
        certificate = grown["growth"]["certificate"]
        assert certificate["eval_loss_after"] == pytest.approx(certificate["eval_loss_before"], abs=1e-3)
    if name == "lstm":
        assert report["savings"]["compute_saved"] > 0.15
    else:
        assert staged[-1]["evaluations"][-1]["accuracy"] > 0.97


def test_an_autoencoder_becomes_a_classifier(raystage: Raystage) -> None:
    """The noise itself has a mean square of 0.09. Alone the classifier is as good: what pre-training costs is lost."""
    raystage("run", SCHEDULES / "few_labels.yaml", "--json", "--wandb", "disabled")
    report = raystage.report("few_labels")
    denoise, classify = report["stages"]
    assert denoise["eval_loss"] < 0.015
    assert classify["evaluations"][-1]["accuracy"] > 0.88
    assert report["savings"]["compute_saved"] is None
