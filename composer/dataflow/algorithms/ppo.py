"""Proximal policy optimisation of a token policy, with a penalty for leaving a reference: its actor and its critic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from composer.dataflow.algorithms.decoding import GenerationSettings, Share, Temperature
from composer.dataflow.algorithms.generation import generated
from composer.dataflow.algorithms.interfaces import Interface, Written
from composer.dataflow.algorithms.models import ExperimentModel
from composer.dataflow.algorithms.packing import (
    drop_last,
    micro_batches,
    parts,
    require_finite,
    sums,
)
from composer.dataflow.algorithms.policy_gradient import (
    ValueNorm,
    actor_losses,
    adapted_kl,
    advantages,
    critic_losses,
    normalized,
    token_rewards,
)
from composer.dataflow.algorithms.sft import answer_mask, logp_of
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample, SampleError
from perception_blocks.settings import (
    Coefficient,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
)

__all__ = ["PpoActor", "PpoCritic", "RewardSettings"]

MOST_DIFFERENCE = 0.1  # of log-probabilities of one policy, computed twice in any dtype
READS = ("ids", "logp", "ref_logp", "rewards", "values", "prompt_mask")
Forgetting = Annotated[float, Range(0.0, 0.999999999)]


@dataclass(frozen=True)
class RewardSettings:
    """What rewards and returns are, for the actor and its critic alike."""

    kl_ctl: float
    adaptive_kl_ctl: bool
    adaptive_kl_target: float
    adaptive_kl_horizon: float
    discount: float
    gae_lambda: float
    max_reward_clip: float
    reward_output_scaling: float
    reward_output_bias: float
    mask_no_eos_with_zero: bool

    def estimate(self, model: ExperimentModel, sample: Sample, context: Context) -> Estimates:
        """Advantages and returns of a batch. Raises SampleError for numbers that are not finite."""
        require_finite(sample, context)
        lengths = sample.lengths("ids")
        if bool((lengths < 2).any()):
            raise SampleError(
                f"{context.where()}: a sequence of one token has no action; generate at least one"
            )
        actions = answer_mask(sample)
        if not bool(actions.any()):
            raise SampleError(
                f"{context.where()}: no token follows a prompt: 'prompt_mask' is true for all of them"
            )
        kl = torch.where(actions, sample.values("logp") - sample.values("ref_logp"), 0.0).float()
        kl_ctl = model.recall("kl_ctl", self.kl_ctl) if self.adaptive_kl_ctl else self.kl_ctl
        raw = sample.values("rewards").float()
        scores = (raw - self.reward_output_bias) * self.reward_output_scaling
        goes_on = torch.zeros(len(lengths), dtype=torch.bool)
        if "no_eos" in sample.keys:
            goes_on = sample.values("no_eos").bool()
            if self.mask_no_eos_with_zero:
                scores = torch.where(goes_on, 0.0, scores)
        values = sample.values("values").float().clone()
        values[lengths.cumsum(0) - 1] *= goes_on  # what ended is worth nothing more
        rewards = token_rewards(kl, scores, lengths, kl_ctl, self.max_reward_clip)
        advantage, returns = advantages(rewards, values, lengths, self.discount, self.gae_lambda)
        kl_of_sequence = sums(kl, lengths - 1).mean().item()
        context.log("reward", raw.mean().item())
        context.log("kl", kl_of_sequence)
        context.log("kl_ctl", kl_ctl)
        if self.adaptive_kl_ctl:
            target, horizon = self.adaptive_kl_target, self.adaptive_kl_horizon
            after = adapted_kl(kl_ctl, kl_of_sequence, target, horizon, len(lengths))
            model.remember("kl_ctl", after)
        return Estimates(actions, advantage, returns, drop_last(values, lengths))


@dataclass(frozen=True)
class Estimates:
    """Of each token but the first of its sequence: whether it is an action, its advantage, return, and old value."""

    actions: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor


class PpoActor(Interface):
    """The policy of PPO (Schulman et al., 2017; Ziegler et al., 2019; Ouyang et al., 2022).

    ``generate`` continues prompts, as `Generation` does. ``inference`` gives ``logp`` of all tokens but the first,
    under the softmax of ``logits / temperature``; for the reference let it write ``{logp: ref_logp}``. All calls of
    one experiment need the same ``temperature``.

    ``train_step`` takes each of the ``n_minibatches`` once. The reward of a token is ``-kl_ctl * (logp - ref_logp)``,
    and at the end of the sequence ``(rewards - reward_output_bias) * reward_output_scaling``, clipped at
    ``max_reward_clip``. Where the mean ratio of probabilities is above ``early_stop_imp_ratio``, or the mean of ``old
    logp - logp`` above ``early_stop_kl``, this minibatch and those after it are left out.
    """

    reads = {"generate": ("prompts",), "inference": ("ids",), "train_step": READS}
    optional = {"train_step": ("no_eos",)}
    writes = {
        "generate": ("ids", "logp", "prompt_mask", "lengths", "no_eos"),
        "inference": ("logp",),
    }
    takes = {"generate": "actor", "inference": "actor", "train_step": "actor"}

    def __init__(
        self,
        *,
        n_minibatches: PositiveInt = 4,
        kl_ctl: Coefficient = 0.1,
        adaptive_kl_ctl: bool = False,
        adaptive_kl_target: PositiveFloat = 6.0,
        adaptive_kl_horizon: PositiveFloat = 10000.0,
        discount: Probability = 1.0,
        gae_lambda: Probability = 1.0,
        eps_clip: PositiveFloat = 0.2,
        max_reward_clip: PositiveFloat = 5.0,
        reward_output_scaling: float = 1.0,
        reward_output_bias: float = 0.0,
        adv_norm: bool = True,
        early_stop_imp_ratio: PositiveFloat | None = 5.0,
        early_stop_kl: PositiveFloat | None = None,
        mask_no_eos_with_zero: bool = False,
        max_new_tokens: PositiveInt = 256,
        min_new_tokens: NonNegativeInt = 0,
        greedy: bool = False,
        top_p: Share = 1.0,
        top_k: PositiveInt | None = None,
        temperature: Temperature = 1.0,
        max_tokens_per_mb: PositiveInt = 2**14,
    ) -> None:
        self.rewards = RewardSettings(
            kl_ctl, adaptive_kl_ctl, adaptive_kl_target, adaptive_kl_horizon, discount, gae_lambda,
            max_reward_clip, reward_output_scaling, reward_output_bias, mask_no_eos_with_zero,
        )  # fmt: skip
        self.generation = GenerationSettings(
            max_new_tokens, min_new_tokens, greedy, top_p, top_k, temperature
        )
        self.n_minibatches, self.adv_norm, self.eps_clip = n_minibatches, adv_norm, eps_clip
        self.early_stop_imp_ratio, self.early_stop_kl = early_stop_imp_ratio, early_stop_kl
        self.max_tokens_per_mb = max_tokens_per_mb

    def generate(self, model: ExperimentModel, sample: Sample, context: Context) -> Written:
        """Logs the mean ``generated_tokens``, and ``no_eos``, the share of sequences without an end token."""
        return generated(model, sample, context, self.generation)

    @torch.no_grad()
    def inference(self, model: ExperimentModel, sample: Sample, context: Context) -> Written:
        temperature = self.generation.temperature
        return {"logp": logp_of(model, sample, self.max_tokens_per_mb, temperature)}

    def train_step(self, model: ExperimentModel, sample: Sample, context: Context) -> None:
        """A step for each minibatch.

        Logs ``reward``, ``kl`` (of a sequence, from the reference), ``kl_ctl`` and ``advantage``; the means ``loss``,
        ``clip_ratio``, ``importance_ratio``, ``approx_kl`` (of a token, from the policy that generated) and
        ``grad_norm``; and ``early_stop``, the share of minibatches that were left out.
        """
        estimates = self.rewards.estimate(model, sample, context)
        actions, advantage = estimates.actions, estimates.advantages
        context.log("advantage", advantage[actions].mean().item())
        if self.adv_norm:
            advantage = normalized(advantage, actions)
        batch = per_action(
            sample, logp=sample.values("logp"), advantages=advantage, actions=actions
        )
        means = Means("loss", "importance_ratio", "clip_ratio", "approx_kl", "grad_norm")
        minibatches = parts(batch, self.n_minibatches, context, "n_minibatches")
        for number, part in enumerate(minibatches):
            try:
                losses = self._losses(model, part, means, context, is_first=number == 0)
                norm = model.step(losses, context)
            except _TooFarError:
                context.log("early_stop", 1.0 - number / len(minibatches))
                break
            means.add(len(minibatches), grad_norm=norm)
        else:
            context.log("early_stop", 0.0)
        means.log(context)

    def _losses(
        self, model: ExperimentModel, batch: Sample, means: Means, context: Context, is_first: bool
    ) -> Iterator[Tensor]:
        """What each micro-batch adds to the mean loss of a minibatch. Raises _TooFarError.

        ``is_first``: no step was taken since the sequences were generated.
        """
        count = max(int(batch.values("actions").sum()), 1)
        for part in micro_batches(batch, self.max_tokens_per_mb):
            mask = part.values("actions")
            ids, lengths = part.values("ids"), part.lengths("ids")
            logp = model.logp(ids, lengths, self.generation.temperature)[mask.to(model.device)]
            old, advantage = (part.values(name)[mask].to(logp) for name in ("logp", "advantages"))
            losses, ratio, clipped = actor_losses(logp, old, advantage, self.eps_clip)
            approx_kl, several = old - logp.detach(), max(len(ratio), 1)
            if is_first:
                warn_of_other_policy(logp.detach() - old, context)
                is_first = False
            if self._is_too_far(ratio.sum() / several, approx_kl.sum() / several):
                raise _TooFarError
            loss = losses.sum() / count
            means.add(self.n_minibatches, loss=loss.item())
            means.add(
                self.n_minibatches * count,
                importance_ratio=ratio.sum().item(),
                clip_ratio=clipped.sum().item(),
                approx_kl=approx_kl.sum().item(),
            )
            yield loss

    def _is_too_far(self, ratio: Tensor, approx_kl: Tensor) -> bool:
        limits = ((ratio, self.early_stop_imp_ratio), (approx_kl, self.early_stop_kl))
        return any(limit is not None and bool(number > limit) for number, limit in limits)


class PpoCritic(Interface):
    """The critic of PPO: ``inference`` gives ``values`` at all tokens, ``train_step`` fits them to the returns.

    Rewards and returns are those of the actor: give both the same settings. The loss is half the squared error, at
    least that of a value no further than ``value_eps_clip`` from its old one. With ``value_norm`` the network's
    numbers are values in units of running statistics of returns, forgotten by ``value_norm_beta`` a batch ("exp"), or
    not ("ma"); ``value_eps_clip`` is in these units then.
    """

    reads = {"inference": ("ids",), "train_step": READS}
    optional = {"train_step": ("no_eos",)}
    writes = {"inference": ("values",)}
    takes = {"inference": "critic", "train_step": "critic"}

    def __init__(
        self,
        *,
        n_minibatches: PositiveInt = 4,
        kl_ctl: Coefficient = 0.1,
        adaptive_kl_ctl: bool = False,
        adaptive_kl_target: PositiveFloat = 6.0,
        adaptive_kl_horizon: PositiveFloat = 10000.0,
        discount: Probability = 1.0,
        gae_lambda: Probability = 1.0,
        value_eps_clip: PositiveFloat = 0.2,
        max_reward_clip: PositiveFloat = 5.0,
        reward_output_scaling: float = 1.0,
        reward_output_bias: float = 0.0,
        mask_no_eos_with_zero: bool = False,
        value_norm: bool = False,
        value_norm_type: Literal["exp", "ma"] = "exp",
        value_norm_beta: Forgetting = 0.99995,
        value_norm_eps: PositiveFloat = 1e-5,
        max_tokens_per_mb: PositiveInt = 2**14,
    ) -> None:
        self.rewards = RewardSettings(
            kl_ctl, adaptive_kl_ctl, adaptive_kl_target, adaptive_kl_horizon, discount, gae_lambda,
            max_reward_clip, reward_output_scaling, reward_output_bias, mask_no_eos_with_zero,
        )  # fmt: skip
        norm = ValueNorm(value_norm_type, value_norm_beta, value_norm_eps)
        self.value_norm = norm if value_norm else None
        self.n_minibatches, self.value_eps_clip = n_minibatches, value_eps_clip
        self.max_tokens_per_mb = max_tokens_per_mb

    @torch.no_grad()
    def inference(self, model: ExperimentModel, sample: Sample, context: Context) -> Written:
        batches = micro_batches(sample, self.max_tokens_per_mb)
        rows = [model.scores(part.values("ids"), part.lengths("ids")) for part in batches]
        mean, std = self._statistics(model)
        return {"values": torch.cat(rows).cpu().float() * std + mean}

    def train_step(self, model: ExperimentModel, sample: Sample, context: Context) -> None:
        """A step for each minibatch.

        Logs ``reward``, ``kl`` and ``kl_ctl`` as the actor does; the means ``value``, ``return``, ``loss``,
        ``clip_ratio`` and ``grad_norm``.
        """
        estimates = self.rewards.estimate(model, sample, context)
        actions, returns = estimates.actions, estimates.returns
        context.log("value", estimates.values[actions].mean().item())
        context.log("return", returns[actions].mean().item())
        mean, std = self._statistics(model)
        old = (estimates.values - mean) / std
        if self.value_norm is not None:
            self.value_norm.update(model, returns[actions])
        mean, std = self._statistics(model)
        batch = per_action(sample, values=old, returns=(returns - mean) / std, actions=actions)
        means = Means("loss", "clip_ratio", "grad_norm")
        minibatches = parts(batch, self.n_minibatches, context, "n_minibatches")
        for part in minibatches:
            norm = model.step(self._losses(model, part, means), context)
            means.add(len(minibatches), grad_norm=norm)
        means.log(context)

    def _losses(self, model: ExperimentModel, batch: Sample, means: Means) -> Iterator[Tensor]:
        count = max(int(batch.values("actions").sum()), 1)
        for part in micro_batches(batch, self.max_tokens_per_mb):
            mask, lengths = part.values("actions"), part.lengths("ids")
            scores = drop_last(model.scores(part.values("ids"), lengths), lengths)
            scores = scores[mask.to(scores.device)].float()
            old, returns = (part.values(name)[mask].to(scores) for name in ("values", "returns"))
            losses, clipped = critic_losses(scores, old, returns, self.value_eps_clip)
            loss = losses.sum() / count
            means.add(self.n_minibatches, loss=loss.item())
            means.add(self.n_minibatches * count, clip_ratio=clipped.sum().item())
            yield loss

    def _statistics(self, model: ExperimentModel) -> tuple[float, float]:
        return (0.0, 1.0) if self.value_norm is None else self.value_norm.statistics(model)


def warn_of_other_policy(differences: Tensor, context: Context) -> None:
    """Warn where a policy that has taken no step finds other log-probabilities than those that were generated."""
    if len(differences) and bool(differences.abs().mean() > MOST_DIFFERENCE):
        warnings.warn(
            f"call {context.call!r}: before any step the log-probabilities are others than when the sequences were "
            "generated; give all calls of the actor the same 'temperature'",
            stacklevel=2,
        )


class _TooFarError(Exception):
    """The policy is too far from the one that generated."""


class Means:
    """Numbers by name, each a sum of shares."""

    def __init__(self, *names: str) -> None:
        self.numbers = dict.fromkeys(names, 0.0)

    def add(self, count: float, **numbers: float) -> None:
        """Add one of ``count`` equal shares of each number."""
        for name, number in numbers.items():
            self.numbers[name] += number / count

    def log(self, context: Context) -> None:
        for name, number in self.numbers.items():
            context.log(name, number)


def per_action(sample: Sample, **values: Tensor) -> Sample:
    """The ``ids`` of a sample, and ``values`` that each token but the first of its sequence has."""
    lengths = sample.seqlens["ids"]
    actions = [[count - 1 for count in item] for item in lengths]
    return Sample.of(
        sample.ids,
        {"ids": lengths, **dict.fromkeys(values, actions)},
        {"ids": sample.values("ids"), **values},
    )
