"""Leases: of all drivers that share a store, on any file system, one at a time may train a stage.

    stages/<key>/leases/<ticket>.json       one for each claimant: who it is; written once
    stages/<key>/leases/<ticket>.beat       exists once it holds the lease: a number that it counts up

No file system here can create a file only if it does not exist. So the order of two steps decides. A claimant *writes*
a ticket and then *lists* the tickets; it holds the lease once a listing shows no other ticket. Of two claimants, the
one that lists last has seen the other's ticket, so they never both hold the lease. Where claimants meet, the later ones
withdraw, and the earliest waits until they have. A claimant that arrives while the lease is held withdraws, however
early its ticket says it came: clocks only order claimants that meet.

This needs listings that show what was written before: local disks, S3 (since 2020) and GCS have them. NFS may list from
its cache, but not a folder that this client has just changed, as a claimant has. Tickets are never rewritten, since a
listing may miss a file that is being renamed.

A ticket is dead if an observer has seen its beat unchanged for `ttl_seconds` by its own clock, or if its process on
this machine has ended. The next claimant removes it, after it has written its own ticket and then checked again. A
holder with a late beat lists the tickets after it: it continues only if its own ticket is still there and no other is.
Whichever of the two wrote first, the second one sees it. So clocks have to run at the same speed, but need not agree.

A lease avoids double work; the bits do not depend on it. A process that was stopped holds nothing when it wakes up, but
continues until it checks.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from raystage.errors import StorageError
from raystage.files.filesystem import Folder
from raystage.files.retry import brief
from raystage.files.sealed_json import unsealed
from raystage.storage.processes import LeaseHolder, ProcessId, is_gone, this_process
from raystage.timers import RepeatingTimer

TTL_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0
# A holder takes its own time to be shorter by this share, because other clocks may run a little faster.
_MARGIN = 0.9
_SETTLE_SECONDS = 0.05
_FOLDER = "leases"
_TICKET, _BEAT = ".json", ".beat"


class Leases:
    """The leases of one driver on the stages in `stages`, a folder of the store. owner: this process by default.

    acquire and holder are for one thread. Everything raises StorageError where the file system refuses.
    """

    def __init__(
        self,
        stages: Folder,
        owner: ProcessId | None = None,
        ttl_seconds: float = TTL_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._stages, self._owner = stages, owner or this_process()
        self.ttl_seconds, self._heartbeat_seconds = ttl_seconds, heartbeat_seconds
        self._seen: dict[str, _Seen] = {}
        self._kept: set[Lease] = set()
        self._guard = threading.Lock()
        self._heart: RepeatingTimer | None = None

    def acquire(self, key: str) -> Lease | None:
        """The lease of a stage, or None while another ticket is in the way. Does not wait for a holder."""
        folder = self._stages / key / _FOLDER
        if any(other.is_held for other in self._living(folder)):
            return None  # one that only waits writes nothing
        lease = Lease(folder, self._owner, self.ttl_seconds, self._drop)
        try:
            lease.claim()
            if self._comes_first(lease) and lease.beat():
                self._keep(lease)
                return lease
        except BaseException:
            lease.release()
            raise
        lease.release()
        return None

    def holder(self, key: str) -> LeaseHolder | None:
        """The process that holds or claims the lease of a stage; None where it is free."""
        living = self._living(self._stages / key / _FOLDER)
        return min(living, key=lambda one: (not one.is_held, one.ticket), default=None)

    def _comes_first(self, lease: Lease) -> bool:
        """Whether this ticket is the only one, once later claimants have withdrawn theirs."""
        deadline = time.monotonic() + self.ttl_seconds / 3
        while others := self._living(lease.folder, lease.ticket):
            if any(other.is_held or other.ticket < lease.ticket for other in others) or time.monotonic() > deadline:
                return False
            time.sleep(_SETTLE_SECONDS)
        return True

    def _living(self, folder: Folder, own: str | None = None) -> list[LeaseHolder]:
        """The tickets of others that are not dead. A caller with a ticket of its `own` removes the dead ones."""
        found = []
        for ticket in _tickets(folder):
            if ticket != own and (content := _content(folder, ticket + _TICKET)) is not None:
                beat = _content(folder, ticket + _BEAT)
                holder = _holder(ticket, content, beat)
                if not self._is_dead(folder, holder, beat):
                    found.append(holder)
                elif own is not None:
                    _remove(folder, ticket)
        return found

    def _is_dead(self, folder: Folder, holder: LeaseHolder, beat: bytes | None) -> bool:
        path = f"{folder.path}/{holder.ticket}"
        if path not in self._seen or self._seen[path].beat != beat:
            self._seen[path] = _Seen(beat)
        if holder.owner is not None and is_gone(holder.owner):
            return True
        return time.monotonic() - self._seen[path].first_at > self.ttl_seconds

    # --- the heartbeat ------------------------------------------------------------------------

    def _keep(self, lease: Lease) -> None:
        """Send beats for a lease until it is released."""
        with self._guard:
            self._kept.add(lease)
            if self._heart is None:
                self._heart = RepeatingTimer("raystage-leases", self._heartbeat_seconds, brief(self._beat_all))

    def _drop(self, lease: Lease) -> None:
        with self._guard:
            self._kept.discard(lease)
            heart = self._heart
            if self._kept or heart is None:
                return
            self._heart = None
        heart.stop()

    def _beat_all(self) -> None:
        with self._guard:
            kept = list(self._kept)
        for lease in kept:
            with contextlib.suppress(StorageError):  # the next beat shows whether that took too long
                lease.beat()


class Lease:
    """One claimant's ticket for a stage. lost: for ever, since another process may have held the stage since then."""

    def __init__(
        self, folder: Folder, owner: ProcessId, ttl_seconds: float, on_release: Callable[[Lease], None]
    ) -> None:
        self.folder, self.lost = folder, False
        self.ticket = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}"
        self._owner, self._on_release = owner, on_release
        self._safe_seconds = ttl_seconds * _MARGIN
        self._confirmed_at = _owners_clock()
        self._beats, self._is_released = 0, False
        self._lock = threading.Lock()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether no other process can hold the stage at this moment."""
        return self._beats > 0 and not self.lost and not self._is_released and not self._is_late()

    def claim(self) -> None:
        """Write the ticket. Raises StorageError."""
        self._confirmed_at = _owners_clock()
        self.folder.write_whole(
            self.ticket + _TICKET, json.dumps({"owner": self._owner.to_json(), "since": time.time()}).encode()
        )

    def beat(self) -> bool:
        """Show that the owner is alive and holds the lease. False where the lease is lost. Raises StorageError."""
        with self._lock:
            if self.lost or self._is_released:
                return False
            began = _owners_clock()
            self.folder.write_whole(self.ticket + _BEAT, str(self._beats + 1).encode())
            if self._is_late() and _tickets(self.folder) != [self.ticket]:
                self.lost = True
                _remove_quietly(self.folder, self.ticket)
                return False
            self._beats, self._confirmed_at = self._beats + 1, began
            return True

    def release(self) -> None:
        """Give up the stage. Where the store refuses, the ticket becomes dead by itself."""
        with self._lock:
            self._is_released = True
            _remove_quietly(self.folder, self.ticket)
        self._on_release(self)

    def _is_late(self) -> bool:
        """Whether the last beat that was surely in time is so old that others may take this ticket for dead."""
        return _owners_clock() - self._confirmed_at > self._safe_seconds


@dataclass(frozen=True)
class _Seen:
    """A ticket's beat, and when it was first seen like this, by the clock of this process."""

    beat: bytes | None
    first_at: float = field(default_factory=time.monotonic)


