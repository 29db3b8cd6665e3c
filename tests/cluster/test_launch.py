"""Before and around a Train run: do the workers fit, what do workers start with, what does a failure say."""

from __future__ import annotations

import pytest

from raystage.cluster.placement import count_free_places, count_places
from raystage.cluster.worker_environment import worker_environment
from raystage.config.training import Training
from raystage.errors import NonFiniteLoss, StageFailed
from raystage.train.control_actor import ControlActor, Message, longest_wait_seconds


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


def test_how_to_communicate_is_passed_on_and_nothing_else() -> None:
    of_driver = {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "ib0", "FI_PROVIDER": "efa", "TORCH_NCCL_DUMP": "1",
                 "OMP_NUM_THREADS": "7", "WANDB_API_KEY": "secret", "HF_TOKEN": "secret", "PATH": "/bin"}  # fmt: skip
    found = worker_environment(Training(), of_driver)
    assert found.keys() - worker_environment(Training(), {}).keys() == {
        "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "FI_PROVIDER", "TORCH_NCCL_DUMP",
    }  # fmt: skip
    assert found["OMP_NUM_THREADS"] == "1"


def test_deterministic_workers_on_gpus_have_one_order_of_sums_unless_the_user_names_another() -> None:
    on_gpu = Training(gpus_per_worker=1, deterministic=True)
    found = worker_environment(on_gpu, {})
    assert (found["CUBLAS_WORKSPACE_CONFIG"], found["NCCL_ALGO"]) == (":4096:8", "Ring")
    assert worker_environment(on_gpu, {"NCCL_ALGO": "^NVLS"})["NCCL_ALGO"] == "^NVLS"
    assert "NCCL_ALGO" not in worker_environment(Training(deterministic=True), {})
    assert "NCCL_ALGO" not in worker_environment(Training(gpus_per_worker=1), {})


@pytest.mark.parametrize(("compiles", "is_disabled"), [(False, "1"), (True, "0")])
def test_workers_load_the_compiler_only_where_something_is_compiled(compiles: bool, is_disabled: str) -> None:
    assert worker_environment(Training(compile=compiles), {})["TORCHDYNAMO_DISABLE"] == is_disabled


@pytest.mark.parametrize(("hang_seconds", "waits"), [(5.0, 1800.0), (1800.0, 18_000.0)])
def test_torch_waits_as_long_as_the_watchdog(hang_seconds: float, waits: float) -> None:
    assert longest_wait_seconds(hang_seconds) == waits


def test_the_control_actor_gives_every_message_once_and_keeps_the_first_failure() -> None:
    control = ControlActor()
    first, second = Message.of("trained", "key", 1), Message.of("trained", "key", 2)
    control.put(first)
    control.put(second)
    assert control.take() == [first, second]
    assert control.take() == []
    control.fail(NonFiniteLoss("first"))
    control.fail(StageFailed("second"))
    assert str(control.failure()) == "first"


def test_what_is_free_must_be_on_one_node_and_of_the_type_that_is_asked_for() -> None:
    """Otherwise a run that queues behind another would count as one whose nodes start no processes, and be ended."""
    nodes = [node(CPU=4) | {"NodeID": "a"}, node(CPU=4) | {"NodeID": "b"}]
    wide = Training(cpus_per_worker=4)
    assert count_free_places(nodes, {"a": {"CPU": 2}, "b": {"CPU": 2}}, wide) == 0
    assert count_free_places(nodes, {"a": {"CPU": 2}, "b": {"CPU": 4}}, wide) == 1
    assert count_free_places(nodes, {"a": {"CPU": 2}}, wide) == 0, "a node of which nothing is known"
    of_type = Training(gpus_per_worker=1, accelerator="H200")
    h200, l4 = "accelerator_type:H200", "accelerator_type:L4"
    types = [node(CPU=9, GPU=1, **{kind: 1}) | {"NodeID": kind} for kind in (h200, l4)]
    assert count_free_places(types, {h200: {"CPU": 8, h200: 0.999}, l4: {"CPU": 9, "GPU": 1, l4: 1}}, of_type) == 0
    assert count_free_places(types, {h200: {"CPU": 8, "GPU": 1, h200: 1}}, of_type) == 1
