"""`raystage ensemble`: several finished models as one, against probabilities averaged by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from distributed import run_workers
from factories import make_schedule
from raystage.cli.main import main
from raystage.cli.report import read_report
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.objectives.judging import summed_loss
from raystage.objectives.learner import Answer
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan, RunPlan
from raystage.reports.markdown import markdown
from raystage.runs.driver import Driver
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.tools.ensemble import mean_answer
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source, open_target
from raystage.train.teacher import frozen_model
from raystage.train.texts import evaluation_set
from raystage.train.worker import Job, run_job


def schedule_of(text: Path, **changes: object) -> Schedule:
    """Two stages, the second with another seed where `seed` is given."""
    seed, layers = changes.pop("seed", None), changes.pop("layers", 2)
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 400}},
        {"name": "full", "model": {"num_layers": layers}, "until": {"tokens": 400},
         **({"seed": seed} if seed else {}), **({"grow": {"operator": "stack"}} if layers > 2 else {})},
    ]  # fmt: skip
    training = {"optimizer": {"lr": 2e-2}, "evaluate": {"tokens": 400}}
    return make_schedule(text, stages=stages, training=training, **{"baseline": None, **changes})


def train(plans: list[Plan], store: str) -> None:
    for run in (run for plan in plans for run in plan.runs()):
        for stage in run.stages:
            run_job(Job((stage,), store), lambda *message: None)


class Trained:
    """A schedule with two seeds, whose run has been reported; and further members that share its first stage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(open_folder(folder / "store"))
        text = folder / "text"
        text.mkdir()
        self.schedule = schedule_of(text, seeds=2, baseline={"budgets": [800]})
        self.plan = make_plan(self.schedule)
        self.branches = [make_plan(schedule_of(text, seed=seed)).staged for seed in (7, 8)]
        self.deeper = make_plan(schedule_of(text, layers=4)).staged
        plans = [self.plan, *(make_plan(schedule_of(text, seed=seed)) for seed in (7, 8))]
        plans.append(make_plan(schedule_of(text, layers=4)))
        run_workers(1, train, plans, str(folder / "store"), folder=folder / "processes")
        Driver(self.plan, self.schedule, self.store, []).run()
        self.file = folder / "schedule.yaml"
        self.file.write_text(yaml.safe_dump(self.schedule.content()))

    def ensemble(self, *arguments: object) -> Result:
        command = ["ensemble", self.file, *arguments, "--store", self.folder / "store"]
        return CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(one) for one in command])

    def found(self, *arguments: object) -> dict:
        done = self.ensemble(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("ensembles"))


def key_of(run: RunPlan) -> str:
    return run.stages[-1].key


def network(trained: Trained, run: RunPlan) -> torch.nn.Module:
    source = Checkpoint(trained.store.finished_checkpoint(key_of(run)))
    return frozen_model(run.stages[-1].shape, source, torch.float32)


def probabilities(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens[:, :-1]).logits.double().softmax(-1).flatten(0, 1)


