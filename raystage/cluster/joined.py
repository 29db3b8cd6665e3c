"""A connection to a Ray cluster that is running already, at an address that the user has given."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError, RayError

from raystage.cluster.ray_private import JobImportingFrom, check_alive, started_here
from raystage.cluster.same_code import import_path
from raystage.cluster.shutdown import SHUTDOWN
from raystage.cluster.train_run import has_train_run
from raystage.errors import InputError

CONNECT_SECONDS = 10.0
AUTO = "auto"
_OTHER_VERSIONS = "Version mismatch"  # Ray has no exception of its own for it
_CLIENT = "ray://"


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Within this context this process is connected to the cluster at `address`. Raises InputError."""
    found = _checked(address)
    code = {} if found.startswith(_CLIENT) else {"job_config": JobImportingFrom(import_path())}
    try:
        ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR, **code)
    except RuntimeError as error:
        if not str(error).startswith(_OTHER_VERSIONS):
            raise
        raise InputError(f"found another Ray or Python there ({_in_one_line(error)})", key="--address") from None
    except (ConnectionError, ValueError) as error:
        raise _no_answer(address, _first_line(error)) from None
    SHUTDOWN.install()
    yield
    if not has_train_run():
        ray.shutdown()


def _checked(address: str) -> str:
    """The address to connect to. Reports at once what Ray would try for minutes. Raises InputError."""
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"found {address!r}, the address that jobs are submitted to; expected the cluster's own address, "
            f"such as {urlsplit(address).hostname}:6379 or auto (or no RAY_ADDRESS in the environment)",
            key="--address",
        )
    found = _started_on_this_machine() if address == AUTO else address
    host, colon, port = found.rpartition(":")
    if colon and port.isdigit() and "://" not in found:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
            check_alive(found, CONNECT_SECONDS)
        except AuthenticationError:
            raise InputError(
                f"the Ray cluster at {found!r} refuses this process's token; expected RAY_AUTH_MODE=token in the "
                f"environment, and the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN",
                key="--address",
            ) from None
        except (OSError, OverflowError) as error:
            raise _no_answer(found, getattr(error, "strerror", None) or str(error)) from None
        except (RayError, RuntimeError) as error:
            raise _no_answer(found, _first_line(error)) from None
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


def _no_answer(address: str, why: str) -> InputError:
    return InputError(f"no Ray cluster answers at {address!r} ({why})", key="--address")


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
