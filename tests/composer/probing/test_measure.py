"""The numbers of a layer against their definitions."""

import math

import numpy as np
import pytest
import torch

from composer.probing.measure import MOST_SAMPLES, Activity, dormant_share, stable_rank
from composer.probing.watched import norm_of
from tests.helpers.other_device import Moved, elsewhere


def measured(x, *, axis=-1, bounds=None, tau=0.025, batches=1):
    activity = Activity(batches, bounds)
    for part in x.chunk(batches):
        activity.add(part, axis)
    return activity.measured(tau)


def srank_by_numpy(x, delta=0.01):
    """Kumar et al. (2021): the smallest k whose singular values make 1 - delta of the sum of all."""
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    shares = np.cumsum(values) / values.sum()
    return int(np.argmax(shares >= 1 - delta)) + 1


def dormant_by_numpy(x, tau):
    """Sokar et al. (2023): the score of a unit is its mean |activation| over the mean of the layer's."""
    sizes = np.abs(x.numpy()).mean(axis=0)
    return float((sizes / sizes.mean() <= tau).mean())


@pytest.mark.parametrize("batches", [1, 7])
def test_moments_are_those_of_all_values(batches):
    x = torch.randn(140, 9, generator=torch.Generator().manual_seed(0))
    got = measured(x, batches=batches)
    assert got.units == 9
    assert (got.mean, got.std) == pytest.approx((x.mean().item(), x.std(correction=0).item()))
    assert (got.low, got.high) == (x.min().item(), x.max().item())


@pytest.mark.parametrize("batches", [1, 4])
def test_a_unit_is_dead_that_is_zero_in_every_sample(batches):
    x = torch.ones(64, 10)
    x[:, :3] = 0.0
    x[:-1, 3] = 0.0  # alive in the last sample
    assert measured(x, batches=batches).dead == pytest.approx(0.3)


@pytest.mark.parametrize("tau", [0.0, 0.025, 0.1])
def test_dormant_units_are_those_of_the_definition(tau):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 50, generator=generator).relu() * torch.logspace(-4, 0, 50)
    x[:, 7] = 0.0
    share = measured(x, tau=tau).dormant
    assert share == pytest.approx(dormant_by_numpy(x, tau))
    assert share > 0


def test_all_units_of_a_layer_of_zeros_are_dormant_and_its_rank_is_zero():
    got = measured(torch.zeros(5, 4))
    assert (got.dead, got.dormant, got.srank) == (1.0, 1.0, 0)
    assert dormant_share(torch.zeros(3), 0.0) == 1.0


@pytest.mark.parametrize("shape", [(200, 30), (30, 200), (64, 64), (1, 5)])
@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_the_rank_is_that_of_the_singular_values(shape, decay):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x * torch.exp(-decay * torch.arange(shape[1]))
    assert stable_rank(x) == srank_by_numpy(x)


def test_an_outer_product_has_rank_one_and_numbers_that_are_not_finite_none():
    x = torch.outer(torch.linspace(1, 2, 100), torch.linspace(-1, 3, 40))
    assert stable_rank(x) == 1
    assert stable_rank(x.float()) == 1
    x[0, 0] = math.nan
    assert stable_rank(x) == 0


def test_the_rank_is_of_at_most_2048_samples_spread_over_all():
    x = torch.zeros(5 * MOST_SAMPLES, 4)
    x[:MOST_SAMPLES, 0] = 1.0
    x[-MOST_SAMPLES:, 1] = 1.0
    got = measured(x, batches=5)
    assert got.srank == 2


def test_saturated_values_are_within_a_hundredth_of_a_bound():
    x = torch.tensor([[-1.0, -0.991], [0.0, 0.995], [0.98, -0.98], [1.0, 0.5]])
    assert measured(x, bounds=(-1.0, 1.0)).saturated == pytest.approx(4 / 8)
    assert measured(x).saturated is None


def test_channels_of_an_image_are_units_and_places_are_samples():
    x = torch.zeros(6, 3, 5, 4)
    x[:, 1] = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0)) + 1
    got = measured(x, axis=-3)
    assert (got.units, got.dead, got.srank) == (3, pytest.approx(2 / 3), 1)
    same = measured(x.movedim(1, -1).flatten(0, -2))
    assert got == same


def test_a_single_number_is_one_unit_and_nothing_has_no_numbers():
    assert measured(torch.tensor(2.0).reshape(())[None]).units == 1
    activity = Activity(1)
    activity.add(torch.tensor(2.0))
    assert activity.measured().units == 1
    empty = Activity(1)
    empty.add(torch.zeros(0, 3))
    assert empty.measured() is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("batches", [1, 3])
def test_what_is_not_finite_is_told_and_not_counted_as_alive(wrong, batches):
    x = torch.ones(6, 4)
    x[1, 2] = wrong
    x[:, 3] = 0.0
    got = measured(x, batches=batches)
    assert not math.isfinite(got.mean)
    assert not math.isfinite(got.high)
    assert math.isnan(got.low) == math.isnan(wrong)
    assert math.isnan(got.dormant)
    assert (got.dead, got.srank) == (0.25, 0)


def test_a_device_without_float64_gives_the_same_numbers(monkeypatch):
    """As Apple's, MPS, which refuses it."""
    x = torch.randn(64, 5).relu()
    expected = Activity(1)
    expected.add(x)

    def init(self, inner):
        assert inner.dtype != torch.float64
        self.inner = inner

    for file in ("measure", "watched"):
        monkeypatch.setattr(f"composer.probing.{file}.accumulator", lambda device: torch.float32)
    monkeypatch.setattr(Moved, "__init__", init)
    activity = Activity(1)
    with elsewhere() as device:
        there = x.to(device)
        with pytest.raises(AssertionError):
            there.double()
        activity.add(there)
        assert norm_of([there]) == pytest.approx(norm_of([x]))
    ours, theirs = vars(activity.measured()), vars(expected.measured())
    assert ours == pytest.approx(theirs)
