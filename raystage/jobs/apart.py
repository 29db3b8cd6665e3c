"""Runs the driver of a Ray job apart from the job's entrypoint, so that the end of the job does not cut it short.

`ray job stop` sends SIGTERM to the entrypoint and to all of its descendants, and some seconds later SIGKILL (3 s,
unless RAY_JOB_STOP_WAIT_TIME_S says otherwise). That is too short for a large checkpoint, and W&B's own process would
end at the first signal. So the driver is no descendant of the entrypoint: the entrypoint passes the signal on, and
waits. If it is killed, the driver still saves and leaves by itself, within `LEAVE_SECONDS` of `cluster.shutdown`.

    entrypoint  -- signals -->  keeper  -- SIGTERM -->  driver
                <-- status --

The keeper starts the driver and waits for it. If the entrypoint is gone without a signal, the driver gets one. Only the
standard library is imported: this runs before the driver.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

POLL_SECONDS = 0.1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_apart(command: Sequence[str]) -> int:
    """Run a command, and return its exit status; as a shell has it, where a signal ended the command. Signals that ask
    this process to end are passed on. For the main thread."""
    signals, to_keeper = os.pipe()
    status, from_keeper = os.pipe()
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: os.write(to_keeper, bytes([number])))
    keeper = [sys.executable, "-P", "-m", __spec__.name, str(signals), str(from_keeper), *command]
    # It forks, and the process that was started here ends at once: what is left has init for a parent.
    subprocess.run(keeper, pass_fds=(signals, from_keeper), start_new_session=True, check=False)
    os.close(signals)
    os.close(from_keeper)
    with open(status, "rb") as ended:
        told = ended.read()
    return int(told) if told else 128 + signal.SIGKILL  # the keeper itself was killed


def keep(signals: int, status: int, command: Sequence[str]) -> None:
    """What the keeper does. signals: a pipe that tells what to pass on. status: a pipe to tell the exit status."""
    if os.fork():
        os._exit(0)
    for number in _FORWARDED:
        # A handler, and not SIG_IGN, which the driver would inherit.
        signal.signal(number, lambda *_: None)
    driver = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    is_watched, was_asked = True, False
    while driver.poll() is None:
        ready, _, _ = select.select([signals] if is_watched else [], [], [], POLL_SECONDS)
        if not ready:
            continue
        for number in (told := os.read(signals, 1)) or ([] if was_asked else [signal.SIGTERM]):
            driver.send_signal(number)
            was_asked = True
        is_watched = bool(told)
    with contextlib.suppress(BrokenPipeError):  # the entrypoint is gone
        os.write(status, str(_as_in_a_shell(driver.returncode)).encode())


def _as_in_a_shell(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


if __name__ == "__main__":
    keep(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
