"""What a run starts from in place of random weights: `init`, found and identified by its content.

This reads plain files and computes hashes, so that a plan needs neither torch nor a file system library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from raystage.config.schedule import Init
from raystage.data.trained_on import NOT_KNOWN, NOTHING, TrainedOn
from raystage.errors import InputError
from raystage.files.file_facts import facts_of
from raystage.files.reading import LocalFiles, read_json
from raystage.models import hub
from raystage.models.depth import saved_flops
from raystage.models.families import TRAINED
from raystage.models.hf_folder import CONFIG, open_trainable, weight_files
from raystage.models.manifest import check_manifest
from raystage.models.shape import ModelShape, sample_flops, token_flops
from raystage.plans.adapters import AdapterPlan
from raystage.units import SAMPLES, Unit, shown

MANIFEST, RECORD = "manifest.json", "record.json"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
_CHECKPOINT = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")  # within its stage's folder
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
INIT_KEY = "init.from"
TEACHER_KEY = "objective.teacher"


@dataclass(frozen=True)
class InitPlan:
    """A model to start from. path: its folder. fingerprint: identifies its weights and shape, in any place.

    is_checkpoint: a raystage checkpoint, else a Hugging Face folder. keeps_optimizer_state: whether its optimizer state
    is used, if it has any. trained_on: the text it was trained on, as far as its manifest says. hub: its name on the
    Hugging Face Hub with its commit, for nodes that have it in another place or not yet. tokenizer: the fingerprint of
    the one that a checkpoint was trained with, as far as its manifest says.
    """

    path: str
    is_checkpoint: bool
    fingerprint: str
    shape: ModelShape
    keeps_optimizer_state: bool
    trained_on: TrainedOn = field(default=NOT_KNOWN, compare=False, repr=False)
    hub: str | None = field(default=None, compare=False)
    tokenizer: str | None = field(default=None, compare=False)

    def facts(self) -> dict[str, object]:
        """The part of it that can change a stage's result."""
        return {"fingerprint": self.fingerprint, "keeps_optimizer_state": self.keeps_optimizer_state}


