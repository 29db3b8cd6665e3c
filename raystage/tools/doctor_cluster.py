"""What raystage needs of a Ray cluster: it answers, its nodes agree, see the store and each other, its workers can
communicate."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from raystage.cluster.launch import cluster
from raystage.cluster.nodes import Node, name_of
from raystage.cluster.queries import ask_cluster
from raystage.cluster.ray_private import dashboard_address, refuses_without_token
from raystage.cluster.train_run import has_train_run
from raystage.config.training import Training
from raystage.errors import RaystageError
from raystage.files.filesystem import Folder, open_folder
from raystage.tools import node_findings as judge
from raystage.tools.doctor_workers import FEWEST_WORKERS, check_workers
from raystage.tools.findings import Finding, failed, ok, warning
from raystage.tools.machine_check import mark_in
from raystage.tools.node_agent import NodeAgent, NodeFacts, Port
from raystage.tools.node_group import DIFFERENCE, NodeGroup

_SERVER_SECONDS = 5.0
# How many other nodes each node connects to: on a large cluster all pairs would be too many.
_NEIGHBOURS = 8
_HEAD = "node:__internal_head__"
_CLUSTER_ADVICE = "`ray status` must answer on the head node; where it asks for a token, set RAY_AUTH_MODE=token here"
_OWN_ADVICE = "a run without --address needs a folder for Ray's sockets, and room in /dev/shm and on the disk"


class _StillWaiting(Exception):
    """Workers hang. It leaves the connection to the cluster as it is: Ray would end this process where it is shut down
    while a thread waits for a Train run."""


def check_cluster(address: str | None, store: str | None, with_train: bool = False) -> Iterator[Finding]:
    """The cluster at `address`, or a local one started for this check, node by node.

    store: its URI, which every node should see; None if the store is known to be broken.
    """
    where = f"at {address}" if address else "started on this machine"
    began = time.monotonic()
    try:
        with cluster(address, FEWEST_WORKERS, 0):
            yield ok("Ray cluster", f"{where} in {time.monotonic() - began:.1f} s{_resources()}")
            yield _check_token()
            with _marked(store) as mark:
                yield from _check_nodes(store, mark)
                if with_train:
                    yield check_workers(store)
                if has_train_run():
                    raise _StillWaiting
    except _StillWaiting:
        return
    except RaystageError as error:
        yield failed("Ray cluster", str(error), _CLUSTER_ADVICE if address else _OWN_ADVICE)


def _resources() -> str:
    have = ray.cluster_resources()
    return f": {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"


@contextlib.contextmanager
def _marked(store: str | None) -> Iterator[str | None]:
    """The name of a file in the store for as long as this lasts; None where there is no store."""
    if store is None:
        yield None
    else:
        with mark_in(open_folder(store)) as (mark, _):
            yield mark


# --- its token --------------------------------------------------------------------------------


def _check_token() -> Finding:
    gcs = ray.get_runtime_context().gcs_address
    refusals = {f"the GCS ({gcs})": refuses_without_token(gcs, _SERVER_SECONDS)}
    if dashboard := dashboard_address():
        answer = dashboard_refuses(dashboard) if _is_reachable(dashboard) else None
        refusals[f"the dashboard ({dashboard})"] = answer
    return judge.judge_token(refusals, os.environ.get("RAY_AUTH_MODE", "").lower() == "token")


def _is_reachable(server: str) -> bool:
    """Whether HOST:PORT, an address of the head node, means that node here, too: loopback means another one."""
    own = ray.get_runtime_context().get_node_id()
    is_head = any(_HEAD in node["Resources"] for node in ask_cluster(ray.nodes) if node["NodeID"] == own)
    return is_head or not server.startswith(("127.", "localhost"))


def dashboard_refuses(address: str) -> bool | None:
    """Whether the server at HOST:PORT refuses a request for its jobs without a token; None if it does not answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{address}/api/jobs/", timeout=_SERVER_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True if error.code in (401, 403) else None
    except (OSError, ValueError):
        return None
    return False


# --- its nodes --------------------------------------------------------------------------------


def _check_nodes(store: str | None, mark: str | None) -> Iterator[Finding]:
    alive = [node for node in ask_cluster(ray.nodes) if node["Alive"]]
    nodes = {node["NodeID"]: node for node in sorted(alive, key=name_of)}
    with _folder_in(store) as folder, NodeGroup(list(nodes.values())) as group:
        facts = yield from _check_each(group, nodes, store, mark)
        yield from _check_facts(group, nodes, facts)
        group.silent.clear()  # they have findings of their own
        if folder is not None:
            yield from _check_store(group, folder)
        if offsets := group.clock_offsets():
            yield judge.judge_clocks(_by_name(group, offsets))
        yield from _check_ports(group, nodes)
        if group.silent:
            yield judge.judge_silent(_by_name(group, group.silent))


@contextlib.contextmanager
def _folder_in(store: str | None) -> Iterator[Folder | None]:
    """A folder for the files of nodes. It is removed when no node can write to it any more."""
    if store is None:
        yield None
        return
    folder = open_folder(store) / f"doctor-{uuid.uuid4().hex[:8]}"
    try:
        yield folder
    finally:
        folder.delete()