@pytest.mark.end_to_end
def test_the_seeds_of_a_schedule_as_one(trained: Trained) -> None:
    runs = [trained.plan.staged, trained.plan.further_seeds[0].staged]
    found = trained.found()
    assert [one["key"] for one in found["members"]] == [key_of(run) for run in runs]
    for member, run in zip(found["members"], runs, strict=True):
        # Not the record's own where the seeds hold out other text: all members are judged on one.
        assert member["training_flops"] == sum(trained.store.record(stage.key).flops for stage in run.stages)
    assert found["members"][0]["eval_loss"] == pytest.approx(trained.store.record(key_of(runs[0])).eval_loss, rel=1e-5)
    tokens = torch.from_numpy(evaluation_set(trained.plan.staged.stages[-1]).tokens)
    each = [probabilities(network(trained, run), tokens) for run in runs]
    targets = tokens[:, 1:].flatten()
    together = sum(each) / 2
    expected = -together[torch.arange(len(targets)), targets].log().mean().item()
    assert found["prediction"]["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["prediction"]["accuracy"] == pytest.approx((together.argmax(-1) == targets).double().mean().item())
    assert found["prediction"]["eval_loss"] <= sum(one["eval_loss"] for one in found["members"]) / 2
    assert found["prediction"]["training_flops"] == sum(one["training_flops"] for one in found["members"])
    assert found["prediction"]["forward_flops"] == 2 * found["members"][0]["forward_flops"]


@pytest.mark.end_to_end
def test_the_mean_weights_are_a_model_of_their_own(trained: Trained) -> None:
    runs = [trained.plan.staged, trained.plan.further_seeds[0].staged]
    weights = trained.found()["weights"]
    merged, states = network(trained, runs[0]), [network(trained, run).state_dict() for run in runs]
    merged.load_state_dict({name: sum(state[name].double() for state in states) / 2 for name in states[0]})
    tokens = torch.from_numpy(evaluation_set(trained.plan.staged.stages[-1]).tokens)
    said, targets = probabilities(merged, tokens), tokens[:, 1:].flatten()
    expected = -said[torch.arange(len(targets)), targets].log().mean().item()
    assert weights["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert weights["forward_flops"] == trained.found()["members"][0]["forward_flops"]


@pytest.mark.end_to_end
def test_a_stage_that_members_share_counts_once(trained: Trained) -> None:
    found = trained.found(*map(key_of, trained.branches), "--name", "branches")
    small = trained.store.record(trained.branches[0].stages[0].key)
    ends = [trained.store.record(key_of(run)) for run in trained.branches]
    assert found["prediction"]["training_flops"] == small.flops + sum(one.flops for one in ends)
    assert [one["training_flops"] for one in found["members"]] == [small.flops + one.flops for one in ends]


@pytest.mark.end_to_end
def test_models_of_other_shapes_have_no_mean_weights(trained: Trained, tmp_path: Path) -> None:
    """One of them as a Hugging Face folder, of whose training nothing is known."""
    folder = open_target(str(tmp_path / "hf"))
    export(open_source(key_of(trained.plan.staged), trained.store), folder, ExportOptions())
    found = trained.found(tmp_path / "hf", key_of(trained.deeper), "--name", "mixed")
    assert found["weights"] is None
    assert found["members"][0]["training_flops"] is found["prediction"]["training_flops"] is None
    assert found["members"][0]["eval_loss"] == pytest.approx(trained.found()["members"][0]["eval_loss"], rel=1e-6)
    assert found["prediction"]["forward_flops"] == sum(one["forward_flops"] for one in found["members"])


@pytest.mark.end_to_end
def test_the_report_of_the_run_shows_it_from_then_on(trained: Trained) -> None:
    found = trained.found()
    stored = read_report(trained.store, trained.plan.name)
    assert stored.content["ensembles"]["full"] == found
    assert stored.report.ensembles["full"].prediction.eval_loss == found["prediction"]["eval_loss"]
    assert "| full | mean prediction |" in markdown(stored.report)
    lines = trained.ensemble().stdout.splitlines()
    assert any("mean weights" in line for line in lines)
    damaged = Path(trained.folder, "store", "runs", trained.plan.name, "ensembles", "broken.json")
    damaged.write_text("{")
    assert "broken" not in read_report(trained.store, trained.plan.name).report.ensembles
    damaged.unlink()


@pytest.mark.end_to_end
def test_what_is_refused(trained: Trained, tmp_path: Path) -> None:
    other = tmp_path / "one.yaml"
    content = trained.schedule.content()
    content.pop("seeds")
    other.write_text(yaml.safe_dump(content))
    cases = [
        ((key_of(trained.deeper),), "found one model; expected two or more"),
        ((tmp_path / "none", tmp_path / "none"), "no such folder; expected a raystage checkpoint"),
        (("--stage", "last"), "--stage: no stage 'last' in the schedule; expected one of small, full"),
        (("--name", "a/b"), "--name: "),
        (("--set", "model.context_length=20", key_of(trained.deeper), key_of(trained.deeper)),
         "found a context of 10; expected 20 or more"),
        (("--set", "seeds=3"), "is not finished; expected the runs of all seeds to be trained"),
        (("--set", "seeds=1"), "missing, and the schedule has one seed; expected two models or more, seeds: 2"),
    ]  # fmt: skip
    for arguments, said in cases:
        done = trained.ensemble(*arguments)
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stderr.split())


# --- the mean of answers ------------------------------------------------------------------------


def test_scores_are_averaged_as_probabilities() -> None:
    scores = [torch.tensor([[10.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0]])]
    targets = torch.tensor([2])
    mean = sum(one.softmax(-1) for one in scores) / 2
    found = mean_answer([Answer(one, targets) for one in scores])
    torch.testing.assert_close(found.outputs.softmax(-1), mean)
    assert summed_loss(found).item() == pytest.approx(-mean[0, 2].log().item())
    far = [Answer(torch.tensor([[-1e4, 0.0]]), targets), Answer(torch.tensor([[-2e4, 0.0]]), targets)]
    assert mean_answer(far).outputs.isfinite().all()


def test_images_are_averaged_as_they_are() -> None:
    made = [torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])]
    found = mean_answer([Answer(one, torch.zeros(1, 2)) for one in made])
    torch.testing.assert_close(found.outputs, torch.tensor([[0.5, 1.0]]))
