"""`raystage submit`: a run or a sweep as a job of a Ray cluster, from a machine that is no part of it."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from raystage.cli.options import (
    INTERRUPTED,
    exits,
    json_option,
    leave,
    patience_option,
    patience_seconds,
    print_json,
    say,
    set_option,
    store_option,
    wandb_option,
)
from raystage.errors import InputError

_WORKING_DIR_HELP = (
    "Send this folder, which has the schedule in it, in place of only the files that the schedule names. What "
    ".gitignore and .rayignore name stays out."
)
_INSTALL_HELP = (
    "Send this machine's raystage, too, and have pip install what it needs on every node, in this machine's versions; "
    "what a node has in that version stays."
)
_ENV_HELP = (
    "Also send this variable of the environment. Keys of W&B, of the Hub and of S3 are sent by themselves, if they are "
    "set and the run uses them."
)


@click.command()
@click.argument("schedule", metavar="SCHEDULE|SWEEP", type=click.Path(path_type=Path))
@set_option
@store_option
@click.option("--name", help="The run's name, and the job's; the schedule's own unless given.")
@click.option(
    "--address",
    metavar="URL",
    help="The dashboard of the cluster's head: http://HOST:8265. RAY_API_SERVER_ADDRESS has the same effect, and "
    "RAY_ADDRESS if it is such a URL.  [default: http://127.0.0.1:8265]",
)
@wandb_option
@patience_option
@click.option("--working-dir", metavar="FOLDER", type=click.Path(path_type=Path), help=_WORKING_DIR_HELP)
@click.option("--runtime-env", metavar="FILE", type=click.Path(path_type=Path),
              help="A Ray runtime environment to add to the job's, as YAML or JSON.")  # fmt: skip
@click.option("--install", is_flag=True, help=_INSTALL_HELP)
@click.option("--env", "named", metavar="NAME", multiple=True, help=_ENV_HELP)
@click.option("--no-env", is_flag=True, help="Send no variables but those that --env names.")
@click.option("--python", default="python", show_default=True, help="The cluster's Python that has raystage.")
@click.option("--follow", is_flag=True, help="If a job of this name is running already, follow it.")
@click.option("--detach", is_flag=True, help="Do not wait for the job.")
@json_option
@exits
def submit(schedule: Path, as_json: bool, **options: Any) -> None:
    """Run a schedule or a sweep as a job of a Ray cluster. This machine need not be a node of it.

    The job gets the schedule and the files that it names by relative paths; other paths and the store must be those of
    the cluster. What the job prints is shown here until it ends, and its exit status is that of this command. Ctrl-C
    asks whether to stop the job. The same command continues a run that was stopped.

    \b
    Example:
      raystage submit quickstart.yaml --address http://10.0.0.1:8265 --store s3://my-bucket/runs
      raystage submit sweep.yaml --address http://10.0.0.1:8265 --store /mnt/shared/raystage --detach
    """
    from raystage.cli.jobs.sending import Request, connected, read, ship
    from raystage.jobs.follow import OnInterrupt, ending, exit_status, follow

    patience_seconds(options["patience"])  # whether it can be read
    request = Request(schedule=schedule, **options)
    read_file = read(request)
    jobs = connected(request)
    job, parcel = _running(jobs, read_file.name, request.follow), None
    if job is None:
        with tempfile.TemporaryDirectory() as folder:
            job, parcel = ship(jobs, request, read_file, Path(folder), _tell)
        _tell(f"submitted job {job} to {jobs.address}")
    _tell(f"progress: raystage status {read_file.name} --store {shlex.quote(request.store)}, where the store is seen")
    if request.detach:
        _tell(f"follow it: the same command with --follow, or {jobs.command('logs --follow', job)}")
        if as_json:
            print_json({"job": job, "address": jobs.address, "state": "SUBMITTED", "exit_status": None})
        return

    def ask() -> OnInterrupt:
        if not sys.stdin.isatty():
            return OnInterrupt.LEAVE
        try:
            answer = click.prompt("\nstop the job (it saves first), or leave it running?", type=_ANSWERS, err=True)
        except (click.Abort, KeyboardInterrupt):
            return OnInterrupt.LEAVE
        return OnInterrupt.STOP if answer == "stop" else OnInterrupt.LEAVE

    details = follow(jobs, job, lambda line: say(line, err=as_json), ask)
    if details is None:
        _tell(f"job {job} goes on; the same command with --follow shows it again; {jobs.command('stop', job)} stops it")
        leave(INTERRUPTED)
    if parcel and details.driver_exit_code is None:
        jobs.withdraw(parcel)  # no driver has taken it
    _tell(ending(details))
    if as_json:
        state = {"job": job, "address": jobs.address, "state": str(details.status.value)}
        print_json({**state, "exit_status": exit_status(details)})
    leave(exit_status(details))


_ANSWERS = click.Choice(["stop", "leave"])


def _tell(text: str) -> None:
    say(f"raystage: {text}", err=True)


def _running(jobs: Any, name: str, follows: bool) -> str | None:
    """The running job of a run, if there is one and the user wants to follow it. Raises InputError if not."""
    from raystage.jobs.client import is_over

    running = [one for one in jobs.of_run(name) if not is_over(one)]
    if not running:
        return None
    latest = running[-1]
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((latest.start_time or 0) / 1000))
    problem = f"job {latest.submission_id} of this name is {latest.status.value} since {began}"
    if follows or (sys.stdin.isatty() and click.confirm(f"{problem}; follow it?", default=True, err=True)):
        return latest.submission_id
    raise InputError(
        f"found {name!r}, but {problem}; expected --follow, another --name, or first: "
        + jobs.command("stop", latest.submission_id),
        key="--name",
    )
