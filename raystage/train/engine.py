"""A DeepSpeed engine for a stage: built, stepped, evaluated. One per worker.

The global batch is the same whoever works on it: worker r of W takes its even share of the sequences,
workers with one sequence less pad with a sequence of weight zero, and every target weighs the same in
the gradient. So 3 workers may share 64 sequences.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import deepspeed
import deepspeed.ops
import numpy as np
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride

from raystage.config.training import UserMetric
from raystage.growth.counts import HeadStarts
from raystage.growth.masked import GrowthMask
from raystage.growth.trained import is_masked, mask_value
from raystage.models.build import build
from raystage.objectives.causal_lm import answers, logits_of, next_token_halves, next_token_loss, next_token_scores
from raystage.objectives.metrics import MetricSums, Sums
from raystage.plan.plan import StagePlan
from raystage.train import optimizer
from raystage.train import partitions as zero

# Without this, DeepSpeed compiles a shared-memory all-reduce with a C++ compiler at every start on a
# CPU (30 s and more). A name of DeepSpeed's own, so a test holds that it is still there.
if "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def deepspeed_config(stage: StagePlan, world: int) -> dict:
    """DeepSpeed's configuration of a stage: what raystage owns laid over what the schedule passes on."""
    training = stage.training
    accumulation = accumulation_steps(stage, world, training.global_batch_tokens // stage.shape.context_length)
    zero = dict(training.deepspeed.get("zero_optimization", {}))
    if training.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        # The loss carries each sequence's own weight, so these two need to agree only with each other.
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": training.micro_batch_size * accumulation * world,
        "gradient_clipping": training.gradient_clipping or 0.0,
        "zero_optimization": {**zero, "stage": training.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own needs a compiler, and keeps its state another way
        "steps_per_print": 2**31 - 1,
    }
    if training.precision == "bf16":
        config["bf16"] = {"enabled": True}
        if training.zero_stage > 0:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    passed_on = {name: value for name, value in training.deepspeed.items() if name != "zero_optimization"}
    return {**passed_on, **config, "steps_per_print": passed_on.get("steps_per_print", config["steps_per_print"])}


def accumulation_steps(stage: StagePlan, world: int, sequences: int) -> int:
    """Micro steps for so many sequences: as many as the worker with the largest share needs."""
    return math.ceil(math.ceil(sequences / world) / stage.training.micro_batch_size)


class Scores(NamedTuple):
    """loss: mean over all targets, in nats per token. accuracy: the share of targets held the most probable token.
    sums: of the user's metrics, over this worker's targets alone. halves: the loss on the first half of the sequences
    and on the rest; None of a single one."""

    loss: float
    accuracy: float
    sums: Sums
    halves: tuple[float, float] | None


class StageEngine:
    """The model of a stage under DeepSpeed, its weights still to be filled.

    steps: the optimizer steps that each parameter has seen, `done` steps into the stage.
    """

    def __init__(self, stage: StagePlan, steps: dict[str, int], done: int = 0) -> None:
        self.world, self.rank = comm.get_world_size(), comm.get_rank()
        self.device = torch.device(get_accelerator().current_device_name())
        self.stage = stage
        config = deepspeed_config(stage, self.world)
        model = self._build(config)
        self.growth = optimizer.growth_of(stage)
        self.head_starts: Mapping[str, HeadStarts] = {}
        self._rewarm = stage.growth.rewarm if stage.growth else None
        self._new_elements: optimizer.NewElements | None = None
        apart = optimizer.wholly_new(self.growth) if self._rewarm else frozenset()
        frozen = stage.freezing.names(stage.shape) if stage.freezing else frozenset()
        groups = optimizer.parameter_groups(
            model, stage.training.optimizer.weight_decay, _steps_at_start(stage, steps, frozen, done), apart, frozen
        )
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer.build(groups, stage.training.optimizer),
            config=config,
            dist_init_required=False,
        )
        _restore_buffers(self.deepspeed.module, buffers)
        named = self.deepspeed.module.named_parameters()
        self._frozen = optimizer.Frozen(self.deepspeed.basic_optimizer, [one for name, one in named if name in frozen])
        self._mask = _growth_mask(stage, self.deepspeed.module, self.device)
        self.open_mask(0)

    def _build(self, config: dict) -> torch.nn.Module:
        training = self.stage.training
        zero_init = None
        if training.zero_stage == 3:
            # The precision comes from the config: the argument `dtype` is misread on machines without fp16.
            # Only parameters take it on; positions stay in fp32.
            overrides = [DeepSpeedTensorOverride.device]
            zero_init = deepspeed.zero.Init(config_dict_or_path=config, tensor_overrides=overrides)
        model = build(self.stage.shape, DTYPES[training.precision], zero_init)
        if training.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model if zero_init else model.to(self.device)

    def train_step(self, sequences: np.ndarray, lr: float, step: int) -> torch.Tensor:
        """One optimizer step on a global batch of shape (sequences, length + 1).

        Returns this worker's sum of losses over its own targets, on the device.
        """
        torch.manual_seed(_step_seed(self.stage.seed, step, self.rank))
        self._set_rates(lr, step)
        done = step - self.stage.start_steps
        self.open_mask(done + 0.5)
        self._frozen.holds = done < self.stage.frozen_steps
        self.deepspeed.train()
        targets = sequences.shape[0] * (sequences.shape[1] - 1)
        accumulation = self._accumulate(len(sequences))
        total = torch.zeros((), device=self.device)
        for batch, weight in self.shares(sequences):
            loss = next_token_loss(self.deepspeed, batch)
            # DeepSpeed divides by the accumulation steps and averages over the workers.
            self.deepspeed.backward(loss * (weight * accumulation * self.world / targets))
            self.deepspeed.step()
            total += loss.detach() * weight
        self._frozen.holds = False
        self.open_mask(done + 1)
        return total

    def _accumulate(self, sequences: int) -> int:
        """Tell DeepSpeed how many micro steps the next optimizer step has, where it is another number than the last."""
        steps = accumulation_steps(self.stage, self.world, sequences)
        if steps != self.deepspeed.gradient_accumulation_steps():
            self.deepspeed.set_train_batch_size(self.stage.training.micro_batch_size * steps * self.world)
            self.deepspeed.micro_steps = 0  # it takes an optimizer step where these are a multiple
            if hasattr(self.deepspeed.optimizer, "gradient_accumulation_steps"):  # ZeRO's own copy
                self.deepspeed.optimizer.gradient_accumulation_steps = steps
        return steps

    def open_mask(self, done: float) -> None:
        """Open the mask of the stage's growth, if it has one, as far as it is `done` steps into the stage."""
        if self._mask:
            tokens = self.stage.step_schedule.tokens(done)
            self._mask.set(mask_value(self.stage.growth.options.grow_tokens, tokens))

    def count_new_apart(self, head_starts: Mapping[str, HeadStarts]) -> None:
        """Let elements that growth made new among old ones count their own steps, and those of the stage's own growth
        have their own rate. State and step counts are set before this. It lasts until it makes no difference any more.
        """
        if self._new_elements:
            self._new_elements.forget()
        parts, boosted = zero.partitions(self.deepspeed), self.growth if self._rewarm else ()
        self.head_starts = head_starts
        self._new_elements = optimizer.NewElements(self.deepspeed.basic_optimizer, parts, head_starts, boosted)

    def end_growth(self) -> None:
        """A stage that goes on with this engine has no growth of its own; what is new goes on counting its steps."""
        self._rewarm = None

    def _set_rates(self, lr: float, step: int) -> None:
        """`lr` for the old parameters; the new ones may be warming up. As `lr` is, it is taken mid-step."""
        tokens = self.stage.step_schedule.tokens(step - self.stage.start_steps + 0.5)
        boost = self._rewarm.at(tokens) if self._rewarm else 1.0
        for group in self.deepspeed.basic_optimizer.param_groups:
            group["lr"] = lr * boost if group["is_new"] else lr
        if self._new_elements:
            self._new_elements.set_rate(boost, lasting=self._rewarm is None or self._rewarm.is_over(tokens))

    def gradient_norm(self) -> float:
        """The global gradient norm of the last step, before clipping; NaN where DeepSpeed did not take it."""
        norm = self.deepspeed.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    @torch.no_grad()
    def evaluate(self, sequences: np.ndarray, metrics: Sequence[UserMetric] = ()) -> Scores:
        """How well the model says all targets of `sequences`: the same on every worker, but for `sums`."""
        self.deepspeed.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        tally = MetricSums((metric.function, metric.options) for metric in metrics)
        count, length = len(sequences), sequences.shape[1] - 1
        halves, place = torch.zeros_like(total), self.rank * count // self.world
        for batch, weight in self.shares(sequences):
            logits, targets = answers(self.deepspeed.module, batch)
            scores = next_token_scores(logits, targets)
            total += scores * weight
            if weight:
                tally.add(logits, targets)
                halves += next_token_halves(logits, targets, scores[0], (count // 2 - place) * length)
                place += len(batch)
        comm.all_reduce(total)
        comm.all_reduce(halves)
        parts = torch.tensor([count // 2, count - count // 2], dtype=torch.float64, device=self.device) * length
        apart = tuple((halves / parts).tolist()) if count > 1 else None
        return Scores(*(total / (count * length)).tolist(), tally.sums, apart)

    def logits(self, sequences: np.ndarray) -> np.ndarray:
        """fp32 logits on `sequences` of shape (batch, length). Every worker computes all of them."""
        self.deepspeed.eval()
        return logits_of(self.deepspeed.module, torch.from_numpy(sequences).to(self.device)).cpu().numpy()

    def sum_over_workers(self, value: torch.Tensor) -> float:
        total = value.double()
        comm.all_reduce(total)
        return total.item()

    def destroy(self) -> None:
        """Take down what would keep its memory from being given back once nothing refers to it."""
        self.deepspeed.destroy()
        zero.forget(self.deepspeed.module)

    def shares(self, sequences: np.ndarray) -> Iterator[tuple[torch.Tensor, float]]:
        """This worker's micro batches with their weight: 1, or 0 for one that only keeps step with the others."""
        count, micro = len(sequences), self.stage.training.micro_batch_size
        mine = sequences[self.rank * count // self.world : (self.rank + 1) * count // self.world]
        for index in range(accumulation_steps(self.stage, self.world, count)):
            part = mine[index * micro : (index + 1) * micro]
            weight = 1.0 if len(part) else 0.0
            yield torch.from_numpy(part if weight else sequences[:1]).to(self.device), weight


def _steps_at_start(stage: StagePlan, steps: dict[str, int], frozen: frozenset[str], done: int) -> dict[str, int]:
    """The optimizer steps that parameters had seen when the stage began, if now, `done` steps into it, it is `steps`.

    Groups are made of these, so that they and their order are the same wherever a stage is entered: the gradient's norm
    is summed up in that order.
    """
    thawed = max(0, done - stage.frozen_steps)
    return {name: count - (thawed if name in frozen else done) for name, count in steps.items()}


def _growth_mask(stage: StagePlan, network: torch.nn.Module, device: torch.device) -> GrowthMask | None:
    growth = stage.growth
    if growth is None or not is_masked(growth.operator):
        return None
    return GrowthMask(network, stage.parent_shape, stage.shape, growth.operator, growth.options, device)


def _restore_buffers(model: torch.nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    """DeepSpeed rounds buffers to bf16 along with the weights; rotary frequencies must not be."""
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        current = model.get_submodule(owner)._buffers
        current[leaf] = buffer.to(current[leaf].device)


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every step and worker: nothing random has to be carried over a restart."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "little")
