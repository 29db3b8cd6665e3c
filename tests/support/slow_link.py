"""A link between a host of `hosts.py` and its bridge, with a delay, a rate and a loss: what the kernel's netem does,
where the kernel has none.

    python -S slow_link.py PID OUTSIDE DELAY BYTES_PER_SECOND LOSS

It is started where the bridge is, makes the device OUTSIDE there and `eth0` in the network of the process PID, says
"ready", and carries frames between the two until it is killed. Each direction is a queue at the rate, which drops what
would wait longer than `LONGEST_QUEUE`; then each frame is lost with the probability LOSS, or arrives after DELAY
seconds. The losses are drawn from a fixed seed.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass, field

LONGEST_QUEUE = 0.4
_TUNSETIFF, _TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
_NEW_NETWORK = 0x40000000
_FRAME_BYTES = 65536


@dataclass
class Direction:
    """Frames from one device to another."""

    source: int
    target: int
    delay: float
    bytes_per_second: float
    loss: float
    chance: random.Random
    free_at: float = 0.0
    due: list[tuple[float, int, bytes]] = field(default_factory=list)
    taken: int = 0

    def take(self, frame: bytes, now: float) -> None:
        """Queue a frame that was sent, or drop it."""
        begins = max(now, self.free_at)
        if begins - now > LONGEST_QUEUE:
            return
        self.free_at = begins + len(frame) / self.bytes_per_second
        self.taken += 1
        if self.chance.random() >= self.loss:
            heapq.heappush(self.due, (self.free_at + self.delay, self.taken, frame))

    def deliver(self, now: float) -> None:
        while self.due and self.due[0][0] <= now:
            _, _, frame = heapq.heappop(self.due)
            try:
                os.write(self.target, frame)
            except OSError:  # the device is down, as with a cable that is not plugged in
                continue


def main(pid: str, outside: str, delay: str, bytes_per_second: str, loss: str) -> None:
    near = _device(outside)
    with open(f"/proc/{pid}/ns/net") as network:
        if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"no way into the network of process {pid}")
    far = _device("eth0")
    print("ready", flush=True)
    chance, numbers = random.Random(0), (float(delay), float(bytes_per_second), float(loss))
    carry({near: Direction(near, far, *numbers, chance), far: Direction(far, near, *numbers, chance)})


def carry(directions: dict[int, Direction]) -> None:
    """Until one of the devices is gone."""
    while True:
        now = time.monotonic()
        for direction in directions.values():
            direction.deliver(now)
        waiting = [direction.due[0][0] - now for direction in directions.values() if direction.due]
        for source in select.select(list(directions), [], [], min(waiting, default=None))[0]:
            try:
                frame = os.read(source, _FRAME_BYTES)
            except OSError:  # the host is gone, and its device with it
                return
            directions[source].take(frame, time.monotonic())


def _device(name: str) -> int:
    """A TAP device: what its network sends is read from the file, and what is written there arrives."""
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH", name.encode(), _TAP_WITHOUT_HEADER))
    return file


if __name__ == "__main__":
    main(*sys.argv[1:])
