"""Mixtures as planned: weights, cursors, keys, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from mixtures import changing_schedule, entry, mixed_schedule, mixture, write_texts

from factories import make_record
from raystage.config.schedule import Schedule, load, parse
from raystage.data.plan import DataPlan
from raystage.errors import InputError
from raystage.planning import build
from raystage.planning.inputs import Sources
from raystage.plans import keys
from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.acceptance import contents_of, judge
from raystage.results.data.data_use import amounts_read
from raystage.results.data.data_warnings import data_warnings
from raystage.results.data.mixtures import losses_by_name, mixture_lines, sources_read
from raystage.results.record import where_it_begins, with_real_ends
from raystage.sweeps.space import SpaceEntry, applied, grid_points, read_space
from token_writers import write_llmc

SOURCES = Sources()
SHIPPED = Path(__file__).parents[2] / "jobs/schedules/mixture.yaml"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder)
    return folder


def stages_of(schedule: Schedule) -> tuple[StagePlan, ...]:
    return build.make_plan(schedule, sources=SOURCES).staged.stages


def stage(name: str, data: dict[str, Any], tokens: int = 640, **more: object) -> dict[str, Any]:
    return {"name": name, "until": {"tokens": tokens}, "data": data, **more}


def single(texts: Path, name: str) -> dict[str, Any]:
    text = entry(texts, name, None)
    return {key: value for key, value in text.items() if key not in ("name", "weight")}


def refusal(schedule: Schedule) -> str:
    with pytest.raises(InputError) as caught:
        stages_of(schedule)
    return str(caught.value)


# --- what is written ------------------------------------------------------------------------------


def test_a_stage_changes_single_keys_of_the_entries_of_the_file(texts: Path) -> None:
    file = mixture(texts, a=0.5, b=0.5, c=0)
    schedule = mixed_schedule(
        texts,
        [stage("one", {}), stage("two", {"mixture": [{"name": "c", "weight": 0.9}, {"name": "a", "weight": "rest"}]})],
        data=file,
    )
    one, two = stages_of(schedule)
    assert [(part.name, part.weight) for part in one.data.parts] == [
        ("a", Fraction(1, 2)),
        ("b", Fraction(1, 2)),
        ("c", 0),
    ]
    assert [(part.name, part.weight) for part in two.data.parts] == [("c", Fraction(9, 10)), ("a", Fraction(1, 10))]
    assert two.data.parts[0].data.path == (str(texts / "c"),)


def test_one_text_takes_the_place_of_a_mixture_and_the_other_way_round(texts: Path) -> None:
    stages = [stage("one", single(texts, "a")), stage("two", {})]
    one, two = stages_of(mixed_schedule(texts, stages, data=mixture(texts, a=0.5, b=0.5)))
    assert isinstance(one.data, DataPlan)
    assert len(two.data.parts) == 2
    stages = [stage("one", mixture(texts, a=0.5, b=0.5)), stage("two", {})]
    one, two = stages_of(mixed_schedule(texts, stages, data=single(texts, "c")))
    assert (len(one.data.parts), isinstance(two.data, DataPlan)) == (2, True)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a": 0.5, "b": 0.4}, "data.mixture: found weights that add up to 0.9 (a 0.5, b 0.4); expected 1, or weight"),
        ({"a": 0.7, "b": "0.30565"}, "found weights that add up to 1.00565"),
        (
            {"a": 0.7, "b": 0.7, "c": "rest"},
            "found weights that add up to 1.4 without that of 'c', which gets the rest",
        ),
        ({"a": "rest", "b": "rest"}, "found weight: rest for a and b; expected it for one source at most"),
        ({"a": 0.7, "b": None}, "data.mixture[1].weight: missing for the source 'b'; expected a share from 0 to 1"),
    ],
)
def test_weights_that_do_not_add_up_are_refused(texts: Path, weights: dict[str, object], said: str) -> None:
    assert said in refusal(mixed_schedule(texts, [stage("one", mixture(texts, **weights))]))


def test_rounded_thirds_add_up_to_one(texts: Path) -> None:
    third = "0.333333333"
    (one,) = stages_of(mixed_schedule(texts, [stage("one", mixture(texts, a=third, b=third, c="0.333333334"))]))
    assert sum(part.weight for part in one.data.parts) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": -0.1}, "weight: found -0.1; expected a share from 0 to 1, or rest"),
        ({"weight": "half"}, "weight: found 'half'; expected a share from 0 to 1, or rest"),
        ({"tokenizer": "bytes"}, "data.mixture[1].tokenizer: unknown key here; it belongs in data"),
        ({"name": "a"}, "found the source 'a' twice in the mixture"),
    ],
)
def test_a_wrong_entry_is_one_message(texts: Path, changes: dict[str, object], said: str) -> None:
    data = {"mixture": [entry(texts, "a", 0.5), entry(texts, "b", 0.5) | changes]}
    with pytest.raises(InputError) as caught:
        mixed_schedule(texts, [stage("one", data)])
    assert said in str(caught.value)


def test_a_text_beside_a_mixture_is_refused(texts: Path) -> None:
    with pytest.raises(InputError, match="found mixture beside source; expected source in the entries of the mixture"):
        mixed_schedule(texts, [stage("one", mixture(texts, a=1) | {"source": "text"})])


def test_the_same_text_twice_is_refused(texts: Path) -> None:
    data = {"mixture": [entry(texts, "a", 0.5), entry(texts, "a", 0.5) | {"name": "other"}]}
    said = "data.mixture[1]: found the same text as in 'a'; expected each text once, with the sum of its weights"
    assert said in refusal(mixed_schedule(texts, [stage("one", data)]))


def test_tokens_beside_text_need_the_tokenizer_that_made_them(texts: Path, tmp_path: Path) -> None:
    file = write_llmc(tmp_path, [[*range(first, first + 100), 256] for first in range(20)])
    tokens = {"name": "t", "weight": 0.5, "source": "tokens", "path": str(file), "validation_fraction": 0.5}
    data = {"end_token": 256, "mixture": [entry(texts, "a", 0.5), tokens]}
    said = refusal(mixed_schedule(texts, [stage("one", data)]))
    assert "stages[0].data.mixture[1]: found tokens beside text that is encoded as 'bytes'; expected data.tok" in said


def test_errors_of_a_source_name_its_entry(texts: Path) -> None:
    data = {"mixture": [entry(texts, "a", 0.5), entry(texts, "b", 0.5) | {"path": str(texts / "nowhere")}]}
    assert "stages[0].data.mixture[1].path: found no file or folder" in refusal(
        mixed_schedule(texts, [stage("one", data)])
    )


def test_held_out_documents_of_one_source_are_not_trained_on_in_another(texts: Path, tmp_path: Path) -> None:
    for path in (texts / "a").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "more.txt").write_text("one more document of letters that are not random")
    copy = entry(texts, "copy", 0.5) | {"path": str(tmp_path), "validation_fraction": 0.2}
    said = refusal(mixed_schedule(texts, [stage("one", {"mixture": [entry(texts, "a", 0.5), copy]})]))
    assert "data.mixture[0].validation_fraction: found 0.5, which holds out" in said
    assert "that are read in its source 'copy'; expected at most the 0.2 there" in said


@pytest.mark.parametrize(
    ("batch", "ok"), [(64, True), (96, True), (48, False)], ids=["multiple", "other multiple", "no multiple"]
)
def test_no_sequence_begins_within_another(texts: Path, batch: int, ok: bool) -> None:
    short = {"model": {"context_length": 16}, "training": {"global_batch_tokens": batch}}
    stages = [
        stage("one", mixture(texts, a=0.5, b=0.5), **short),
        stage("two", mixture(texts, a=1), model={"context_length": 32}),
    ]
    schedule = mixed_schedule(texts, stages)
    if ok:
        assert stages_of(schedule)
    else:
        said = "stages[0].training.global_batch_tokens: found a batch of 48 in a run with a mixture"
        assert said in refusal(schedule)
        assert "expected a multiple of 32, such as 64" in refusal(schedule)


# --- cursors and keys -----------------------------------------------------------------------------


def test_every_token_of_a_stage_is_of_one_source(texts: Path) -> None:
    plan = stages_of(changing_schedule(texts))
    for one in plan:
        assert sum(amounts_read(one).values()) == one.duration


def test_where_an_earlier_stage_ended_early_cursors_follow_from_its_real_end(texts: Path) -> None:
    stages = [
        stage("one", mixture(texts, a=0.5, b=0.5)),
        stage("two", mixture(texts, a=1)),
        stage("three", mixture(texts, b=1)),
    ]
    one, two, three = stages_of(mixed_schedule(texts, stages))
    assert two.reading.cursors == (20,)
    end = replace(make_record(one, 3.0).end, position=128)
    records = {one.key: make_record(one, 3.0, duration=128, evaluations=(end,))}
    begun = with_real_ends(where_it_begins(two, records[one.key]), records.get)
    assert (begun.start, begun.reading.cursors) == (128, (4,))
    end = replace(make_record(two, 3.0).end, position=320)
    records[two.key] = make_record(two, 3.0, duration=192, evaluations=(end,))
    third = with_real_ends(where_it_begins(three, records[two.key]), records.get)
    assert (third.start, third.reading.cursors) == (320, (4,))
    assert amounts_read(two, records) == {two.data.parts[0].data.content: 192}


def test_names_change_no_key_and_weights_do(texts: Path) -> None:
    def keys_of(*entries: dict[str, Any]) -> list[str]:
        return [one.key for one in stages_of(mixed_schedule(texts, [stage("one", {"mixture": list(entries)})]))]

    known = keys_of(entry(texts, "a", 0.5), entry(texts, "b", 0.5))
    assert keys_of(entry(texts, "a", 0.5) | {"name": "x"}, entry(texts, "b", "rest")) == known
    assert keys_of(entry(texts, "a", 0.5), entry(texts, "b", 0.5), entry(texts, "c", 0)) == known
    assert keys_of(entry(texts, "a", 0.4), entry(texts, "b", 0.6)) != known
    assert keys_of(entry(texts, "b", 0.5), entry(texts, "a", 0.5)) != known


def test_stages_with_other_cursors_share_nothing(texts: Path) -> None:
    """The parent's key tells histories apart, also for stages that differ in their length only."""
    last = stage("last", mixture(texts, a=0.5, b=0.5))
    histories = [mixture(texts, a=1), mixture(texts, a=0.5, b=0.5), mixture(texts, a=0.9, b=0.1), single(texts, "a")]
    plans = [stages_of(mixed_schedule(texts, [stage("first", data), last]))[1] for data in histories]
    assert len({one.key for one in plans}) == len({keys.trunk_key(one) for one in plans}) == len(plans)
    assert len({one.reading.cursors for one in plans[:3]}) == 3


