"""What can go wrong, as one small tree.

    RaystageError             exit status 1
    ├── InputError            exit status 2: what the user wrote cannot be done
    ├── StageFailed           training of a stage ended before its budget
    │   ├── WorkersLost       ... because its workers failed more often than max_failures allows
    │   ├── NonFiniteLoss     ... because the loss became NaN or infinite
    │   ├── GrowthRejected    ... because its growth is outside of `grow.require`
    │   └── StageRejected     ... or it reached the end, but not what `accept` asks for
    ├── SweepFailed           no trial of a sweep came to its end
    ├── ResourcesMissing      the cluster does not have what a stage asks for
    ├── ClusterLost           the cluster does not answer any more
    ├── OtherCode             a node has another raystage than the driver
    ├── StorageError          a file system refuses: a full disk, an object store that does not answer
    ├── DamagedFile           a file of a store does not hold what it should
    └── CheckpointError       a checkpoint is missing, damaged or not ours

Every message is one line that names the place (file, key or path), what was found there and
what would be right. The command line prints it without a traceback.
"""

from __future__ import annotations

from collections.abc import Callable

from raystage.safe_text import without_secrets
from raystage.units import shortened

LONGEST_MESSAGE = 2_000


class RaystageError(Exception):
    """Anything raystage stops for on purpose. Its message is printed and kept in files, and so it says no secrets."""

    exit_status = 1

    def __str__(self) -> str:
        return _said(super().__str__())


class InputError(RaystageError):
    """The input is wrong. `place` is a file, a key or a path; `problem` says found and expected."""

    exit_status = 2

    def __init__(self, problem: str, *, key: str | None = None, file: str | None = None) -> None:
        self.problem, self.key, self.file = problem, key, file
        super().__init__(problem, key, file)

    def __str__(self) -> str:
        return _said(": ".join(part for part in (self.file, self.key, self.problem) if part))

    def __reduce__(self) -> tuple[Callable[..., InputError], tuple[str, str | None, str | None]]:
        """Ray copies errors and sends them between processes; by itself Python would forget what is a key."""
        return _input_error, (self.problem, self.key, self.file)

    def inside(self, file: str) -> InputError:
        """The same error, said of a key in `file`."""
        return InputError(self.problem, key=self.key, file=self.file or file)


def _said(message: str) -> str:
    """Bounded, whatever a file or a library puts into it."""
    return shortened(without_secrets(message), LONGEST_MESSAGE)


def _input_error(problem: str, key: str | None, file: str | None) -> InputError:
    return InputError(problem, key=key, file=file)


class StageFailed(RaystageError):
    """A stage did not reach the end of its budget."""


class WorkersLost(StageFailed):
    """Workers raised, died or hung more often than `training.max_failures` allows."""


class NonFiniteLoss(StageFailed):
    """The training loss became NaN or infinite."""


class GrowthRejected(StageFailed):
    """The certificate of a growth is outside of the limits of the schedule's `grow.require`."""


class StageRejected(StageFailed):
    """A finished stage is not what the schedule's `accept` asks for, and there is nothing left to try."""


class SweepFailed(RaystageError):
    """Trials of a sweep failed, or none of them came to its end."""


class ResourcesMissing(RaystageError):
    """The cluster has too few CPUs or GPUs; waiting would be for ever."""


class ClusterLost(RaystageError):
    """The Ray cluster that a run is on has stopped, or cannot be reached any more."""


class OtherCode(RaystageError):
    """Workers would run other sources than the driver's; nothing is trained with them."""


class StorageError(RaystageError):
    """A file system refused to read, write or remove something, also when it was asked again."""


class DamagedFile(RaystageError):
    """A file of a store is broken, or was changed."""


class CheckpointError(RaystageError):
    """A checkpoint is missing, damaged or of another kind."""
