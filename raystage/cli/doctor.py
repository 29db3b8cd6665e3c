"""`raystage doctor`: the first command on a new machine or cluster."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from raystage.cli.options import (
    address_option,
    cluster_address,
    exits,
    json_option,
    store_option,
    store_uri,
)
from raystage.cli.output import DebugStream
from raystage.cluster.shutdown import SHUTDOWN
from raystage.errors import RaystageError
from raystage.safe_text import visible
from raystage.tools.findings import Finding, failed

_COLORS = {"ok": "green", "warning": "yellow", "FAILED": "red"}


@click.command()
@address_option
@click.option(
    "--train",
    is_flag=True,
    help="Also measure how fast workers of a Train run, spread over the nodes, sum tensors over NCCL or gloo.",
)
@store_option
@json_option
@exits
def doctor(address: str | None, train: bool, store: str | None, as_json: bool) -> None:
    """Check that this machine, the store and the cluster have what raystage needs.

    It prints one line for each check: ok, warning or FAILED, and what to do. The exit status is 1 if a check FAILED.
    The checks leave nothing behind.

    \b
    Example:
      raystage doctor
      raystage doctor --address 10.0.0.1:6379 --store s3://my-bucket/runs --train
    """
    SHUTDOWN.install()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as in `run`: DeepSpeed would look for a GPU here
    output, findings = sys.stdout, []
    with contextlib.redirect_stdout(DebugStream()):  # hides what libraries print
        for finding in _look(cluster_address(address), store_uri(store), train):
            findings.append(finding)
            if not as_json:
                state = click.style(f"{finding.state:<8} ", fg=_COLORS[finding.state])
                click.echo(state + visible(str(finding)), file=output)
    failures = sum(finding.is_failure for finding in findings)
    if as_json:
        content = {"ok": not failures, "checks": [finding.to_json() for finding in findings]}
        click.echo(json.dumps(content, indent=1), file=output)
    if failures:
        raise RaystageError(f"{failures} of {len(findings)} checks FAILED")


def _look(address: str | None, store: str, with_train: bool) -> Iterator[Finding]:
    """Every check, as soon as it has a finding. Checks that need a missing package are left out."""
    from raystage.tools.versions import check_versions

    is_whole = True
    for finding in check_versions():
        is_whole = is_whole and not finding.is_failure
        yield finding
    if not is_whole:
        yield failed("the rest", "not looked at", "first install what is named above")
        return
    from raystage.files.filesystem import open_folder
    from raystage.tools.doctor_cluster import check_cluster
    from raystage.tools.machine_check import check_devices, check_shared_memory, check_store, check_token, check_wandb

    yield from check_devices()
    yield check_shared_memory()
    has_store = True
    for finding in check_store(store):
        has_store = has_store and not finding.is_failure
        yield finding
    yield check_wandb(os.environ, Path.home())
    yield from check_token(os.environ, Path.home())
    yield from check_cluster(address, open_folder(store).uri if has_store else None, with_train)
