"""Interfaces for the tests of runners: quick ones, a sleeping one, and those that end their process or fail."""

import os
import time
from pathlib import Path

import torch

from composer.dataflow import INTERFACES, Interface


@INTERFACES.register("draws")
class Draws(Interface):
    """Numbers that depend on the call, the iteration, and the model's weights."""

    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def inference(self, model, sample, context):
        with torch.no_grad():
            logits = model.logits(sample.values("ids"), sample.lengths("ids"))
        drawn = torch.rand(sample.bs, generator=context.generator)
        context.log("drawn", float(drawn.sum()))
        return {"rewards": drawn + logits.sum()}


@INTERFACES.register("fits")
class Fits(Interface):
    """Trains on the mean of the logits, weighted by the rewards."""

    reads = {"train_step": ("ids", "rewards")}

    def train_step(self, model, sample, context):
        logits = model.logits(sample.values("ids"), sample.lengths("ids"))
        loss = (logits.logsumexp(-1).mean() - 1) ** 2 + sample.values("rewards").mean() * 1e-3
        context.log("loss", float(loss.detach()))
        context.log("norm", model.step(loss))


@INTERFACES.register("sleeps")
class Sleeps(Interface):
    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards", "scores")}

    def __init__(self, seconds=0.5):
        self.seconds = seconds

    def inference(self, model, sample, context):
        time.sleep(self.seconds)
        return {name: torch.ones(sample.bs) for name in ("rewards", "scores")}


@INTERFACES.register("counts")
class Counts(Interface):
    needs_model = False
    reads = {"evaluate": ("rewards",)}
    optional = {"evaluate": ("scores",)}

    def evaluate(self, model, sample, context):
        context.log("reward", float(sample.values("rewards").sum()))


@INTERFACES.register("ends_once")
class EndsOnce(Interface):
    """Ends its process in one iteration, unless the file ``mark`` is there."""

    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def __init__(self, mark="", iteration=0):
        self.mark, self.iteration = mark, iteration

    def inference(self, model, sample, context):
        if context.iteration == self.iteration and not (self.mark and Path(self.mark).exists()):
            if self.mark:
                Path(self.mark).touch()
            os._exit(7)
        return {"rewards": torch.ones(sample.bs)}


@INTERFACES.register("fails")
class Fails(Interface):
    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def inference(self, model, sample, context):
        raise ZeroDivisionError("nothing to divide by")


@INTERFACES.register("big")
class Big(Interface):
    """Values of 8 MB for each item."""

    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def inference(self, model, sample, context):
        return {"rewards": torch.ones(sample.bs, 2_000_000)}
