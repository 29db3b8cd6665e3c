"""The jobs of a cluster, over HTTP: what `raystage submit` asks of it. Every error becomes one sentence."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shlex
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raystage.cluster.joined import check_token_settings, refused_token
from raystage.cluster.ray_private import put_parcel, show_token_if_there, zip_folder
from raystage.errors import ClusterLost, InputError
from raystage.files.local import walk
from raystage.jobs.submission import EXCLUDES, MOST_BYTES, MOST_UNZIPPED, RUN_KEY
from raystage.units import first_line, format_bytes

CONNECT_SECONDS = 10.0
# They log what they send, at a level of their own.
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_NOT_HERE = (
    "a head listens for its own machine alone unless it is started with `ray start --dashboard-host=0.0.0.0`; "
    "`ssh -L 8265:127.0.0.1:8265 HOST` brings its port 8265 here"
)
_PORTS = {"http": 80, "https": 443}


class Jobs:
    """The jobs of the cluster at `address`. Raises InputError where it does not answer, or refuses the token."""

    def __init__(self, address: str) -> None:
        self.address = address
        parts = urlsplit(address)
        check_token_settings()
        with self._answering():
            # Ray itself would wait without a limit.
            port = parts.port or _PORTS[parts.scheme]
            socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
            mode = os.environ.get("RAY_AUTH_MODE")
            show_token_if_there()
            self._shows_token = os.environ.get("RAY_AUTH_MODE") != mode
            for name in _CHATTY:
                logging.getLogger(name).setLevel(logging.ERROR)
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers it, and RAY_ADDRESS, to what it is given
            self.client = JobSubmissionClient(address)
            self.client.get_version()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            raise refused_token(self.address) from None
        except (OSError, ValueError, RuntimeError) as error:
            advice = f"; {_NOT_HERE}" if isinstance(error, ConnectionRefusedError) else ""
            raise InputError(
                f"no Ray jobs at {self.address!r} ({first_line(error)}){advice}", key="--address"
            ) from None

    def command(self, what: str, job: str) -> str:
        """'ray job stop NAME --address URL', for a shell: with the token's mode, where Ray would not show the token by
        itself."""
        mode = "RAY_AUTH_MODE=token " if self._shows_token else ""
        return f"{mode}ray job {what} {job} --address {shlex.quote(self.address)}"

    def of_run(self, run: str) -> list[JobDetails]:
        """The jobs of a run, from whatever submission, the latest last."""
        found = [one for one in self._all() if (one.metadata or {}).get(RUN_KEY) == run]
        return sorted(found, key=lambda one: one.start_time or 0)

    def ids(self) -> set[str]:
        return {one.submission_id for one in self._all() if one.submission_id}

    def _all(self) -> list[JobDetails]:
        return self._tried(self.client.list_jobs)

    def details(self, job: str) -> JobDetails:
        return self._tried(self.client.get_job_info, job)

    def stop(self, job: str) -> None:
        self._tried(self.client.stop_job, job)

    def submit(self, job: str, command: str, runtime_env: dict[str, Any], run: str) -> None:
        """Raises ClusterLost; InputError where the cluster refuses the job."""
        try:
            self.client.submit_job(
                entrypoint=command, submission_id=job, runtime_env=runtime_env, metadata={RUN_KEY: run}
            )
        except AuthenticationError:
            raise refused_token(self.address) from None
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the cluster at {self.address} refuses the job: {_last_line(error)}") from None

    def send(self, parcel: str, variables: Mapping[str, str]) -> None:
        """Leave variables for the driver of a job to take. They are in the memory of the cluster's GCS until the driver
        takes them, and in no list that the cluster shows."""
        self._tried(put_parcel, self.client, parcel, json.dumps(dict(variables)).encode())

    def withdraw(self, parcel: str) -> None:
        """Overwrite variables that no driver has taken, and none will. Where the cluster is lost, they are, too."""
        with contextlib.suppress(ClusterLost, InputError):
            self._tried(put_parcel, self.client, parcel, b"")

    def _tried(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except AuthenticationError:
            raise refused_token(self.address) from None
        except (OSError, RuntimeError) as error:
            raise ClusterLost(f"the jobs at {self.address} cannot be reached ({first_line(error)})") from None


def new_parcel() -> str:
    """Where variables are left: a name that nobody can guess."""
    return f"_ray_pkg_{secrets.token_hex(16)}.zip"


def is_over(job: JobDetails) -> bool:
    return JobStatus(job.status).is_terminal()


def zipped(folder: Path, target: Path, is_own: bool) -> Path:
    """A folder as one file that Ray takes. is_own: whether it is the user's, in which `.gitignore` and `.rayignore`
    count, and environments and stores stay out. Raises InputError where it is too large."""
    zip_folder(folder, target, honors_ignore_files=is_own, excludes=EXCLUDES if is_own else ())
    if (size := target.stat().st_size) > MOST_BYTES:
        raise _too_large(f"{format_bytes(size)} to send, zipped", "--working-dir" if is_own else None)
    return target


def check_size(paths: Iterable[Path]) -> None:
    """Refuse files and folders that are too large to be sent, before they are copied. What compresses well may be some
    times larger than what is sent. Raises InputError."""
    size = 0
    for path in paths:
        files = (entry for entry in walk(str(path)) if entry.is_file()) if path.is_dir() else [path]
        for file in files:
            size += file.stat().st_size
            if size > MOST_UNZIPPED * MOST_BYTES:
                raise _too_large(f"more than {format_bytes(MOST_UNZIPPED * MOST_BYTES)} to send")


def _too_large(found: str, key: str | None = None) -> InputError:
    advice = "put large files where every node sees them, and name them by an absolute path or a URI"
    return InputError(f"found {found}; a job may have {format_bytes(MOST_BYTES)}, zipped; {advice}", key=key)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
