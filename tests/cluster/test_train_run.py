"""Why workers failed, as the driver is told of it."""

from __future__ import annotations

from ray.exceptions import ActorDiedError

from raystage.cluster.train_run import TellsFailures, describe_failure
from raystage.errors import InputError
from raystage.train.control_actor import Message


class Control:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Message] = []
        self.put = self

    def remote(self, message: Message) -> None:
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
    (message,) = control.told
    assert (message.kind, message.key) == ("trouble", "")
    assert message.what.startswith("worker 1 failed: xxx")
    assert len(message.what) < 400
