"""The DeepSpeed engine of a stage: builds it, steps it, evaluates it. One per worker.

The global batch does not depend on the number of workers: every target has the same weight in the gradient, and 3
workers can share 64 sequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride

from raystage.config.training import UserMetric
from raystage.growth.counts import HeadStarts
from raystage.growth.masked import GrowthMask
from raystage.growth.trained import is_masked, mask_value
from raystage.models.build import build, look_for_packed
from raystage.models.depth import hidden_matrices
from raystage.models.shape import parameters
from raystage.objectives.by_head import ByHead, LossHead, loss_head
from raystage.objectives.judging import OfTokens, Scores, Tally
from raystage.objectives.learner import Batch, HeldOut, Judge, Learner, Models, Reader
from raystage.objectives.metrics import MetricSums
from raystage.objectives.opening import NO_MODELS, open_judge, open_learner
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.train import optimizer, partitions
from raystage.train.reading.micro_batches import MicroBatch, Share, StepBatches, moved
from raystage.train.state import adapters
from raystage.train.state.buffers import Buffers
from raystage.train.state.compiled import Compiled, uncompiled
from raystage.train.state.recomputing import recompute

# Without this, DeepSpeed compiles a shared-memory all-reduce with a C++ compiler at every start on a CPU, which takes
# 30 s or more. DeepSpeed does not document this name, so a test holds that it exists.
if "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def deepspeed_config(stage: StagePlan, world: int) -> dict:
    """DeepSpeed's configuration of a stage: the values that raystage sets override those of the schedule."""
    training = stage.training
    samples = training.global_batch // stage.sample_length(stage.shape.context_length)
    accumulation = Share(training.micro_batch_size, 0, world).number(samples)
    zero = dict(training.deepspeed.get("zero_optimization", {}))
    if training.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        # The loss has the weight of each sequence, so these two must agree only with each other.
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": training.micro_batch_size * accumulation * world,
        "gradient_clipping": training.gradient_clipping or 0.0,
        "zero_optimization": {**zero, "stage": training.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own needs a compiler, and has other state
        "steps_per_print": 2**31 - 1,
    }
    if training.precision == "bf16":
        config["bf16"] = {"enabled": True}
        if training.zero_stage > 0:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    passed_on = {name: value for name, value in training.deepspeed.items() if name != "zero_optimization"}
    return {**passed_on, **config, "steps_per_print": passed_on.get("steps_per_print", config["steps_per_print"])}


