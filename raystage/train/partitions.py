"""The one file that accesses DeepSpeed's partitions.

For every ZeRO stage and precision, a worker's part of the optimizer is a list of `Partition`s: live, flat views of the
fp32 weights and the optimizer's moments of a slice of one parameter. Saving reads them, loading fills them, and
`refresh` then updates the weights that the model computes with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import deepspeed
import torch
from deepspeed import comm
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from raystage.storage.shards.telling import equal_cut
from raystage.train.muon import MatrixPlace, Muon, matrix_shape
from raystage.train.state.adapters import named_parameters, parameter_names

# Elements that are gathered at a time, over all workers: 16 MiB in fp32. With fewer or many more, gloo is slower.
_GATHERED_NUMEL = 2**22


@dataclass(frozen=True)
class Partition:
    """The flat slice [start, stop) of one parameter that this worker's optimizer holds.

    tensors: `fp32` and the optimizer's moments, live views. saves: the part of the slice, relative to its start, that
    this worker writes to a checkpoint; if all workers hold the same slice, each writes a share of it.
    master: the tensor that the optimizer steps; `fp32` is a part of it.
    """

    parameter: str
    start: int
    stop: int
    tensors: dict[str, torch.Tensor]
    saves: tuple[int, int]
    master: torch.Tensor


@dataclass(frozen=True)
class _Master:
    """A tensor the optimizer steps, and the places of parameters in it."""

    flat: torch.Tensor
    places: list[tuple[str, int, int, int]]  # parameter, start in parameter, offset in flat, numel


def moments_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The names of the states that an optimizer has for elements: Adam's two moments, SGD's momentum if used."""
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return ("exp_avg", "exp_avg_sq")


def partitions(engine: deepspeed.DeepSpeedEngine) -> list[Partition]:
    """This worker's partitions. Moments that the optimizer has not created yet are created, as zeros."""
    found = []
    for master in _masters(engine):
        state = _state_of(engine, master)
        for parameter, start, offset, numel in master.places:
            tensors = {"fp32": master.flat.detach().view(-1).narrow(0, offset, numel)}
            moments = {name: one for name, one in state.items() if name != "step"}
            tensors |= {name: one.view(-1).narrow(0, offset, numel) for name, one in moments.items()}
            saves = _share(numel) if _is_replicated(engine) else (0, numel)
            found.append(Partition(parameter, start, start + numel, tensors, saves, master.flat))
    _link_state(engine)
    return found


def untrained(engine: deepspeed.DeepSpeedEngine) -> list[Partition]:
    """What this worker holds of the parameters that no optimizer knows, since an adapter is trained in their place:
    `fp32` is the weight itself, in the precision of the training. ZeRO 3 cuts them like any others."""
    found = []
    for name, parameter in named_parameters(engine.module):
        if parameter.requires_grad:
            continue
        start, held = 0, parameter.data.view(-1)
        if engine.zero_optimization_stage() == 3:
            length = parameter.partition_numel()
            start = min(comm.get_rank() * length, parameter.ds_numel)
            held = parameter.ds_tensor.data.view(-1)[: min(length, parameter.ds_numel - start)]
        saves = (0, held.numel()) if engine.zero_optimization_stage() == 3 else _share(held.numel())
        found.append(Partition(name, start, start + held.numel(), {"fp32": held}, saves, held))
    return found


