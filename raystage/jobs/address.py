"""The address of a cluster that jobs are submitted to."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from raystage.errors import InputError
from raystage.safe_text import secret_in
from raystage.units import shown

DEFAULT = "http://127.0.0.1:8265"
PORT = 8265
_HTTP = ("http://", "https://")


def jobs_address(given: str | None, environment: Mapping[str, str]) -> str:
    """The address given, or that of Ray's own variables, or that of a cluster on this machine. Raises InputError."""
    if given is not None:
        return _checked(given, "--address")
    if named := environment.get("RAY_API_SERVER_ADDRESS"):
        return _checked(named, "RAY_API_SERVER_ADDRESS")
    # Otherwise it is the address that `raystage run` joins.
    if (named := environment.get("RAY_ADDRESS", "")).startswith(_HTTP):
        return _checked(named, "RAY_ADDRESS")
    return DEFAULT


def _checked(address: str, key: str) -> str:
    if secret := secret_in(address):
        raise InputError(f"found {secret}; expected an address without, for it is printed", key=key)
    if not address.startswith(_HTTP):
        host = urlsplit(f"//{address.rpartition('://')[2]}").hostname
        host = "HOST" if host in (None, "auto", "local") else host
        problem = f"found {shown(address)}, which is no address for jobs; expected the one of the cluster's dashboard"
        raise InputError(f"{problem}: http://{host}:{PORT}", key=key)
    if not urlsplit(address).hostname:
        raise InputError(f"found {shown(address)}, without a host; expected http://HOST:{PORT}", key=key)
    return address.rstrip("/")
