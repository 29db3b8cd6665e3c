"""The one file that uses names which Ray does not document: it has no public ones for what is done here.

    ray._private.ray_constants.ENABLE_RAY_CLUSTER    whether Ray's servers listen on other interfaces than loopback
    ray._private.worker.global_worker.node           where a cluster's logs are; the processes of a local cluster
    ray._private.state.state                         placement groups with their creators; nodes that are drained; what
                                                     each node has free
    ray._private.utils.read_ray_address              the cluster that `ray start` has started on this machine
    ray._private.authentication...                   shows a cluster the token of this user
    ray._raylet.AuthenticationTokenLoader            whether there is one
    ray._private.services.find_node_ids              the nodes of clusters on this machine
    ray._private.runtime_env.packaging               a folder as one file, as Ray sends it
    JobSubmissionClient._do_request                  leaves something in the GCS, over HTTP
    ray._raylet.GcsClient                            asks a cluster whether it is alive, with a time limit
    ray._raylet.Config                               how often the GCS checks that nodes are alive
    ray._private.worker._global_node.webui_url       where the dashboard is
    ray.core.generated.gcs_pb2                       the format of the table of placement groups
    ray.job_config.JobConfig._serialize              where workers import from
    ray.data._internal..., ray.train.v2._internal... the actor that tells elastic Train runs how many workers fit

tests/cluster/test_ray_private.py holds that they are there; what they do is held by the tests of clusters that run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.runtime_env.packaging import create_package
from ray._private.services import find_node_ids
from ray._private.state import state as cluster_state
from ray._private.utils import read_ray_address
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig
from ray.job_submission import JobSubmissionClient
from ray.train import UserCallback
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raystage.cluster.queries import here

_STDERR = 2
# What a process that imports Ray may take until it asks.
_IMPORT_SECONDS = 30.0

# --- starting and joining ---------------------------------------------------------------------


def listen_on_loopback_only() -> None:
    """Have a cluster that this process starts listen on the loopback interface alone.

    On a Mac Ray does so by itself. On Linux its servers would listen on all interfaces.
    """
    ray_constants.ENABLE_RAY_CLUSTER = False


def started_here() -> str | None:
    """The address of the cluster that `ray start` last started on this machine."""
    return read_ray_address()


def check_alive(address: str, timeout_seconds: float) -> None:
    """Ask the cluster at `address` whether it is alive; if it wants a token, with the token of this user.

    Raises AuthenticationError, RayError, RuntimeError.
    """
    with _without_ray_warnings():
        try:
            GcsClient(address=address).check_alive([], timeout=timeout_seconds)
        except AuthenticationError:
            if not maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
                raise
            GcsClient(address=address).check_alive([], timeout=timeout_seconds)


@contextlib.contextmanager
def _without_ray_warnings() -> Iterator[None]:
    """What Ray's C++ part prints is not shown: it has no other switch for a process that is connected to nothing."""
    sys.stderr.flush()
    before, nowhere = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        os.dup2(before, _STDERR)
        os.close(before)
        os.close(nowhere)


def has_token() -> bool:
    """Whether this user has a token. Where RAY_AUTH_MODE asks for one that is not there, Ray ends the process."""
    try:
        return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    except AuthenticationError:  # the file that is named cannot be read
        return False


def show_token_if_there() -> None:
    """Show clusters the token of this user, if there is one and RAY_AUTH_MODE does not say otherwise."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # it would explain what it does
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def has_node_here(address: str, timeout_seconds: float) -> bool:
    """Whether this machine has a living node of the cluster at `address`. A driver needs one."""
    here = find_node_ids()
    known = GcsClient(address=address).get_all_node_info(timeout=timeout_seconds) if here else {}
    return any(node.hex() in here for node in known)


class JobImportingFrom(JobConfig):
    """A job whose workers import from `folders` before all else, and not from the driver's working directory.

    Ray adds the driver's working directory and the folder of its script right before it sends the configuration.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        super().__init__()
        self._folders = tuple(folders)

    def _serialize(self) -> str:
        self._py_driver_sys_path[:] = [] if self._runtime_env_has_working_dir() else self._folders
        return super()._serialize()


