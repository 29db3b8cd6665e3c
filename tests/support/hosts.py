"""Hosts for tests of a cluster: each one a set of namespaces of Linux on this machine.

A host has an address, a name, processes, a /tmp, a /dev/shm and a home folder of its own; it shares the installed
programs with the machine, and the folder that `Network` is given. All hosts are joined by a bridge, which is in a
namespace, too: nothing of this is seen on the machine, and no two tests meet. A host ends with its first process, and
that ends with the process that runs the tests, however this happens.

    with Network(tmp_path) as network:
        head, *others = network.start(3, cpus=[0, 1, 1])
        head.run(["ray", "status"])
        others[0].cut()
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import host_init
import raystage
import slow_link

SUBNET = "10.77.0"
GATEWAY = f"{SUBNET}.254"
RAY_PORT = 6379
# Ray copies the whole virtual environment there (2 GB) where it installs packages for a job.
TMP_BYTES = 4 * 2**30
OBJECT_STORE_BYTES = 100 * 2**20
# Seconds that a command may take. A limit, and no expectation.
PATIENCE = 400
RAY_STARTS = 4
_LOOK_SECONDS = 0.2
# How long Ray waits for a host that is silent: by default 40 s, in most tests some seconds, or for as long as it takes.
WATCHFUL = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
PATIENT = {"RAY_health_check_failure_threshold": "100", "RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
_BIN = Path(sys.executable).parent
# What ends with the process that started it, whatever ends that one.
_TIED = ("setpriv", "--pdeathsig", "KILL")
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount")


def why_not() -> str | None:
    """Why this machine cannot have hosts; None if it can."""
    if not sys.platform.startswith("linux"):
        return "hosts are namespaces of Linux"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"hosts need {', '.join(missing)}"
    probe = "mount -t tmpfs tmpfs /mnt && ip link add veth0 type veth peer name veth1 && ip link add br0 type bridge"
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", probe]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return None if tried.returncode == 0 else f"hosts need root's capabilities ({tried.stderr.strip()})"


@dataclass(frozen=True)
class Link:
    """A cable that is not ideal. delay: seconds, in each direction. loss: of all frames that are sent, 0 to 1."""

    delay: float
    bytes_per_second: float
    loss: float


class Host:
    """One host of a network. number: its place in the network, from 1. link: an ideal one by default."""

    def __init__(self, network: Network, number: int, link: Link | None) -> None:
        self.name, self.address, self.number = f"host{number}", f"{SUBNET}.{number}", number
        self._network, self._port = network, f"port{number}"
        self._init = _start_namespaces(
            "--mount", "--uts", "--pid", "--mount-proc", "--",
            sys.executable, "-S", host_init.__file__, self.name, str(network.tmp_bytes), *map(str, network.shown),
        )  # fmt: skip
        self.pid = _first_process(self._init)
        self._carrier = self._connected(link)
        self.mend()
        for command in (
            f"ip addr add {self.address}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {GATEWAY}",
        ):
            self.run(command.split())
        self.show(network.etc_hosts, Path("/etc/hosts"))
        self.run(["sh", "-c", f"mkdir $HOME/.ray && printf {network.token} > $HOME/.ray/auth_token"])

    def _connected(self, link: Link | None) -> subprocess.Popen | None:
        """Lay a cable to the bridge; returns the process that carries its frames, if the kernel does not."""
        network = self._network
        if link is None:
            peer = ("peer", "name", "eth0", "netns", str(self.pid))
            network.enter("ip", "link", "add", self._port, "type", "veth", *peer)
            return None
        inside = ("nsenter", f"--target={network.switch_pid}", "--net", *_TIED, sys.executable, "-S")
        numbers = (link.delay, link.bytes_per_second, link.loss)
        return _said_ready([*_TIED, *inside, slow_link.__file__, str(self.pid), self._port, *map(str, numbers)])

    # --- its processes ------------------------------------------------------------------------

    def popen(self, command: Sequence[str | Path], **options: object) -> subprocess.Popen:
        """Start a command on the host; `inner` has the process itself. options: of `subprocess.Popen`."""
        environment = self._network.environment | dict(options.pop("environment", {}))
        cwd = str(options.pop("cwd", "/tmp"))
        entered = [
            *_TIED, "nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", "--pid", f"--wdns={cwd}", *_TIED,
            *map(str, command),
        ]  # fmt: skip
        return subprocess.Popen(entered, env=environment, text=True, **options)

    def run(self, command: Sequence[str | Path], **options: object) -> str:
        """Carry out a command on the host; returns what it prints."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{command} on {self.name}: exit {process.returncode}\n{output}"
        return output

    def start_ray(self, cpus: int, head: Host, environment: Mapping[str, str] = WATCHFUL, *more: str) -> None:
        """Start a Ray node on the host: the head of a cluster, or one that joins the cluster of `head`.

        Ray gives up a node whose agents need more than 15 s to start, as they may on a busy machine: so it is tried
        again.
        """
        role = ["--head", f"--port={RAY_PORT}"] if head is self else [f"--address={head.ray_address}"]
        size = [f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        for _ in range(RAY_STARTS):
            earlier = self._nodes_started()
            command = ["ray", "start", *role, *size, "--disable-usage-stats", *more]
            starting = self.popen(command, environment=environment)
            starting.wait(PATIENCE)
            while self.processes("raylet/raylet"):
                if self._nodes_started() > earlier:
                    return
                time.sleep(_LOOK_SECONDS)
            self.run(["ray", "stop", "--force"])
        raise AssertionError(f"Ray does not start on {self.name}")

    def _nodes_started(self) -> int:
        """How many times Ray has said here that a node is there."""
        logs = Path(f"/proc/{self.pid}/root/tmp/ray").glob("session_2*/logs/raylet*.out")
        return sum(log.read_text(errors="replace").count("Raylet consists of") for log in logs)

    @property
    def ray_address(self) -> str:
        return f"{self.address}:{RAY_PORT}"

    def processes(self, *names: str) -> list[psutil.Process]:
        """The host's living processes with one of the names in their command lines."""
        return [one for one in psutil.process_iter() if self._has(one) and any(name in _title(one) for name in names)]

    def _has(self, process: psutil.Process) -> bool:
        with contextlib.suppress(OSError):  # it has ended, or is the machine's
            return os.path.samefile(f"/proc/{process.pid}/ns/pid", f"/proc/{self.pid}/ns/pid")
        return False

    def show(self, source: Path, place: Path) -> None:
        """From now on the host sees, in that place, another file or folder that it can see already."""
        self.run(["mount", "--bind", source, place])

    # --- faults -------------------------------------------------------------------------------

    def kill_processes(self) -> None:
        """As if every program had crashed at once. The host itself stays, and can start Ray again."""
        self.popen(["sh", "-c", "kill -9 -1"]).wait(PATIENCE)

    def cut(self) -> None:
        """Nothing that the host sends arrives, and nothing reaches it. It notices by silence alone."""
        self._network.enter("ip", "link", "set", self._port, "up", "nomaster")

    def mend(self) -> None:
        self._network.enter("ip", "link", "set", self._port, "up", "master", "br0")

    def part_from(self, other: Host) -> None:
        """The hosts no longer reach each other, and everybody else still reaches both."""
        self.run(["ip", "route", "add", "blackhole", f"{other.address}/32"])

    def meet(self, other: Host) -> None:
        self.run(["ip", "route", "del", "blackhole", f"{other.address}/32"])

    def lose(self) -> None:
        """The host loses its power: nobody is told."""
        self.cut()
        self._init.kill()
        self._init.wait(PATIENCE)

    def fill_tmp(self) -> None:
        self.popen(["sh", "-c", "cat /dev/zero > /tmp/filled 2>/dev/null"]).wait(PATIENCE)


class Network:
    """A bridge that joins hosts. A context manager: at its end nothing is left of it.

    shared: a folder that all hosts see under the name that it has here.
    """

    def __init__(self, shared: Path, tmp_bytes: int = TMP_BYTES) -> None:
        code = {Path(raystage.__file__).parents[1], Path(sys.prefix), *map(Path, _paths_of_packages())}
        self.shown = [path.resolve() for path in sorted({*code, shared}) if path.is_dir()]
        self.tmp_bytes, self.token = tmp_bytes, secrets.token_hex(32)
        self.etc_hosts = shared / "etc-hosts"
        self.hosts: list[Host] = []

    def __enter__(self) -> Network:
        named = "".join(f"{SUBNET}.{number} host{number}\n" for number in range(1, 254))
        self.etc_hosts.write_text(f"127.0.0.1 localhost\n{named}")
        self._switch = _start_namespaces("--", "sh", "-c", "echo ready; exec sleep infinity")
        self.switch_pid = _first_process(self._switch)
        self.enter("ip", "link", "add", "br0", "type", "bridge")
        self.enter("ip", "addr", "add", f"{GATEWAY}/24", "dev", "br0")
        self.enter("ip", "link", "set", "br0", "up")
        return self

    def __exit__(self, *error: object) -> None:
        carriers = [host._carrier for host in self.hosts if host._carrier is not None]
        for process in (*(host._init for host in self.hosts), *carriers, self._switch):
            process.kill()
            process.wait(PATIENCE)

    @property
    def environment(self) -> dict[str, str]:
        """Of every process on a host."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XDG_", "WANDB_"))}
        return kept | {
            "HOME": host_init.HOME,
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": "/tmp",
            "WANDB_SILENT": "true",
        }

    def enter(self, *command: str) -> None:
        """Carry out a command where the bridge is."""
        subprocess.run(["nsenter", f"--target={self.switch_pid}", "--net", *command], check=True, timeout=PATIENCE)

    def add(self, link: Link | None = None) -> Host:
        """A further host, without Ray."""
        self.hosts.append(Host(self, len(self.hosts) + 1, link))
        return self.hosts[-1]

    def start(self, count: int, cpus: Sequence[int], environment: Mapping[str, str] = WATCHFUL) -> list[Host]:
        """That many further hosts, each a node of one Ray cluster, with these CPUs. The very first is the head."""
        started = [self.add() for _ in range(count)]
        for host, number in zip(started, cpus, strict=True):
            host.start_ray(number, self.hosts[0], environment)
        return started


def inner(process: subprocess.Popen) -> psutil.Process:
    """The process on the host that `Host.popen` has started: signals are for this one."""
    (found,) = psutil.Process(process.pid).children()
    return found


def send_signal(process: subprocess.Popen, number: signal.Signals) -> None:
    inner(process).send_signal(number)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _start_namespaces(*arguments: str) -> subprocess.Popen:
    return _said_ready([*_TIED, "unshare", "--net", "--fork", "--kill-child", *arguments])


def _said_ready(command: Sequence[str]) -> subprocess.Popen:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process.stdout as said:
        assert said.readline() == "ready\n", f"{command} did not start"
    return process


def _first_process(process: subprocess.Popen) -> int:
    (first,) = psutil.Process(process.pid).children()
    return first.pid


def _paths_of_packages() -> list[str]:
    return [path for path in sys.path if path.startswith("/tmp/")]
