"""Distributions of several actions, and of an action of several parts."""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from composer.distributions.base import (
    ActionDistribution,
    Distribution,
    check_family,
    no_action_to_mask,
    no_mask_given,
    sum_of,
    wide,
)
from composer.distributions.candidates import Candidates, of_parts, refuse_no_count
from perception_blocks.graph.wiring import module_name
from perception_blocks.port import format_shape
from perception_blocks.words import hint, listing

__all__ = ["ActionDistributions", "CompositeDistribution", "check_joint", "distribution_of_row"]
__all__ += ["no_noise_to_hold", "refuse_no_size"]


class CompositeDistribution(Distribution):
    """Several independent actions as one: samples are dicts by flat key, log_prob, entropy and kl are joint.

    ``parts`` holds the distribution of each action.
    """

    def __init__(self, parts: Mapping[str, Distribution]) -> None:
        self.parts = dict(parts)
        self.has_density = all(part.has_density for part in self.parts.values())

    def sample(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        return {key: part.sample(generator) for key, part in self.parts.items()}

    def rsample(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        return {key: part.rsample(generator) for key, part in self.parts.items()}

    def mode(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {key: part.mode() for key, part in self.parts.items()}

    def log_prob(self, action: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        check_joint(action, self.parts)
        return sum_of(part.log_prob(action[key]) for key, part in self.parts.items())

    def log_prob_of_draw(self, action: Mapping[str, Tensor]) -> Tensor:
        return sum_of(part.log_prob_of_draw(action[key]) for key, part in self.parts.items())

    def top_k(self, k: int) -> Candidates:
        """The ``k`` most likely joint actions; of a continuous part its mode stands for it, with its density."""
        refuse_no_count(k)
        return of_parts({key: part.top_k(k) for key, part in self.parts.items()}, k)

    def entropy(self) -> Tensor:
        return sum_of(part.entropy() for part in self.parts.values())

    def kl(self, other: CompositeDistribution) -> Tensor:
        check_family(self, other)
        if other.parts.keys() != self.parts.keys():
            raise ValueError(f"kl of {listing(self.parts)} cannot be to {listing(other.parts)}")
        return sum_of(part.kl(other.parts[key]) for key, part in self.parts.items())

    def row(self) -> Tensor:
        return torch.cat([part.row() for part in self.parts.values()], -1)


def check_joint(action: object, actions: Collection[str]) -> None:
    """Raise ValueError unless ``action`` is a dict of all the ``actions`` and no other."""
    if not isinstance(action, Mapping):
        got = type(action).__name__
        raise ValueError(f"log_prob takes a dict of {listing(actions)}, got a {got}")
    missing = [key for key in actions if key not in action]
    if missing:
        raise ValueError(f"log_prob needs every action; missing: {listing(missing)}")
    for key in action:
        if key not in actions:
            near = hint(key, actions)
            raise ValueError(f"log_prob got {key!r}, which is no action{near}")


class ActionDistributions(nn.Module):
    """The distributions of a whole action space by flat key; `build_distributions` makes it."""

    def __init__(self, families: Mapping[str, ActionDistribution]) -> None:
        super().__init__()
        self._names: dict[str, str] = {}
        self.masked: dict[str, str] = {}  # action -> the observation that is its mask, by the spec
        self.after: dict[str, str] = {}  # action whose head reads others -> what it reads, in words
        for key, family in families.items():
            self._names[key] = module_name(key)
            self.add_module(self._names[key], family)

    @property
    def logits_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a policy's heads must be: ``{action: (k,)}``."""
        return {key: family.logits_shape for key, family in self.items()}

    def forward(
        self,
        logits: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        temperature: float = 1.0,
    ) -> CompositeDistribution:
        """The distribution of all actions together; ``masks`` may name some of them.

        Raises ValueError for logits and parameters that are NaN or infinite, where `on_host` allows a look at them,
        and where an action of ``masked`` is not named in ``masks``; ``{action: None}`` is no mask. Of a single action
        it is a joint distribution too: samples are dicts.
        """
        given = {} if masks is None else self._given(masks)
        self._refuse_other_logits(logits)
        return CompositeDistribution(
            {key: self.of(key, logits[key], given, temperature) for key in self._names}
        )

    def of(
        self, key: str, logits: Tensor, masks: Mapping[str, Tensor], temperature: float
    ) -> Distribution:
        """The distribution of the action ``key`` alone. It raises what `forward` does."""
        family: Any = self._modules[self._names[key]]
        if key in self.masked and key not in masks:
            raise ValueError(no_mask_given(key, self.masked[key], len(self) == 1))
        family.refuse_no_numbers(logits)
        return family(logits, masks.get(key), temperature)

    def _given(self, masks: object) -> Mapping[str, Tensor]:
        """``masks``, a mapping from actions to tensors or None. Raises ValueError for anything else."""
        if not isinstance(masks, Mapping):
            raise ValueError(
                f"masks must be a dict by action ({listing(self)}), got a {type(masks).__name__}; "
                f"give {{{next(iter(self), None)!r}: mask}}"
            )
        for key, mask in masks.items():
            if key not in self._names:
                raise ValueError(no_action_to_mask(key, self))
            if mask is not None and not isinstance(mask, Tensor):
                raise ValueError(
                    f"the mask of action {key!r} must be a tensor or None, got a {type(mask).__name__}; "
                    "torch.as_tensor(mask) makes one"
                )
        return masks

    def _refuse_other_logits(self, logits: object) -> None:
        """Raise ValueError unless ``logits`` is a mapping with an entry for every action."""
        if not isinstance(logits, Mapping):
            memory = isinstance(logits, tuple)
            gives = "(logits, state) with memory: take its first" if memory else "it"
            raise ValueError(
                f"logits must be a dict by action ({listing(self)}), got a {type(logits).__name__}; "
                f"policy(observations) gives {gives}"
            )
        for key in self._names:
            if key not in logits and key in self.after:
                raise ValueError(
                    f"the head of action {key!r} reads {self.after[key]}, so that its logits are not known before an "
                    "action is; policy.distribution(observations) draws head after head, and "
                    "policy(observations, actions=actions) gives all logits"
                )
            if key not in logits:
                raise ValueError(
                    f"there are no logits of action {key!r}, got {listing(logits) or 'an empty dict'}; "
                    "policy(observations) gives them"
                )

    def reset_parameters(self, generator: torch.Generator) -> None:
        for _, family in self.items():
            family.reset_parameters(generator)

    def __getitem__(self, key: str) -> ActionDistribution:
        return self._modules[self._names[key]]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def items(self) -> ItemsView[str, ActionDistribution]:
        return {key: self[key] for key in self._names}.items()


def refuse_no_size(batch_size: object) -> None:
    """Raise ValueError unless ``batch_size`` is a number of environments."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(
            f"batch_size must be a positive integer, the number of environments, got {batch_size!r}"
        )


def no_noise_to_hold(actions: Collection[str]) -> str:
    """The message about noise that none of the ``actions`` can hold."""
    return (
        f"no action of this policy ({listing(actions)}) has noise that could be held; "
        "write distribution: gsde for a Box action under 'distributions'"
    )


def distribution_of_row(
    families: ActionDistributions, row: Tensor, *, is_single: bool
) -> Distribution:
    """The distribution that ``row`` (..., P) stands for, as `Distribution.row` gives it."""
    for key, reads in families.after.items():
        raise ValueError(
            f"the head of action {key!r} reads {reads}, so that no row of numbers stands for the distribution; "
            "policy.distribution(observations) makes it again"
        )
    widths = [family.row_width for _, family in families.items()]
    if not isinstance(row, Tensor):
        raise ValueError(
            f"a row is a tensor (..., {sum(widths)}) as distribution.row() gives it, got a {type(row).__name__}"
        )
    if not row.is_floating_point() or not row.dim() or row.shape[-1] != sum(widths):
        got = f"{format_shape(tuple(row.shape))} of {str(row.dtype).removeprefix('torch.')}"
        raise ValueError(
            f"a row of this policy's distribution has {sum(widths)} floating point numbers, got the shape {got}"
        )
    # A buffer may be in half precision, in which densities are noise.
    parts = {
        key: family.of_row(part)
        for (key, family), part in zip(families.items(), wide(row).split(widths, -1), strict=True)
    }
    return next(iter(parts.values())) if is_single else CompositeDistribution(parts)