def test_a_stage_before_the_first_mixture_is_that_of_a_run_without_any(texts: Path) -> None:
    first = [stage("one", single(texts, "a")), stage("two", single(texts, "b"))]
    constant = {"training": {"global_batch_tokens": 64, "lr_schedule": {"kind": "constant"}}}
    alone = stages_of(mixed_schedule(texts, first, **constant))
    mixed = stages_of(mixed_schedule(texts, [*first, stage("three", mixture(texts, a=0.5, b=0.5))], **constant))
    assert [one.key for one in mixed[:2]] == [one.key for one in alone]
    assert [one.reading for one in mixed[:2]] == [None, None]
    assert mixed[2].reading.cursors == (40, 80)


def test_a_baseline_reads_the_mixture_from_its_start_however_it_is_cut(texts: Path) -> None:
    stages = [stage("one", single(texts, "a")), stage("two", mixture(texts, a=0.5, b=0.5))]
    training = {"lr_schedule": {"kind": "wsd", "decay": 0.2}}
    schedule = mixed_schedule(texts, stages, baseline={"budgets": [640, 1280]})
    schedule = parse(schedule.content() | {"training": schedule.content()["training"] | training})
    baselines = build.make_plan(schedule, sources=SOURCES).baselines
    assert len(baselines[1].stages) > 2
    for run in baselines:
        for one in run.stages:
            assert (one.reading.first, one.reading.cursors) == (0, (0, 0))


