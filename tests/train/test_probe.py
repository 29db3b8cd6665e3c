"""Certificates as a run takes them: on real workers (gloo processes, DeepSpeed), at several ZeRO stages."""

from __future__ import annotations

import json
from pathlib import Path

import deepspeed
import pytest
from deepspeed.accelerator import get_accelerator
from safetensors.numpy import load

from distributed import run_workers
from factories import make_schedule
from raystage.data.tokens import TokenWindows, open_streams
from raystage.errors import GrowthRejected
from raystage.files.filesystem import open_folder
from raystage.growth.apply import grown_steps
from raystage.growth.certificate import Answers
from raystage.growth.duplicates import DUPLICATE_STEPS
from raystage.growth.rules import initial_map
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import Certificate, GrowthRecord, StageRecord
from raystage.storage.store import Store
from raystage.train import probe
from raystage.train.engine import StageEngine
from raystage.train.entry import Entry, fill
from raystage.train.texts import evaluation_set
from raystage.train.worker import Job, run_job

pytestmark = pytest.mark.end_to_end

WORKERS = 2
GROWTHS = {
    "identity": {"num_layers": 4},
    "stack": {"num_layers": 4},
    "duplicate": {"hidden_size": 16, "num_heads": 4, "ffn_size": 32},
    "zero_pad": {"hidden_size": 12, "ffn_size": 20},
}
CASES = [
    *((operator, (zero_stage, "fp32")) for zero_stage in (1, 3) for operator in GROWTHS),
    ("identity", (1, "bf16")),
    ("identity", (3, "fp32"), "mixtral"),
]
MIXTURE = {"mixtral": {"num_experts": 2, "experts_per_token": 1}}
TRACELESS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16")]


def stages_of(
    text: str, operator: str, layout: tuple[int, str], family: str = "llama", **require: float
) -> tuple[StagePlan, ...]:
    """8 steps of 2 layers, then 24 of what `operator` makes of them."""
    zero_stage, precision = layout
    grown = {"operator": operator, "require": require}
    model = {"num_layers": 2, **GROWTHS[operator], "head_size": 4}
    schedule = make_schedule(
        Path(text),
        model={"head_size": 4, "family": family, **MIXTURE.get(family, {})},
        training={
            "workers": WORKERS,
            "zero_stage": zero_stage,
            "precision": precision,
            "evaluate": {"tokens": 500, "every": 2400},
        },
        stages=[
            {"name": "small", "model": {"num_layers": 2}, "until": {"steps": 8}},
            {"name": "full", "model": model, "until": {"steps": 24}, "grow": grown},
        ],
    )
    return make_plan(schedule).staged.stages


Plans = dict[tuple, tuple[StagePlan, ...]]


def work(plans: Plans, strict: tuple[StagePlan, ...], traceless: Plans, store: str) -> dict:
    """Everything that the tests below look at: what was said, the records in the store, losses."""
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    found: dict = {"said": {}, "rejected": None}
    for case, stages in plans.items():
        heard: list[tuple[str, object]] = []
        for stage in stages:
            run_job(Job((stage,), store), lambda kind, key, what, heard=heard: heard.append((kind, what)))
        found["said"][case] = [what for kind, what in heard if kind == "grown"]
    try:
        for stage in strict:
            run_job(Job((stage,), f"{store}-strict"), lambda *message: None)
    except GrowthRejected as error:
        found["rejected"] = str(error)
    found["losses"] = {layout: [losses(full, None), losses(full, store)] for layout, (_, full) in traceless.items()}
    return found


def losses(full: StagePlan, store: str | None) -> list[float]:
    """Of some steps; with a store, all that is measured for a certificate is measured between them."""
    rules = initial_map(full.shape)
    steps = grown_steps(rules, {})
    engine = StageEngine(full, steps)
    fill(engine, Entry(rules, None, resumed=False), steps, full.seed)
    reader = TokenWindows(open_streams(full.data, full.shape.vocab_size).train, full.shape.context_length, 0)
    found = []
    for step in range(4):
        if store:
            probe.write_probe(engine, open_folder(store) / "traceless", [(evaluation_set(full), 1.0)])
            probe.with_duplicates(engine, GrowthRecord("duplicate", "grow", 0.0, Certificate(1.0, 1.0, 0.0)), step)
        length = full.shape.context_length
        loss = engine.train_step(engine.batches(reader, 10 * step, 10, length), 1e-2, full.start_steps + step)
        found.append(engine.sum_over_workers(loss))
    engine.destroy()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "text").mkdir()
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> dict:
    text = str(place / "text")
    plans = {case: stages_of(text, *case) for case in CASES}
    strict = stages_of(text, "stack", (1, "fp32"), loss_increase_below=1e-6)
    traceless = {layout: stages_of(text, "duplicate", layout) for layout in TRACELESS}
    arguments = (plans, strict, traceless, str(place / "store"))
    return run_workers(WORKERS, work, *arguments, folder=place / "processes")[0]


def record_of(place: Path, *case: object, stage: int = 1) -> StageRecord:
    plan = stages_of(str(place / "text"), *case)
    return Store(open_folder(place / "store")).record(plan[stage].key)