def kill_on_shutdown() -> None:
    """Have `ray.shutdown` kill the processes of the local cluster. It would send SIGTERM, which these processes have
    blocked, and wait for each of them."""
    node = ray._private.worker._global_node
    for infos in node.all_processes.values() if node else ():
        for info in infos:
            info.process.terminate = info.process.kill


def logs_folder() -> str | None:
    """Where each node of the cluster has its logs; None if this process is connected to no cluster."""
    node = ray._private.worker.global_worker.node
    return node.get_logs_dir_path() if node else None


def session_folder() -> str | None:
    """Where this node keeps sockets, logs and spilled objects; None if this process is connected to no cluster."""
    node = ray._private.worker.global_worker.node
    return node.get_session_dir_path() if node else None


def dashboard_address() -> str | None:
    """HOST:PORT of the cluster's dashboard; None if it has none, or this process is connected to no cluster."""
    node = ray._private.worker._global_node
    return (node.webui_url or None) if node else None


@dataclass(frozen=True)
class HealthCheck:
    """How the GCS finds out that a node is lost: so many checks in a row without an answer."""

    period_seconds: float
    timeout_seconds: float
    failures: int

    @property
    def shortest_seconds(self) -> float:
        """Until a node counts as lost whose connections are refused at once."""
        return self.period_seconds * self.failures

    @property
    def longest_seconds(self) -> float:
        """Until a node counts as lost that says nothing at all."""
        return (self.period_seconds + self.timeout_seconds) * self.failures


def health_check() -> HealthCheck:
    """As the environment of this process sets it. Of a worker on the head node that is the environment of the GCS."""
    milliseconds = Config.health_check_period_ms(), Config.health_check_timeout_ms()
    period, timeout = (value / 1000 for value in milliseconds)
    return HealthCheck(period, timeout, Config.health_check_failure_threshold())


# Ray reads the mode of authentication once for each process.
_ASK_WITHOUT_TOKEN = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).check_alive([], timeout=float(sys.argv[2]))
except AuthenticationError:
    print("refused")
else:
    print("answered")
"""


def refuses_without_token(gcs_address: str, timeout_seconds: float) -> bool | None:
    """Whether the GCS refuses a request without a token; None if it cannot be asked. Asked in a process of its own."""
    command = [sys.executable, "-P", "-c", _ASK_WITHOUT_TOKEN, gcs_address, str(timeout_seconds)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    environment["RAY_AUTH_MODE"] = "disabled"
    limit = timeout_seconds + _IMPORT_SECONDS
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"refused": True, "answered": False}.get(done.stdout.strip())


# --- jobs -------------------------------------------------------------------------------------


def zip_folder(folder: Path, target: Path, honors_ignore_files: bool, excludes: Sequence[str] = ()) -> None:
    """Write a folder into one file, as Ray sends working directories. excludes: patterns as in a `.gitignore`."""
    create_package(str(folder), target, include_gitignore=honors_ignore_files, excludes=list(excludes))


def put_parcel(client: JobSubmissionClient, name: str, content: bytes) -> None:
    """Leave something in the GCS of the cluster of `client`, where Ray itself keeps the folders of jobs.

    Raises RuntimeError, OSError, AuthenticationError.
    """
    answer = client._do_request("PUT", f"/api/packages/gcs/{name}", data=content)
    if answer.status_code != 200:
        raise RuntimeError(f"HTTP {answer.status_code} for what was sent")


def take_parcel(address: str, name: str, timeout_seconds: float) -> bytes | None:
    """What `put_parcel` has left in the cluster at `address`, and remove it. None if it is gone."""
    gcs, key = GcsClient(address=address), f"gcs://{name}".encode()
    content = gcs.internal_kv_get(key, None, timeout=timeout_seconds)
    gcs.internal_kv_del(key, False, None, timeout=timeout_seconds)
    return content or None


# --- nodes and placement groups ---------------------------------------------------------------


def draining_nodes() -> set[str]:
    """The ids of nodes that are about to be taken away."""
    return set(cluster_state.get_draining_nodes())


def free_resources() -> dict[str, dict[str, float]]:
    """By the id of each living node what nobody uses of it. It may be some seconds old."""
    return cluster_state.available_resources_per_node()


def has_waiting_groups() -> bool:
    """Whether a placement group of any job waits for resources; also one that has lost a node."""
    waiting = PlacementGroupTableData.PENDING, PlacementGroupTableData.RESCHEDULING
    return any(group.state in waiting for group in _groups())


def group_sizes() -> list[tuple[int, bool]]:
    """Of each placement group of this job the number of its bundles, and whether it waits for resources."""
    gone, pending = PlacementGroupTableData.REMOVED, PlacementGroupTableData.PENDING
    return [(len(one.bundles), one.state == pending) for one in _groups_of_this_job() if one.state != gone]


def remove_groups_of(actor_id: str) -> None:
    """Remove the placement groups that an actor has created. Ray's public tables do not name the creator."""
    _remove(group for group in _groups() if group.creator_actor_id.hex() == actor_id)


