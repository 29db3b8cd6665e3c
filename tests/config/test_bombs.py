"""Input that is made, or happens, to take for ever or all of the memory: refused in one short line.

Without their bounds most of these would not end within the test's time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from factories import write_documents
from raystage.cli.main import main
from raystage.config import yaml_file

GOOD = """
name: tiny
data: {source: text, path: texts, validation_fraction: 0.5}
model: {hidden_size: 16, num_heads: 4, context_length: 8}
training: {global_batch_tokens: 64}
stages:
  - {name: small, model: {num_layers: 2}, until: {tokens: 640}}
  - {name: full, model: {num_layers: 4}, until: {tokens: 640}, grow: {operator: stack}}
"""
SWEEP = "name: s\nschedule: good.yaml\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 10))
VALUES = "more than 10,000 values, those of an alias counted each time it is used"
NUMBERS = [f"{number}e-5" for number in range(1, 400)]
BUDGETS = [64 * number for number in range(1, 31)]


def with_lists(*fields: str) -> str:
    lists = ", ".join(f"training.optimizer.{field}: [{', '.join(NUMBERS)}]" for field in fields)
    return f"{GOOD}baseline: {{budgets: [640], tune: {{{lists}}}}}"


def stages(count: int, rest: str = "") -> str:
    rows = (f"- {{name: s{index}, model: {{num_layers: 2}}, until: {{tokens: 64}}{rest}}}\n" for index in range(count))
    return GOOD.partition("stages:")[0] + "stages:\n" + "".join(rows)


def said_of_layers(found: object) -> str:
    return f"stages[0].model.num_layers: found {found}; expected at most 10,000"


RETRY = ", accept: {eval_loss_below: 3}, on_reject: {retry: {times: 100, set: {training.optimizer.lr: '*0.5'}}}"
GRID = f"{{grid: [{', '.join(map(str, range(1, 1001)))}]}}"
BOMBS = {
    "aliases": (LAUGHS, VALUES),
    "aliases in a key": (GOOD + LAUGHS.replace("a9:", "costs:"), VALUES),
    "merges": (MERGES, VALUES),
    "many values": (f"stages: [{'1,' * 50_000}]", VALUES),
    "a long file": ("#" + "x" * 1_000_000, "has more than 200,000 bytes; expected a schedule or a sweep"),
    "deep": ("a: " + "[" * 50_000, "values are nested too deep"),
    "deep and valid": ("a: " + "[" * 100 + "]" * 100, "values are nested too deep"),
    "nul": (GOOD + "\0", "the character '\\x00' at position"),
    "a hexadecimal number": (f"{GOOD}seed: !!int 0x{'f' * 100_000}", "line 9, column 7: found a number of 100,002"),
    "a sexagesimal number": (f"{GOOD}seed: !!int {':'.join(['59'] * 9_999)}", "found a number of 29,996 characters"),
    "4,000 digits": (GOOD.replace("640", "9" * 4_000), "99999...; expected at most 1e+27"),
    "1e999": (GOOD.replace("640", "1e999"), "stages[0].until.tokens: found inf; expected a whole number"),
    "9e99999999": (GOOD.replace("640", "'9e99999999'"), "found '9e99999999'; expected a number"),
    "a long key": (f"{GOOD}{'k' * 1_000}: 1", "...: unknown key; known here"),
    "a long anchor": (f"a: *{'x' * 100_000}", "found undefined alias 'xxxxx"),
    "a long tag": (f"a: !<tag:{'x' * 100_000}> 1", "could not determine a constructor for the tag 'tag:xxx"),
    "a long path": (GOOD.replace("texts", "x" * 100_000), "data.path[0]: found 100,000 characters; expected at most"),
    "layers": (GOOD.replace("num_layers: 2", "num_layers: 1000000000"), said_of_layers(10**9)),
    "a hidden size": (GOOD.replace("size: 16", "size: 4e9"), "size: found 4000000000.0; expected at most 1,048,576"),
    "workers": (GOOD.replace("{global", "{workers: 1e9, global"), "workers: found 1000000000.0; expected at most"),
    "stages": (stages(201), "stages: found 201 entries; expected at most 200"),
    "budgets": (f"{GOOD}baseline: {{budgets: {[*BUDGETS, 10**6]}}}", "budgets: found 31 entries; expected at most 30"),
    "combinations": (with_lists("lr", "eps", "weight_decay"), "baseline.tune: found 63840000 combinations of values"),
    "seeds": (f"{GOOD}seeds: 100\nbaseline: {{budgets: {BUDGETS}}}", "seeds: found 3,100 runs, of 1 combinations"),
    "attempts": (stages(100, RETRY), "stages[0].on_reject: found 100 attempts up to here, each of which is planned; "
                 "expected at most 50 in all"),
    "trials": (f"{SWEEP}space: {{training.optimizer.lr: {{uniform: [1e-4, 1e-2]}}}}\n"
               "search: {algorithm: random, num_trials: 1M}", "num_trials: found 1000000; expected at most 10,000"),
    "a grid": (f"{SWEEP}space: {{seed: {GRID}, training.max_failures: {GRID}, training.checkpoint.every: {GRID},"
               f" training.checkpoint.keep_last: {GRID}}}", "space: found a grid of more than 10,000 points"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "texts").mkdir()
    write_documents(tmp_path / "texts")
    (tmp_path / "good.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_one_short_line(folder: Path, bomb: str) -> None:
    text, message = BOMBS[bomb]
    (folder / "bomb.yaml").write_text(text)
    done = CliRunner().invoke(main, ["plan", "bomb.yaml"])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.count("\n") == 1
    assert len(done.output) < 500


def test_what_is_within_the_bounds_is_planned(folder: Path) -> None:
    """The largest of everything at once would be too much for anyone; each by itself is not."""
    for text in (
        stages(200),
        GOOD.replace("num_layers: 4", "num_layers: 10000"),
        f"{GOOD}baseline: {{budgets: {BUDGETS}}}",
    ):
        (folder / "large.yaml").write_text(text)
        done = CliRunner().invoke(main, ["plan", "large.yaml"])
        assert done.exit_code == 0, done.output


def test_what_is_no_file_is_not_waited_for(folder: Path) -> None:
    for place in ("/dev/zero", "/dev/null"):
        done = CliRunner().invoke(main, ["plan", place])
        assert done.output == f"raystage: {place}: is no regular file; expected a YAML file\n"


def test_merged_mappings_give_way_to_what_is_written(folder: Path) -> None:
    """`<<` as YAML 1.1 has it: the keys beside it count first, then the mappings in their order."""
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {<<: *a, y: 4}\n"
    (folder / "merged.yaml").write_text(text)
    read = yaml_file.read_mapping(folder / "merged.yaml")
    assert read["c"] == {"x": 1, "y": 1, "z": 3}
    assert read["d"] == {"x": 1, "y": 4}
    assert read["a"] == {"x": 1, "y": 1}


@pytest.mark.parametrize(("text", "message"), [
    ("a: {<<: {b: 1}, c: 1, c: 2}", "line 1, column 23: the key 'c' stands here a second time"),
    ("a: {<<: {b: 1, b: 2}}", "line 1, column 16: the key 'b' stands here a second time"),
    ("a: {<<: {b: 1}, <<: {c: 1}}", "line 1, column 17: the key '<<' stands here a second time"),
    ("a: {<<: 5}", "expected a mapping or list of mappings for merging, but found scalar"),
])  # fmt: skip
def test_what_is_wrong_with_a_merge_is_said(folder: Path, text: str, message: str) -> None:
    (folder / "merged.yaml").write_text(text)
    done = CliRunner().invoke(main, ["plan", "merged.yaml"])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert message in done.output
