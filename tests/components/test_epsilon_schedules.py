"""Schedules, value by value."""

import math

import pytest

from components.epsilon_schedules import DecayThenFlatSchedule


@pytest.mark.parametrize(("T", "value"), [(0, 1.0), (10000, 0.81), (25000, 0.525), (50000, 0.05), (60000, 0.05)])
def test_linear(T, value):
    # 1 - .95 T / 50000
    assert DecayThenFlatSchedule(1.0, 0.05, 50000, decay="linear").eval(T) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("T", "value"),
    [(0, 1.0), (50, 0.05**0.5), (100, 0.05), (101, 0.05), (10000, 0.05)],  # .05^(T/100)
)
def test_exponential(T, value):
    assert DecayThenFlatSchedule(1.0, 0.05, 100).eval(T) == pytest.approx(value, abs=1e-12)


def test_exponential_is_cut_at_the_start():
    schedule = DecayThenFlatSchedule(0.5, 0.01, 100, decay="exp")
    assert schedule.eval(0) == 0.5
    assert schedule.eval(50) == pytest.approx(0.1)  # .01^(1/2)


def test_exponential_to_zero_falls_by_a_factor_e_each_step():
    schedule = DecayThenFlatSchedule(1.0, 0.0, 100, decay="exp")
    assert schedule.eval(2) == pytest.approx(math.exp(-2))


@pytest.mark.parametrize("decay", ["linear", "exp"])
def test_no_time_to_fall(decay):
    schedule = DecayThenFlatSchedule(1.0, 0.05, 0, decay=decay)
    assert schedule.eval(0) == schedule.eval(5) == 0.05


@pytest.mark.parametrize("decay", ["linear", "exp"])
def test_constant_one(decay):
    """Uniformly random play, as for data of the matrix games."""
    schedule = DecayThenFlatSchedule(1.0, 1.0, 100, decay=decay)
    assert [schedule.eval(T) for T in (0, 50, 200)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("decay", ["linear", "exp"])
def test_never_rises_and_stays_within_its_ends(decay):
    schedule = DecayThenFlatSchedule(0.9, 0.1, 37, decay=decay)
    values = [schedule.eval(T) for T in range(80)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 0.9
    assert values[36] > 0.1 + 1e-3
    assert values[37:] == pytest.approx([0.1] * 43)


def test_unknown_decay():
    with pytest.raises(ValueError, match="decay must be 'linear' or 'exp', got 'cosine'"):
        DecayThenFlatSchedule(1.0, 0.05, 100, decay="cosine")
