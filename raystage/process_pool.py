"""Functions carried out by several new processes.

Unlike those of `multiprocessing`, they do not import the caller's main module, so they can be started from a script, a
notebook or a Ray worker; and they inherit no threads.

A process ends when its input does, so none is left when the caller is killed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from raystage.errors import RaystageError

_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class ProcessFailed(RaystageError):
    """A process of a pool ended before its work was done."""


def num_cpus() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(function: str, tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[tuple[int, Any]]:
    """(number of the task, result) for every task, in the order in which they are finished.

    function: 'package.module:function'; its arguments and its result are pickled. Raises what it raises; then no
    further task is begun.
    """
    numbers, results = iter(range(len(tasks))), queue.SimpleQueue()
    lock, stop = threading.Lock(), threading.Event()

    def next_task() -> int | None:
        with lock:
            return None if stop.is_set() else next(numbers, None)

    def serve() -> None:
        try:
            with _process() as process:
                while (number := next_task()) is not None:
                    results.put((number, *_asked(process, function, tasks[number])))
        except Exception as error:
            results.put((-1, False, error))

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(workers, len(tasks)))]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            number, is_done, result = results.get()
            if not is_done:
                raise result
            yield number, result
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _asked(process: subprocess.Popen[bytes], function: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        pickle.dump((function, arguments), process.stdin)
        process.stdin.flush()
        return pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        raise ProcessFailed(f"a process ended with status {process.wait()} while it ran {function}") from None


@contextlib.contextmanager
def _process() -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", __name__]  # no code from the working folder
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.wait()
        process.stdout.close()


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        try:
            function, arguments = pickle.load(requests)
        except EOFError:
            return
        module, _, name = function.partition(":")
        try:
            answer = True, getattr(importlib.import_module(module), name)(*arguments)
        except Exception as error:
            answer = False, error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what libraries print is no answer
        _serve(sys.stdin.buffer, out)
