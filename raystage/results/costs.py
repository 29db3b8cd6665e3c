"""What work costs beside FLOPs: worker-hours, GPU-hours, measured energy, and what follows from given prices.

    gpu_hours = workers * gpus_per_worker * seconds / 3600
    money = workers * seconds / 3600 * price_per_hour
    co2_kg = energy_kwh * grid_intensity

Time is that of training, growing, saving and evaluating, without the start of the workers. Energy comes from meters
(`train.energy`) and is never estimated: where a part of some work was not measured, the whole has no figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from raystage.config.schedule import Costs

_SECONDS_PER_HOUR = 3600
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Use:
    """Resources that some work took. worker_seconds: wall-clock time times workers. gpu_seconds: the same times the
    GPUs of each worker.

    energy_joules: of all its GPUs; None where some of it was not measured.
    """

    worker_seconds: float = 0.0
    gpu_seconds: float = 0.0
    energy_joules: float | None = 0.0

    def __add__(self, other: Use) -> Use:
        return Use(
            self.worker_seconds + other.worker_seconds,
            self.gpu_seconds + other.gpu_seconds,
            plus(self.energy_joules, other.energy_joules),
        )


@dataclass(frozen=True)
class Cost:
    """The cost of a `Use`. energy_kwh, co2_kg: None without a meter. co2_kg, money: None without a given price."""

    worker_seconds: float
    gpu_hours: float
    energy_kwh: float | None
    co2_kg: float | None
    money: float | None


def plus(first: float | None, second: float | None) -> float | None:
    """The sum of two measurements; None where one is missing."""
    return None if first is None or second is None else first + second


def minus(first: float | None, second: float | None) -> float | None:
    """The difference of two measurements; None where one is missing."""
    return None if first is None or second is None else first - second


def cost_of(use: Use, prices: Costs) -> Cost:
    """The cost of `use` at given prices."""
    energy_kwh = None if use.energy_joules is None else use.energy_joules / _JOULES_PER_KWH
    price, intensity = prices.price_per_hour, prices.grid_intensity
    return Cost(
        worker_seconds=use.worker_seconds,
        gpu_hours=use.gpu_seconds / _SECONDS_PER_HOUR,
        energy_kwh=energy_kwh,
        co2_kg=None if energy_kwh is None or intensity is None else energy_kwh * intensity,
        money=None if price is None else use.worker_seconds / _SECONDS_PER_HOUR * price,
    )