def _check_each(
    group: NodeGroup, nodes: Mapping[str, Node], store: str | None, mark: str | None
) -> Generator[Finding, None, dict[str, NodeFacts]]:
    """A finding for each node. Only nodes with this process's raystage are asked more than that."""
    for node, difference in group.ask_all(DIFFERENCE).items():
        if difference:
            yield failed(_check_of(nodes[node]), *difference.rsplit(": ", 1))
            group.leave_out(node)
    facts, here = group.ask_all("describe", store, mark), NodeAgent().describe(None, None)
    for node, why in group.silent.items():
        advice = "see the logs of its workers, and whether its disk is full"
        yield failed(_check_of(nodes[node]), f"carries out no task ({why})", advice)
    for node, told in facts.items():
        yield judge_node(_check_of(nodes[node]), nodes[node]["Resources"], told, here)
    return facts


def _check_of(node: Node) -> str:
    return f"node {node['NodeManagerAddress']}"


def _by_name(group: NodeGroup, found: Mapping[str, Any]) -> dict[str, Any]:
    return {group.names[node]: one for node, one in found.items()}


def _check_facts(group: NodeGroup, nodes: Mapping[str, Node], facts: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    named = _by_name(group, facts)
    if temporary := {name: told.temporary for name, told in named.items() if told.temporary}:
        yield judge.judge_temporary(temporary)
    if shared := {name: told.shared_memory for name, told in named.items() if told.shared_memory}:
        yield judge.judge_shared_memory(shared)
    for node, told in facts.items():
        if _HEAD in nodes[node]["Resources"] and told.health_check:
            yield judge.judge_time_outs(told.health_check, Training().hang_seconds)


def _check_store(group: NodeGroup, folder: Folder) -> Iterator[Finding]:
    """Every node writes a file; then every node looks for all of them, and reads that of the next node."""
    files = {node: f"{node}.bin" for node in group.answering}
    written = group.ask("write", {node: (folder.uri, file) for node, file in files.items()})
    if written:
        yield judge.judge_writing(_by_name(group, written))
    whole = [node for node, one in written.items() if not one.problem]
    names = [files[node] for node in whole]
    asked = {
        node: (folder.uri, names, files[other], written[other].digest)
        for node, others in neighbours(whole, 1).items()
        for other in others or [node]
    }
    if read := group.ask("read", asked):
        writers = {file: f"that of {group.names[node]}" for node, file in files.items()}
        named = {node: replace(one, missing=tuple(writers[file] for file in one.missing)) for node, one in read.items()}
        yield judge.judge_reading(_by_name(group, named))


def _check_ports(group: NodeGroup, nodes: Mapping[str, Node]) -> Iterator[Finding]:
    """Every node connects to some others: to Ray there, and to a port that the system has chosen, as workers use it."""
    listening = group.ask("listen", {node: (nodes[node]["NodeManagerAddress"],) for node in group.answering})
    ports = {node: _ports_of(nodes[node], group.names[node], free) for node, free in listening.items()}
    asked = {
        node: ([port for other in others for port in ports[other]],)
        for node, others in neighbours(list(ports), _NEIGHBOURS).items()
    }
    if reached := group.ask("reach", asked):
        yield judge.judge_ports(_by_name(group, reached))


def _ports_of(node: Node, name: str, free: int) -> tuple[Port, ...]:
    address = node["NodeManagerAddress"]
    return (
        Port(name, address, node["NodeManagerPort"], "node manager"),
        Port(name, address, node["ObjectManagerPort"], "object manager"),
        Port(name, address, free, "a free port"),
    )


def neighbours(nodes: Sequence[str], count: int) -> dict[str, list[str]]:
    """For each node the next ones, in a ring: so every node has as many that look at it."""
    most = min(count, len(nodes) - 1)
    ring = [*nodes, *nodes]
    return {node: ring[place + 1 : place + 1 + most] for place, node in enumerate(nodes)}


def judge_node(check: str, resources: dict[str, float], facts: NodeFacts, here: NodeFacts) -> Finding:
    """A node beside this process: Ray must be the same and Python the same minor version, the rest should be."""
    found = f"{facts.host}, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, Python {facts.python}"
    if _minor(facts.python) != _minor(here.python):
        return failed(check, f"{found}, where this process has {here.python}", "use one Python on every node")
    if missing := [name for name, version in facts.packages.items() if version is None]:
        return failed(check, f"{found}, without {', '.join(missing)}", "install raystage on it")
    other = [name for name, version in facts.packages.items() if version != here.packages[name]]
    differing = ", ".join(f"{name} {facts.packages[name]} (here {here.packages[name]})" for name in other)
    if "ray" in other:
        return failed(check, f"{found}, {differing}", "install the same versions on every node: -c constraints.txt")
    if facts.store_problem:
        advice = "the store must be storage that every node sees: a shared file system, s3://, gs://"
        return failed(check, f"{found}; {facts.store_problem}", advice)
    if other:
        return warning(check, f"{found}, {differing}", "install the same versions on every node: -c constraints.txt")
    return ok(check, f"{found}, ray {facts.packages['ray']}")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
