"""What is computed again in the backward pass: the same bits, and a peak between that of all and that of nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distributed import run_workers
from factories import make_schedule
from growths import SOURCES, tiny
from memory_peaks import Watch
from raystage.config.training import Training
from raystage.errors import InputError
from raystage.models.build import build
from raystage.models.shape import ModelShape
from raystage.planning.build import make_plan
from raystage.plans.memory import estimate
from raystage.results.record import StageRecord
from raystage.train.state.recomputing import KEPT, recompute
from staged_runs import carry_out_all, losses, records_of

MODES = (False, True, "selective")
MIB = 2**20


def network_of(shape: ModelShape, mode: bool | str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = build(shape)
    with torch.no_grad():
        for one in network.parameters():
            one.normal_(0, 0.2)
    if mode:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers renames it; workers warn of nothing
            recompute(network, mode)
    return network.train()


def inputs_of(shape: ModelShape, samples: int = 2) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    if shape.image_size:
        return {
            "pixel_values": torch.rand(samples, shape.num_channels, shape.image_size, shape.image_size, generator=rng)
        }
    return {"input_ids": torch.randint(0, shape.vocab_size, (samples, shape.context_length), generator=rng)}


def backward(network: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    answer = network(**inputs)
    said = getattr(answer, "logits", None)
    loss = (answer.reconstruction if said is None else said).square().mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", SOURCES)
def test_every_family_has_the_same_bits(name: str) -> None:
    shape = SOURCES[name]
    found = []
    for mode in MODES:
        network = network_of(shape, mode)
        loss = backward(network, inputs_of(shape))
        found.append([loss, *(one.grad for one in network.parameters() if one.grad is not None)])
    for others in found[1:]:
        assert len(others) == len(found[0])
        assert all(torch.equal(one, other) for one, other in zip(others, found[0], strict=True))


class Counted(TorchDispatchMode):
    """Counts the calls of what is kept, and of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = self.all = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), named: Any = None) -> Any:
        self.kept += function in KEPT
        self.all += 1
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_what_takes_long_is_computed_once(family: str) -> None:
    """Backwards every product has two of its own; computed again, a third."""
    counts = []
    for mode in MODES:
        network = network_of(tiny(family), mode)
        with Counted() as counted:
            backward(network, inputs_of(tiny(family)))
        counts.append((counted.kept, counted.all))
    (kept, usual), (kept_again, _), (kept_selective, selective) = counts
    assert kept_selective == kept < kept_again
    assert selective > usual  # the cheap rest was computed again


# --- memory -------------------------------------------------------------------------------------

LARGE = tiny("llama", num_layers=8, hidden_size=128, num_kv_heads=4, head_size=32, ffn_size=384, context_length=1024)


def peaks() -> list[int]:
    """In a process of its own: bytes at the peak of a forward and a backward pass, by mode."""
    found = []
    for mode in (False, *MODES):  # the first round brings what the first brings
        network, inputs = network_of(LARGE, mode), inputs_of(LARGE, 4)
        watch = Watch()
        backward(network, inputs)
        found.append(watch.peak())
        del network
    return found[1:]


@pytest.mark.end_to_end
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/clear_refs is Linux's")
def test_the_peak_lies_between_that_of_all_and_that_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan says of the difference between nothing and `selective` is no more than what is really saved."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed is given back
    ((nothing, everything, selective),) = run_workers(1, peaks, folder=tmp_path / "processes", start="afresh")
    print(f"MiB: nothing {nothing / MIB:.0f}, all {everything / MIB:.0f}, selective {selective / MIB:.0f}")
    assert everything < 0.8 * selective
    assert selective < 0.8 * nothing
    planned = [
        estimate(LARGE, Training(micro_batch_size=4, activation_checkpointing=mode)).activations_bytes for mode in MODES
    ]
    assert planned[1] < planned[2] < planned[0]
    assert nothing - selective > planned[0] - planned[2]


# --- on workers ---------------------------------------------------------------------------------

WORKERS = 2
WAYS: dict[str, tuple[dict, dict]] = {
    "ZeRO 1, documents apart": ({"data": {"window": {"mask": "document"}}}, {"zero_stage": 1}),
    "ZeRO 2, bf16, loss in chunks": ({}, {"zero_stage": 2, "precision": "bf16", "cross_entropy": "chunked"}),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool | str], list[StageRecord]]:
    folder = tmp_path_factory.mktemp("recomputing")
    (texts := folder / "texts").mkdir()
    schedules = {}
    for way, (changes, training) in WAYS.items():
        for mode in (False, "selective"):
            section = {"workers": WORKERS, "micro_batch_size": 3, "evaluate": {"tokens": 100}, **training}
            section |= {"activation_checkpointing": mode}
            schedules[f"{way}, {mode}"] = make_schedule(texts, training=section, **changes)
    stores = dict.fromkeys(schedules, str(folder / "store"))
    run_workers(WORKERS, carry_out_all, schedules, stores, folder=folder / "workers")
    return lambda way, mode: records_of(schedules[f"{way}, {mode}"], stores[f"{way}, {mode}"])


@pytest.mark.end_to_end
@pytest.mark.parametrize("way", WAYS)
def test_stages_have_the_same_bits_and_other_keys(records: Callable, way: str) -> None:
    usual, selective = records(way, False), records(way, "selective")
    assert losses(usual) == losses(selective)
    assert [one.flops for one in usual] == [one.flops for one in selective]
    assert {one.key for one in usual}.isdisjoint(one.key for one in selective)


REFUSED = {
    "found selective with zero_stage: 3": {"zero_stage": 3},
    "found selective with compile: true": {"compile": True},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_told_apart_is_refused(tmp_path: Path, said: str) -> None:
    training = {"activation_checkpointing": "selective", **REFUSED[said]}
    with pytest.raises(InputError, match=f"training.activation_checkpointing: {said}"):
        make_plan(make_schedule(tmp_path, training=training))


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 'some'; expected true, false or selective"):
        make_schedule(tmp_path, training={"activation_checkpointing": "some"})