def _tickets(folder: Folder) -> list[str]:
    # A file whose name begins with a dot is about to be renamed.
    names = folder.file_names()
    return [name.removesuffix(_TICKET) for name in names if name.endswith(_TICKET) and name[0] != "."]


def _content(folder: Folder, name: str) -> bytes | None:
    """None where the file does not exist, or no longer."""
    try:
        return folder.read(name)
    except FileNotFoundError:
        return None


def _holder(ticket: str, content: bytes, beat: bytes | None) -> LeaseHolder:
    try:
        found = unsealed(content)
        owner, since = ProcessId.from_json(found["owner"]), float(found["since"])
        time.localtime(since)
        return LeaseHolder(ticket, beat is not None, owner, since)
    except (ValueError, TypeError, KeyError, OverflowError, OSError):
        return LeaseHolder(ticket, beat is not None, None, None)


def _remove(folder: Folder, ticket: str) -> None:
    """The ticket first: a beat without a ticket means nothing."""
    folder.delete_file(ticket + _TICKET)
    folder.delete_file(ticket + _BEAT)


def _remove_quietly(folder: Folder, ticket: str) -> None:
    with contextlib.suppress(StorageError):
        _remove(folder, ticket)


def _owners_clock() -> float:
    """Seconds. Where possible this clock continues while the machine sleeps; the clock of observers does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