@dataclass(frozen=True)
class TeacherPlan:
    """The model that a stage learns from (`distillation`): an earlier stage of its run, or a model as `init` may be.

    name: as written. key: of that stage, None for a model from elsewhere and until keys are known. init: that model.
    others: further models; the stage then learns from the mean of the probabilities of all.
    """

    name: str
    shape: ModelShape
    key: str | None = None
    init: InitPlan | None = None
    others: tuple[TeacherPlan, ...] = ()

    @property
    def all(self) -> tuple[TeacherPlan, ...]:
        """It and the others, each alone."""
        return (replace(self, others=()), *self.others)

    @property
    def names(self) -> str:
        """'small', or 'first, second and third'."""
        *others, last = (one.name for one in self.all)
        return f"{', '.join(others)} and {last}" if others else last

    def facts(self) -> dict[str, object]:
        """What identifies its weights, in any place."""
        if self.others:
            return {"mean_of": [one.facts() for one in self.all]}
        return {"stage": self.key} if self.init is None else {"fingerprint": self.init.fingerprint}

    @property
    def trained_on(self) -> TrainedOn:
        """The text that it was trained on outside of the run, as far as that is known."""
        return reduce(TrainedOn.and_of, (one.init.trained_on if one.init else NOTHING for one in self.all))

    def unit_flops(self, context_length: int) -> int:
        """FLOPs of its forward pass for one token in a context of this length: a third of training."""
        return sum(token_flops(one.shape, context_length) // 3 for one in self.all)


def scoring_flops(model: TeacherPlan, tokens: int) -> int:
    """FLOPs of the forward passes that score so many tokens of documents, each counted as one of a whole context."""
    return tokens * model.unit_flops(model.shape.context_length)


def unit_flops(
    shape: ModelShape,
    teacher: TeacherPlan | None,
    context_length: int,
    unit: Unit,
    frozen: frozenset[str] = frozenset(),
    adapter: AdapterPlan | None = None,
) -> int:
    """Training FLOPs of one token, or of one whole sample, in a context of this length, with the teacher's forward
    pass. frozen: the names of the parameters that are not trained. adapter: what is trained beside them."""
    saved = 0
    if frozen or adapter:
        saved = saved_flops(shape, frozen, context_length, frozenset(adapter.weights if adapter else ()))
        saved -= adapter.sample_flops(shape, context_length) if adapter else 0
    if unit == SAMPLES:
        return sample_flops(shape, context_length) - saved
    return (
        token_flops(shape, context_length)
        - saved // context_length
        + (teacher.unit_flops(context_length) if teacher else 0)
    )


def find_init(init: Init) -> InitPlan:
    """The checkpoint, stage or Hugging Face model that `init` names. Raises InputError."""
    folder = _folder(init.source)
    at_hub = None if os.path.isdir(init.source) else f"{hub.parts(init.source)[0]}@{folder.name}"
    if (folder / RECORD).is_file():
        folder = _stage_checkpoint(folder)
    is_checkpoint = (folder / MANIFEST).is_file()
    if not is_checkpoint and not (folder / CONFIG).is_file():
        problem = (
            f"found no {CONFIG}, {MANIFEST} or {RECORD} in it; expected a Hugging Face model, a checkpoint or a stage"
        )
        raise InputError(problem, key=INIT_KEY, file=str(folder))
    if not is_checkpoint and init.optimizer_state == "grow":
        problem = "found grow, but a Hugging Face folder has no optimizer state; expected reset"
        raise InputError(problem, key="init.optimizer_state")
    if is_checkpoint and _manifest(folder).get("adapter"):
        problem = "found an adapter without its model, from within a stage; expected what the finished stage ends with"
        raise InputError(problem, key=INIT_KEY, file=str(folder))
    shape = _checkpoint_shape(folder) if is_checkpoint else open_trainable(LocalFiles(folder)).shape
    keeps = is_checkpoint and init.optimizer_state != "reset"
    seen = _trained_on(folder) if is_checkpoint else NOT_KNOWN
    tokenizer = _manifest(folder)["data_cursor"].get("tokenizer_fingerprint") if is_checkpoint else None
    found = fingerprint(folder, is_checkpoint)
    return InitPlan(str(folder), is_checkpoint, found, shape, keeps, seen, at_hub, tokenizer)


def check_same(init: InitPlan, key: str = INIT_KEY) -> Path:
    """The folder on this machine of the model that was planned with. Raises InputError where it is missing or another
    one. key: that names the model in a schedule."""
    folder = Path(init.path)
    if not folder.is_dir() and init.hub is not None:
        folder = hub.snapshot(init.hub, _HUB_FILES, key)
    if not folder.is_dir():
        problem = "no such folder on this worker; expected one that all workers see"
        raise InputError(problem, key=key, file=init.path)
    found = fingerprint(folder, init.is_checkpoint)
    if found != init.fingerprint:
        problem = f"found another model ({found[:12]}) than was planned with ({init.fingerprint[:12]})"
        raise InputError(f"{problem}; expected the same files on every worker", key=key, file=str(folder))
    return folder


def fingerprint(folder: Path, is_checkpoint: bool) -> str:
    """SHA-256 over everything that the model consists of; for a checkpoint, over its checksums. Raises InputError."""
    if is_checkpoint:
        content = _manifest(folder)
        facts: Any = [content["model"], content["parameters"], [shard["checksum"] for shard in content["shards"]]]
    else:
        files = [folder / name for name in (CONFIG, *weight_files(LocalFiles(folder)))]
        facts = [[str(file.relative_to(folder)), digest] for file, digest in facts_of(("SHA-256",), files, _digest)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# --- the folder ------------------------------------------------------------------------------


def _folder(source: str) -> Path:
    if "://" in source:
        raise InputError(
            f"found the URI {source!r}; expected a folder that every worker sees, or a hub name", key=INIT_KEY
        )
    if os.path.isdir(source):
        return Path(source)
    if not _HUB_NAME.fullmatch(source):
        raise InputError(f"found {source!r}, which is no folder here; expected a folder or a hub name", key=INIT_KEY)
    return hub.snapshot(source, _HUB_FILES, INIT_KEY)


def _stage_checkpoint(folder: Path) -> Path:
    """The final checkpoint of a stage in a store."""
    name = read_json(LocalFiles(folder), RECORD, INIT_KEY).get("checkpoint")
    is_inside = isinstance(name, str) and _CHECKPOINT.fullmatch(name)
    if not is_inside or LocalFiles(folder / name).size_of(MANIFEST) is None:
        raise InputError(
            "damaged; expected the checkpoint of a finished stage", key=INIT_KEY, file=str(folder / RECORD)
        )
    return folder / name


# --- its content ------------------------------------------------------------------------------


def _checkpoint_shape(folder: Path) -> ModelShape:
    try:
        shape = ModelShape(**_manifest(folder)["model"])
    except TypeError as error:
        raise InputError(f"damaged ({error}); expected a manifest", key=INIT_KEY, file=str(folder / MANIFEST)) from None
    if shape.family not in TRAINED:
        problem = f"found the family {shown(shape.family)}; expected one of {', '.join(TRAINED)}"
        raise InputError(problem, key=INIT_KEY, file=str(folder / MANIFEST))
    return shape


def _trained_on(folder: Path) -> TrainedOn:
    try:
        return TrainedOn.from_json(_manifest(folder)["data_cursor"].get("trained_on"))
    except ValueError as error:
        raise InputError(f"damaged ({error})", key=INIT_KEY, file=str(folder / MANIFEST)) from None


def _manifest(folder: Path) -> dict[str, Any]:
    content = read_json(LocalFiles(folder), MANIFEST, INIT_KEY)
    try:
        check_manifest(content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"damaged ({error}); expected a manifest", key=INIT_KEY, file=str(folder / MANIFEST)) from None
    return content


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); expected a whole model"
        raise InputError(problem, key=INIT_KEY, file=str(path)) from None
