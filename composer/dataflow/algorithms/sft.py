"""Supervised fine-tuning: the most probable model of given sequences."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from composer.dataflow.algorithms.interfaces import Interface, Written
from composer.dataflow.algorithms.models import ExperimentModel
from composer.dataflow.algorithms.packing import drop_first, micro_batches
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample, SampleError
from perception_blocks.settings import PositiveInt

__all__ = ["Sft", "answer_mask"]


class Sft(Interface):
    """Maximises the likelihood of the tokens that follow the prompt of each sequence.

    The loss is the mean of ``-logp`` over the tokens where ``prompt_mask`` is false (without a mask, all tokens but
    the first of each sequence). ``inference`` gives ``logp`` of all tokens but the first. At most about
    ``max_tokens_per_mb`` tokens are read at once; this changes no result.
    """

    reads = {"train_step": ("ids",), "evaluate": ("ids",), "inference": ("ids",)}
    optional = {"train_step": ("prompt_mask",), "evaluate": ("prompt_mask",)}
    writes = {"inference": ("logp",)}
    takes = {"train_step": "actor", "evaluate": "actor", "inference": "actor"}

    def __init__(self, *, max_tokens_per_mb: PositiveInt = 2**14) -> None:
        self.max_tokens_per_mb = max_tokens_per_mb

    def train_step(self, model: ExperimentModel, sample: Sample, context: Context) -> None:
        """A step along the gradients of the mean loss; logs ``loss``, ``grad_norm`` and ``tokens``."""
        total = 0.0

        def losses() -> Iterator[Tensor]:
            nonlocal total
            for loss in self._losses(model, sample, context):
                total += loss.item()
                yield loss

        norm = model.step(losses(), context)
        context.log("loss", total)
        context.log("grad_norm", norm)
        context.log("tokens", float(sample.lengths("ids").sum()))

    @torch.no_grad()
    def evaluate(self, model: ExperimentModel, sample: Sample, context: Context) -> None:
        """Logs ``loss``, and its exponential as ``perplexity``."""
        loss = sum(loss.item() for loss in self._losses(model, sample, context))
        context.log("loss", loss)
        context.log("perplexity", math.exp(min(loss, 700.0)))

    @torch.no_grad()
    def inference(self, model: ExperimentModel, sample: Sample, context: Context) -> Written:
        return {"logp": logp_of(model, sample, self.max_tokens_per_mb)}

    def _losses(self, model: ExperimentModel, sample: Sample, context: Context) -> Iterator[Tensor]:
        """What each micro-batch adds to the mean loss."""
        count = int(answer_mask(sample).sum())
        if count == 0:
            raise SampleError(
                f"{context.where()}: no token follows a prompt: 'prompt_mask' is true for all of them"
            )
        for part in micro_batches(sample, self.max_tokens_per_mb):
            logp = model.logp(part.values("ids"), part.lengths("ids"))
            yield -logp[answer_mask(part).to(logp.device)].sum() / count


def answer_mask(sample: Sample) -> Tensor:
    """Of each token but the first of its sequence, whether it belongs to no prompt."""
    lengths = sample.lengths("ids")
    if "prompt_mask" in sample.keys:
        return ~drop_first(sample.values("prompt_mask").bool(), lengths)
    if "prompt_lens" in sample.keys:
        return after_prompts(sample)
    return torch.ones(int((lengths - 1).sum()), dtype=torch.bool)


def after_prompts(sample: Sample) -> Tensor:
    """`answer_mask` of a sample that has ``prompt_lens``: a number for each sequence, or for all of an item."""
    rows = []
    for item in sample.unpack():
        counts = item.values("prompt_lens").tolist()
        lengths = item.lengths("ids").tolist()
        if len(counts) == 1:
            counts *= len(lengths)
        for length, count in zip(lengths, counts, strict=True):
            rows.append(torch.arange(1, length) >= count)
    return torch.cat(rows)


def logp_of(
    model: ExperimentModel, sample: Sample, most_tokens: int, temperature: float = 1.0
) -> Tensor:
    """The log-probabilities of all tokens but the first of each sequence, on the CPU."""
    rows = [
        model.logp(part.values("ids"), part.lengths("ids"), temperature)
        for part in micro_batches(sample, most_tokens)
    ]
    return torch.cat(rows).cpu()