def bind_muon(engine: deepspeed.DeepSpeedEngine, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Tell Muon, if the engine has it, which matrices lie where. shapes: of all parameters, by name."""
    optimizer, world = engine.basic_optimizer, comm.get_world_size()
    if isinstance(optimizer, Muon) and not _is_replicated(engine):
        optimizer.bind({one.flat: tuple(_matrices(engine, one, shapes)) for one in _masters(engine)}, world)


def _matrices(
    engine: deepspeed.DeepSpeedEngine, master: _Master, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[MatrixPlace]:
    for name, start, offset, numel in master.places:
        spans = _spans(engine, master, offset, start, math.prod(shapes[name]))
        yield MatrixPlace(matrix_shape(shapes[name]), start, start + numel, offset, spans)


def _spans(
    engine: deepspeed.DeepSpeedEngine, master: _Master, offset: int, start: int, numel: int
) -> tuple[tuple[int, int], ...]:
    """Where the elements of a parameter lie in the tensors of all workers end to end: see `_partitioned_groups` and
    `_partitioned_parameters`."""
    length = master.flat.numel()
    if engine.zero_optimization_stage() < 3:
        return ((comm.get_rank() * length + offset - start, numel),)
    part = -(-numel // comm.get_world_size())
    return tuple((rank * length + offset, min(part, numel - first)) for rank, first in enumerate(range(0, numel, part)))


def set_steps(engine: deepspeed.DeepSpeedEngine, steps: dict[str, int]) -> None:
    """Set the optimizer steps of each parameter.

    All parameters of a parameter group must have the same number: DeepSpeed keeps one count for each flat tensor.
    """
    for master in _masters(engine):
        counts = {steps[parameter] for parameter, *_ in master.places}
        if len(counts) > 1:
            raise ValueError(f"parameters of one group have different numbers of steps: {sorted(counts)}")
        if counts:
            _state_of(engine, master)["step"].fill_(float(counts.pop()))


def get_steps(engine: deepspeed.DeepSpeedEngine) -> dict[str, int]:
    """The optimizer steps of each parameter of which this worker holds a part."""
    return {
        parameter: int(_state_of(engine, master)["step"].item())
        for master in _masters(engine)
        for parameter, *_ in master.places
    }


def refresh(engine: deepspeed.DeepSpeedEngine) -> None:
    """Update the weights that the model computes with from the fp32 weights. Collective."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:  # whole on every worker: drop the old values first
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif engine.zero_optimization_stage() > 0:
        _gather_groups(optimizer)
    elif hasattr(optimizer, "fp32_groups"):
        for low, high in zip(_flatten(optimizer.fp16_groups), _flatten(optimizer.fp32_groups), strict=True):
            low.data.copy_(high.data)


def _gather_groups(optimizer: object) -> None:
    """ZeRO 1 and 2: gather every worker's part of the model's weights on all workers, a piece at a time.

    DeepSpeed's own method (`update_lp_params`) gathers a whole group at once. With gloo that needs a second copy of all
    weights: 4 bytes for every parameter in fp32.
    """
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        parts, masters = optimizer.parallel_partitioned_bit16_groups, optimizer.single_partition_of_fp32_groups
    else:
        parts, masters = optimizer.bf16_partitioned_groups, optimizer.fp32_groups_flat_partition
    for held, master, group in zip(parts, masters, optimizer.real_dp_process_group, strict=True):
        own = held[comm.get_rank(group)]
        own.data.copy_(master.data)
        step = max(1, _GATHERED_NUMEL // len(held))
        for first in range(0, own.numel(), step):
            pieces = [part.data[first : first + step] for part in held]
            comm.all_gather(pieces, own.data[first : first + step], group=group)


def _masters(engine: deepspeed.DeepSpeedEngine) -> Iterator[_Master]:
    names = parameter_names(engine.module)
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        yield from _partitioned_parameters(optimizer, names)
    elif stage > 0:
        yield from _partitioned_groups(optimizer, names)
    elif hasattr(optimizer, "fp32_groups"):  # bf16 without ZeRO: fp32 copies beside the model's own
        for low, high in zip(_flatten(optimizer.fp16_groups), _flatten(optimizer.fp32_groups), strict=True):
            yield _Master(high, [(names[id(low)], 0, 0, high.numel())])
    else:
        for parameter in _flatten(group["params"] for group in optimizer.param_groups):
            yield _Master(parameter, [(names[id(parameter)], 0, 0, parameter.numel())])


def _partitioned_groups(optimizer: object, names: dict[int, str]) -> Iterator[_Master]:
    """ZeRO 1 and 2: the parameters of a group end to end, cut into equal slices."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        groups, flats = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
    else:  # bf16 with fp32 gradients, ZeRO 1
        groups, flats = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    for parameters, flat in zip(groups, flats, strict=True):
        held = [(names[id(parameter)], parameter._hp_mapping) for parameter in parameters]
        yield _Master(
            flat,
            [
                (name, part.lp_fragment_address.start, part.hp_fragment_address.start, part.hp_fragment_address.numel)
                for name, part in held
                if part is not None
            ],
        )


def _partitioned_parameters(optimizer: object, names: dict[int, str]) -> Iterator[_Master]:
    """ZeRO 3: every parameter is cut separately. Worker r starts at r * ceil(numel / workers); the end is padded."""
    for parameters, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        places, offset = [], 0
        for parameter in parameters:
            length = parameter.partition_numel()
            start = min(comm.get_rank() * length, parameter.ds_numel)
            stop = min(start + length, parameter.ds_numel)
            if stop > start:
                places.append((names[id(parameter)], start, offset, stop - start))
            offset += length
        yield _Master(flat, places)


def _state_of(engine: deepspeed.DeepSpeedEngine, master: _Master) -> dict[str, torch.Tensor]:
    """The optimizer's state of a tensor. The optimizer creates it in the first step; loading needs it before."""
    basic = engine.basic_optimizer
    state = basic.state[master.flat]
    if "step" not in state:
        is_orthogonal = isinstance(basic, Muon) and any(name in basic.orthogonal for name, *_ in master.places)
        # Where torch itself has it: beside the tensor if one kernel takes the step.
        state["step"] = torch.zeros((), device=master.flat.device if basic.defaults.get("fused") else "cpu")
        for name in ("exp_avg",) if is_orthogonal else moments_of(basic):
            state[name] = torch.zeros_like(master.flat, memory_format=torch.preserve_format).detach()
    return state


def _link_state(engine: deepspeed.DeepSpeedEngine) -> None:
    """Tell ZeRO 1 and 2 about state that was created before the first step."""
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _is_replicated(engine: deepspeed.DeepSpeedEngine) -> bool:
    return engine.zero_optimization_stage() == 0


def _share(numel: int) -> tuple[int, int]:
    return equal_cut(numel, comm.get_rank(), comm.get_world_size())


def _flatten(groups: object) -> Iterator[torch.Tensor]:
    for group in groups:
        yield from group


def forget(module: torch.nn.Module) -> None:
    """Drop DeepSpeed's references to a model whose engine is destroyed.

    ZeRO 3 keeps all models, and through their hooks the engines and all their tensors, in a list and in a cache of what
    each module releases.
    """
    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [one for one in stack if one is not module]
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
