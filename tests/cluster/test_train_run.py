"""Why workers failed, as the driver is told of it."""

from __future__ import annotations

from ray.exceptions import ActorDiedError, RuntimeEnvSetupError
from ray.train import ControllerError

from raystage.cluster.train_run import TellsFailures, describe_failure, describe_setup_failure
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


def test_the_node_that_could_not_set_up_the_job_is_named() -> None:
    """As Ray words it, and as Ray Train wraps it."""
    said = """Could not create the actor because its associated runtime env failed to be created.
[Node 10.77.0.3] Traceback (most recent call last):
  File "packaging.py", line 971, in download_and_unpack_package
OSError: [Errno 28] No space left on device

"""
    reason = "node 10.77.0.3 cannot set up the job's files and packages: OSError: [Errno 28] No space left on device"
    for error in (RuntimeEnvSetupError(said), ControllerError(RuntimeEnvSetupError(said))):
        assert describe_setup_failure(error) == reason
    assert describe_setup_failure(ActorDiedError()) is None
    assert describe_setup_failure(ControllerError(ValueError("no runtime env"))) is None
