"""raystage from Python, in a script or a notebook; `import raystage` gives all of it.

    schedule = raystage.load("schedule.yaml", ["training.optimizer.lr=4e-3"])
    report = raystage.run(schedule)
    report.curves()

No function ends the process. All raise the errors of `raystage.errors`. The first Ctrl-C (in a notebook: interrupt) has
the workers save and then raises KeyboardInterrupt; the same call continues from there.
"""

from __future__ import annotations

import contextlib
import copy
import html
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas
import ray
from rich.console import RenderableType

from raystage.cli.options import cluster_address, name_models, plan_schedule, wandb_mode_for
from raystage.cli.output import DebugStream
from raystage.cli.report import read_report
from raystage.cluster import launch
from raystage.cluster.shutdown import SHUTDOWN
from raystage.config import schedule as schedules
from raystage.config.schedule import Schedule
from raystage.config.types import check_name
from raystage.errors import InputError, RaystageError, SweepFailed
from raystage.files.filesystem import open_folder
from raystage.files.typed_json import to_json
from raystage.plans.plan import Plan
from raystage.reports.curves import baseline_curves, stage_curves
from raystage.reports.formats import Table
from raystage.reports.html import page
from raystage.reports.tables import tables
from raystage.reports.terminal import final_table
from raystage.results.report import RunReport, SavingsPart
from raystage.results.sweep_report import SweepReport
from raystage.runs.console import make_display
from raystage.runs.earlier import make_way
from raystage.runs.session import PATIENCE_SECONDS, RunSession, Tracking
from raystage.safe_console import SafeConsole
from raystage.storage.store import Store
from raystage.storage.stored_files import RUN_FILE
from raystage.sweeps import config as sweeps
from raystage.sweeps.config import Sweep, is_sweep
from raystage.sweeps.console import make_sweep_display
from raystage.sweeps.reports.html import sweep_page, write_papers
from raystage.sweeps.reports.summary import failure
from raystage.sweeps.search import SweepRunner, plan_with_store
from raystage.sweeps.terminal import sweep_result_table
from raystage.sweeps.trial import TrialTask
from raystage.sweeps.trials import SweepPlan, plan_sweep
from raystage.tools.average import CHECKPOINT
from raystage.tools.average import average as write_average
from raystage.tools.deliver import DeliveredModels
from raystage.tools.grow import open_source, open_target
from raystage.tools.load import load_model as load_model
from raystage.tools.measured import MeasuredEnsembles

STORE = ".raystage"
Written = str | Path | Mapping[str, Any]
Wandb = Literal["offline", "online", "disabled"]
_WIDTH = 120
# Stands for the file in messages about a mapping.
_A_MAPPING = "a mapping"
_CONNECTED = (
    "this process is connected to a Ray cluster already; expected none: call ray.shutdown() first, and give the "
    "address of the cluster to run on"
)


def load(source: Written, overrides: Sequence[str] = ()) -> Schedule | Sweep:
    """The schedule or sweep in a YAML file, or in a mapping with the same keys, typed and checked.

    overrides: `KEY=VALUE` as for `--set`, e.g. "stages[1].until.tokens=2M". Paths in a mapping are relative to the
    working directory. Raises InputError.
    """
    if not isinstance(source, Mapping):
        return sweeps.load_any(source, tuple(overrides))
    content = copy.deepcopy(dict(source))
    return (sweeps if is_sweep(content) else schedules).load(_A_MAPPING, tuple(overrides), content)


def plan(schedule: Schedule | Sweep | Written, store: str = STORE) -> Plan | SweepPlan:
    """What would be trained, with every value, key and cost; nothing is trained.

    store: where `init: {from: RUN/STAGE}` looks a stage up. Raises InputError.
    """
    loaded = _loaded(schedule)
    if isinstance(loaded, Sweep):
        return plan_sweep(_found_init(loaded, store))
    return _planned(loaded, None, store)[1]


