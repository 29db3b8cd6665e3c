"""When a stage ends on what its training shows. Curves are from a run of the quickstart's model."""

from __future__ import annotations

import math

import pytest

from raystage.config.conditions import Until
from raystage.results.record import Evaluation
from raystage.results.stopping import Seen, fired, loss_slopes

# quickstart.yaml with stages of 400K and 200K tokens, evaluated every 20K on 16K: (tokens, FLOPs in 10^8, loss).
SMALL = (
    (0, 0, 5.546), (20480, 247.254, 5.1576), (40960, 494.508, 4.69), (61440, 741.763, 4.0669),
    (81920, 989.017, 3.6093), (102400, 1236.271, 3.3373), (122880, 1483.525, 3.1499), (143360, 1730.780, 3.0138),
    (163840, 1978.034, 2.9174), (180224, 2175.837, 2.8517), (200704, 2423.091, 2.7642), (221184, 2670.346, 2.6932),
    (241664, 2917.600, 2.6218), (262144, 3164.854, 2.5864), (282624, 3412.108, 2.5378), (303104, 3659.362, 2.4938),
    (323584, 3906.617, 2.458), (344064, 4153.871, 2.4199), (360448, 4351.674, 2.3725), (380928, 4598.929, 2.3425),
    (401408, 4846.183, 2.313),
)  # fmt: skip
MEDIUM = (  # the same model with twice the layers by `stack`: it is entered with 2.3763, 0.06 above
    (401408, 4846.183, 2.3763), (421888, 5320.401, 2.2989), (442368, 5794.620, 2.2804), (462848, 6268.838, 2.2439),
    (483328, 6743.057, 2.2253), (503808, 7217.275, 2.1893), (520192, 7596.650, 2.1718), (540672, 8070.869, 2.1541),
    (561152, 8545.087, 2.1271), (581632, 9019.305, 2.1076), (602112, 9493.524, 2.1017),
)  # fmt: skip

PLATEAU = {"plateau": {"min_delta": 0.01, "patience": 3}}


def until(**written: object) -> Until:
    return Until.model_validate(written)


