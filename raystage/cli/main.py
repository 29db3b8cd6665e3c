"""The command line. torch, ray and other slow packages are imported only when a command needs them."""

from __future__ import annotations

import click

from raystage.cli.data import data_group
from raystage.cli.doctor import doctor
from raystage.cli.evaluate import ensemble, evaluate
from raystage.cli.grow import average, certify, export, grow
from raystage.cli.init import init_command
from raystage.cli.jobs.submit import submit
from raystage.cli.output import Commands
from raystage.cli.plan import plan
from raystage.cli.report import report
from raystage.cli.run import run
from raystage.cli.schema import schema_command
from raystage.cli.status import status_command
from raystage.cli.store import store_group
from raystage.cli.sweep import sweep


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raystage")
def main() -> None:
    """Staged training on Ray Train and DeepSpeed, with the compute it saves measured.

    \b
    Example:
      raystage init --example quickstart
      raystage plan quickstart.yaml
      raystage run  quickstart.yaml
      raystage report quickstart
    """


for _command in (
    average, certify, data_group, doctor, ensemble, evaluate, export, grow, init_command, plan, report, run,
    schema_command, status_command, store_group, submit, sweep,
):  # fmt: skip
    main.add_command(_command)
