"""One Ray cluster for all stories, and the command line as a user has it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hosts import Network, why_not
from s3_server import CREDENTIALS

BIN = Path(sys.executable).parent
# Seconds that a command, or what a test waits for, may take. A limit, and no expectation: a start takes 20 s on an idle
# machine, and minutes on a busy one.
PATIENCE = 400
HEAD_STARTS = 4
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@dataclass(frozen=True)
class RayCluster:
    """A head node started as the README says, `ray start --head`, with four CPUs whatever the machine has."""

    address: str
    dashboard: str
    process: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """The Train workers that live on it now."""
        return processes_named(self.process, "ray::RayTrainWorker")


def processes_named(ancestor: psutil.Process, *names: str) -> list[psutil.Process]:
    """The living descendants of a process with one of the names in their command lines."""
    found = []
    for process in ancestor.children(recursive=True):
        try:
            if any(name in " ".join(process.cmdline()) for name in names):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    port, dashboard = free_port(), free_port()
    log = tmp_path_factory.mktemp("ray") / "head.log"
    command = [
        BIN / "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={port}", "--node-ip-address=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}",
        "--object-store-memory=200000000", "--disable-usage-stats",
    ]  # fmt: skip
    environment = os.environ | QUIET | CREDENTIALS  # workers have theirs from the node, not from the driver
    process = _started_head(command, environment, log)
    try:
        yield RayCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", process)
    finally:
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
                one.kill()
        process.wait(10)


def _started_head(command: list[str | Path], environment: dict[str, str], log: Path) -> psutil.Process:
    """Ray gives up a head whose agents need more than 15 s to start, as they may on a busy machine: so it is tried
    again."""
    for _ in range(HEAD_STARTS):
        with log.open("w") as output:
            head = psutil.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        if _comes_up(head, log):
            return head
    raise AssertionError(f"no Ray head; see {log}")


def _comes_up(head: psutil.Popen, log: Path) -> bool:
    """Whether it has started, once it has or has ended."""
    wait_until(lambda: _is_up(log) or head.poll() is not None, PATIENCE, f"no Ray head; see {log}")
    return _is_up(log)


def _is_up(log: Path) -> bool:
    return "Ray runtime started" in log.read_text()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Hosts are added by the test. All of them see `tmp_path`."""
    if reason := why_not():
        pytest.skip(reason)
    with Network(tmp_path) as opened:
        yield opened


class Raystage:
    """The installed command, run in a folder of its own."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.environment = os.environ | QUIET | {"RAY_ADDRESS": address}
        self._started: list[subprocess.Popen] = []

    def start(self, *arguments: str | Path) -> subprocess.Popen:
        # A shell that starts the tests in the background has them ignore SIGINT, and all that they start with them.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [BIN / "raystage", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def kill_all(self) -> None:
        """What a test left behind that failed: the tests after it need the room on the cluster."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def __call__(self, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess:
        """Run to the end and expect an exit status."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, f"exit {process.returncode}\n{output}\n{errors}"
        return subprocess.CompletedProcess(arguments, status, output, errors)

    def report(self, name: str) -> dict:
        return json.loads(self("report", name, "--json").stdout)

    def report_in(self, store: str, name: str) -> dict:
        return json.loads(self("report", name, "--json", "--store", store).stdout)

    def stop_at(
        self, text: str, how: signal.Signals, *arguments: str | Path, once: Callable[[], bool] = lambda: True
    ) -> int:
        """Start, send a signal as soon as a line with `text` has appeared and `once` holds; returns the exit status."""
        process = self.start(*arguments)
        said_until(process, text)
        wait_until(once, PATIENCE, f"{text!r} was said, but that was all")
        process.send_signal(how)
        print(process.communicate(timeout=PATIENCE)[1])  # shown where the test fails
        return process.returncode


def said_until(process: subprocess.Popen, text: str) -> str:
    """What is said on standard error up to a line with `text`."""
    said = []
    for line in process.stderr:
        said.append(line)
        print(line, end="")  # a test that waits in vain is ended by pytest, which then shows this
        if text in line:
            return "".join(said)
    raise AssertionError(f"{text!r} was never said:\n{''.join(said)}")


def poison(folder: Path) -> None:
    """Modules in a working directory that workers must not import."""
    for name in ("numpy", "torch", "random", "psutil", "select"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported from the working directory')\n")
    (folder / "raystage").mkdir()
    (folder / "raystage/__init__.py").write_text("raise SystemExit('another clone of raystage')\n")


def losses_in(report: str) -> dict[str, list[list[float]]]:
    """Both curves of every stage, to the last bit, from what `raystage run --json` prints."""
    rows = json.loads(report)["stages"]
    return {curve: [[point["loss"] for point in row[curve]] for row in rows] for curve in ("train", "evaluations")}


@pytest.fixture
def raystage(tmp_path: Path, cluster: RayCluster) -> Iterator[Raystage]:
    started = Raystage(tmp_path, cluster.address)
    yield started
    started.kill_all()


def other_ray_processes(cluster: RayCluster) -> set[int]:
    """The ids of all living Ray processes, and cleanup processes of clusters, that are not part of `cluster`."""
    found, its_own = set(), {one.pid for one in cluster.process.children(recursive=True)}
    for process in psutil.process_iter(["cmdline", "name", "status"]):
        command = " ".join(process.info["cmdline"] or [process.info["name"]])
        is_ray = any(sign in command for sign in ("ray::", "raylet", "gcs_server", "raystage/cluster/cleanup.py"))
        if is_ray and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found - its_own - {cluster.process.pid}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


TINY = """
name: tiny
data: {source: text, path: text, validation_fraction: 0.3}
model: {hidden_size: 32, num_heads: 4, num_kv_heads: 2, ffn_size: 96, context_length: 32}
training:
  workers: 2
  global_batch_tokens: 4096
  optimizer: {lr: 5e-3}
  lr_schedule: {kind: wsd, warmup: 16K, decay: 0.25}
  evaluate: {every: 32K, tokens: 8K}
  checkpoint: {every: 64K}
stages:
  - {name: small, model: {num_layers: 1}, until: {steps: 90}}
  - {name: full,  model: {num_layers: 2}, until: {steps: 90}, grow: {operator: stack}}
"""


def write_tiny(folder: Path) -> Path:
    """Two small stages on a folder of text of the user's own: 90 + 90 steps, a checkpoint every 16."""
    text = folder / "text"
    text.mkdir()
    source = Path(json.__file__).parent
    for number, line in enumerate((source / "decoder.py").read_text().split("\n\n")):
        (text / f"{number}.txt").write_text(line * 20)
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)
