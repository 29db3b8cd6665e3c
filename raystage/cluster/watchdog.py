"""What the driver looks after while a Train run goes on: messages, workers that hang, nodes that go, its own end.

What dies, Ray Train sees by itself. What merely stands still it does not: then the workers are killed here, so that
it starts them again, which counts against `max_failures` like any other failure.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from raystage.cluster.placement import describe_wait, has_room, is_room_taken, too_small
from raystage.cluster.shutdown import ShutdownSignal
from raystage.config.stage import Training
from raystage.errors import ClusterLost
from raystage.train.control_actor import WorkerSign
from raystage.units import format_seconds

OnEvent = Callable[[str, str, Any], None]
Answer = TypeVar("Answer")

CARE_SECONDS = 1.0
PING_SECONDS = 2.0
# Workers that have room are heard of before.
ROOM_SECONDS = 15.0
# After 60 s Ray would end this process without a word of ours.
CLUSTER_SECONDS = 40.0
# What a worker may be at before the first step, and how that is said.
BEFORE_TRAINING = {
    "reading the text": "the workers read the text, and tokenize what is not in the cache",
    "entering a stage": "the workers build the model and load what it starts from",
}


class Watch:
    """`look` is called several times a second, in the thread that `on_event` is called in."""

    def __init__(self, mailbox: Any, training: Training, on_event: OnEvent, notice: ShutdownSignal) -> None:
        self._mailbox, self._training, self._on_event, self._notice = mailbox, training, on_event, notice
        self._cared_at = self._had_room_at = self._heard_at = time.monotonic()
        self._leaving = self._told_of_wait = False
        self._work = ""

    def look(self) -> None:
        """Raises ClusterLost, ResourcesMissing; KeyboardInterrupt when the time after a notice is over."""
        for event in answer(self._mailbox.take.remote(), self._notice.check):
            self._on_event(*event)
        self._notice.check()
        if time.monotonic() - self._cared_at >= CARE_SECONDS:
            signs = answer(self._mailbox.signs.remote())
            self._end_what_hangs(signs)
            self._heed_notices(signs)
            self._check_room()
            self._tell_of_wait(signs)
            self._tell_of_work(signs)
            self._cared_at = time.monotonic()

    def _end_what_hangs(self, signs: list[WorkerSign]) -> None:
        late = [sign for sign in signs if sign.is_late]
        if not late:
            return
        if not any_is_dead(signs):
            self._say(describe_late(late))
            for sign in signs:
                ray.kill(sign.worker)
        # Where one is dead Ray Train starts all of them again: there is nothing to wait for from these.
        answer(self._mailbox.forget.remote())

    def _check_room(self) -> None:
        """Where a node was lost Ray Train waits for another one, if need be for ever."""
        now = time.monotonic()
        if in_time(lambda: has_room(self._training)):
            self._had_room_at = now
        elif now - self._had_room_at > self._training.hang_seconds:
            raise too_small(self._training)

    def _tell_of_wait(self, signs: list[WorkerSign]) -> None:
        """Say it, once, where the cluster is large enough, but others have what the workers need."""
        if signs:
            self._heard_at, self._told_of_wait = time.monotonic(), False
        elif not self._told_of_wait and time.monotonic() - self._heard_at > ROOM_SECONDS:
            self._told_of_wait = in_time(lambda: is_room_taken(self._training))
            if self._told_of_wait:
                self._on_event("waiting", "", in_time(lambda: describe_wait(self._training)))

    def _tell_of_work(self, signs: list[WorkerSign]) -> None:
        """What the first worker does before it trains: it may take minutes."""
        doing = next((sign.doing for sign in signs if sign.rank == 0), "")
        if doing in BEFORE_TRAINING and doing != self._work:
            self._on_event("preparing", "", BEFORE_TRAINING[doing])
        self._work = doing

    def _heed_notices(self, signs: list[WorkerSign]) -> None:
        """Have the workers save and leave: before this process ends, or before a node goes that one of them is on.

        Raises KeyboardInterrupt where none of them trains: they wait for room, or are being started."""
        if self._leaving:
            return
        if self._notice.came_at is not None and not signs:
            raise KeyboardInterrupt(f"asked to end ({self._notice.signal.name}) while no worker had anything to save")
        going = sorted(in_time(draining_nodes) & {sign.node for sign in signs})
        if self._notice.came_at is not None:
            self._say(f"asked to end ({self._notice.signal.name}): the workers save and leave")
        elif going:
            self._say(f"node {going[0][:8]} is to be taken away: the workers save, leave and start again elsewhere")
        else:
            return
        self._leaving = True
        answer(self._mailbox.leave.remote())

    def _say(self, what: str) -> None:
        self._on_event("trouble", "", what)


def await_room(training: Training, patience_seconds: float) -> None:
    """Wait until the cluster has places for the workers, as few as may be. Raises ResourcesMissing, ClusterLost."""
    deadline = time.monotonic() + patience_seconds
    while not in_time(lambda: has_room(training)):
        if time.monotonic() > deadline:
            raise too_small(training)
        time.sleep(1.0)


def answer(asked: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """What the mailbox answers; it may be on its way to another node. Raises ClusterLost."""
    deadline = time.monotonic() + CLUSTER_SECONDS
    while True:
        meanwhile()
        try:
            return ray.get(asked, timeout=1.0)
        except GetTimeoutError:
            if time.monotonic() > deadline:
                raise _cluster_lost() from None


def in_time(ask: Callable[[], Answer]) -> Answer:
    """What the cluster's head says. In a thread of its own, for where there is no head any more Ray would not come
    back from asking before it ends the process. Raises ClusterLost."""
    answers: queue.SimpleQueue[tuple[Answer | None, Exception | None]] = queue.SimpleQueue()

    def asking() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # for the thread that waits
            answers.put((None, error))

    threading.Thread(target=asking, name="raystage-ask", daemon=True).start()
    try:
        found, error = answers.get(timeout=CLUSTER_SECONDS)
    except queue.Empty:
        raise _cluster_lost() from None
    if error is not None:
        raise error
    return found


def _cluster_lost() -> ClusterLost:
    return ClusterLost(
        f"the Ray cluster has not answered for {CLUSTER_SECONDS:g} s: it was stopped, or the network to it "
        f"is down; the same command on a running cluster goes on from the last checkpoint"
    )


def describe_late(late: list[WorkerSign]) -> str:
    """'workers 0 and 1 have made no progress for 5.0 s (training): all are started again'."""
    ranks = " and ".join(str(sign.rank) for sign in late)
    longest = max(late, key=lambda sign: sign.silent_seconds)
    who = f"worker {ranks} has" if len(late) == 1 else f"workers {ranks} have"
    return (
        f"{who} made no progress for {format_seconds(longest.silent_seconds)} ({longest.doing}): "
        f"all workers are started again"
    )


def any_is_dead(signs: list[WorkerSign]) -> bool:
    """Whether one of the workers is no more; one that does not answer may be stopped or busy."""
    answers = [sign.worker.__ray_ready__.remote() for sign in signs]
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=PING_SECONDS)
    return any(_is_of_dead(answer) for answer in ready)


def _is_of_dead(answer: Any) -> bool:
    try:
        ray.get(answer)
    except RayActorError:
        return True
    return False


def draining_nodes() -> set[str]:
    """The ids of nodes that are about to be taken away. A name of Ray's own, as its Train uses it; a test holds it."""
    return set(ray._private.state.state.get_draining_nodes())
