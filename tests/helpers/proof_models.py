"""The models of tests/specs/proofs in training, in one process or in several."""

import torch

import composer.parallel
from composer.parallel.trials import Trial
from tests.helpers.paths import TESTS

SPECS = TESTS / "specs" / "proofs"


def trial_of(model, place, steps):
    """A trial of a model whose batch two processes share, and its optimizer, after some steps."""
    trial = Trial(model.eval(), 2, place)
    optimizer = composer.parallel.optimizer(model, torch.optim.AdamW, lr=1e-2)
    for _ in range(steps):
        step(trial, optimizer)
    return trial, optimizer


def step(trial, optimizer):
    trial.loss().backward()
    optimizer.step()
    optimizer.zero_grad()
    trial.follow()