def recorded(curve: tuple[tuple[int, float, float], ...]) -> tuple[Evaluation, ...]:
    return tuple(Evaluation(tokens, tokens // 4096, round(flops * 1e8), 0.0, loss) for tokens, flops, loss in curve)


def evaluated(*losses: float) -> tuple[Evaluation, ...]:
    """The first on entering; after it one per 100 tokens of 10 FLOPs each, in a run that begins here."""
    return tuple(Evaluation(100 * n, n, 1000 * n, float(n), loss) for n, loss in enumerate(losses))


def seen(*losses: float, tokens: int = 0, steps: int = 0, flops: int = 0, seconds: float = 0.0) -> Seen:
    return Seen(tokens, steps, flops, seconds, evaluated(*losses))


def fires_at(rule: Until, curve: tuple[Evaluation, ...]) -> int | None:
    """The tokens of the run at which a stage with this curve would end."""
    for count in range(1, len(curve) + 1):
        last = curve[count - 1]
        here = Seen(last.position - curve[0].position, 0, last.flops - curve[0].flops, last.seconds, curve[:count])
        if fired(rule, here):
            return last.position
    return None


# --- what ends a stage ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "before", "after", "said"),
    [
        ({"tokens": 1000}, {"tokens": 999}, {"tokens": 1024}, "tokens: the stage has had 1,024 of 1,000"),
        ({"steps": 10}, {"steps": 9}, {"steps": 10}, "steps: the stage has had 10 of 10"),
        ({"flops": "1K"}, {"flops": 999}, {"flops": 1001}, "flops: the stage has had 1,001 of 1,000"),
        ({"seconds": "2m"}, {"seconds": 119.9}, {"seconds": 120.26}, "seconds: the stage has had 120.3 of 120"),
    ],
)
def test_what_is_counted(written: dict, before: dict, after: dict, said: str) -> None:
    assert fired(until(**written), seen(**before)) is None
    assert fired(until(**written), seen(**after)) == said


def test_a_target_loss_is_reached_at_or_below_it() -> None:
    rule = until(eval_loss=1.5)
    assert fired(rule, seen(2.0, 1.51)) is None
    assert fired(rule, seen(2.0, 1.5)) == "eval_loss: the held-out loss is 1.5000, at or below 1.5"
    assert fired(rule, seen(2.0, 1.4, 1.6)) is None  # that of now counts
    assert fired(rule, seen(2.0, math.nan)) is None


@pytest.mark.parametrize(
    "rule", [until(eval_loss=3.0), until(plateau={"min_delta": 0.01, "patience": 1}), until(slope={"tau": -0.05})]
)
def test_nothing_ends_a_stage_before_it_has_made_an_evaluation_of_its_own(rule: Until) -> None:
    """Else a stage that is entered at its target, or on a plateau, would have no step at all."""
    assert fired(rule, seen()) is None
    assert fired(rule, seen(2.0)) is None


def test_plateau_by_hand() -> None:
    """The best before is 2.3180, the best of the last three 2.3141: 0.0039 below, and 0.01 was asked for."""
    rule = until(**PLATEAU)
    losses = (2.9, 2.40, 2.3180, 2.33, 2.3141)
    assert fired(rule, seen(*losses)) is None  # 2.40 was the only one before the last three
    assert fired(rule, seen(*losses, 2.32)) == (
        "plateau: the best of the last 3 held-out losses, 2.3141, is not 0.01 below 2.3180, the best before"
    )
    assert fired(rule, seen(*losses, 2.30)) is None  # 0.018 below


def test_a_plateau_is_not_what_follows_a_lucky_evaluation_nor_ended_by_recovering_from_an_unlucky_one() -> None:
    rule = until(plateau={"min_delta": 0.1, "patience": 2})
    assert fired(rule, seen(9.0, 3.0, 2.5, 2.8, 2.3)) is None
    assert fired(rule, seen(9.0, 2.5, 3.0, 2.9, 2.85)) is not None
    assert fired(rule, seen(9.0, 3.0, 2.9, 3.4, 2.95)) is not None


@pytest.mark.parametrize("entered", [1.9, 2.1, 9.0, math.nan])
def test_how_high_a_growth_jumped_makes_no_plateau_and_hides_none(entered: float) -> None:
    """2.10, 2.05, 2.00, 1.95 is learning, also for one that was entered with 1.9 by an exact growth."""
    rule = until(**PLATEAU)
    assert fired(rule, seen(entered, 2.10, 2.05, 2.00, 1.95)) is None
    assert fired(rule, seen(entered, 2.10, 2.10, 2.10, 2.10)) is not None


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_gain(lost: float) -> None:
    rule = until(**PLATEAU)
    assert fired(rule, seen(9.0, 2.0, lost, lost, lost)) is not None
    assert fired(rule, seen(9.0, lost, lost, lost, lost)) is not None
    assert fired(rule, seen(9.0, 2.0, lost, 1.9, lost)) is None
    assert fired(rule, seen(9.0, lost, lost, lost, 2.0)) is None


@pytest.mark.parametrize(
    ("min_delta", "patience", "tokens"),
    [
        (0.05, 1, 262_144),  # 2.6218 - 2.5864 = 0.035, the first step below 0.05
        (0.12, 3, 344_064),  # 2.5378 - 2.4199 = 0.118; before it 2.5864 - 2.4580 = 0.128
        (0.02, 1, None),
    ],
)
def test_plateau_on_a_recorded_curve(min_delta: float, patience: int, tokens: int | None) -> None:
    rule = until(plateau={"min_delta": min_delta, "patience": patience})
    assert fires_at(rule, recorded(SMALL)) == tokens


def test_plateau_after_a_recorded_growth() -> None:
    """2.2989 - 2.2804 = 0.0185 is the first gain of the grown stage's own, the 0.077 on entering is none."""
    rule = until(plateau={"min_delta": 0.02, "patience": 1})
    assert fires_at(rule, recorded(MEDIUM)) == 442_368


# --- the slope --------------------------------------------------------------------------------


def powers(*exponents: float) -> tuple[Evaluation, ...]:
    """Losses of 10^exponent after 10, 100, 1,000, ... FLOPs: log10 C goes up by 1 each time."""
    return tuple(Evaluation(n, n, 10 ** (n + 1), 0.0, 10**exponent) for n, exponent in enumerate(exponents))


# Averages over five: 0.80, 0.70, 0.616, 0.548, 0.496, 0.460. Their differences are the slopes, as log10 C goes up by 1.
BENDING = powers(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.48, 0.46, 0.44, 0.42)


def test_slopes_by_hand() -> None:
    assert loss_slopes(BENDING) == pytest.approx((-0.100, -0.084, -0.068, -0.052, -0.036))


def test_a_slope_takes_six_points() -> None:
    assert loss_slopes(BENDING[:5]) == ()
    assert loss_slopes(BENDING[:6]) == pytest.approx((-0.1,))


def test_log_flops_are_taken_at_the_middles_of_the_windows() -> None:
    """The third and the fourth of six are the middles: between them log10 C goes up by 2, so the slope is halved."""
    points = [*BENDING[:3], *(Evaluation(p.position, p.steps, p.flops * 10, 0.0, p.loss) for p in BENDING[3:6])]
    assert loss_slopes(points) == pytest.approx((-0.05,))


@pytest.mark.parametrize("spike", [10**0.8 * 1.02, math.nan, math.inf, 0.0], ids=["2 % up", "NaN", "infinite", "0"])
def test_a_spike_is_left_out(spike: float) -> None:
    """Between the third and the fourth, of 10^0.8 and 10^0.7."""
    points = [*BENDING[:3], Evaluation(0, 0, 5_000, 0.0, spike), *BENDING[3:]]
    assert loss_slopes(points) == pytest.approx(loss_slopes(BENDING))


def test_a_rise_of_less_than_one_per_cent_is_no_spike() -> None:
    points = [*BENDING[:3], Evaluation(0, 0, 5_000, 0.0, 10**0.8 * 1.009), *BENDING[3:]]
    assert len(loss_slopes(points)) == len(loss_slopes(BENDING)) + 1


def test_before_the_first_flops_there_is_no_slope() -> None:
    assert loss_slopes([Evaluation(0, 0, 0, 0.0, 11.0), *BENDING]) == loss_slopes(BENDING)


@pytest.mark.parametrize(
    ("tau", "hits", "points"),
    [
        (-0.06, 1, 9),  # the fourth slope, -0.052, is the first above; it takes nine points
        (-0.06, 2, 10),
        (-0.06, 3, None),  # -0.068 is below, and only two come after it
        (-0.09, 3, 9),  # -0.084, -0.068, -0.052
        (-0.12, 1, None),  # never at or below: it did not rise above
    ],
)
def test_when_the_slope_has_risen(tau: float, hits: int, points: int | None) -> None:
    rule = until(slope={"tau": tau, "hits": hits})
    curve = (Evaluation(0, 0, 1, 0.0, 99.0), *BENDING)
    counts = [n for n in range(1, 11) if fired(rule, Seen(0, 0, 0, 0.0, curve[: n + 1]))]
    assert counts == ([] if points is None else list(range(points, 11)))


def test_what_is_said_of_a_slope() -> None:
    here = Seen(0, 0, 0, 0.0, (BENDING[0], *BENDING))
    assert fired(until(slope={"tau": -0.06}), here) == (
        "slope: that of log10 loss over log10 FLOPs was 2 times in a row above -0.06 (-0.0520, -0.0360)"
    )
    assert "FLOPs is above -0.04 (-0.0360)" in fired(until(slope={"tau": -0.04, "hits": 1}), here)


def test_the_slope_of_a_recorded_curve() -> None:
    """Of a small model's slopes -0.248 is the eighth, -0.243 and -0.229 the eleventh and twelfth: two in a row above
    -0.25, known at the 17th evaluation after the one on entering."""
    curve = recorded(SMALL)
    slopes = loss_slopes(curve[1:])
    assert [round(slope, 3) for slope in slopes[7:12]] == [-0.248, -0.263, -0.253, -0.243, -0.229]
    assert fires_at(until(slope={"tau": -0.25}), curve) == curve[17].position == 344_064
    assert fires_at(until(slope={"tau": -0.25, "hits": 1}), curve) == curve[13].position
    assert fires_at(until(slope={"tau": -0.15}), recorded(MEDIUM)) is None  # its last slope alone is above


# --- several at once --------------------------------------------------------------------------


def test_the_first_of_several_ends_it_and_the_most_telling_is_named() -> None:
    rule = until(eval_loss=1.5, tokens=1000)
    assert fired(rule, seen(2.0, 1.6, tokens=900)) is None
    assert fired(rule, seen(2.0, 1.6, tokens=1000)).startswith("tokens: ")
    assert fired(rule, seen(2.0, 1.4, tokens=900)).startswith("eval_loss: ")
    assert fired(rule, seen(2.0, 1.4, tokens=1000)).startswith("eval_loss: ")


def test_all_waits_for_the_last_and_says_each() -> None:
    rule = until(all=[{"tokens": 500}, {"eval_loss": 1.5}], tokens=1000)
    assert fired(rule, seen(2.0, 1.4, tokens=400)) is None
    assert fired(rule, seen(2.0, 1.6, tokens=600)) is None
    assert fired(rule, seen(2.0, 1.4, tokens=600)) == (
        "tokens: the stage has had 600 of 500; and eval_loss: the held-out loss is 1.4000, at or below 1.5"
    )
    assert fired(rule, seen(2.0, 1.6, tokens=1000)) == "tokens: the stage has had 1,000 of 1,000"


def test_any_and_all_inside_each_other() -> None:
    """(loss <= 1.5 or 5 minutes) and 10 steps; whatever else, 20 steps."""
    rule = until(all=[{"any": [{"eval_loss": 1.5}, {"seconds": "5m"}]}, {"steps": 10}], steps=20)
    assert fired(rule, seen(2.0, 1.4, steps=9)) is None
    assert fired(rule, seen(2.0, 1.4, steps=10)) is not None
    assert fired(rule, seen(2.0, 1.6, steps=10, seconds=299)) is None
    assert fired(rule, seen(2.0, 1.6, steps=10, seconds=300)) is not None
    assert fired(rule, seen(2.0, 1.6, steps=20)) is not None


def test_keys_in_one_mapping_of_all_are_any() -> None:
    rule = until(all=[{"steps": 10, "tokens": 500}, {"seconds": 60}])
    assert fired(rule, seen(steps=3, tokens=500, seconds=60)) is not None
    assert fired(rule, seen(steps=3, tokens=499, seconds=60)) is None
