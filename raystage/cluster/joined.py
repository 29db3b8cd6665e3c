"""A connection to a Ray cluster that is running already, at an address that the user has given."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError, RayError

from raystage.cluster.job_variables import share_variables
from raystage.cluster.ray_private import JobImportingFrom, check_alive, has_node_here, has_token, started_here
from raystage.cluster.same_code import import_path
from raystage.cluster.shutdown import SHUTDOWN
from raystage.cluster.train_run import has_train_run
from raystage.errors import InputError
from raystage.units import first_line, shown

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.5
AUTH_MODES = ("token", "disabled")
AUTO = "auto"
_OTHER_VERSIONS = "Version mismatch"  # Ray has no exception of its own for it
_CLIENT = "ray://"


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Within this context this process is connected to the cluster at `address`. Raises InputError."""
    found = _checked(address)
    code = JobImportingFrom(import_path())
    try:
        ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR, job_config=code)
    except RuntimeError as error:
        if not str(error).startswith(_OTHER_VERSIONS):
            raise
        raise InputError(f"found another Ray or Python there ({_in_one_line(error)})", key="--address") from None
    except (ConnectionError, ValueError) as error:
        raise _no_answer(address, first_line(error)) from None
    SHUTDOWN.install()
    share_variables()
    yield
    if not has_train_run():
        ray.shutdown()


def _checked(address: str) -> str:
    """The address to connect to. Reports at once what Ray would try for minutes. Raises InputError."""
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"found {address!r}, the address that jobs are submitted to (raystage submit); expected the cluster's own "
            f"address, such as {urlsplit(address).hostname}:6379 or auto (or no RAY_ADDRESS in the environment)",
            key="--address",
        )
    if address.startswith(_CLIENT):
        host = urlsplit(address).hostname
        raise InputError(
            f"found {address!r}, the address of Ray Client, which Ray Train cannot use; expected {host}:6379 on a node "
            f"of the cluster, or from elsewhere: raystage submit SCHEDULE --address http://{host}:8265",
            key="--address",
        )
    found = _started_on_this_machine() if address == AUTO else address
    host, colon, port = found.rpartition(":")
    if colon and port.isdigit() and "://" not in found:
        try:
            check_token_settings()
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
            check_alive(found, CONNECT_SECONDS)
            _await_node(found, host)
        except AuthenticationError:
            raise refused_token(found) from None
        except (OSError, OverflowError) as error:
            raise _no_answer(found, getattr(error, "strerror", None) or str(error)) from None
        except (RayError, RuntimeError) as error:
            raise _no_answer(found, first_line(error)) from None
    return found


def _started_on_this_machine() -> str:
    """The address of the last `ray start` on this machine. Ray itself would join any cluster that it finds among the
    processes of this machine, also those of other runs. Raises InputError."""
    if found := started_here():
        return found
    raise InputError(
        "found auto, but no cluster was started on this machine by `ray start` (clusters of other runs are not used); "
        "expected HOST:PORT, or no address and no RAY_ADDRESS for a cluster of the run's own",
        key="--address",
    )


def _await_node(address: str, host: str) -> None:
    """Wait a moment for a node of the cluster on this machine, which may be starting. Raises InputError: Ray itself
    would wait longer, and then give other advice."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while not has_node_here(address, CONNECT_SECONDS):
        if time.monotonic() > deadline:
            raise InputError(
                f"this machine is no node of the Ray cluster at {address!r}, and the driver of a run needs one; "
                f"expected raystage submit SCHEDULE --address http://{host}:8265, or first a node on this machine: "
                f"ray start --address={address}",
                key="--address",
            )
        time.sleep(POLL_SECONDS)


def check_token_settings() -> None:
    """Raises InputError for a setting for tokens with which Ray would end this process, or explain at length."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() not in AUTH_MODES:
        raise InputError(f"found {shown(mode)}; expected {' or '.join(AUTH_MODES)}", key="RAY_AUTH_MODE")
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode is not None and mode.lower() == "token" and not has_token():
        found = f"no token in {file} (RAY_AUTH_TOKEN_PATH)" if file else "no token"
        problem = f"RAY_AUTH_MODE is token, but there is {found}"
        raise InputError(f"{problem}; expected the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token")


def refused_token(address: str) -> InputError:
    return InputError(
        f"the Ray cluster at {address!r} refuses this user's token, or is shown none; expected the cluster's token in "
        "RAY_AUTH_TOKEN or ~/.ray/auth_token (and RAY_AUTH_MODE unset, or token)",
        key="--address",
    )


def _no_answer(address: str, why: str) -> InputError:
    return InputError(f"no Ray cluster answers at {address!r} ({why})", key="--address")


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