def certificate_of(place: Path, operator: str, layout: tuple[int, str] = (1, "fp32"), *family: str) -> Certificate:
    return record_of(place, operator, layout, *family).growth.certificate


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize("operator", ["identity", "duplicate", "zero_pad"])
def test_an_exact_growth_is_certified_as_one(found: dict, place: Path, operator: str, zero_stage: int) -> None:
    certificate = certificate_of(place, operator, (zero_stage, "fp32"))
    assert certificate.exact is True
    assert certificate.max_logit_difference < 1e-5
    assert abs(certificate.loss_increase) < 1e-5
    assert certificate.gradient_error < 1e-4
    assert certificate.gradient_error_estimated is None


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_stacked_model_is_certified_as_another_function(found: dict, place: Path, zero_stage: int) -> None:
    certificate = certificate_of(place, "stack", (zero_stage, "fp32"))
    assert certificate.exact is False
    assert certificate.max_logit_difference > certificate.mean_logit_difference > 1e-4
    assert certificate.gradient_error is None
    assert certificate.gradient_error_estimated > 0.01


@pytest.mark.parametrize("operator", GROWTHS)
def test_every_zero_stage_finds_the_same(found: dict, place: Path, operator: str) -> None:
    one, other = (certificate_of(place, operator, (zero_stage, "fp32")) for zero_stage in (1, 3))
    assert one.eval_loss_after == pytest.approx(other.eval_loss_after, rel=1e-5)
    assert one.activation_rms_ratio == pytest.approx(other.activation_rms_ratio, rel=1e-4)
    for figure, tolerance in (("gradient_error_estimated", 1e-3), ("twin_distance", 1e-2)):
        found_by = [getattr(each, figure) for each in (one, other)]
        assert found_by == [None, None] or found_by[0] == pytest.approx(found_by[1], rel=tolerance)
    for state in ("exp_avg", "exp_avg_sq"):
        for when in ("before", "after"):
            norms = (each.moment_norms[state][when] for each in (one, other))
            assert next(norms) == pytest.approx(next(norms), rel=1e-4)


def test_bf16_is_certified_as_well_as_bf16_can(found: dict, place: Path) -> None:
    certificate = certificate_of(place, "identity", (1, "bf16"))
    assert certificate.max_logit_difference < 0.05
    assert certificate.gradient_error < 0.05


def test_a_mixture_under_zero_3_has_all_but_gradients(found: dict, place: Path) -> None:
    certificate = certificate_of(place, "identity", (3, "fp32"), "mixtral")
    assert certificate.max_logit_difference < 1e-5
    assert certificate.twin_distance > 0
    assert (certificate.gradient_error, certificate.gradient_error_estimated) == (None, None)


def test_copies_part_after_some_steps_and_what_has_no_copies_says_nothing(found: dict, place: Path) -> None:
    for operator in ("stack", "identity", "duplicate"):
        certificate = certificate_of(place, operator)
        assert certificate.twin_steps == DUPLICATE_STEPS
        assert certificate.twin_distance > 1e-3
    assert certificate_of(place, "zero_pad").twin_distance is None


def test_the_figures_beside_the_first(found: dict, place: Path) -> None:
    record = record_of(place, "identity", (1, "fp32"))
    certificate = record.growth.certificate
    assert certificate.activation_rms_ratio == pytest.approx((1.0,) * 4)
    assert certificate_of(place, "stack").activation_rms_ratio[0] == pytest.approx(1.0)
    norms = certificate.moment_norms["exp_avg"]
    assert norms["after"] == pytest.approx(norms["before"], rel=1e-6)  # kept layers keep theirs, new ones have none
    stacked = certificate_of(place, "stack").moment_norms["exp_avg_sq"]
    assert stacked["before"] < stacked["after"] < 1.5 * stacked["before"]
    numel = sum(parameter.numel for parameter in parameters(record_of(place, "identity", (1, "fp32"), stage=0).shape))
    assert certificate.bytes_read >= 3 * 4 * numel
    assert certificate.seconds == record.growth.seconds > 0


def test_it_lies_beside_the_record_and_is_told_at_once(found: dict, place: Path) -> None:
    record = record_of(place, "duplicate", (3, "fp32"))
    (told,) = found["said"]["duplicate", (3, "fp32")]
    assert told.certificate.twin_distance is None
    assert told.certificate.gradient_error == record.growth.certificate.gradient_error
    content = json.loads(Store(open_folder(place / "store")).stage_folder(record.key).read("certificate.json"))
    assert content["certificate"]["twin_distance"] == record.growth.certificate.twin_distance


def test_a_probe_is_small(found: dict, place: Path) -> None:
    """Of every gradient it holds a sample, whatever the parameter's size."""
    record = record_of(place, "duplicate", (3, "fp32"))
    folder = Store(open_folder(place / "store")).finished_checkpoint(record.key)
    answers = Answers.from_tensors(load(folder.read(probe.PROBE)))
    names = {parameter.name for parameter in parameters(record.shape)}
    assert set(answers.gradients) == names
    assert max(sketch.values.size for sketch in answers.gradients.values()) <= 16 * 64


@pytest.mark.parametrize("layout", TRACELESS, ids=str)
def test_measuring_changes_no_bit_of_the_training(found: dict, layout: tuple[int, str]) -> None:
    without, with_it = found["losses"][layout]
    assert without == with_it
    assert without[-1] < without[0]


def test_a_rejected_growth_stops_the_stage_and_keeps_what_was_there(found: dict, place: Path) -> None:
    assert found["rejected"].startswith(
        "stage full: growing by stack is outside of grow.require: loss_increase_below: "
    )
    store = Store(open_folder(f"{place / 'store'}-strict"))
    small, full = stages_of(str(place / "text"), "stack", (1, "fp32"))
    assert store.record(small.key) is not None
    assert store.record(full.key) is None
    assert store.latest_checkpoint(full.key) is None
    assert store.latest_checkpoint(small.key) is not None
