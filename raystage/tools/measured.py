"""Measures the ensembles of a run, each as soon as all of its members are trained.

runs/<name>/ensembles/<stage>.json      what was found, as `raystage ensemble` keeps it
"""

from __future__ import annotations

from raystage.lazy import ensembling
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.acceptance import reasons_against
from raystage.results.record import StageRecord
from raystage.runs.events import RunCallback
from raystage.storage.evaluations import ensembles, keep_ensemble
from raystage.storage.store import Store
from raystage.tools.grow import open_source


class MeasuredEnsembles(RunCallback):
    """Is told what a run has finished, and measures each ensemble of its stages as soon as all members are there.

    A driver that starts again tells of finished stages, too: what is missing is measured then. The result is kept
    beside the run, under the name of the stage. Raises RaystageError where a member cannot be read.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._store, self._run, self._staged = store, plan.name, plan.staged.name
        # By names: a gate may change the keys.
        measured = [one for one in plan.ensembles if one.is_measured]
        self._names = {one.first.name: tuple(member.name for member in one.members) for one in measured}
        self._finished: dict[str, str] = {}

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        self._finished[stage.name] = stage.key
        # The first member is told last: further members are trained before the staged run goes on.
        if run.name == self._staged and stage.name in self._names and not reasons_against(stage, record):
            self._measure(stage)

    def _measure(self, stage: StagePlan) -> None:
        keys = {name: self._finished[name] for name in self._names[stage.name]}
        known = ensembles(self._store, self._run).get(stage.name)
        if known is None or [one.key for one in known.members] != list(keys.values()):
            members = [ensembling.Member(name, open_source(key, self._store)) for name, key in keys.items()]
            keep_ensemble(self._store, self._run, ensembling.measure(stage, members, self._store))
