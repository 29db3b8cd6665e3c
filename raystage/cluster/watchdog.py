"""What the driver looks after while a Train run goes on: messages, workers that hang, nodes, its own end.

Ray Train notices by itself when a worker dies, but not when a worker hangs. Then the workers are killed here, so that
Ray Train starts them again; this counts against `max_failures` like any other failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from raystage.cluster.nodes import ApartNodes, LostNodes, Node, SilentNodes, describe_loss, name_of
from raystage.cluster.placement import Wait, count_places, find_wait, not_started, too_small
from raystage.cluster.queries import ask_cluster, get_answer
from raystage.cluster.ray_private import draining_nodes
from raystage.cluster.shutdown import ShutdownSignal
from raystage.config.training import Training
from raystage.errors import WorkersLost
from raystage.train.control_actor import WorkerStatus
from raystage.units import format_seconds

OnEvent = Callable[[str, str, Any], None]

LOOK_SECONDS = 1.0
PING_SECONDS = 2.0
# If no worker was heard of for this time, the workers may be waiting for resources.
WAIT_SECONDS = 15.0
# The same where they have their places, and only their processes have to start.
PROCESS_SECONDS = 60.0
# Workers that could start have this time, or `training.hang_seconds` if that is longer. Ray Train has no limit.
START_SECONDS = 600.0
# What workers may do before the first step, in their own words, and what the user is told.
BEFORE_TRAINING = {
    "reading the text": "the workers read the text, and tokenize what is not in the cache",
    "scoring documents": "the workers score the documents that the text is sorted by",
    "entering a stage": "the workers build the model and load what it starts from",
}


class Watchdog:
    """Watches over one Train run: `look` is to be called several times a second.

    control: the run's `ControlActor`. on_event: called in the thread that calls `look`.
    """

    def __init__(self, control: Any, training: Training, on_event: OnEvent, shutdown: ShutdownSignal) -> None:
        self._control, self._training, self._on_event, self._shutdown = control, training, on_event, shutdown
        self._looked_at = self._fitted_at = self._heard_at = self._could_start_at = time.monotonic()
        self._is_leaving = self._has_told_of_lack = False
        self._doing = ""
        self._told_waits: set[str] = set()
        self._lost, self._silent, self._apart = LostNodes(), SilentNodes(), ApartNodes()

    def look(self) -> None:
        """Raises ClusterLost, ResourcesMissing, WorkersLost; KeyboardInterrupt when the time to save after a signal is
        over."""
        for message in get_answer(self._control.take.remote(), self._shutdown.check):
            self._on_event(message.kind, message.key, message.what)
        self._shutdown.check()
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            statuses = get_answer(self._control.statuses.remote())
            nodes = ask_cluster(ray.nodes)
            self._tell_of_nodes(nodes, statuses)
            self._tell_of_nodes_apart(nodes, statuses)
            self._kill_what_hangs(statuses)
            self._leave_in_time(statuses, nodes)
            if self._has_room(nodes):
                self._tell_of_wait(statuses)
            self._tell_of_work(statuses)
            self._looked_at = time.monotonic()

    def _kill_what_hangs(self, statuses: list[WorkerStatus]) -> None:
        late = [one for one in statuses if one.is_late]
        if not late:
            return
        if not any_is_dead(statuses):
            self._tell_of_trouble(describe_late(late))
            for one in statuses:
                ray.kill(one.worker)
        # If one is dead, Ray Train starts all of them again: nothing more is heard of these.
        get_answer(self._control.forget.remote())

    def _tell_of_nodes(self, nodes: list[Node], statuses: list[WorkerStatus]) -> None:
        """Say which nodes were lost, and which do not answer although Ray still waits for them."""
        used = {one.node for one in statuses}
        for node in self._lost.since(nodes):
            self._on_event("trouble" if node["NodeID"] in used else "note", "", describe_loss(node))
        silence = self._silent.now(nodes, statuses)
        if silence is not None:
            self._on_event(*(("waiting", "", silence) if silence else ("note", "", "all nodes answer again")))

    def _tell_of_nodes_apart(self, nodes: list[Node], statuses: list[WorkerStatus]) -> None:
        """Say which nodes do not reach each other.

        Raises WorkersLost if this lasts, and the workers were ended because they hang: new ones would wait as they did.
        """
        said = ask_cluster(lambda: self._apart.now(nodes, statuses))
        if said is not None:
            self._on_event(*(("waiting", "", said) if said else ("note", "", "all nodes reach each other again")))
        since, limit = self._apart.apart_since, self._training.hang_seconds
        if since is not None and not statuses and time.monotonic() - since > limit:
            raise WorkersLost(
                f"waited {format_seconds(limit)} (training.hang_seconds) for {self._apart.told}; the same command "
                f"continues from the last checkpoint"
            )

    def _has_room(self, nodes: list[Node]) -> bool:
        """Whether the cluster is large enough. After a node was lost, Ray Train waits for another one without limit.

        Raises ResourcesMissing.
        """
        now = time.monotonic()
        if count_places(nodes, self._training) >= self._training.workers.least:
            self._fitted_at, self._has_told_of_lack = now, False
            return True
        self._could_start_at = now
        if now - self._fitted_at > self._training.hang_seconds:
            raise too_small(self._training)
        if not self._has_told_of_lack:
            self._has_told_of_lack = True
            self._on_event("waiting", "", describe_lack(nodes, self._training))
        return False

    def _tell_of_wait(self, statuses: list[WorkerStatus]) -> None:
        """Say what the workers wait for, if the cluster is large enough but none is heard of.

        Raises WorkersLost for workers that do not come although nobody else uses what they need.
        """
        now = time.monotonic()
        if statuses:
            self._heard_at = self._could_start_at = now
            self._told_waits.clear()
        elif now - self._heard_at > WAIT_SECONDS:
            wait = ask_cluster(lambda: find_wait(self._training))
            self._tell_once(wait, now - self._heard_at)
            if wait.may_last:
                self._could_start_at = now
            limit = max(START_SECONDS, self._training.hang_seconds)
            if now - self._could_start_at > limit:
                raise not_started(self._training, limit)

    def _tell_once(self, wait: Wait, seconds: float) -> None:
        """seconds: since a worker was heard of. What is behind the colon may change, and is not said again."""
        what, _, _ = wait.what.partition(":")
        if what and what not in self._told_waits and (not wait.is_placed or seconds > PROCESS_SECONDS):
            self._told_waits.add(what)
            self._on_event("waiting", "", wait.what)

    def _tell_of_work(self, statuses: list[WorkerStatus]) -> None:
        """Say what the first worker does before it trains, which may take minutes."""
        doing = next((one.doing for one in statuses if one.rank == 0), "")
        if doing in BEFORE_TRAINING and doing != self._doing:
            self._on_event("preparing", "", BEFORE_TRAINING[doing])
        self._doing = doing

    def _leave_in_time(self, statuses: list[WorkerStatus], nodes: list[Node]) -> None:
        """Have the workers save and leave if this process is to end, or if a node of theirs is to be taken away.

        Raises KeyboardInterrupt if no worker trains: they wait for resources, or are being started.
        """
        if self._is_leaving:
            return
        is_ending, name = self._shutdown.received_at is not None, self._shutdown.signal.name
        if is_ending and not statuses:
            raise KeyboardInterrupt(f"asked to end ({name}) while no worker had anything to save")
        leaving_nodes = sorted(ask_cluster(draining_nodes) & {one.node for one in statuses})
        if is_ending:
            self._tell_of_trouble(f"asked to end ({name}): the workers save and leave")
        elif leaving_nodes:
            going = " and ".join(name_of(node) for node in nodes if node["NodeID"] in leaving_nodes)
            self._tell_of_trouble(
                f"node {going} is to be taken away: the workers save, leave and start again elsewhere"
            )
        else:
            return
        self._is_leaving = True
        get_answer(self._control.leave.remote())

    def _tell_of_trouble(self, what: str) -> None:
        self._on_event("trouble", "", what)


def describe_late(late: list[WorkerStatus]) -> str:
    """'workers 0 and 1 have made no progress for 5.0 s (training): all workers are started again'."""
    ranks = " and ".join(str(one.rank) for one in late)
    longest = max(late, key=lambda one: one.silent_seconds)
    who = f"worker {ranks} has" if len(late) == 1 else f"workers {ranks} have"
    return (
        f"{who} made no progress for {format_seconds(longest.silent_seconds)} ({longest.doing}): "
        f"all workers are started again"
    )


def describe_lack(nodes: list[Node], training: Training) -> str:
    """'more nodes: there is room for 1 of 2 workers. Without them the run ends in 30:00 (training.hang_seconds)'."""
    places, workers = count_places(nodes, training), training.workers.least
    return (
        f"more nodes: there is room for {places} of {workers} worker{'s' if workers > 1 else ''}. Without them the run "
        f"ends in {format_seconds(training.hang_seconds)} (training.hang_seconds)"
    )


def any_is_dead(statuses: list[WorkerStatus]) -> bool:
    """Whether one of the workers has died. A worker that does not answer may only be stopped or busy."""
    pings = [one.worker.__ray_ready__.remote() for one in statuses]
    ready, _ = ray.wait(pings, num_returns=len(pings), timeout=PING_SECONDS)
    return any(_is_of_dead_worker(ping) for ping in ready)


def _is_of_dead_worker(ping: Any) -> bool:
    try:
        ray.get(ping)
    except RayActorError:
        return True
    return False
