"""What is done again and again, and the end of it."""

from __future__ import annotations

import subprocess
import sys
import threading

from raystage.timers import RepeatingTimer

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
