"""What a probe says of one node, or of a layer in it, beside the numbers of the same spec freshly drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["OUTPUT", "Measured", "NodeProbe"]

OUTPUT = "output"  # the layer that is a node's output; a user's class has several: "output action"
RISE = 0.05  # of a share of units or values, above which it counts as worse
RANK_LEFT = 0.75  # of the rank at the beginning, below which it counts as worse
GRADIENT_LEFT = 1e-4  # of the gradient at the beginning, below which it counts as worse
SHARES = ("dead", "dormant", "saturated")


@dataclass(frozen=True)
class Measured:
    """What the values of a layer alone say; `NodeProbe` tells what the numbers are."""

    units: int
    mean: float
    std: float
    low: float
    high: float
    dead: float
    dormant: float
    saturated: float | None
    srank: int


@dataclass(frozen=True, kw_only=True)
class NodeProbe(Measured):
    """The numbers of a node's output (``layer`` "output"), or of an inner layer after its activation.

    ``path`` is the node's in the model, "policy/latent"; ``units`` counts features, of images channels, whose places
    are samples as the steps are. ``mean``, ``std``, ``low`` and ``high`` are of all values.

    ``dead`` is the share of units that were 0 in every sample; ``dormant`` the share whose mean size is at most tau
    times the mean over the layer (Sokar et al., 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning,
    arXiv:2302.12902), NaN where values are not finite; ``saturated`` the share of values within 0.01 of a bound of
    tanh, sigmoid and the like, None of other activations; ``srank`` the number of singular values that make 99 % of
    their sum (Kumar et al., 2021, Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning,
    arXiv:2010.14498), of at most 2,048 samples.

    ``weight_norm`` and ``gradient_norm`` are of all weights of the node, or of the layer; the gradient is of a policy
    gradient with the error of the value. ``time_share`` is the node's part of the time of a step of policy and critic,
    None of inner layers. ``at_init`` has the numbers of the same spec freshly drawn, on the same steps.
    """

    path: str
    layer: str
    weight_norm: float
    gradient_norm: float
    time_share: float | None
    at_init: NodeProbe | None = None

    @property
    def worse(self) -> tuple[str, ...]:
        """The numbers that are clearly worse than at the beginning; () without a baseline.

        A share of units that is higher by 5 points or more, a rank below three quarters, a gradient below a
        ten-thousandth, and what is not finite and was.
        """
        first = self.at_init
        if first is None:
            return ()
        worse = []
        for name in SHARES:
            now, then = getattr(self, name), getattr(first, name)
            if now is not None and then is not None and (now - then >= RISE or _broke(now, then)):
                worse.append(name)
        if self.srank < RANK_LEFT * first.srank:
            worse.append("srank")
        now, then = self.gradient_norm, first.gradient_norm
        if now < GRADIENT_LEFT * then or _broke(now, then):
            worse.append("gradient_norm")
        return tuple(worse)

    @property
    def has_weights(self) -> bool:
        """Whether there is anything to learn in it: weights, or a gradient of weights that are 0."""
        return bool(self.weight_norm or self.gradient_norm)

    @property
    def is_output(self) -> bool:
        """Whether these are the numbers of a node and not of a layer in it."""
        return self.layer == OUTPUT or self.layer.startswith(f"{OUTPUT} ")


def _broke(now: float, then: float) -> bool:
    """Whether a number is not finite, and was."""
    return math.isfinite(then) and not math.isfinite(now)
