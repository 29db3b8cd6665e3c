"""What the nodes of a cluster have measured, judged: one finding for each subject, which names the nodes at fault."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raystage.cluster.ray_private import HealthCheck
from raystage.runs.status import SILENCE_SECONDS
from raystage.tools.findings import Finding, failed, ok, warning
from raystage.tools.machine_check import LEAST_DISK_BYTES, LEAST_SHARED_BYTES
from raystage.tools.node_agent import FILE_BYTES, FileRead, FileWritten, Room, Unreached
from raystage.train.control_actor import longest_wait_seconds
from raystage.units import format_bytes, format_seconds

# Ray writes no objects to a disk that is as full as this (RAY_local_fs_capacity_threshold).
FULL_SHARE = 0.95
LEAST_STORE_BYTES_PER_SECOND = 20 * 10**6
# A clock this far off confuses `status` and `prune`; object stores refuse requests that are a quarter of an hour off.
ODD_CLOCK_SECONDS = 5.0
WRONG_CLOCK_SECONDS = 600.0
# A silent node that is given up earlier than this may only have been busy.
HASTY_SECONDS = 10.0
_NAMED = 4


@dataclass(frozen=True)
class ClockOffset:
    """How far a node's clock is ahead of this process's. within_seconds: half of the round trip that told so."""

    seconds: float
    within_seconds: float

    @property
    def certain_seconds(self) -> float:
        """How far the clocks are apart at least."""
        return max(0.0, abs(self.seconds) - self.within_seconds)


def some(names: Collection[str]) -> str:
    """'host1, host2, host3, host4 and 12 more'."""
    first = list(names)[:_NAMED]
    rest = len(names) - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest else "")


def judge_silent(silent: Mapping[str, str]) -> Finding:
    """Nodes that stopped answering, each with what it was asked last and why no answer came."""
    named = some([f"{name} ({why})" for name, why in silent.items()])
    return failed("silent nodes", named, "look whether these machines, and the storage that they mount, hang")


# --- room -------------------------------------------------------------------------------------


def judge_temporary(rooms: Mapping[str, Room]) -> Finding:
    """The folders where Ray keeps its sockets, its logs, and objects that memory has no room for."""
    check = "Ray's temporary folders"
    full = [name for name, room in rooms.items() if 1 - room.free_bytes / room.total_bytes > FULL_SHARE]
    small = [name for name, room in rooms.items() if room.free_bytes < LEAST_DISK_BYTES]
    found = _least(rooms)
    advice = "make room there, or start Ray with --temp-dir on a larger disk (RAY_TMPDIR)"
    if full:
        return failed(
            check, f"{found}; more than {FULL_SHARE:.0%} full on {some(full)}, where Ray keeps no more objects", advice
        )
    if small:
        return warning(check, f"{found}; less than {format_bytes(LEAST_DISK_BYTES)} on {some(small)}", advice)
    return ok(check, found)


def judge_shared_memory(rooms: Mapping[str, Room]) -> Finding:
    """Ray's object store uses it, and so do workers of one node that exchange data."""
    check, found = "shared memory of the cluster", _least(rooms)
    if small := [name for name, room in rooms.items() if room.free_bytes < LEAST_SHARED_BYTES]:
        found += f"; less than {format_bytes(LEAST_SHARED_BYTES)} on {some(small)}"
        return warning(check, found, "docker run --shm-size=2g; Kubernetes: an emptyDir in Memory")
    return ok(check, found)


def _least(rooms: Mapping[str, Room]) -> str:
    name, room = min(rooms.items(), key=lambda one: one[1].free_bytes)
    least = f"{format_bytes(room.free_bytes)} of {format_bytes(room.total_bytes)} free in {room.path} on {name}"
    return least if len(rooms) == 1 else f"the least of {len(rooms)}: {least}"


# --- the store --------------------------------------------------------------------------------


def judge_writing(written: Mapping[str, FileWritten]) -> Finding:
    """Every node has written a file, all at once."""
    if problems := {name: one.problem for name, one in written.items() if one.problem}:
        name, problem = next(iter(problems.items()))
        advice = "the user that runs Ray on every node must be able to write to the store"
        return failed("writing to the store", f"{some(problems)} cannot ({name}: {problem})", advice)
    return _judge_speed("writing to the store", {name: one.seconds for name, one in written.items()})


def judge_reading(read: Mapping[str, FileRead]) -> Finding:
    """Every node has looked for the files of all, and has read one that another node has written, all at once."""
    check = "reading from the store"
    if blind := {name: one.missing for name, one in read.items() if one.missing}:
        name, missing = next(iter(blind.items()))
        unseen = (
            f"{some(blind)} do not see files of other nodes" if len(blind) > 1 else f"{name} does not see all files"
        )
        advice = (
            "the store must be storage that every node sees under the same name: a shared file system, s3://, gs://"
        )
        return failed(check, f"{unseen} (on {name}: {some(missing)})", advice)
    if problems := {name: one.problem for name, one in read.items() if one.problem}:
        name, problem = next(iter(problems.items()))
        return failed(check, f"{some(problems)} cannot ({name}: {problem})", "every node must be able to read there")
    return _judge_speed(check, {name: one.seconds for name, one in read.items()})


