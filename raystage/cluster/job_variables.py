"""Environment variables of a Ray job that only its processes have: keys of W&B, of the Hub and of object stores.

`raystage submit` leaves them in the cluster's GCS under a random name. The driver takes them from there, sets them for
itself, and removes them (`take_parcel`). The other processes of the job that need them (workers, the controller of a
Train run, trials of a sweep) ask an actor of the job. So no list of the cluster shows them, no runtime environment
contains them, and no file does.

Whoever has the cluster's token can run code on the cluster, and so can read what its processes have.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import ray
from ray.train import UserCallback

from raystage.cluster.queries import here

_NAME = "raystage-variables"
# Those of this job, as far as this process has them.
_OWN: dict[str, str] = {}
# In the driver. Ray ends an actor whose last handle is gone.
_HOLDERS: list[ray.actor.ActorHandle] = []


class _Holder:
    """An actor that keeps the variables. They are told by a call: what is given to a constructor stays in the GCS."""

    def __init__(self) -> None:
        self._variables: dict[str, str] = {}

    def tell(self, variables: dict[str, str]) -> None:
        self._variables = variables

    def ask(self) -> dict[str, str]:
        return self._variables


def set_variables(variables: dict[str, str]) -> None:
    """Set the variables in this process; a driver then has others get them by `share_variables`."""
    _OWN.update(variables)
    os.environ.update(variables)


def share_variables() -> None:
    """In the driver, once it is connected to the cluster: let the other processes of this job have the variables."""
    if _OWN:
        holder = ray.remote(num_cpus=0)(_Holder).options(name=_NAME, label_selector=here()).remote()
        ray.get(holder.tell.remote(dict(_OWN)))
        _HOLDERS[:] = [holder]


def get_variables() -> None:
    """In another process of the job: set what the driver shares, if it shares anything."""
    try:
        holder = ray.get_actor(_NAME)
    except ValueError:  # there is nothing to share
        return
    set_variables(ray.get(holder.ask.remote()))


class WithVariables(UserCallback):
    """A callback of a Train run that does one thing: where it is unpickled, in the run's controller, the variables are
    set. The controller writes Ray Train's own files to the store."""

    def __reduce__(self) -> tuple[Callable[[], WithVariables], tuple[()]]:
        return _with_variables, ()


def _with_variables() -> WithVariables:
    get_variables()
    return WithVariables()
