"""The training section: workers, precision, batch, optimizer, learning rate, evaluations and checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from raystage.config.node_labels import AcceleratorType, NodeLabels
from raystage.config.section import Section
from raystage.config.types import (
    MOST_POINTS,
    Beta,
    Count,
    CountOrZero,
    Duration,
    Flag,
    Fraction,
    NotNegative,
    Position,
    Positive,
    PositiveShare,
    Recomputed,
    Reference,
    Seconds,
    Span,
    WorkerCount,
    Workers,
    ZeroStage,
)

MUON_MOMENTUM = 0.95


class Optimizer(Section):
    """The optimizer. `betas` and `eps` are for adamw, adam and muon, `momentum` is for sgd and muon."""

    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """The kind of optimizer. `muon` takes orthogonal steps with the matrices of the layers (2502.16982), and those of
    adamw with everything else."""
    lr: Positive = 1e-3
    """The highest learning rate."""
    betas: Annotated[tuple[Beta, ...], Field(min_length=2, max_length=2)] = (0.9, 0.95)
    """The decay rates of the two moments of adamw, adam and muon."""
    eps: Positive = 1e-8
    """The epsilon of adamw, adam and muon."""
    momentum: Beta = 0.9
    """The momentum of sgd and muon; 0.95 for muon unless given."""
    weight_decay: NotNegative = 0.1
    """The weight decay. It applies to matrices, not to biases and norms."""
    fused: Flag = False
    """Whether one kernel takes a whole step of adamw or adam: faster on GPUs, without memory of its own. The last
    digits differ from those without it."""
    lr_by_depth: PositiveShare = 1.0
    """What the rate of a layer is multiplied by for every layer that lies above it (1801.06146): with 0.9 the last
    layer and the head train at `lr`, the layer below at 0.9 of it, the embeddings at the lowest rate."""

    @property
    def unused(self) -> tuple[str, ...]:
        """The keys that count for other optimizers only."""
        return {"sgd": ("betas", "eps", "fused"), "muon": ("fused",)}.get(self.name, ("momentum",))

    @property
    def moments(self) -> tuple[str, ...]:
        """What it keeps for a parameter beside the weight, under torch's names. Muon keeps only the first for matrices
        of layers."""
        if self.name == "sgd":
            return ("momentum_buffer",) if self.momentum else ()
        return ("exp_avg", "exp_avg_sq")

    def used(self) -> dict[str, Any]:
        """The keys that decide what it does, as plain values. Those added later are left out at their default."""
        same = {name for name, usual in (("lr_by_depth", 1), ("fused", False)) if getattr(self, name) == usual}
        usual = {"momentum": MUON_MOMENTUM} if self.name == "muon" and "momentum" not in self.model_fields_set else {}
        return self.model_dump(exclude={*self.unused, *same}) | usual


class RatePoint(Section):
    """A rate that is reached at a position."""

    at: Annotated[Position, Field(examples=["0.8"])]
    """The position in the run, or in the stage whose rate it is: up to 1 a fraction of the whole, above 1 a number of
    tokens. A first point at 0 says where the rate begins."""
    ratio: Annotated[Fraction, Field(examples=["0.1"])]
    """The rate there, as a fraction of `optimizer.lr`, or with `from: current` of the stage's first rate."""
    shape: Literal["linear", "cosine", "1-sqrt", "step"] = "linear"
    """How the rate comes there from the point before; `step` keeps the rate up to the point and then changes it."""


