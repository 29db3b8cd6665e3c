"""What is done again and again, and the end of it."""

from __future__ import annotations

import subprocess
import sys
import threading

from raystage.timers import RepeatingTimer, Seldom

# It ticks until the process ends. Whatever is registered before is ended after it, as pyarrow's S3 is.
LEFT_RUNNING = """
import atexit, sys, time
ticks = []
atexit.register(lambda: (before := len(ticks), time.sleep(0.2), print(len(ticks) - before)))
from raystage.timers import RepeatingTimer
RepeatingTimer("left", 0.001, lambda: ticks.append(1))
while not ticks:
    time.sleep(0.001)
"""


def test_there_is_no_call_after_it_was_stopped() -> None:
    called = threading.Event()
    ticker = RepeatingTimer("test", 0.001, called.set)
    assert called.wait(10)
    ticker.stop()
    called.clear()
    assert not called.wait(0.05)


def test_one_that_nobody_stopped_ends_before_the_libraries_that_were_there_before_it() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_RUNNING], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


class Slow:
    """An action that takes two seconds of its own clock."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, 0

    def __call__(self) -> None:
        self.now, self.calls = self.now + 2.0, self.calls + 1


def test_what_is_asked_for_often_takes_a_small_share_of_the_time() -> None:
    slow = Slow()
    seldom = Seldom(slow, share=0.1, clock=lambda: slow.now)
    for _ in range(1000):
        seldom.ask()
        slow.now += 0.1
    assert slow.calls == 6  # of 112 s: one each 20 s


def test_what_had_to_wait_is_carried_out_once_later() -> None:
    slow = Slow()
    seldom = Seldom(slow, share=0.1, clock=lambda: slow.now)
    seldom.ask(), seldom.ask()
    assert slow.calls == 1
    slow.now = 20.1
    seldom.look(), seldom.look()
    assert slow.calls == 2
    slow.now = 100.0
    seldom.look()
    assert slow.calls == 2


def test_it_can_be_asked_for_at_once() -> None:
    slow = Slow()
    seldom = Seldom(slow, share=0.1, clock=lambda: slow.now)
    seldom.ask(), seldom.ask(at_once=True)
    assert slow.calls == 2
