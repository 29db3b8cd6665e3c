"""The curves of a report: which losses are worth showing."""

from __future__ import annotations

from raystage.reports.curves import Point, loss_range


def test_the_first_steep_part_does_not_set_the_loss_axis():
    steep = [Point(0, 0, 5.5), Point(10, 10, 3.0), Point(50, 50, 2.0), Point(100, 100, 1.5)]
    low, high = loss_range([steep])
    assert 1.3 < low < 1.5
    assert 2.0 < high < 2.1


def test_a_flat_curve_has_a_loss_axis_too():
    low, high = loss_range([[Point(100, 100, 1.5)]])
    assert low < 1.5 < high
