"""The exceptions of raystage, as one small tree.

    RaystageError             exit status 1
    ├── InputError            exit status 2: what the user wrote cannot be done
    ├── StageFailed           the training of a stage ended before its budget
    │   ├── WorkersLost       ... because its workers failed more often than max_failures allows
    │   ├── NonFiniteLoss     ... because the loss became NaN or infinite
    │   ├── GrowthRejected    ... because its growth is outside of `grow.require`
    │   └── StageRejected     ... or it reached its end, but not what `accept` asks for
    ├── SweepFailed           no trial of a sweep was finished
    ├── ResourcesMissing      the cluster does not have what a stage asks for
    ├── ClusterLost           the cluster no longer answers
    ├── OtherCode             a node has another version of raystage than the driver
    ├── StorageError          a file system refuses: a full disk, an object store that does not answer
    ├── DamagedFile           a file of a store does not hold what it should
    └── CheckpointError       a checkpoint is missing, damaged or not ours

Every message is one line that names the place (file, key or path), what was found there and what would be right. The
command line prints it without a traceback.
"""

from __future__ import annotations

from collections.abc import Callable

from raystage.safe_text import without_secrets
from raystage.units import shortened

LONGEST_MESSAGE = 2_000
# More than is searched for secrets, so that one at the end of what is shown is whole.
_SEARCHED = 5 * LONGEST_MESSAGE


class RaystageError(Exception):
    """An error that raystage raises on purpose. Its message is printed and kept in files, so it contains no secrets."""

    exit_status = 1

    def __str__(self) -> str:
        return _said(super().__str__())


class InputError(RaystageError):
    """The input is wrong. `problem` says found and expected; `key` and `file` say where."""

    exit_status = 2

    def __init__(self, problem: str, *, key: str | None = None, file: str | None = None) -> None:
        self.problem, self.key, self.file = problem, key, file
        super().__init__(problem, key, file)

    def __str__(self) -> str:
        return _said(": ".join(part for part in (self.file, self.key, self.problem) if part))

    def __reduce__(self) -> tuple[Callable[..., InputError], tuple[str, str | None, str | None]]:
        """Ray copies errors between processes; by default Python would lose the key and the file."""
        return _input_error, (self.problem, self.key, self.file)

    def inside(self, file: str) -> InputError:
        """The same error, with the file that its key is in."""
        return InputError(self.problem, key=self.key, file=self.file or file)


def _said(message: str) -> str:
    """The message with a limited length, whatever a file or a library puts into it."""
    return shortened(without_secrets(message[:_SEARCHED]), LONGEST_MESSAGE)


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
    """A finished stage is not what the schedule's `accept` asks for, and there is no attempt left."""


class SweepFailed(RaystageError):
    """Trials of a sweep failed, or none of them was finished."""


class ResourcesMissing(RaystageError):
    """The cluster has too few CPUs or GPUs; waiting would never end."""


class ClusterLost(RaystageError):
    """The Ray cluster of a run has stopped, or can no longer be reached."""


class OtherCode(RaystageError):
    """Workers would run another source code than the driver; nothing is trained."""


class StorageError(RaystageError):
    """A file system refused to read, write or remove something, also after retries."""


class DamagedFile(RaystageError):
    """A file of a store is broken, or was changed."""


class CheckpointError(RaystageError):
    """A checkpoint is missing, damaged or of another kind."""
