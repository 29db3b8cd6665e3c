"""The process group that workers join: how long they wait for each other, and over what they communicate."""

from __future__ import annotations

from datetime import timedelta

import psutil
import pytest
from torch.distributed import distributed_c10d

from raystage.train.collectives import interface_of, let_groups_wait


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_new_groups_wait_as_long_as_they_are_let(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DeepSpeed makes of its own, too: torch looks these names up at every new group."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))  # put back afterwards
    let_groups_wait(7.0)
    assert distributed_c10d._get_default_timeout(distributed_c10d.Backend(backend)) == timedelta(seconds=7)


def test_an_address_has_an_interface() -> None:
    found = interface_of("127.0.0.1")
    assert "127.0.0.1" in [one.address for one in psutil.net_if_addrs()[found]]
    assert interface_of("192.0.2.1") is None  # of documentation (RFC 5737)
