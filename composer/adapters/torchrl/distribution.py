"""Our distributions as PyTorch's, which TorchRL samples from and differentiates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Distribution as TorchDistribution

from composer.adapters.torchrl.fields import Field, Key
from composer.distributions.base import ActionDistribution, Distribution
from composer.distributions.discrete import ChoiceDistribution, NoLegalChoiceError

__all__ = ["ComposedDistribution"]


class ComposedDistribution(TorchDistribution):
    """The distribution that ``family`` makes of ``logits`` (..., k), over actions as the environment has them.

    ``field`` says how these differ from what the family draws: encoding, start, dtype, bounds. log_prob and entropy are
    sums over the action's dimensions, shape (...). ``mask`` (true = legal) has the shape of the logits; ``mask_key`` is
    what it is called, for messages. ``temperature`` (..., 1) divides the logits.
    """

    arg_constraints: dict[str, Any] = {}  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(
        self,
        logits: Tensor,
        mask: Tensor | None = None,
        temperature: Tensor | None = None,
        *,
        family: ActionDistribution,
        field: Field,
        mask_key: Key | None = None,
    ) -> None:
        self.family = family
        self.field = field
        family.refuse_no_numbers(logits)
        try:
            self.base = family(logits, mask, 1.0 if temperature is None else temperature)
        except NoLegalChoiceError as error:
            raise error.of(f"observation {mask_key!r}") from None
        self._logits, self._mask, self._temperature = logits, mask, temperature
        self.has_rsample = type(self.base).rsample is not Distribution.rsample
        super().__init__(logits.shape[:-1], torch.Size(field.shape), validate_args=False)

    # --- what TorchRL asks for ---

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.field.to_tensordict(self._of(sample_shape).sample())

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.field.to_tensordict(self._of(sample_shape).rsample())

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        base = self._of(sample_shape)
        with torch.no_grad():
            value = base.sample()
        return self._with_log_prob(base, value)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        base = self._of(sample_shape)
        return self._with_log_prob(base, base.rsample())

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(self.field.to_model(value, self.dtype))

    def entropy(self) -> Tensor:
        return self.base.entropy()

    @property
    def deterministic_sample(self) -> Tensor:
        """The action that a deterministic policy takes."""
        return self.field.to_tensordict(self.base.mode())

    @property
    def mode(self) -> Tensor:
        return self.deterministic_sample

    @property
    def logits(self) -> Tensor:
        """Log-probabilities of the choices (..., n)."""
        return self._choices().log_probs

    @property
    def probs(self) -> Tensor:
        """Probabilities of the choices (..., n)."""
        return self._choices().probs

    @property
    def dtype(self) -> torch.dtype:
        return self._logits.dtype

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> ComposedDistribution:
        given = (self._logits, self._mask, self._temperature)
        wide = [None if t is None else t.expand(*batch_shape, t.shape[-1]) for t in given]
        # Without its key: this mask has been looked at already.
        return ComposedDistribution(*wide, family=self.family, field=self.field)  # type: ignore[arg-type]

    # --- inside ---

    def _of(self, sample_shape: Sequence[int]) -> Distribution:
        """Our distribution with batch shape ``sample_shape`` + (...)."""
        if not tuple(sample_shape):
            return self.base
        return self.expand((*sample_shape, *self.batch_shape)).base

    def _with_log_prob(self, base: Distribution, value: Tensor) -> tuple[Tensor, Tensor]:
        """The action, and the log-probability of what the environment gets: a clipped action is another one."""
        action = self.field.to_tensordict(value)
        if self._is_exact():
            return action, base.log_prob(value)
        return action, base.log_prob(self.field.to_model(action, self.dtype))

    def _is_exact(self) -> bool:
        """Whether the environment gets the drawn value unchanged."""
        leaf = self.field.leaf
        space = leaf.space
        if not isinstance(space, spaces.Box):
            return True
        unbounded = leaf.port.low is None and leaf.port.high is None
        return (unbounded or self.family.stays_within) and space.dtype.kind == "f"

    def _choices(self) -> ChoiceDistribution:
        if self.field.leaf.kind != "discrete" or not isinstance(self.base, ChoiceDistribution):
            key, kind = self.field.leaf.key, type(self.base).__name__
            raise AttributeError(
                f"the action {key!r} is no choice of one out of many: {kind} has no probs and logits of its choices"
            )
        return self.base
