"""What plan and report say of the text: how much there is, what is held out, how often it is read."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from factories import make_record, make_records, make_schedule, save_words, write_documents
from labelled_files import CLASSES, write_jsonl
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import parse
from raystage.data.tokens import open_streams
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.advice import warnings
from raystage.reports.build import build_report
from raystage.reports.markdown import markdown
from raystage.results.data import data_use, data_warnings
from raystage.results.data.data_use import Counted, counted_json, data_lines, data_rows
from raystage.train.texts import open_texts


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


def test_the_counts_are_those_of_the_streams(texts: Path) -> None:
    plan = make_plan(make_schedule(texts))
    (one,) = data_rows(plan.staged)
    assert to_json([one]) == plan_json(plan)["data"]
    streams = open_streams(plan.staged.stages[0].data, 257)
    assert (one.amount, one.held_out) == (len(streams.train), len(streams.held_out))
    assert one.documents + one.held_out_documents == 12
    assert one.passes == pytest.approx(2000 / len(streams.train))
    assert not one.tokens_are_estimated
    (line,) = data_lines([one])
    assert line.startswith(f"Data: 5 documents, {len(streams.train)} tokens to train on; 7 documents, ")
    assert "held out. 2K tokens are read: " in line


def test_of_a_tokenizer_tokens_are_estimated_until_the_text_was_tokenized(texts: Path, tmp_path: Path) -> None:
    schedule = make_schedule(texts, data={"tokenizer": str(save_words(tmp_path / "tokenizer", "document"))})
    plan = make_plan(schedule)
    (one,) = data_rows(plan.staged)
    assert one.tokens_are_estimated
    assert ", about " in data_lines([one])[0]
    streams = open_streams(plan.staged.stages[0].data, 16)
    (one,) = data_rows(plan.staged)
    assert (one.amount, one.tokens_are_estimated) == (len(streams.train), False)


def test_each_text_has_a_line_of_its_own(texts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("another text, that is long enough")
    (other / "b.txt").write_text("yet another text, long enough as well")
    (other / "c.txt").write_text("the third of these texts")
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "full", "until": {"tokens": 1200}, "data": {"path": str(other), "validation_fraction": 0.6}},
    ]
    plan = make_plan(make_schedule(texts, stages=stages, model={"num_layers": 2}))
    first, second = data_rows(plan.staged)
    assert (first.stages, first.read) == (("small",), 800)
    assert (second.stages, second.read) == (("full",), 1200)
    assert [line.split(":")[0] for line in data_lines([first, second])] == ["Data of small", "Data of full"]


def about(plan: Plan, key: str) -> list[str]:
    return [one.text for one in warnings(plan) if one.key == key]


@pytest.mark.parametrize(("tokens", "warned"), [(2000, False), (60_000, True)])
def test_many_passes_are_warned_of(tokens: int, warned: bool, texts: Path) -> None:
    said = about(make_plan(make_schedule(texts, baseline={"budgets": [tokens]})), "data")
    assert [text for text in said if "and run 'baseline-60000' reads 60K: " in text] == said
    assert bool(said) is warned


@pytest.mark.parametrize(
    ("optimizer", "warned"),
    [
        ({"lr": 20}, True),
        ({"lr": 0.05}, False),
        ({"name": "sgd", "lr": 1}, False),
        ({"name": "sgd", "lr": 20}, True),
        ({"name": "muon", "lr": 0.02}, False),
        ({"name": "muon", "lr": 1}, True),
    ],
)
def test_an_impossible_rate_is_warned_of(optimizer: dict, warned: bool, texts: Path) -> None:
    plan = make_plan(make_schedule(texts, training={"optimizer": optimizer}))
    assert bool(about(plan, "training.optimizer.lr")) is warned


def test_control_tokens_in_text_are_warned_of(texts: Path, tmp_path: Path) -> None:
    tokenizer = {"tokenizer": str(save_words(tmp_path / "tokenizer", "document"))}
    assert not any("control tokens" in text for text in about(make_plan(make_schedule(texts, data=tokenizer)), "data"))
    (texts / "more.txt").write_text("some text</s>more text")
    said = about(make_plan(make_schedule(texts, data=tokenizer)), "data")
    assert any("control tokens of its tokenizer" in text and "data.document_separator" in text for text in said)


def counted(repeated: int, looked_at: float = 1.0) -> dict:
    return asdict(Counted(4000, 1000, False, 200, repeated, looked_at))


@pytest.mark.parametrize(("repeated", "doubted"), [(2, False), (20, True)])
def test_held_out_text_that_was_trained_on_is_a_doubt(repeated: int, doubted: bool, texts: Path) -> None:
    plan = make_plan(make_schedule(texts))
    records = make_records(plan, 2.0, (2.4, 2.2, 2.1))
    records = {key: replace(record, data=counted(repeated)) for key, record in records.items()}
    report = build_report(plan, records, {})
    (one,) = report.data
    assert (one.amount, one.repeated_share) == (4000, repeated / 200)
    said = "Text that was trained on is held out: the data has held-out text of which 10.0 % stands word for word"
    assert any(said in warning for warning in report.warnings) is doubted
    assert "## Data" in markdown(report)
    assert f"{repeated / 2:.1f} %" in markdown(report)


def test_without_a_comparison_the_losses_are_doubted(texts: Path) -> None:
    plan = make_plan(make_schedule(texts, baseline=None))
    records = {stage.key: make_record(stage, 2.0, data=counted(20)) for stage in plan.staged.stages}
    (said,) = build_report(plan, records, {}).warnings
    assert said.startswith("Text that was trained on is held out")


def test_of_part_of_a_text_the_share_is_a_lower_bound() -> None:
    (said,) = data_warnings.repeat_doubts([Counted(**counted(20, looked_at=0.5))])
    assert "at least 10.0 %" in said


@pytest.mark.parametrize("data", [{}, {"train_tokens": 3}, {**counted(2), "pieces": "many"}, {**counted(2), "new": 1}])
def test_records_that_counted_nothing_are_no_matter(data: dict, texts: Path) -> None:
    """Those of before, or of a version to come."""
    plan = make_plan(make_schedule(texts))
    stage = plan.staged.stages[0]
    report = build_report(plan, {stage.key: make_record(stage, 3.0, data=data)}, {})
    assert report.data[0].repeated_share is None


@pytest.mark.parametrize(("passes", "said"), [(0.094, "0.094"), (98.4, "98"), (391, "391"), (1234, "1.23K")])
def test_passes_are_written_out(passes: float, said: str) -> None:
    assert data_use.format_passes(passes) == f"{said} passes over the text"


def test_what_is_said_of_repeated_text_is_a_sentence(texts: Path) -> None:
    (said,) = data_lines([replace(data_rows(make_plan(make_schedule(texts)).staged)[0], repeated_share=0.0)])
    assert said.endswith(". None of the held-out text stands word for word in the training text.")


def test_texts_of_a_mixture_go_by_their_names(tmp_path: Path) -> None:
    write_documents(tmp_path, 40)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/one.txt").write_text("".join(f"line {number}\n" for number in range(400)))
    more = {"source": "text", "path": str(tmp_path / "more"), "document_bytes": 256, "validation_fraction": 0.5}
    few = {"source": "text", "path": str(tmp_path), "files": "?.txt", "validation_fraction": 0.5}
    mixture = [{"name": "few", **few, "weight": 0.5}, {"name": "more", **more, "weight": 0.5}]
    stages = [{"name": name, "until": {"tokens": 400}, "data": {"mixture": mixture}} for name in ("one", "two")]
    schedule = make_schedule(tmp_path, baseline=None, stages=stages, model={"num_layers": 1})
    content = {**schedule.content(), "data": {"tokenizer": "bytes"}}
    rows = data_rows(make_plan(parse(content)).staged)
    assert [row.names for row in rows] == [("few",), ("more",)]
    assert [line.split(":")[0] for line in data_lines(rows)] == ["Data 'few' of one, two", "Data 'more' of one, two"]


def test_texts_that_lose_their_end_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 to 59 bytes and an end token, in contexts of 30 and of 60: two stages lose other numbers of them."""
    pairs = [("x" * (20 + number), CLASSES[number % 3]) for number in range(40)]
    shape = {"family": "bert", "num_layers": 1, "hidden_size": 16, "num_heads": 2}
    content = {
        "name": "t", "objective": "classification", "model": shape, "training": {"global_batch_samples": 4},
        "data": {"source": "jsonl", "path": str(write_jsonl(tmp_path / "rows", pairs)), "validation_fraction": 0.3},
        "stages": [
            {"name": "short", "model": {"context_length": 30}, "until": {"samples": 8}},
            {"name": "long", "model": {"context_length": 60}, "until": {"samples": 8}, "grow": {"operator": "stack"}},
        ],
    }  # fmt: skip
    staged = make_plan(parse(content)).staged
    assert data_rows(staged)[0].cut == {}  # nobody tokenized them here
    short, long = staged.stages
    data = {stage.key: counted_json(stage, open_texts(stage).counted) for stage in staged.stages}
    (row,) = data_rows(staged)
    held_out = open_texts(long).held_out[0].held_out.arrays["mask"].sum(1)
    lengths = set(range(21, 61)) - set(held_out.tolist())
    lost = sum(length > 30 for length in lengths)
    assert row.cut == {"short": lost, "long": 0}
    assert 0 < lost < len(lengths) == row.amount
    said = f" Of the texts to train on {lost} ({lost / len(lengths):.1%}".replace("%", " %")
    assert data_lines([row])[0].endswith(f"{said}) are longer than the context of short and lose their end.")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    records = {stage.key: make_record(stage, 1.0, data=data[stage.key]) for stage in (short, long)}
    assert data_rows(staged, records)[0].cut == row.cut
