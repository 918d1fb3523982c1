"""State-dependent exploration: noise that is a function of the observation, held for several steps of an episode."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from composer.distributions.base import check_temperature, is_bounded, misfit, wide
from composer.distributions.continuous import (
    GaussianDistribution,
    NormalFamily,
    log_std_limits,
    warmer,
)
from composer.spaces.kinds import Leaf
from perception_blocks.settings import PositiveInt

__all__ = ["GSDE"]

_LEAST_VARIANCE = 1e-6  # where all features are zero
MOST_DEVIATIONS = 10_000_000  # of features and dimensions


class GSDE(NormalFamily):
    """Generalised state-dependent exploration (Raffin et al., 2020, arXiv:2005.05719) of a Box action.

    The head returns a mean for each dimension, then ``latent_units`` features; ``phi`` is their tanh, or with
    ``feature_activation: identity`` the features themselves. The noise of an action is ``phi @ W``, where each number
    of the exploration matrix W (latent_units, dimensions) is normal with a learned standard deviation. Over all W an
    action is normal, with the variance ``phi**2 @ std**2``: this gives log_prob, entropy, kl and row. A Box with finite
    bounds has the normal squashed into them by tanh, unless ``squash`` is false: then actions are clipped towards the
    environment.

    Each sample draws fresh noise unless `hold_noise` (`Policy.resample_exploration`) has drawn matrices: then the noise
    is a function of the observation alone, which is smooth over an episode.

    The logarithm of W's standard deviation starts at ``init_log_std`` and is clamped to ``log_std_range``. With
    ``full_std: false`` there is one for each feature, not for each feature and dimension. ``use_expln`` grows like a
    logarithm in place of the exponential above 1. Gradients reach the features from the noise if ``learn_features``.
    ``temperature`` multiplies the standard deviation, and noise that is held.
    """

    title = "gsde"
    holds_noise = True
    exploration: Tensor | None

    def __init__(
        self,
        leaf: Leaf,
        *,
        latent_units: PositiveInt = 64,
        init_log_std: float = -2.0,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
        full_std: bool = True,
        use_expln: bool = False,
        learn_features: bool = False,
        feature_activation: Literal["tanh", "identity"] = "tanh",
        squash: bool = True,
    ) -> None:
        if leaf.kind != "box":
            raise misfit(self.title, leaf, "a Box action")
        kept_range = log_std_limits(init_log_std, log_std_range)
        dims = math.prod(leaf.shape)
        super().__init__(leaf, dims + latent_units, is_squashed=squash and is_bounded(leaf))
        self.kept_range = kept_range
        self.init_log_std = init_log_std
        self.use_expln = use_expln
        self.learn_features = learn_features
        self.feature_activation = feature_activation
        self._split = (dims, latent_units)
        columns = dims if full_std else 1
        if latent_units * columns > MOST_DEVIATIONS:
            raise ValueError(
                f"'latent_units' is {latent_units}, with {columns} standard deviation{'' if columns == 1 else 's'} for "
                f"each; {MOST_DEVIATIONS:,} are the most in all"
            )
        self.log_std = nn.Parameter(torch.full((latent_units, columns), float(init_log_std)))
        self.register_buffer("exploration", None, persistent=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.log_std, self.init_log_std)

    def normals(self, logits: Tensor, temperature: float | Tensor) -> GaussianDistribution:
        check_temperature(temperature)
        mean, features = wide(logits).split_with_sizes(self._split, -1)
        phi = features if self.learn_features else features.detach()
        phi = phi.tanh() if self.feature_activation == "tanh" else phi
        deviation = self.matrix_std(phi.dtype)
        variance = phi.square() @ deviation.square() + _LEAST_VARIANCE
        shape = (*mean.shape[:-1], *self.action_shape)
        noise = None
        if self.exploration is not None:
            matrices = self.exploration.to(phi.dtype) * deviation
            noise = partial(_noise_of, phi, matrices, shape, temperature)
        log_std = warmer((0.5 * variance.log()).expand(mean.shape), temperature)
        event_dims = len(self.action_shape)
        return GaussianDistribution(
            mean.reshape(shape), log_std.reshape(shape), event_dims, noise=noise, key=self.key
        )

    def hold_noise(self, batch_size: int = 1, generator: torch.Generator | None = None) -> None:
        """Draw ``batch_size`` exploration matrices, one for each row of the last batch axis, and keep them.

        What is kept are standard normal numbers (batch_size, latent_units, dimensions), which every sample multiplies
        by the standard deviations that are learned by then. They are not saved.
        """
        dims, latent = self._split
        dtype = wide(self.log_std.detach()[:0]).dtype
        empty = torch.empty(batch_size, latent, dims, dtype=dtype, device=self.log_std.device)
        self.exploration = empty.normal_(generator=generator)

    def release_noise(self) -> None:
        self.exploration = None

    def matrix_std(self, dtype: torch.dtype) -> Tensor:
        """The standard deviations of the exploration matrix, (latent_units, dimensions or 1)."""
        log_std = self.log_std.to(dtype).clamp(*self.kept_range)
        if not self.use_expln:
            return log_std.exp()
        # The unused half must be finite, and so must its gradient.
        above = log_std.clamp_min(0).log1p() + 1
        return torch.where(log_std > 0, above, log_std.clamp_max(0).exp())


def _noise_of(
    phi: Tensor, exploration: Tensor, shape: tuple[int, ...], temperature: float | Tensor
) -> Tensor:
    """The noise of features (..., L) by matrices (n, L, dims): each row its own, or all of them the first."""
    if len(exploration) > 1 and phi.dim() > 1 and phi.shape[-2] == len(exploration):
        noise = (phi.unsqueeze(-2) @ exploration).squeeze(-2)
    else:
        noise = phi @ exploration[0]
    return (noise * temperature).reshape(shape)
