"""What `raystage doctor` concludes from what the nodes of a cluster have measured, and how they measure it."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raystage.cluster.ray_private import HealthCheck
from raystage.tools.doctor_cluster import dashboard_refuses, neighbours
from raystage.tools.doctor_workers import MOST_WORKERS, Bandwidth, choose_workers, judge_bandwidth
from raystage.tools.node_agent import FILE_BYTES, FileRead, FileWritten, NodeAgent, Port, Room, Unreached
from raystage.tools.node_findings import (
    ClockOffset,
    judge_clocks,
    judge_ports,
    judge_reading,
    judge_shared_memory,
    judge_silent,
    judge_temporary,
    judge_time_outs,
    judge_token,
    judge_writing,
    some,
)
from raystage.tools.node_group import name_nodes

GIB = 2**30
ROOMY = Room("/tmp/ray", 500 * GIB, 1000 * GIB)
FAST = FILE_BYTES / 1e9  # seconds, at 1 GB/s
SLOW = FILE_BYTES / 1e6


# --- room -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "total", "state", "said"),
    [
        (500 * GIB, 1000 * GIB, "ok", "the least of 2: 500 GiB of 1000 GiB free in /tmp/ray on host2"),
        (2 * GIB, 10 * GIB, "warning", "less than 5 GiB on host2"),
        (40 * GIB, 1000 * GIB, "FAILED", "more than 95% full on host2, where Ray keeps no more objects"),
    ],
)
def test_the_room_for_rays_files(free: int, total: int, state: str, said: str) -> None:
    rooms = {"host1": Room("/tmp/ray", 600 * GIB, 1000 * GIB), "host2": Room("/tmp/ray", free, total)}
    finding = judge_temporary(rooms)
    assert finding.state == state
    assert said in finding.found


def test_shared_memory_that_is_too_small_on_one_node() -> None:
    small = Room("/dev/shm", 64 * 2**20, 64 * 2**20)
    finding = judge_shared_memory({"host1": ROOMY, "host2": small})
    assert (finding.state, "less than 512 MiB on host2" in finding.found) == ("warning", True)
    assert "--shm-size" in finding.advice
    assert judge_shared_memory({"host1": ROOMY}).state == "ok"


# --- the store --------------------------------------------------------------------------------


def test_the_slowest_node_decides_how_fast_the_store_is() -> None:
    fast, slow = FileWritten(FAST), FileWritten(SLOW)
    assert judge_writing({"host1": fast}).found == "1000 MB/s on host1, with files of 8 MiB"
    finding = judge_writing({"host1": fast, "host2": slow, "host3": fast})
    assert finding.state == "warning"
    assert finding.found.startswith("3 nodes at once, 1000 MB/s each (median), 1 MB/s on host2 (slowest)")
    assert judge_reading({"host1": FileRead(FAST), "host2": FileRead(SLOW)}).state == "warning"


def test_nodes_that_cannot_write_or_do_not_see_each_others_files() -> None:
    cannot = judge_writing({"host1": FileWritten(FAST), "host2": FileWritten(problem="/store: cannot be made")})
    assert (cannot.state, cannot.found) == ("FAILED", "host2 cannot (host2: /store: cannot be made)")
    blind = judge_reading({"host1": FileRead(missing=("that of host2",)), "host2": FileRead(FAST)})
    assert (blind.state, blind.found) == ("FAILED", "host1 does not see all files (on host1: that of host2)")
    assert "storage that every node sees" in blind.advice
    damaged = judge_reading({"host1": FileRead(problem="a.bin: found other bytes than were written")})
    assert (damaged.state, "found other bytes" in damaged.found) == ("FAILED", True)


def test_a_node_writes_a_file_and_another_one_reads_it(tmp_path: Path) -> None:
    folder = str(tmp_path / "store")
    one, other = NodeAgent(), NodeAgent()
    written = one.write(folder, "one.bin")
    assert (written.problem, (tmp_path / "store" / "one.bin").stat().st_size) == (None, FILE_BYTES)
    assert other.read(folder, ["one.bin"], "one.bin", written.digest).missing == ()
    assert other.read(folder, ["one.bin", "two.bin"], "one.bin", written.digest).missing == ("two.bin",)
    assert other.read(folder, ["one.bin"], "one.bin", "another").problem.endswith("other bytes than were written")
    assert one.write("/proc/store", "one.bin").problem.startswith("/proc/store")


# --- clocks and ports -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "within", "state", "said"),
    [
        (0.2, 0.1, "ok", "2 agree within 0.3 s"),
        (-30.0, 0.1, "warning", "that of host2 is 30 s behind this machine's (within 0.1 s)"),
        (30.0, 28.0, "ok", "2 agree within 58 s"),  # a slow answer says little
        (3600.0, 1.0, "FAILED", "that of host2 is 3.6e+03 s ahead of this machine's"),
    ],
)
def test_a_clock_that_is_off(seconds: float, within: float, state: str, said: str) -> None:
    finding = judge_clocks({"host1": ClockOffset(0.0, 0.001), "host2": ClockOffset(seconds, within)})
    assert finding.state == state
    assert said in finding.found


def test_ports_that_are_closed_are_named_with_who_tried() -> None:
    closed = Unreached(Port("host2", "10.0.0.2", 10002, "object manager"), "timed out")
    finding = judge_ports({"host1": (closed,), "host2": ()})
    assert finding.state == "FAILED"
    assert finding.found == "not reached: host1 -> host2 (10.0.0.2:10002, object manager: timed out)"
    assert judge_ports({"host1": (), "host2": ()}).state == "ok"
    assert judge_ports({"host1": ()}).found == "there is one node only"


def test_a_node_reaches_a_port_on_which_another_listens() -> None:
    here = "127.0.0.1"
    with socket.create_server((here, 0)) as server, socket.create_server((here, 0)) as unused:
        free, closed = (Port("two", here, one.getsockname()[1], "a free port") for one in (server, unused))
        unused.close()
        (unreached,) = NodeAgent().reach([free, closed])
    assert (unreached.port, unreached.reason) == (closed, "Connection refused")


def test_each_node_is_tried_by_as_many_others() -> None:
    assert neighbours(["a", "b", "c"], 8) == {"a": ["b", "c"], "b": ["c", "a"], "c": ["a", "b"]}
    assert neighbours(["a", "b", "c", "d"], 1) == {"a": ["b"], "b": ["c"], "c": ["d"], "d": ["a"]}
    assert neighbours(["a"], 8) == {"a": []}
    assert neighbours([], 8) == {}


def test_nodes_with_one_address_have_names_of_their_own() -> None:
    one = {"NodeID": "0123456789", "NodeManagerAddress": "10.0.0.1", "NodeManagerHostname": "host1"}
    assert name_nodes([one]) == {"0123456789": "host1 (10.0.0.1)"}
    assert name_nodes([one, one | {"NodeID": "9876543210"}]) == {
        "0123456789": "host1 (10.0.0.1) 012345", "9876543210": "host1 (10.0.0.1) 987654",
    }  # fmt: skip


def test_of_many_names_the_first_are_said() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some([f"host{number}" for number in range(9)]) == "host0, host1, host2, host3 and 5 more"
    assert judge_silent({"host1": "no answer within 60 s"}).found == "host1 (no answer within 60 s)"


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusals", "expects", "state", "said"),
    [
        ({"the GCS": True, "the dashboard": True}, False, "ok", "the GCS, the dashboard refused a request"),
        ({"the GCS": True, "the dashboard": None}, False, "ok", "the dashboard gave no answer"),
        ({"the GCS": True, "the dashboard": False}, False, "warning", "the dashboard answered a request"),
        ({"the GCS": False}, True, "FAILED", "whoever reaches the ports can run code"),
        ({"the GCS": None}, False, "warning", "not known whether one is needed"),
    ],
)
def test_a_token_must_be_asked_for(refusals: dict, expects: bool, state: str, said: str) -> None:
    finding = judge_token(refusals, expects)
    assert finding.state == state
    assert said in finding.found


@contextmanager
def dashboard(status: int) -> Iterator[str]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if "Authorization" not in self.headers else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("status", "refuses"), [(401, True), (403, True), (200, False), (500, None)])
def test_a_dashboard_is_asked_without_a_token(status: int, refuses: bool | None) -> None:
    with dashboard(status) as address:
        assert dashboard_refuses(address) is refuses


def test_a_dashboard_that_does_not_answer_is_no_open_one() -> None:
    assert dashboard_refuses("127.0.0.1:1") is None
    assert dashboard_refuses("") is None


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (HealthCheck(3, 10, 5), "ok"),
        (HealthCheck(1, 5, 2), "warning"),  # 2 s: a busy node would count as lost
        (HealthCheck(3, 10, 500), "warning"),
    ],
)
def test_the_time_outs_of_ray_and_of_raystage(health: HealthCheck, state: str) -> None:
    finding = judge_time_outs(health, 1800.0)
    assert finding.state == state
    assert "count as hung after 30:00" in finding.found
    assert "wait for each other in NCCL and gloo for 5:00:00" in finding.found


# --- workers ----------------------------------------------------------------------------------


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}, "Labels": {}}


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus"),
    [
        ([node(8)], 2, 0),
        ([node(0), node(4), node(4), node(4)], 3, 0),
        ([node(4), node(4, alive=False), node(4)], 2, 0),
        ([node(8), node(8, gpus=1), node(8, gpus=1), node(8, gpus=1)], 3, 1),
        ([node(8, gpus=1), node(8)], 2, 0),
        ([node(8)] * 100, MOST_WORKERS, 0),
    ],
)
def test_a_worker_on_each_node_that_has_room(nodes: list[dict], workers: int, gpus: int) -> None:
    chosen = choose_workers(nodes)
    assert (chosen.workers.most, chosen.gpus_per_worker, chosen.placement) == (workers, gpus, "spread")


def test_the_bandwidth_is_what_a_worker_sends() -> None:
    assert Bandwidth(4, (), 1000, 1.0).bytes_per_second == 1500


@pytest.mark.parametrize(
    ("nodes", "seconds", "backend", "state", "said"),
    [
        (("a", "b"), 1.0, "gloo", "ok", "100 MB/s for each worker, in an all-reduce of 95.4 MiB"),
        (("a", "b"), 10.0, "gloo", "warning", "10 MB/s for each worker"),
        (("a", "b"), 1.0, "nccl", "warning", "on 2 nodes"),
        (("a", "a"), 10.0, "gloo", "ok", "all on one node, so no network was tried"),
    ],
)
def test_how_fast_workers_communicate(nodes: tuple, seconds: float, backend: str, state: str, said: str) -> None:
    finding = judge_bandwidth("workers", backend, Bandwidth(2, nodes, 10**8, seconds), 12.0)
    assert finding.state == state
    assert said in finding.found