class LrSchedule(Section):
    """The learning rate over the whole run, or over a stage that has an `lr_schedule` of its own."""

    kind: Literal["wsd", "cosine", "linear", "1-sqrt", "constant", "piecewise"] = "wsd"
    """The shape after the warm-up. `wsd` is constant and then decays; `1-sqrt` falls by the square root of the tokens;
    `piecewise` goes through `points`."""
    start: Literal["current"] | None = Field(None, alias="from")
    """`current`: the rate of a stage begins, without a warm-up, where the plan has the rate of the stage before at its
    end. In place of `optimizer.lr` all fractions are of this rate. For a stage's own `lr_schedule`."""
    warmup: Span = 0.0
    """The length of the warm-up from 0: below 1 a fraction of the whole, above 1 a number of tokens."""
    decay: Span = 0.2
    """The length of the decay at the end, for `wsd`: below 1 a fraction of the whole, above 1 a number of tokens."""
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """The shape of the decay, for `wsd`. `1-sqrt` falls fast at first (2405.18392)."""
    min_lr_ratio: Fraction = 0.0
    """The last rate, as a fraction of `optimizer.lr`, or with `from: current` of the stage's first rate. Not for
    `piecewise`."""
    points: Annotated[tuple[RatePoint, ...], Field(max_length=MOST_POINTS, examples=["[{at: 0.8, ratio: 1}]"])] = ()
    """The rates that a `piecewise` rate goes through, in order. It begins at `optimizer.lr` after the warm-up, and
    stays at the last point's rate."""

    @model_validator(mode="after")
    def _has_points_for_piecewise(self) -> LrSchedule:
        if self.points and self.kind != "piecewise":
            raise ValueError(f"found points with kind: {self.kind}; expected kind: piecewise beside them")
        return self


def _as_metric(value: object) -> object:
    return {"function": value} if isinstance(value, str) else value


class UserMetric(Section):
    """A function of the user's own over the model's answers to held-out text."""

    function: Annotated[Reference, Field(examples=["my.metrics:exact_match"])]
    """Where the function is: `module:function` or `file.py:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments that the function is called with."""


MetricEntry = Annotated[UserMetric, BeforeValidator(_as_metric, json_schema_input_type=str | UserMetric)]


class Evaluate(Section):
    """The evaluations of a stage on held-out text."""

    every: Count | None = None
    """The distance between two evaluations in tokens or samples; 20 in a run unless given, and fewer where they would
    cost more than 10 % of the stage's training."""
    tokens: Count = 65_536
    """The held-out tokens of one evaluation; fewer in a short stage, where this key is not given."""
    samples: Count | None = None
    """The held-out samples of one evaluation, for objectives that count samples; up to 8,192 unless given."""
    metrics: tuple[MetricEntry, ...] = ()
    """Further metrics. They change no result of a stage, and so no stage key."""

    @property
    def amount(self) -> int:
        """Of one evaluation, in the stage's unit."""
        return self.tokens if self.samples is None else self.samples


class Checkpointing(Section):
    """The checkpoints of a stage while it is trained."""

    every: Count | None = None
    """The distance between two checkpoints in tokens or samples; a quarter of the stage unless given."""
    every_seconds: Seconds = 1800.0
    """The longest time between two checkpoints, in seconds or as `10m`: one is written after this time, too."""
    keep_last: Count = 2
    """How many of the latest checkpoints stay."""
    keep_best: CountOrZero = 0
    """How many of the checkpoints with the lowest evaluation loss stay beside these, also after the stage."""
    background: Flag = True
    """Whether the training continues while a checkpoint is written, from a copy in host memory. The bits are the
    same either way."""


class RampOver(Duration):
    """The length of a ramp, from the stage's start to the stage's own value."""


class RampOf(Section):
    """A value that doubles from `from` up to the stage's own value, in equal shares of the ramp's tokens."""

    start: Annotated[Count, Field(alias="from", examples=["1024"])]
    """The value at the stage's start: the stage's own value halved once or several times."""
    over: Annotated[RampOver, Field(examples=["{tokens: 200K}"])]
    """How long the value grows."""


class Ramp(Section):
    """What grows while a stage trains."""

    OVER: ClassVar[tuple[str, ...]] = ("global_batch_tokens", "global_batch_samples", "context_length")

    global_batch_tokens: RampOf | None = None
    """The batch, in tokens."""
    global_batch_samples: RampOf | None = None
    """The batch, in samples."""
    context_length: RampOf | None = None
    """The context length, in tokens."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """How the learning rate follows a growing batch: in steps of a smaller batch than the stage's own it is multiplied
    by the share that the batch is of it (`linear`), or by the root of this share (`sqrt`)."""

    @property
    def batch(self) -> RampOf | None:
        """That of the batch, in the stage's unit."""
        return self.global_batch_tokens or self.global_batch_samples


