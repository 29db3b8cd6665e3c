"""What makes steps fast: no value is read from the device in a step, one kernel for AdamW, and a compiled model."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.train.engine import StageEngine
from staged_runs import carry_out, losses, records_of

READS = ("aten::_local_scalar_dense", "aten::nonzero")
# In a step with Adam's loop over tensors, as on CPUs, torch reads its own step count, which lies in host memory.
OF_HOST = "torch/optim/adam.py"
COMPILED = {"compile": True, "gradient_clipping": 0}
# So many stages that torch would not compile the last one any more if it counted those before. Its own limit is 8
# graphs; a graph takes seconds to compile, so the limit is lower here.
DEPTHS = (1, 2, 3)
MOST_GRAPHS = 3
RUNS: Mapping[str, Mapping[str, Any]] = {
    "usual": {}, "fused": {"optimizer": {"lr": 2e-3, "fused": True}}, "not clipped": {"gradient_clipping": 0},
    "compiled": COMPILED,
}  # fmt: skip
# Of one stage: the loss in chunks takes several times as long to compile.
OF_ONE_STAGE = {"one stage": {"gradient_clipping": 0}, "in chunks": {**COMPILED, "cross_entropy": "chunked"}}


class ReadsCounted(TorchDispatchMode):
    """Writes down where a value of a tensor is read, for which a GPU would be waited for."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), named: Any = None) -> Any:
        if function._schema.name in READS:
            where = [f"{one.filename}:{one.lineno}" for one in traceback.extract_stack()]
            if not any(OF_HOST in one for one in where):
                self._found.append(next(one for one in reversed(where) if "/torch/" not in one and __file__ not in one))
        return function(*arguments, **(named or {}))


@contextmanager
def reads_of_steps(found: list[str]) -> Iterator[None]:
    train_step = StageEngine.train_step

    def counted(engine: StageEngine, *arguments: Any) -> torch.Tensor:
        with ReadsCounted(found):
            return train_step(engine, *arguments)

    StageEngine.train_step = counted
    try:
        yield
    finally:
        StageEngine.train_step = train_step


def carry_out_each(schedules: Mapping[str, Schedule], store: str) -> list[str]:
    """On one worker. Returns where the steps of the usual run have read values."""
    found: list[str] = []
    with reads_of_steps(found):
        carry_out(schedules["usual"], store)
    os.environ["TORCHDYNAMO_DISABLE"] = "0"  # as the environment of a worker says
    torch._dynamo.config.disable = False
    get_accelerator().set_compile_backend("aot_eager")  # takes no C++ compiler, and a tenth of the time
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    for schedule in schedules.values():
        carry_out(schedule, store)
    return found


def stages_of(depths: Sequence[int]) -> list[dict[str, Any]]:
    stages = [{"name": f"of-{depth}", "model": {"num_layers": depth}, "until": {"tokens": 1000}} for depth in depths]
    return [stages[0], *(stage | {"grow": {"operator": "random"}} for stage in stages[1:])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, list[StageRecord]]]:
    folder = tmp_path_factory.mktemp("fast")
    (texts := folder / "texts").mkdir()
    training = {"micro_batch_size": 5, "evaluate": {"tokens": 100}}
    schedules = {
        name: make_schedule(texts, training=training | changes, stages=stages_of(DEPTHS[:2]))
        for name, changes in RUNS.items()
    }
    schedules |= {
        name: make_schedule(texts, training=training | changes, stages=stages_of(DEPTHS[:1]))
        for name, changes in OF_ONE_STAGE.items()
    }
    schedules["many stages"] = make_schedule(texts, training=training | COMPILED, stages=stages_of(DEPTHS))
    store = str(folder / "store")
    (found,) = run_workers(1, carry_out_each, schedules, store, folder=folder / "workers")
    return found, {name: records_of(schedule, store) for name, schedule in schedules.items()}


@pytest.mark.end_to_end
def test_a_step_reads_no_value_but_those_that_deepspeed_reads(runs: tuple) -> None:
    """In each of 10 steps whether the norm of each parameter group's gradient is a number, and that of all: two groups,
    and four after a growth with new layers."""
    found, _ = runs
    assert [where for where in found if "/deepspeed/" not in where] == []
    assert len(found) <= 10 * (3 + 5)


@pytest.mark.end_to_end
def test_one_kernel_for_adamw_takes_the_same_steps_but_for_rounding(runs: tuple) -> None:
    _, records = runs
    usual, fused = losses(records["usual"]), losses(records["fused"])
    assert fused == [pytest.approx(one, abs=1e-4) for one in usual]
    assert records["fused"][0].key != records["usual"][0].key


@pytest.mark.end_to_end
def test_a_compiled_model_learns_the_same_and_is_compiled_for_each_way_of_calling_it(runs: tuple) -> None:
    """In training and in evaluation; a growth builds another model, which is compiled anew."""
    _, records = runs
    assert losses(records["compiled"]) == [pytest.approx(one, abs=1e-4) for one in losses(records["not clipped"])]
    assert losses(records["in chunks"]) == [pytest.approx(one, abs=1e-4) for one in losses(records["one stage"])]
    assert 2 <= records["in chunks"][0].compiled_graphs <= 8
    graphs = [record.compiled_graphs for record in records["compiled"]]
    assert all(2 <= number <= 4 for number in graphs), graphs
    assert records["usual"][0].compiled_graphs is None


@pytest.mark.end_to_end
def test_the_last_of_many_stages_is_compiled_too(runs: tuple) -> None:
    _, records = runs
    assert all(record.compiled_graphs >= 2 for record in records["many stages"])


@pytest.mark.end_to_end
def test_what_a_growth_did_is_measured_without_the_compiler(runs: tuple) -> None:
    _, records = runs
    compiled, usual = (records[name][1].growth.certificate for name in ("compiled", "not clipped"))
    assert compiled.activation_rms_ratio == pytest.approx(usual.activation_rms_ratio, abs=1e-4)


def test_transformers_looks_for_packed_sequences_under_the_name_that_is_replaced() -> None:
    assert callable(transformers.masking_utils.find_packed_sequence_indices)
    assert "find_packed_sequence_indices" in transformers.masking_utils._preprocess_mask_arguments.__code__.co_names


REFUSED = {
    "zero_stage: 3": {"training": {"compile": True, "zero_stage": 3}},
    "operator: masked": {
        "training": {"compile": True},
        "stages": [
            {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
            {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 1200},
             "grow": {"operator": "masked", "grow_tokens": 400}},
        ],
    },
    "data.window.mask: document": {"training": {"compile": True}, "data": {"window": {"mask": "document"}}},
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_compiled_is_refused_with_its_reason(tmp_path: Path, what: str) -> None:
    with pytest.raises(InputError, match=f"training.compile: found true with {what}"):
        make_plan(make_schedule(tmp_path, **REFUSED[what]))


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_an_optimizer_without_such_a_kernel_refuses_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} takes no fused; expected it with adamw or adam alone"):
        make_plan(make_schedule(tmp_path, training={"optimizer": {"name": name, "fused": True}}))
