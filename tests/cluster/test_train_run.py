"""Why workers failed, as the driver is told of it."""

from __future__ import annotations

from typing import Any

from ray.exceptions import ActorDiedError

from raystage.cluster.train_run import TellsFailures, describe_failure
from raystage.errors import InputError


class Control:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.put = self

    def remote(self, *message: Any) -> None:
        self.told.append(message)


def test_the_first_worker_that_failed_is_named_with_the_last_line_of_its_error() -> None:
    died = ActorDiedError()
    assert describe_failure({2: ValueError("a\n b \n\n"), 1: died}).startswith("worker 1 failed: ")
    assert describe_failure({2: ValueError("a\n b \n\n")}) == "worker 2 failed: b"
    assert describe_failure({0: ValueError()}) == "worker 0 failed: ValueError"


def test_what_raystage_raises_itself_is_not_told_twice() -> None:
    control = Control()
    TellsFailures(control).after_exception(None, {0: InputError("wrong")})
    assert control.told == []
    TellsFailures(control).after_exception(None, {0: InputError("wrong"), 1: ValueError("x" * 1000)})
    ((kind, key, text),) = control.told
    assert (kind, key) == ("trouble", "")
    assert text.startswith("worker 1 failed: xxx")
    assert len(text) < 400