class Training(Section):
    """How a stage is trained, and on what workers."""

    workers: WorkerCount = Workers.exactly(1)
    """The number of worker processes. With `{min: 2, max: 8}` the stage uses as many as the cluster has resources
    for."""
    cpus_per_worker: Count = 1
    """The CPUs of each worker."""
    gpus_per_worker: CountOrZero = 0
    """The GPUs of each worker, 0 or 1. For more GPUs take more workers."""
    placement: Literal["pack", "spread"] = "pack"
    """`pack` puts the workers on as few nodes as have room for them, `spread` on as many as there are."""
    accelerator: Annotated[AcceleratorType | None, Field(examples=["H200"])] = None
    """The type of GPU that the workers need, by Ray's name of it, on a cluster that has several."""
    node_labels: Annotated[NodeLabels, Field(examples=["{ray.io/market-type: on-demand}"])] = Field(
        default_factory=dict
    )
    """Labels of Ray that the nodes of the workers must have: a value, `!value`, `in(one,another)` or
    `!in(one,another)`. A worker with these runs on no other node."""
    zero_stage: ZeroStage = 1
    """DeepSpeed's ZeRO stage, 0 to 3."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The precision of the computation. Master weights and moments are fp32."""
    deterministic: Flag = False
    """Whether GPUs compute the same bits every time, and slower. On CPUs they do so in any case."""
    compile: Flag = False
    """Whether torch compiles the model when a stage begins, which is faster on GPUs. The last digits differ from those
    without it. Not with ZeRO stage 3."""
    cross_entropy: Literal["whole", "chunked", "liger"] = "whole"
    """How the loss of tokens is computed: from the scores of all targets of a micro batch, or some targets at a time,
    so that a large vocabulary takes little memory: by torch alone (`chunked`), or by the kernel of the package
    liger-kernel, on GPUs. The last digits differ."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """`cpu` keeps the optimizer and its state in host memory, with ZeRO stage 1, 2 or 3."""
    global_batch_tokens: Count | None = None
    """The tokens of one optimizer step over all workers, a multiple of the context length. Required, in the file or in
    every stage that counts tokens."""
    global_batch_samples: Count | None = None
    """The samples of one optimizer step over all workers. Required in stages that count samples."""
    micro_batch_size: Count | None = None
    """The sequences or samples that a worker computes at a time; up to 8,192 tokens unless given."""
    ramp: Ramp | None = None
    """What grows while the stage trains: the batch, the context length or both."""
    gradient_clipping: NotNegative = 1.0
    """The largest norm of the gradient; 0 clips nothing."""
    activation_checkpointing: Recomputed = False
    """Whether activations are computed again in the backward pass, to save memory: all that a layer keeps, or with
    `selective` all but the outputs of matrix products and of attention, which take the time. The bits are the same."""
    optimizer: Annotated[Optimizer, Field(examples=["{name: adamw, lr: 1e-3}"])] = Optimizer()
    """The optimizer."""
    lr_schedule: Annotated[LrSchedule, Field(examples=["{kind: wsd, warmup: 0.02, decay: 0.2}"])] = LrSchedule()
    """The learning rate over the run."""
    evaluate: Evaluate = Evaluate()
    """The evaluations."""
    checkpoint: Checkpointing = Checkpointing()
    """The checkpoints."""
    max_failures: CountOrZero = 3
    """How many times the workers of a stage are started again after a failure."""
    hang_seconds: Seconds = 1800.0
    """The time without a step after which workers count as hung, in seconds or as `30m`."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further options of DeepSpeed, which are checked and passed on."""

    @property
    def global_batch(self) -> int | None:
        """Of one optimizer step, in the stage's unit."""
        return self.global_batch_tokens if self.global_batch_samples is None else self.global_batch_samples


# One object for all who do not write it: pydantic makes a default with a mapping in it anew for each of them.
AS_ABOVE = Training()


def nothing_of_its_own() -> Training:
    """The training of those who do not write it: nothing is changed."""
    return AS_ABOVE