def run(
    schedule: Schedule | Written,
    *,
    store: str = STORE,
    name: str | None = None,
    address: str | None = None,
    patience: float = PATIENCE_SECONDS,
    wandb: Wandb | None = None,
    progress: bool = True,
) -> Report:
    """Train a schedule stage by stage, then its baselines. What the store has finished is not trained again.

    store: a path, or a URI such as s3://bucket/prefix. name: of the run; the schedule's own unless given. address: of a
    running Ray cluster (HOST:PORT or "auto"); without it, and without RAY_ADDRESS, the run starts a cluster of its own
    on this machine, which ends with it. patience: how many seconds to wait for nodes that the cluster lacks, for which
    its autoscaler is asked. wandb: without it WANDB_MODE and WANDB_DISABLED count, otherwise "offline".
    progress: whether lines on standard error say how it goes.
    Raises InputError, StageFailed and other RaystageError; KeyboardInterrupt after the workers have saved.
    """
    loaded = _loaded(schedule)
    if not isinstance(loaded, Schedule):
        raise InputError(f"found a sweep ({loaded.name!r}); expected a schedule, or raystage.sweep(...)")
    joins, mode = _cluster_to_join(address), wandb_mode_for(wandb)
    found, made = _planned(loaded, name, store)
    opened = Store(open_folder(store))
    if (aside := make_way(opened, made.name, made.stage_keys())) and progress:
        print(f"raystage: {aside}", file=sys.stderr)
    command = _call("run", loaded.file, store=store, name=name, address=address)
    session = RunSession(
        made, found, opened, command=command, address=joins, patience_seconds=patience, tracking=Tracking(mode)
    )
    with _driving(), session:
        displays = [make_display(made, sys.stderr, session.finished)] if progress else []
        found = session.run([*displays, DeliveredModels(made, opened), MeasuredEnsembles(made, opened)])
    return Report(found, opened)


def sweep(
    sweep: Sweep | Written,
    *,
    store: str = STORE,
    name: str | None = None,
    address: str | None = None,
    patience: float = PATIENCE_SECONDS,
    wandb: Wandb | None = None,
    progress: bool = True,
) -> Report:
    """Search over schedules with Ray Tune; stages that trials share are trained once. Arguments as for `run`.

    Raises InputError, SweepFailed where a trial failed, and other RaystageError; KeyboardInterrupt after the workers of
    all trials have saved.
    """
    loaded = _loaded(sweep)
    if not isinstance(loaded, Sweep):
        raise InputError(f"found a schedule ({loaded.name!r}); expected a sweep, or raystage.run(...)")
    joins, mode = _cluster_to_join(address), wandb_mode_for(wandb)
    found = _renamed(_found_init(loaded, store), name)
    opened = Store(open_folder(store))
    made = plan_with_store(found, opened)
    task = TrialTask(
        sweep=found,
        store=opened.folder.uri,
        command=_call("sweep", loaded.file, store=store, name=name, address=address),
        wandb_mode=mode,
        wandb_folder=str(Path.cwd()),
        patience_seconds=patience,
    )
    display = make_sweep_display(None if progress else io.StringIO())
    with _driving(), contextlib.closing(display):
        found = SweepRunner(made, opened, task, display, joins).run()
    write_papers(opened, made, found)
    if problem := failure(found):
        raise SweepFailed(problem)
    return Report(found, opened)


def average(
    checkpoints: Sequence[str | Path],
    output: str | Path,
    *,
    weights: str | Sequence[float] = "uniform",
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear",
    store: str = STORE,
) -> dict[str, Any]:
    """Average models of one shape into a new folder, as `raystage average` does; what that command prints with --json.

    checkpoints: raystage checkpoints, stages of the store (a key, or "mine/full") or Hugging Face folders. weights:
    "uniform", "wsm" (as under a decay of the rate of this shape from the first model to the last), or a number for each
    model. Raises InputError where the models are not alike, RaystageError.
    """
    opened = Store(open_folder(store))
    sources = [open_source(str(one), opened, CHECKPOINT) for one in checkpoints]
    written = weights if isinstance(weights, str) else ",".join(map(str, weights))
    return write_average(sources, open_target(str(output), "output"), written, decay_shape)


def report(name: str, store: str = STORE) -> Report:
    """What a run or a sweep in a store came to, finished or not. Raises InputError, DamagedFile."""
    opened = Store(open_folder(store))
    return Report(read_report(opened, name).report, opened)


