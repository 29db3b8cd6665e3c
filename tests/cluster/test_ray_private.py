"""Names that Ray does not document are there, with the signatures and meanings that raystage relies on."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private import node, ray_constants, worker
from ray._private.state import GlobalState
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.job_submission import JobSubmissionClient
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

from raystage.cluster import ray_private


def test_ray_has_the_names_that_are_used() -> None:
    """Some are set or looked up when they are used: a missing one would not be noticed by the import."""
    assert hasattr(ray._raylet.InnerGcsClient, "check_alive")  # GcsClient passes calls on to it
    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert hasattr(worker, "_global_node")
    assert hasattr(worker.global_worker, "node")
    assert list(inspect.signature(GlobalState.get_draining_nodes).parameters) == ["self"]
    assert list(inspect.signature(GlobalState.available_resources_per_node).parameters) == ["self"]
    assert "get_placement_group_table" in dir(ray._raylet.GlobalStateAccessor)
    fields = set(PlacementGroupTableData.DESCRIPTOR.fields_by_name)
    assert fields >= {
        "placement_group_id", "bundles", "state", "creator_job_id", "creator_actor_id", "creator_actor_dead",
    }  # fmt: skip
    assert {"PENDING", "REMOVED", "RESCHEDULING"} <= set(PlacementGroupTableData.PlacementGroupState.keys())
    assert {"internal_kv_get", "internal_kv_del", "get_all_node_info"} <= set(dir(ray._raylet.InnerGcsClient))
    assert "_do_request" in dir(JobSubmissionClient)
    assert {"webui_url", "get_session_dir_path"} <= set(dir(node.Node))
    assert {"_serialize", "_runtime_env_has_working_dir"} <= set(dir(ray.job_config.JobConfig))


def test_the_coordinator_of_elastic_runs_is_the_one_that_ray_train_looks_up(monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect.getsource(default_autoscaling_coordinator.get_or_create_autoscaling_coordinator)
    assert source.count(f'"{ray_private.COORDINATOR}"') == 2
    assert 'lifetime="detached"' in source
    module, name = autoscaling_coordinator_client, "AUTOSCALING_REQUESTS_EXPIRE_TIME_S"
    client = module.TrainAutoscalingCoordinatorClient
    monkeypatch.setattr(module, name, getattr(module, name))  # put back in the end
    monkeypatch.setattr(client, "_autoscaling_coordinator", vars(client)["_autoscaling_coordinator"])
    assert isinstance(pickle.loads(pickle.dumps(ray_private.FindsCoordinator())), ray_private.FindsCoordinator)
    assert isinstance(vars(client)["_autoscaling_coordinator"], property)
    assert getattr(module, name) == ray_private.RESERVED_SECONDS > 2 * module.AUTOSCALING_REQUESTS_INTERVAL_S


def test_a_process_without_a_cluster_has_no_logs_folder_and_no_own_processes() -> None:
    assert ray_private.logs_folder() is None
    ray_private.kill_on_shutdown()


def test_the_cluster_that_ray_start_left_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_private.started_here() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("127.0.0.1:6379")
    assert ray_private.started_here() == "127.0.0.1:6379"


def test_health_checks_are_read_from_the_environment() -> None:
    """Ray reads it once for each process."""
    code = "from raystage.cluster.ray_private import health_check as h; c = h(); print(c.period_seconds, c.failures)"
    environment = os.environ | {"RAY_health_check_period_ms": "1500", "RAY_health_check_failure_threshold": "7"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["1.5", "7"]
    found = ray_private.HealthCheck(3, 10, 5)
    assert (found.shortest_seconds, found.longest_seconds) == (15, 65)
