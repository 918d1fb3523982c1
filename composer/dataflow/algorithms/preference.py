"""Learning from pairs of sequences, of which the first is the better one: reward models, and DPO."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from composer.dataflow.algorithms.interfaces import Interface, Written
from composer.dataflow.algorithms.models import ExperimentModel
from composer.dataflow.algorithms.packing import last, micro_batches, require_finite, sums
from composer.dataflow.algorithms.sft import answer_mask, logp_of
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample, SampleError
from perception_blocks.settings import PositiveFloat, PositiveInt

__all__ = ["Dpo", "PairedReward"]


class _PairInterface(Interface, ABC):
    """What learns from numbers of sequences, of which those of the better ones should be larger.

    Each item has an even number of sequences: better and worse in turns.
    """

    logged: ClassVar[tuple[str, str]]
    """The names of the mean numbers of better and of worse sequences in the log."""
    max_tokens_per_mb: int

    def train_step(self, model: ExperimentModel, sample: Sample, context: Context) -> None:
        """A step; logs what `evaluate` does, and ``grad_norm``."""
        tally = _Tally(*self.logged)
        norm = model.step(self._losses(model, sample, context, tally), context)
        tally.log(context)
        context.log("grad_norm", norm)

    @torch.no_grad()
    def evaluate(self, model: ExperimentModel, sample: Sample, context: Context) -> None:
        """Logs ``loss``, ``accuracy`` (of pairs in the right order) and the means of both numbers."""
        tally = _Tally(*self.logged)
        for _ in self._losses(model, sample, context, tally):
            pass
        tally.log(context)

    def _losses(
        self, model: ExperimentModel, sample: Sample, context: Context, tally: _Tally
    ) -> Iterator[Tensor]:
        """What each micro-batch adds to the loss."""
        require_finite(sample, context)
        weights = pair_weights(sample, context)
        for part in micro_batches(sample, self.max_tokens_per_mb):
            better, worse = self._numbers(model, part).unflatten(0, (-1, 2)).unbind(-1)
            yield tally.loss(better, worse, weights[: len(better)])
            weights = weights[len(better) :]

    @abstractmethod
    def _numbers(self, model: ExperimentModel, sample: Sample) -> Tensor:
        """A number for each sequence, (S,)."""


class PairedReward(_PairInterface):
    """A reward model: a critic whose score of a sequence is its value at the last token.

    Each item has an even number of sequences: better and worse in turns. The loss is the mean over items of the mean
    over their pairs of ``-log sigmoid(better - worse)`` (Bradley and Terry, 1952; Ouyang et al., 2022). ``inference``
    gives ``rewards``, a number for each sequence: ``(score - output_bias) * output_scaling``. The means of the scores
    are logged as ``better_score`` and ``worse_score``.
    """

    reads = {"train_step": ("ids",), "evaluate": ("ids",), "inference": ("ids",)}
    optional = {
        "train_step": ("prompt_lens",),
        "evaluate": ("prompt_lens",),
        "inference": ("prompt_mask",),  # which rewards of texts in its place read
    }
    writes = {"inference": ("rewards",)}
    takes = {"train_step": "critic", "evaluate": "critic", "inference": "critic"}
    logged = ("better_score", "worse_score")

    def __init__(
        self,
        *,
        output_scaling: float = 1.0,
        output_bias: float = 0.0,
        max_tokens_per_mb: PositiveInt = 2**14,
    ) -> None:
        self.output_scaling, self.output_bias = output_scaling, output_bias
        self.max_tokens_per_mb = max_tokens_per_mb

    @torch.no_grad()
    def inference(self, model: ExperimentModel, sample: Sample, context: Context) -> Written:
        parts = micro_batches(sample, self.max_tokens_per_mb)
        scores = torch.cat([self._numbers(model, part) for part in parts]).cpu()
        return {"rewards": (scores - self.output_bias) * self.output_scaling}

    def _numbers(self, model: ExperimentModel, sample: Sample) -> Tensor:
        lengths = sample.lengths("ids")
        return last(model.scores(sample.values("ids"), lengths), lengths)


class Dpo(_PairInterface):
    """Direct preference optimisation (Rafailov et al., 2023), of a model with a reference.

    Each item has an even number of sequences: better and worse in turns. With the sums over the tokens after the
    prompt of ``logp - ref_logp`` as log-ratios, the loss is the mean over items of the mean over their pairs of
    ``-log sigmoid(beta * (ratio of the better - ratio of the worse))``. ``inference`` gives ``logp`` of all tokens but
    the first: call it with the reference, and let it write ``{logp: ref_logp}``. The means of ``beta`` times the
    log-ratios are logged as ``better_reward`` and ``worse_reward``.
    """

    reads = {
        "train_step": ("ids", "ref_logp"),
        "evaluate": ("ids", "ref_logp"),
        "inference": ("ids",),
    }
    optional = {
        "train_step": ("prompt_lens", "prompt_mask"),
        "evaluate": ("prompt_lens", "prompt_mask"),
    }
    writes = {"inference": ("logp",)}
    takes = {"train_step": "actor", "evaluate": "actor", "inference": "actor"}
    logged = ("better_reward", "worse_reward")

    def __init__(
        self, *, beta: PositiveFloat = 0.1, max_tokens_per_mb: PositiveInt = 2**14
    ) -> None:
        self.beta = beta
        self.max_tokens_per_mb = max_tokens_per_mb

    @torch.no_grad()
    def inference(self, model: ExperimentModel, sample: Sample, context: Context) -> Written:
        return {"logp": logp_of(model, sample, self.max_tokens_per_mb)}

    def _numbers(self, model: ExperimentModel, sample: Sample) -> Tensor:
        lengths = sample.lengths("ids")
        logp = model.logp(sample.values("ids"), lengths)
        ratios = logp - sample.values("ref_logp").to(logp)
        ratios = torch.where(answer_mask(sample).to(logp.device), ratios, 0.0)
        return self.beta * sums(ratios, lengths - 1)


class _Tally:
    """Means over pairs, weighted as the loss is: of the loss, of pairs in the right order, and of both sides."""

    def __init__(self, better: str, worse: str) -> None:
        self.names = ("loss", "accuracy", better, worse)
        self.numbers = [0.0] * 4

    def loss(self, better: Tensor, worse: Tensor, weights: Tensor) -> Tensor:
        margin = better - worse
        weights = weights.to(margin)
        loss = -(logsigmoid(margin) * weights).sum()
        terms = [(margin > 0).to(margin), better, worse]
        seen = [loss, *((term * weights).sum() for term in terms)]
        self.numbers = [a + b.item() for a, b in zip(self.numbers, seen)]
        return loss

    def log(self, context: Context) -> None:
        for name, number in zip(self.names, self.numbers):
            context.log(name, number)


def pair_weights(sample: Sample, context: Context) -> Tensor:
    """The share of each pair in the mean over items of the mean over their pairs.

    Raises SampleError, which names the item, for an item without pairs.
    """
    counts = [len(item) for item in sample.seqlens["ids"]]
    for name, count in zip(sample.ids, counts):
        if count == 0 or count % 2:
            raise SampleError(
                f"{context.where()}: pairs have two sequences, the better one first, and item {name!r} has {count}"
            )
    pairs = torch.tensor(counts) // 2
    return (1.0 / (pairs * len(counts))).repeat_interleave(pairs)