class StageEngine:
    """The model of a stage under DeepSpeed. Its weights are still to be filled.

    steps: the optimizer steps of each parameter after `done` steps of the stage. models: those that its objective needs
    beside.
    """

    def __init__(self, stage: StagePlan, steps: dict[str, int], done: int = 0, models: Models = NO_MODELS) -> None:
        self.world, self.rank = comm.get_world_size(), comm.get_rank()
        torch.use_deterministic_algorithms(stage.training.deterministic)
        self.device = torch.device(get_accelerator().current_device_name())
        self.stage = stage
        gpu = self.device if self.device.type == "cuda" else None
        self.share = Share(stage.training.micro_batch_size, self.rank, self.world, gpu)
        self.learner, self.judge = open_learner(stage.objective, models), open_judge(stage.objective)
        look_for_packed(stage.objective.name == "own")
        config = deepspeed_config(stage, self.world)
        self._head: LossHead | None = None
        model = self._build(config)
        self.growth = optimizer.growth_of(stage)
        self.head_starts: Mapping[str, HeadStarts] = {}
        self._rewarm = stage.growth.rewarm if stage.growth else None
        self._new_elements: optimizer.NewElements | None = None
        apart = optimizer.wholly_new(self.growth) if self._rewarm else frozenset()
        frozen = stage.frozen_steps
        at_start = _steps_at_start(steps, frozen, done)
        is_muon = stage.training.optimizer.name == "muon"
        orthogonal = hidden_matrices(stage.shape) if is_muon else frozenset()
        groups = optimizer.parameter_groups(
            model, stage.training.optimizer.weight_decay, at_start, apart, frozen, stage.rate_factors, orthogonal
        )
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer.build(groups, stage.training.optimizer, orthogonal, DTYPES[stage.training.precision]),
            config=config,
            dist_init_required=False,
        )
        _restore_buffers(self.deepspeed.module, buffers)
        partitions.bind_muon(self.deepspeed, {one.name: one.shape for one in parameters(stage.shape)})
        named = self.deepspeed.module.named_parameters()
        held = {one: frozen[name] for name, one in named if name in frozen}
        self.buffers = Buffers(self.deepspeed.module)
        self._frozen = optimizer.Frozen(self.deepspeed.basic_optimizer, held)
        self._mask = _growth_mask(stage, self.deepspeed.module, self.device)
        self.open_mask(0)
        self._compiled = Compiled(self.deepspeed) if stage.training.compile else None

    def _build(self, config: dict) -> torch.nn.Module:
        training = self.stage.training
        zero_init = None
        if training.zero_stage == 3:
            # The precision comes from the config: on machines without fp16 DeepSpeed misreads the argument `dtype`.
            # Only parameters get this precision; positions stay in fp32.
            overrides = [DeepSpeedTensorOverride.device]
            zero_init = deepspeed.zero.Init(config_dict_or_path=config, tensor_overrides=overrides)
        model = build(self.stage.shape, DTYPES[training.precision], zero_init)
        if training.activation_checkpointing:
            recompute(model, training.activation_checkpointing)
        if training.cross_entropy != "whole":
            self._head = loss_head(model, self.stage.shape, training.cross_entropy, training.compile)
        if self.stage.adapter:
            model = adapters.put_on(model, self.stage.adapter, self.stage.shape)
        return model if zero_init else model.to(self.device)

    def batches(self, reader: Reader, first: int, count: int, length: int) -> StepBatches:
        """This worker's part of a step on samples `first` to `first + count` of the run, of `length` tokens each."""
        return self.share.step(self.learner, reader, first, count, length)

    def steps_of(self, stage: StagePlan, reader: Reader, progress: Progress) -> Iterator[StepBatches]:
        """Its part of each step of a stage up to its cap, from its progress at this call on."""
        return self._steps(stage, reader, progress.steps, progress.position)

    def _steps(self, stage: StagePlan, reader: Reader, steps: int, position: int) -> Iterator[StepBatches]:
        for step in range(steps, stage.start_steps + stage.steps):
            segment = stage.step_schedule.at(step - stage.start_steps)
            length = stage.sample_length(segment.context_length)
            yield self.batches(reader, position // length, segment.batch // length, length)
            position += segment.batch

    def train_step(self, batches: StepBatches, lr: float, step: int) -> torch.Tensor:
        """One optimizer step. Returns the sum of the losses of this worker's own targets, on its device."""
        torch.manual_seed(_step_seed(self.stage.seed, step, self.rank))
        self._set_rates(lr, step)
        done = step - self.stage.start_steps
        self.open_mask(done + 0.5)
        self.deepspeed.train()
        learner = self._in_chunks(self.learner)
        self._accumulate(batches.number)
        total = torch.zeros((), device=self.device)
        self.buffers.begin_step()
        with self._frozen.at(done):
            for held, weight in batches.micro_batches:
                batch = moved(held, self.device)
                self.buffers.begin_micro_batch()
                loss = learner.loss(self.deepspeed, batch)
                self.buffers.end_micro_batch(weight * _samples(batch))
                # DeepSpeed divides by the accumulation steps and averages over the workers.
                self.deepspeed.backward(loss * (weight * batches.number * self.world / max(1, batches.targets)))
                self.deepspeed.step()
                total += loss.detach() * weight
        self.buffers.end_step()
        self.open_mask(done + 1)
        return total

    def _in_chunks(self, objective: Any) -> Any:
        """The same learner or judge, without the scores of all targets at once where the stage asks for that."""
        return ByHead(objective, self._head) if self._head and isinstance(objective, OfTokens) else objective

    def _accumulate(self, steps: int) -> None:
        """Tell DeepSpeed how many micro steps the next optimizer step has, if the number has changed."""
        if steps != self.deepspeed.gradient_accumulation_steps():
            self.deepspeed.set_train_batch_size(self.stage.training.micro_batch_size * steps * self.world)
            self.deepspeed.micro_steps = 0  # it takes an optimizer step where these are a multiple
            if hasattr(self.deepspeed.optimizer, "gradient_accumulation_steps"):  # ZeRO's own copy
                self.deepspeed.optimizer.gradient_accumulation_steps = steps

    def open_mask(self, done: float) -> None:
        """Set the mask of the stage's growth, if it has one, to its value after `done` steps of the stage."""
        if self._mask:
            trained = self.stage.step_schedule.duration(done)
            self._mask.set(mask_value(self.stage.growth.options.grow_tokens, trained))

    def count_new_apart(self, head_starts: Mapping[str, HeadStarts]) -> None:
        """Let new elements of old parameters count their own steps; those of the stage's own growth also have their own
        learning rate. State and step counts must be set before. It ends when it makes no difference any more.
        """
        if self._new_elements:
            self._new_elements.forget()
        parts, boosted = partitions.partitions(self.deepspeed), self.growth if self._rewarm else ()
        self.head_starts = head_starts
        self._new_elements = optimizer.NewElements(self.deepspeed.basic_optimizer, parts, head_starts, boosted)

    def end_growth(self) -> None:
        """The next stage with this engine has no growth of its own. New elements continue to count their own steps."""
        self._rewarm = None

    def _set_rates(self, lr: float, step: int) -> None:
        """`lr` is for old parameters; that of new ones may be warming up. Both are for the middle of the step."""
        trained = self.stage.step_schedule.duration(step - self.stage.start_steps + 0.5)
        boost = self._rewarm.at(trained) if self._rewarm else 1.0
        for group in self.deepspeed.basic_optimizer.param_groups:
            group["lr"] = (lr * boost if group["is_new"] else lr) * group["rate_factor"]
        if self._new_elements:
            self._new_elements.set_rate(boost, lasting=self._rewarm is None or self._rewarm.is_over(trained))

    def gradient_norm(self) -> float:
        """The global gradient norm of the last step, before clipping; NaN if DeepSpeed has not computed it."""
        norm = self.deepspeed.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    @torch.no_grad()
    def evaluate(self, held_out: HeldOut, metrics: Sequence[UserMetric] = (), judge: Judge | None = None) -> Scores:
        """The scores on all targets of `held_out`, the same on every worker except `sums`. Collective.

        judge: in place of the stage's own.
        """
        judge, count = judge or self.judge, held_out.count
        judge = judge if metrics else self._in_chunks(judge)  # the user's metrics are told the scores
        own = MetricSums((metric.function, metric.options) for metric in metrics)
        tally = Tally(judge, held_out, self.rank * count // self.world, own)
        self.deepspeed.eval()
        for batch, weight in self.shares(held_out, 0, count, held_out.length, judge):
            tally.add(batch, judge.answer(self.deepspeed.module, batch), weight)
        comm.all_reduce(tally.total)
        comm.all_reduce(tally.parts)
        return tally.scores()

    def sum_over_workers(self, value: torch.Tensor) -> float:
        total = value.double()
        comm.all_reduce(total)
        return total.item()

    @contextmanager
    def plain(self) -> Iterator[torch.nn.Module]:
        """The model without an adapter and not compiled, while that lasts."""
        with uncompiled(self.deepspeed.module), adapters.without(self.deepspeed.module) as network:
            yield network

    @property
    def compiled_graphs(self) -> int | None:
        """How many graphs torch has compiled for this model; None where it compiles nothing."""
        return self._compiled.graphs if self._compiled else None

    def destroy(self) -> None:
        """Remove the references inside DeepSpeed that would keep this engine's memory from being freed."""
        self.deepspeed.destroy()
        partitions.forget(self.deepspeed.module)

    def shares(
        self, reader: Reader, first: int, count: int, length: int, by: Learner | Judge | None = None
    ) -> Iterator[MicroBatch]:
        """This worker's micro batches of a global batch on its device, with their weights."""
        for batch, weight in self.share.read(by or self.learner, reader, first, count, length):
            yield moved(batch, self.device), weight


def _steps_at_start(steps: dict[str, int], frozen: Mapping[str, float], done: int) -> dict[str, int]:
    """The optimizer steps of parameters at the start of the stage, if after `done` steps of it they are `steps`.

    Parameter groups are made by these, so that the groups and their order are the same wherever a stage is entered: the
    norm of the gradient is summed in that order.
    """
    return {name: count - int(max(0, done - frozen.get(name, 0))) for name, count in steps.items()}


def _growth_mask(stage: StagePlan, network: torch.nn.Module, device: torch.device) -> GrowthMask | None:
    growth = stage.growth
    if growth is None or not is_masked(growth.operator):
        return None
    return GrowthMask(network, stage.parent_shape, stage.shape, growth.operator, growth.options, device)


def _restore_buffers(model: torch.nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    """DeepSpeed rounds buffers to bf16 like weights. Rotary frequencies must stay exact."""
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        current = model.get_submodule(owner)._buffers
        current[leaf] = buffer.to(current[leaf].device)


def _samples(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A different seed for every step and worker, so that no random state has to be saved."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "little")