def test_a_plan_reads_and_compares_every_text_once(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many weights are tried."""
    known = Sources()
    count = 0
    split = Sources.split

    def counted(self: Sources, data: DataPlan) -> object:
        nonlocal count
        count += 1
        return split(self, data)

    monkeypatch.setattr(Sources, "split", counted)
    for tenth in range(1, 9):
        stages = [stage("one", mixture(texts, a=tenth / 10, b="rest")), stage("two", mixture(texts, b=0.5, c=0.5))]
        build.make_plan(mixed_schedule(texts, stages), sources=known)
        if tenth == 1:
            first = count
    assert count == first


# --- what a plan says -----------------------------------------------------------------------------


def test_a_plan_says_what_is_read_of_every_source(texts: Path) -> None:
    plan = build.make_plan(changing_schedule(texts), sources=SOURCES)
    lines = mixture_lines(plan.staged)
    assert lines[0].startswith("Mixture of one: a 0.5 (160 tokens, ")
    assert "A batch has 1 window, fewer than there are sources: no batch reads all." in lines[1]
    reads = sources_read(plan.staged)
    assert [sum(one.amount for one in reads[name]) for name in ("one", "two")] == [320, 240]


def test_a_plan_warns_of_repeats_beyond_the_limit_of_a_source(texts: Path) -> None:
    def warned(most: float | None) -> list[str]:
        data = {"mixture": [entry(texts, "a", 1.0, max_repeats=most)]}
        plan = build.make_plan(mixed_schedule(texts, [stage("one", data)]), sources=SOURCES)
        return [text for key, text, _ in data_warnings(plan) if key == "data.mixture.a"]

    assert warned(None) == warned(2) == []
    assert "Beyond 1 passes" in warned(1)[0]


def test_a_seed_of_its_own_is_warned_of(texts: Path) -> None:
    stages = [stage("one", mixture(texts, a=1)), stage("two", mixture(texts, a=1), seed=1)]
    plan = build.make_plan(mixed_schedule(texts, stages), sources=SOURCES)
    assert any(key == "stages.seed" and "of two is not that" in text for key, text, _ in data_warnings(plan))


def test_the_shipped_mixture_is_planned_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = build.make_plan(load(SHIPPED))
    reads = sources_read(plan.staged)
    assert [[(one.name, one.weight) for one in reads[name]] for name in ("broad", "narrow")] == [
        [("code", 0.7), ("sums", 0.3)],
        [("code", 0.3), ("sums", 0.7)],
    ]
    assert reads["narrow"][1].passes == pytest.approx(3.9, abs=0.05)
    assert [key for key, _, _ in data_warnings(plan) if "mixture" in key] == []
    for line in (SHIPPED.parent / "../text/arithmetic.txt").read_text().splitlines():
        first, sign, second, _, result = line.split()
        expected = int(first) + int(second) if sign == "+" else int(first) * int(second)
        assert int(result) == expected, line


# --- forgetting -----------------------------------------------------------------------------------


def forgetting(texts: Path, source: str = "a") -> list[dict[str, Any]]:
    accept = {"forgetting_below": {"source": source, "by": 0.02}}
    return [stage("one", mixture(texts, a=0.5, b=0.5)), stage("two", mixture(texts, c=1), accept=accept)]


@pytest.mark.parametrize(("rise", "ok"), [(0.01, True), (-1.0, True), (0.03, False), (float("nan"), False)])
def test_a_stage_that_forgets_an_earlier_source_is_not_accepted(texts: Path, rise: float, ok: bool) -> None:
    _, two = stages_of(mixed_schedule(texts, forgetting(texts)))
    old = two.also_evaluated[0]
    assert (old.name, old.weight) == ("a", 0)
    watched = replace(make_record(two, 3.0).end, sources={old.data.content: 2.0})
    assert losses_by_name(watched, RunPlan("", (two,))) == {"a": 2.0}  # a row of the report has its own stage alone
    end = make_record(two, 3.0).end
    points = tuple(replace(end, sources={old.data.content: loss}) for loss in (2.0, 2.0 + rise))
    reasons = judge(two.accept, make_record(two, 3.0, evaluations=points), contents_of(two))
    assert (reasons == ()) == ok
    if not ok:
        assert "forgetting_below: expected the loss on 'a' to rise by at most 0.02, found" in reasons[0]


def test_a_loss_that_was_not_measured_is_not_accepted(texts: Path) -> None:
    _, two = stages_of(mixed_schedule(texts, forgetting(texts)))
    (reason,) = judge(two.accept, make_record(two, 3.0), contents_of(two))
    assert reason == "forgetting_below: expected the loss on 'a', found none (it was not measured)"


def test_forgetting_an_unknown_source_is_refused(texts: Path) -> None:
    said = refusal(mixed_schedule(texts, forgetting(texts, "d")))
    assert said == (
        "stages[1].accept.forgetting_below.source: found 'd'; expected a source of a mixture up to here: c, a, b"
    )


# --- sweeps ---------------------------------------------------------------------------------------


def test_a_space_varies_a_weight_by_the_names_of_stage_and_source(texts: Path) -> None:
    content = mixed_schedule(texts, [stage("one", mixture(texts, a="rest", b=0.5))]).content()
    entries = {"stages.one.data.mixture.b.weight": SpaceEntry(grid=(0.25, 0.75))}
    configs = list(grid_points(read_space(entries, content)))
    weights = [stages_of(parse(applied(content, config)))[0].data.parts for config in configs]
    assert [[float(part.weight) for part in parts] for parts in weights] == [[0.75, 0.25], [0.25, 0.75]]


@pytest.mark.parametrize("path", ["stages.two.data.mixture.b.weight", "stages.one.data.mixture.x.weight"])
def test_a_name_that_is_not_there_is_refused(texts: Path, path: str) -> None:
    content = mixed_schedule(texts, [stage("one", mixture(texts, a="rest", b=0.5))]).content()
    with pytest.raises(InputError, match=r"space\..*expected (one|a or b)"):
        read_space({path: SpaceEntry(grid=(0.25, 0.75))}, content)
