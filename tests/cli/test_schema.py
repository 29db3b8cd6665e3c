"""`raystage schema`: every file that raystage accepts is valid under it, and what it prints is what is shipped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from raystage.cli.main import main
from raystage.config.conditions import Until
from raystage.config.json_schema import json_schema
from raystage.config.schedule import Schedule, is_sweep, load
from raystage.config.section import Section
from raystage.config.yaml_file import read_mapping
from raystage.sweeps.config import Sweep

REPOSITORY = Path(__file__).parents[2]
JOBS = sorted((REPOSITORY / "jobs").rglob("*.yaml"))
SHIPPED = [*JOBS, REPOSITORY / "raystage" / "cli" / "starter.yaml"]
DRAWN = json.loads((REPOSITORY / "tests" / "golden" / "keys.json").read_text())


def validator(root: type[Section]) -> jsonschema.Draft202012Validator:
    schema = json_schema(root, "a file")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


SCHEDULE, SWEEP = validator(Schedule), validator(Sweep)


def problems(content: dict[str, Any]) -> list[str]:
    return [error.message for error in (SWEEP if is_sweep(content) else SCHEDULE).iter_errors(content)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_are_valid_and_name_their_schema(path: Path) -> None:
    content = read_mapping(path)
    assert problems(content) == []
    kind = "sweep" if is_sweep(content) else "schedule"
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(.*)$", path.read_text(), re.M)
    assert Path(named).name == f"{kind}.schema.json"
    assert (path.parent / named).is_file() or path not in JOBS, named


@pytest.mark.parametrize(("kind", "folder"), [("schedule", "schedules"), ("sweep", "sweeps")])
def test_the_schemas_beside_the_shipped_files_are_up_to_date(kind: str, folder: str) -> None:
    printed = CliRunner().invoke(main, ["schema", kind])
    assert printed.exit_code == 0
    file = f"jobs/{folder}/{kind}.schema.json"
    assert (REPOSITORY / file).read_text() == printed.stdout, f"run: raystage schema {kind} > {file}"


def test_drawn_schedules_are_valid() -> None:
    """Over all keys: those whose stage keys stand in the golden file."""
    written = [one["schedule"] for one in DRAWN if "schedule" in one]
    assert len(written) > 100
    for content in written:
        assert problems(content) == [], json.dumps(content)


WRITTEN = """
name: all-forms
seed: "7"
data: {source: text, path: one.txt, validation_path: [a, b], document_bytes: 1K}
model: {num_layers: 3, hidden_size: 6.4e1, tied_embeddings: "No", norm_eps: 1e-5}
training:
  workers: {min: 2, max: "8"}
  global_batch_tokens: 4_096
  optimizer: {lr: "3e-4", betas: [0.9, "0.95"]}
  lr_schedule: {warmup: 20K, decay: 0.2}
  hang_seconds: 30m
  evaluate: {metrics: ["own.py:right", {function: "own:right", options: {tokens: [1]}}]}
  ramp: {global_batch_tokens: {from: 1K, over: {tokens: 2M}}}
  deepspeed: {zero_optimization: {overlap_comm: true}}
stages:
  - name: small
    until: {any: [{tokens: 400K}, {all: [{steps: 10}, {seconds: 2h}]}]}
    freeze: {layers: old, for: {tokens: 1M}}
    on_reject: abort
  - name: full
    until: {plateau: {min_delta: 0.01, patience: 3}, tokens: 0.5B}
    grow: {operator: {num_layers: stack, width: zero_pad}, rewarm: {tokens: 50K}, layers: [0, 1]}
    freeze: {layers: [0, "1"], embeddings: true}
    accept: {metrics: {right: {above: -1}}}
    on_reject: {retry: {times: 2, set: {training.optimizer.lr: "*0.5"}}}
baseline: {budgets: [800K, 1200000], tune: {training.optimizer.lr: [1e-3, "2e-3"]}}
init: {from: my/llama}
costs: {price_per_hour: 2, currency: EUR}
"""


def test_every_form_of_a_value_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "forms.yaml"
    file.write_text(WRITTEN)
    load(file)
    assert problems(read_mapping(file)) == []


SWEEPS = """
- {scheduler: {name: asha, grace: 250K}, search: {algorithm: random, num_trials: 4}}
- {scheduler: {name: asha, grace: {flops: 1e12}}, objective: [{metric: flops_to_loss, target: 1.5}]}
- {constraints: {equal_flops: true}, objective: {metric: eval_loss_at_flops, at: 1e12}}
- {scheduler: {name: asha, grace: {samples: 5K}}, objective: [{metric: eval_loss}]}
- {constraints: {equal_flops: {stage: full}}, scheduler: {name: lag, after_growth: {samples: 2K, keep: 2}}}
- {constraints: {equal_flops: {stage: full}}, scheduler: {name: lag, after_growth: {tokens: 50K, keep: 2}}}
- {space: {training.optimizer.lr: {loguniform: [1e-4, "1e-2"], when: {seed: [1, 2]}}, seed: {choice: [1, 2]}}}
"""


@pytest.mark.parametrize("written", yaml.safe_load(SWEEPS), ids=str)
def test_every_form_of_a_sweep_is_valid(written: dict[str, Any]) -> None:
    content = {"name": "a", "schedule": "b.yaml", "space": {"seed": {"grid": [1, 2]}}} | written
    Sweep.model_validate(content)
    assert problems(content) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"layers": 3}}, "'layers' was unexpected"),
        ({"seed": -1}, "-1 is less than the minimum of 0"),
        ({"seed": "many"}, "'many' does not match"),
        ({"training": {"optimizer": {"name": "adamax"}}}, "'adamax' is not one of"),
        ({"stages": []}, "should be non-empty"),
        ({"baseline": {}}, "is not valid under any of the given schemas"),
    ],
)
def test_an_editor_sees_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    content = {"name": "a", "stages": [{"name": "s", "until": {"tokens": 1}}]}
    assert problems(content) == []
    assert said in "".join(problems(content | changes))


def test_every_key_has_a_description() -> None:
    for root in (Schedule, Sweep):
        schema = json_schema(root, "a file")
        for name, section in {"": schema, **schema["$defs"]}.items():
            section = section.get("anyOf", [section])[-1]
            assert section.get("description"), name
            for key, field in section.get("properties", {}).items():
                refers = field.get("$ref", "").rpartition("/")[2]
                assert field.get("description") or schema["$defs"][refers]["description"], f"{name}.{key}"


def test_conditions_inside_conditions() -> None:
    """Until stands inside itself, in the schema as in the code."""
    assert validator(Until).is_valid({"any": [{"all": [{"tokens": "1K"}]}]})