def _judge_speed(check: str, seconds: Mapping[str, float]) -> Finding:
    speeds = {name: FILE_BYTES / max(taken, 1e-6) for name, taken in seconds.items()}
    slowest = min(speeds, key=lambda name: speeds[name])
    found = f"{format_rate(speeds[slowest])} on {slowest}"
    if len(speeds) > 1:
        median = format_rate(statistics.median(speeds.values()))
        found = f"{len(speeds)} nodes at once, {median} each (median), {found} (slowest)"
    found += f", with files of {format_bytes(FILE_BYTES)}"
    if speeds[slowest] >= LEAST_STORE_BYTES_PER_SECOND:
        return ok(check, found)
    advice = (
        f"expected {format_rate(LEAST_STORE_BYTES_PER_SECOND)} or more: a checkpoint has 12 bytes for each parameter; "
        "take storage that is nearer or faster, or write fewer checkpoints (training.checkpoint)"
    )
    return warning(check, found, advice)


def format_rate(bytes_per_second: float) -> str:
    """2500000 -> "2.5 MB/s"."""
    return f"{bytes_per_second / 1e6:.3g} MB/s" if bytes_per_second < 999.5e6 else f"{bytes_per_second / 1e6:.0f} MB/s"


# --- clocks and ports -------------------------------------------------------------------------


def judge_clocks(offsets: Mapping[str, ClockOffset]) -> Finding:
    check, advice = "clocks", "synchronise the clocks of all nodes and of this machine (chrony, ntpd)"
    name, worst = max(offsets.items(), key=lambda one: one[1].certain_seconds)
    apart = worst.certain_seconds
    way = "ahead of" if worst.seconds > 0 else "behind"
    found = f"that of {name} is {abs(worst.seconds):.3g} s {way} this machine's (within {worst.within_seconds:.2g} s)"
    if apart > WRONG_CLOCK_SECONDS:
        return failed(check, f"{found}; object stores and `raystage store prune` go by the clock", advice)
    if apart > ODD_CLOCK_SECONDS:
        stale = f"`raystage status` takes a run for dead {format_seconds(SILENCE_SECONDS)} after its last word"
        return warning(check, f"{found}; {stale}", advice)
    many = f"{len(offsets)} agree" if len(offsets) > 1 else "agree"
    return ok(check, f"{many} within {abs(worst.seconds) + worst.within_seconds:.2g} s")


def judge_ports(unreached: Mapping[str, Collection[Unreached]]) -> Finding:
    """unreached: by the node that tried."""
    check = "ports between nodes"
    if len(unreached) == 1:
        return ok(check, "there is one node only")
    faults = [
        f"{name} -> {one.port.host} ({one.port.address}:{one.port.number}, {one.port.use}: {one.reason})"
        for name, all_of_it in unreached.items()
        for one in all_of_it
    ]
    if not faults:
        return ok(
            check, f"{len(unreached)} nodes reach each other's Ray and a free port of the system, as workers use it"
        )
    advice = (
        "let the nodes reach each other on every TCP port; or at least on those of `ray start` (--port, "
        "--node-manager-port, --object-manager-port, --min-worker-port to --max-worker-port) and on the free ports of "
        "the system (net.ipv4.ip_local_port_range), which NCCL and gloo take"
    )
    return failed(check, f"not reached: {some(faults)}", advice)


# --- settings of the cluster ------------------------------------------------------------------


def judge_token(refusals: Mapping[str, bool | None], expects_token: bool) -> Finding:
    """refusals: by server, whether it refused a request without a token; None where this is not known.

    expects_token: whether this user has asked for token authentication.
    """
    check = "token"
    unknown = [server for server, refused in refusals.items() if refused is None]
    unasked = f"; {some(unknown)} gave no answer" if unknown else ""
    if open_ones := [server for server, refused in refusals.items() if refused is False]:
        found = f"{some(open_ones)} answered a request without a token{unasked}: whoever reaches the ports can run code"
        advice = (
            "`ray get-auth-token --generate`, the same ~/.ray/auth_token on every node, and RAY_AUTH_MODE=token where "
            "`ray start` runs"
        )
        return failed(check, found, advice) if expects_token else warning(check, found, advice)
    if refusing := [server for server, refused in refusals.items() if refused]:
        return ok(check, f"{some(refusing)} refused a request without a token{unasked}")
    return warning(check, f"not known whether one is needed{unasked}", "run the doctor on the head node")


def judge_time_outs(health: HealthCheck, hang_seconds: float) -> Finding:
    """hang_seconds: as a schedule has it by default."""
    check = "time-outs"
    waits = format_seconds(longest_wait_seconds(hang_seconds))
    found = (
        f"Ray gives up a silent node after {health.failures} health checks without an answer, "
        f"{health.shortest_seconds:g} to {health.longest_seconds:g} s; workers without a step count as hung after "
        f"{format_seconds(hang_seconds)} (training.hang_seconds), and wait for each other in NCCL and gloo for {waits}"
    )
    if health.shortest_seconds < HASTY_SECONDS:
        advice = "a busy node counts as lost: set RAY_health_check_failure_threshold=5 where `ray start --head` runs"
        return warning(check, found, advice)
    if health.longest_seconds > hang_seconds:
        advice = "a lost node is noticed late: unset RAY_health_check_* where `ray start --head` runs"
        return warning(check, found, advice)
    return ok(check, found)
