"""Before and around a Train run: do the workers fit, what do workers start with, what does a failure say."""

from __future__ import annotations

import pytest

from raystage.cluster.placement import count_places
from raystage.cluster.worker_group import worker_environment
from raystage.config.training import Training
from raystage.errors import NonFiniteLoss, StageFailed
from raystage.train.control_actor import ControlActor


def node(alive: bool = True, **resources: float) -> dict:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "training", "places"),
    [
        ([node(CPU=2)], {"workers": 2}, 2),
        ([node(CPU=2)], {"cpus_per_worker": 2}, 1),
        ([node(CPU=3), node(CPU=3)], {"cpus_per_worker": 2}, 2),  # 6 CPUs, but no worker is cut in two
        ([node(CPU=8, GPU=2)], {"gpus_per_worker": 1}, 2),
        ([node(CPU=8)], {"gpus_per_worker": 1}, 0),
        ([node(CPU=8, alive=False), node(CPU=1)], {}, 1),
        ([], {}, 0),
    ],
)
def test_a_worker_needs_room_on_one_living_node(nodes: list[dict], training: dict, places: int) -> None:
    assert count_places(nodes, Training(**training)) == places


def test_workers_know_their_device_and_threads_before_they_import_anything() -> None:
    assert worker_environment(Training(cpus_per_worker=3))["OMP_NUM_THREADS"] == "3"
    assert worker_environment(Training())["DS_ACCELERATOR"] == "cpu"
    assert worker_environment(Training(gpus_per_worker=1))["DS_ACCELERATOR"] == "cuda"


def test_the_control_actor_gives_every_message_once_and_keeps_the_first_failure() -> None:
    control = ControlActor()
    control.put("trained", "key", 1)
    control.put("trained", "key", 2)
    assert control.take() == [("trained", "key", 1), ("trained", "key", 2)]
    assert control.take() == []
    control.fail(NonFiniteLoss("first"))
    control.fail(StageFailed("second"))
    assert str(control.failure()) == "first"