def remove_groups_of_dead_actors() -> None:
    """Remove the placement groups of this job whose creators are actors that have died."""
    # Groups that no actor has created, such as Tune's own, are listed with a dead creator without an id.
    no_actor = ray.ActorID.nil().binary()
    _remove(one for one in _groups_of_this_job() if one.creator_actor_dead and one.creator_actor_id != no_actor)


def _groups_of_this_job() -> Iterator[Any]:
    job = ray.get_runtime_context().get_job_id()
    return (group for group in _groups() if group.creator_job_id.hex() == job)


def _groups() -> Iterator[Any]:
    table = cluster_state._connect_and_get_accessor().get_placement_group_table()
    return map(PlacementGroupTableData.FromString, table)


def _remove(groups: Iterable[Any]) -> None:
    for group in groups:
        if group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


# --- the controller of an elastic Train run ---------------------------------------------------

COORDINATOR = "AutoscalingCoordinator"  # its name, and its namespace
# A controller renews its reservation every 20 s. Ray keeps that of one that was killed for 180 s, and meanwhile other
# elastic runs get fewer workers, or none.
RESERVED_SECONDS = 60
_ANYWHERE = {"label_selector": {"ray.io/node-id": "!none"}}


class FindsCoordinator(UserCallback):
    """A callback of a Train run that does one thing: where it is unpickled, in the run's controller, the cluster's
    AutoscalingCoordinator is looked up for every question.

    This actor tells elastic runs how many workers there is room for. Ray starts it on the node of the first controller
    of a cluster, and on no other. When that node is lost, all controllers keep the handle of a dead actor: their stages
    never grow again, and those that have just lost workers never start.
    """

    def __reduce__(self) -> tuple[Callable[[], FindsCoordinator], tuple[()]]:
        return _finding_coordinator, ()


def _finding_coordinator() -> FindsCoordinator:
    client = autoscaling_coordinator_client
    client.TrainAutoscalingCoordinatorClient._autoscaling_coordinator = property(lambda self: coordinator())
    client.AUTOSCALING_REQUESTS_EXPIRE_TIME_S = RESERVED_SECONDS
    return FindsCoordinator()


def coordinator() -> Any:
    """The cluster's AutoscalingCoordinator. It is started if there is none; if its node is lost, on another one."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_AutoscalingCoordinatorActor)
    named = {"name": COORDINATOR, "namespace": COORDINATOR, "get_if_exists": True, "lifetime": "detached"}
    return actor.options(label_selector=here(), fallback_strategy=[_ANYWHERE], **named).remote()
