"""The files in cluster/kuberay fit KubeRay's resource definitions, with and without their options, and each other."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cluster_files import KUBERAY, NODE_START_SECONDS, commands, document, documents, patience_of, pins, planned
from ray.scripts import scripts

from raystage.cluster.shutdown import LEAVE_SECONDS

SCHEMA = json.loads((Path(__file__).parents[1] / "support" / "kuberay.schema.json").read_text(encoding="utf-8"))
JOBS = [name for name in KUBERAY if "/rayjob" in name]
GPU = [name for name in KUBERAY if "gpu" in name]
SHARED = [name for name in KUBERAY if "-s3" not in name and "-gcs" not in name]
RUN = "python jobs/run.py"
EITHER = [False, True]


def resource(name: str, with_options: bool = False) -> dict[str, Any]:
    return document(name, "RayJob" if name in JOBS else "RayCluster", with_options)


def check(found: dict[str, Any]) -> None:
    """Raises ValidationError. `jsonschema.validate` would check the schema, too, which takes a second."""
    jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{found['kind']}"}).validate(found)


def cluster_spec(found: dict[str, Any]) -> dict[str, Any]:
    return found["spec"].get("rayClusterSpec", found["spec"])


def pods(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's, then the workers'."""
    cluster = cluster_spec(found)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def environment(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (container,) = pod["containers"]
    return {one["name"]: one for one in container.get("env", ())}


def arguments_of(name: str) -> list[str]:
    """Those of the job that the file runs or shows."""
    (arguments,) = [shlex.split(resource(name)["spec"]["entrypoint"])[2:]] if name in JOBS else commands(name, RUN)
    return arguments


def trained_with(name: str) -> tuple[Any, str]:
    """The training section of the job that the file runs or shows, and its store."""
    plan, store = planned(arguments_of(name))
    return plan.staged.stages[0].training, store


# ---- what KubeRay accepts


@pytest.mark.parametrize("name", KUBERAY)
@pytest.mark.parametrize("with_options", EITHER)
def test_kuberay_knows_every_field(name: str, with_options: bool) -> None:
    found = resource(name, with_options)
    assert found["apiVersion"] == "ray.io/v1"
    check(found)


def test_a_field_that_kuberay_does_not_know_is_noticed() -> None:
    found = resource(GPU[0])
    pods(found)[1]["containers"][0]["resource"] = {}
    with pytest.raises(jsonschema.ValidationError, match="'resource' was unexpected"):
        check(found)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_ends_with_its_cluster(name: str) -> None:
    spec = resource(name)["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"]
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > LEAVE_SECONDS


@pytest.mark.parametrize("name", KUBERAY)
def test_a_cluster_has_one_version_and_a_token(name: str) -> None:
    cluster = cluster_spec(resource(name))
    assert cluster["rayVersion"] == pins()["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


# ---- what raystage needs


@pytest.mark.parametrize("name", KUBERAY)
def test_the_workers_fit_on_the_pods(name: str) -> None:
    (group,) = cluster_spec(resource(name))["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    limits, needed = container["resources"]["limits"], trained_with(name)[0]
    per_pod = int(limits["cpu"]) // needed.cpus_per_worker
    if needed.gpus_per_worker:
        per_pod = min(per_pod, int(limits["nvidia.com/gpu"]) // needed.gpus_per_worker)
    assert group["replicas"] * per_pod >= needed.workers.most
    assert needed.gpus_per_worker == int(name in GPU)


@pytest.mark.parametrize("name", KUBERAY)
def test_a_job_waits_for_a_pool_that_an_autoscaler_starts(name: str) -> None:
    assert patience_of(arguments_of(name)) >= NODE_START_SECONDS


@pytest.mark.parametrize("name", KUBERAY)
@pytest.mark.parametrize("with_options", EITHER)
def test_every_pod_has_shared_memory_and_equal_limits(name: str, with_options: bool) -> None:
    for pod in pods(resource(name, with_options)):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", SHARED)
def test_every_pod_mounts_the_store(name: str) -> None:
    claim = document(name, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(resource(name)):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        store = mounts[trained_with(name)[1]]
        assert store["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["securityContext"]["fsGroup"] == 100


@pytest.mark.parametrize(
    ("name", "annotation", "scheme"),
    [
        ("kuberay/rayjob-gpu-s3.yaml", "eks.amazonaws.com/role-arn", "s3://"),
        ("kuberay/rayjob-gpu-gcs.yaml", "iam.gke.io/gcp-service-account", "gs://"),
    ],
)
def test_a_bucket_is_opened_by_the_account_of_every_pod(name: str, annotation: str, scheme: str) -> None:
    account = document(name, "ServiceAccount")["metadata"]
    assert annotation in account["annotations"]
    assert trained_with(name)[1].startswith(scheme)
    assert {pod["serviceAccountName"] for pod in pods(resource(name))} == {account["name"]}
    assert not [one for one in documents(name) if one["kind"] == "PersistentVolumeClaim"]


@pytest.mark.parametrize("name", GPU)
def test_secrets_are_references_that_may_be_missing(name: str) -> None:
    for pod in pods(resource(name)):
        for variable, said in environment(pod).items():
            if "KEY" in variable or "TOKEN" in variable:
                reference = said["valueFrom"]["secretKeyRef"]
                assert (reference["key"], reference["optional"]) == (variable, True)
                # KubeRay keeps the cluster's token in a secret with the cluster's name.
                assert reference["name"] != resource(name)["metadata"]["name"]


@pytest.mark.parametrize("name", GPU)
def test_a_node_that_goes_is_drained_in_time(name: str) -> None:
    _, worker = pods(resource(name))
    (container,) = worker["containers"]
    bash, option, script = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (bash, option) == ("/bin/bash", "-c")
    drain, _, sleep = script.partition(" && ")
    words = shlex.split(drain)
    assert words[:1] + words[2:4] == ["timeout", "ray", "drain-node"]
    asked = scripts.drain_node.make_context("drain-node", words[4:]).params
    assert asked["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    seconds = int(sleep.split()[1])
    assert LEAVE_SECONDS < seconds < asked["deadline_remaining_seconds"]
    assert int(words[1]) + seconds < worker["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", GPU)
def test_kueue_has_a_queue_and_a_suspended_start(name: str) -> None:
    plain, queued = resource(name), resource(name, with_options=True)
    assert "suspend" not in plain["spec"]
    assert queued["spec"]["suspend"] is True
    assert "kueue.x-k8s.io/queue-name" in queued["metadata"]["labels"]
    assert "idleTimeoutSeconds" not in json.dumps(queued)
    assert not cluster_spec(queued).get("enableInTreeAutoscaling")


@pytest.mark.parametrize("name", GPU)
def test_workers_reach_each_other_over_the_pod_network(name: str) -> None:
    variables = environment(pods(resource(name))[1])
    assert variables["NCCL_SOCKET_IFNAME"]["value"] == variables["GLOO_SOCKET_IFNAME"]["value"] == "eth0"
