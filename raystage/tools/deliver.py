"""Exports the models that the stages of a run deliver, each as soon as it is finished.

runs/<name>/delivered/<stage>/          the model, as `raystage export` writes it
runs/<name>/delivered/<stage>.json      what was exported; written last
"""

from __future__ import annotations

from raystage.errors import DamagedFile
from raystage.files.filesystem import Folder
from raystage.files.sealed_json import written
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.acceptance import reasons_against
from raystage.results.branches.family import FOLDER
from raystage.results.record import StageRecord
from raystage.runs.events import RunCallback
from raystage.storage.store import Store, read_as
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source


def delivered_models_folder(store: Store, run: str) -> Folder:
    """Where the models of a run are."""
    return store.run_folder(run) / FOLDER


class DeliveredModels(RunCallback):
    """Is told what a run has finished, and exports what its stages deliver.

    A driver that starts again tells of finished stages, too: what is missing is exported then. Raises RaystageError
    where a model cannot be written.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._store, self._folder = store, delivered_models_folder(store, plan.name)
        # By names: a gate may change the keys.
        self._stages = {
            (one.run.name if one.decays else plan.staged.name, one.model.name): one.stage for one in plan.deliveries
        }

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        name = self._stages.get((run.name, stage.name))
        if name is not None and not reasons_against(stage, record) and self._exported(name) != stage.key:
            self._export(name, stage.key)

    def _export(self, name: str, key: str) -> None:
        target = self._folder / name
        target.delete()  # of other weights, or not whole
        made = export(open_source(key, self._store), target, ExportOptions())
        self._folder.write_whole(f"{name}.json", written(made))

    def _exported(self, name: str) -> str | None:
        """The key of the stage whose model is there; None where it is not, or not whole."""
        try:
            return read_as(self._folder, f"{name}.json", lambda made: made.get("stage_key"))
        except DamagedFile:
            return None