@dataclass(frozen=True)
class Report:
    """The report of a run or a sweep: printed, or shown by a notebook, it is a table.

    found: all that it says, as values with types. store: where the run is.
    """

    found: RunReport | SweepReport
    store: Store

    @property
    def content(self) -> Mapping[str, Any]:
        """The same as plain values: what `raystage report NAME --json` prints."""
        return to_json(self.found)

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def state(self) -> str:
        """RUNNING, FINISHED, ABORTED or ERRORED."""
        return self.found.state

    @property
    def is_sweep(self) -> bool:
        return isinstance(self.found, SweepReport)

    @property
    def savings(self) -> SavingsPart | None:
        """`compute_saved`, `speedup`, `verdict`, ...; None of a sweep."""
        return None if self.is_sweep else self.found.savings

    def curves(self) -> pandas.DataFrame:
        """Every evaluation of the staged run and its baselines: columns run, stage, tokens, flops, seconds, loss.

        tokens (samples, where the last stage counts samples), flops and seconds (wall-clock without evaluation) are
        counted from the run's start; the loss of language models is in nats per token. Raises InputError for a sweep:
        its trials are `trials()`, and each is a run with a report of its own.
        """
        self._expect(False, "trials()")
        rows = [("staged", stage.name, point) for stage in stage_curves(self.found) for point in stage.points]
        rows += [(one.name, None, point) for one in baseline_curves(self.found) for point in one.points]
        columns = ["run", "stage", self.found.unit, "flops", "seconds", "loss"]
        return pandas.DataFrame(
            [(run, stage, at.position, at.flops, at.seconds, at.loss) for run, stage, at in rows], columns=columns
        )

    def trials(self) -> pandas.DataFrame:
        """A row per trial of a sweep: its number, rank, state and loss, and its config, a column per path.

        Raises InputError for a run."""
        self._expect(True, "curves()")
        kept = ("number", "rank", "state", "eval_loss")
        rows = ({**{name: getattr(one, name) for name in kept}, **one.config} for one in self.found.trials)
        return pandas.DataFrame(list(rows))

    def html(self) -> str:
        """One page that needs no network, as `raystage report NAME --html FILE` writes it."""
        if self.is_sweep:
            return sweep_page(self.found)
        return page([(self.found, self.store.read_run(self.name, RUN_FILE))])

    def __str__(self) -> str:
        shown = io.StringIO()
        SafeConsole(file=shown, width=_WIDTH).print(self._table())
        return shown.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        if self.is_sweep:
            return self.trials().to_html(index=False)
        parts = [_html_table(table) for table in tables(self.found)[:1]]
        return "".join(parts) + f"<p><b>{html.escape(self.savings.verdict)}</b></p>"

    def _table(self) -> RenderableType:
        return sweep_result_table(self.found) if self.is_sweep else final_table(self.found)

    def _expect(self, is_sweep: bool, instead: str) -> None:
        if self.is_sweep != is_sweep:
            found, expected = ("a sweep", "a run") if self.is_sweep else ("a run", "a sweep")
            raise InputError(f"found {found} ({self.name!r}); expected {expected}, or {instead}")


@contextlib.contextmanager
def _driving() -> Iterator[None]:
    """This process drives a run: what Ray prints is left out, signals have the workers save, and no cluster is left."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the driver computes nothing; workers have their own
    with SHUTDOWN.handled(), contextlib.redirect_stdout(DebugStream()):
        try:
            yield
        except BaseException as error:
            launch.leave_cluster(error)
            raise


def _cluster_to_join(address: str | None) -> str | None:
    """The address of the cluster to join; None for one of the run's own. Raises InputError, RaystageError: before
    anything is changed in the store."""
    if ray.is_initialized():
        raise RaystageError(_CONNECTED)
    return cluster_address(address)


def _planned(schedule: Schedule, name: str | None, store: str) -> tuple[Schedule, Plan]:
    """The schedule, with its `init` looked up in the store, and its plan. Raises InputError."""
    return plan_schedule(schedule, schedule.file or _A_MAPPING, name, store)


def _found_init(sweep: Sweep, store: str) -> Sweep:
    """A sweep whose schedule has its `init` looked up in the store. The one that was given stays as it is."""
    found = sweep.model_copy(deep=True)
    name_models(found.base, store)
    return found


def _renamed(sweep: Sweep, name: str | None) -> Sweep:
    if name is None:
        return sweep
    try:
        return sweep.model_copy(update={"name": check_name(name)})
    except ValueError as error:
        raise InputError(str(error), key="name") from None


def _loaded(given: Schedule | Sweep | Written) -> Schedule | Sweep:
    return given if isinstance(given, Schedule | Sweep) else load(given)


def _call(function: str, file: str | None, **arguments: str | None) -> str:
    """What continues a run: 'raystage.run("schedule.yaml", name="mine")', or with ... for what came from no file."""
    given = [f"{key}={value!r}" for key, value in arguments.items() if value not in (None, STORE)]
    source = repr(file) if file and file != _A_MAPPING else "..."
    return f"raystage.{function}({', '.join([source, *given])})"


def _html_table(table: Table) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = [row("th", table.columns), *(row("td", cells) for cells in table.rows)]
    return f"<table>{''.join(rows)}</table>"
