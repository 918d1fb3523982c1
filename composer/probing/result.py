"""What a probe says: the numbers of each node and of the layers in it, beside those of the same spec freshly drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from composer.probing.measure import TAU

__all__ = ["NodeProbe", "Probe", "SHARES"]

RISE = 0.05  # of a share of units or values, above which it counts as worse
RANK_LEFT = 0.75  # of the rank at the beginning, below which it counts as worse
SHARES = ("dead", "dormant", "saturated")


@dataclass(frozen=True)
class NodeProbe:
    """The numbers of a node's output (``layer`` "output"), or of an inner layer after its activation.

    ``path`` is the node's in the model, "policy/latent"; ``units`` counts features, of images channels, whose places
    are samples as the steps are. ``mean``, ``std``, ``low`` and ``high`` are of all values.

    ``dead`` is the share of units that were 0 in every sample; ``dormant`` the share whose mean size is at most tau
    times the mean over the layer (Sokar et al., 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning,
    arXiv:2302.12902); ``saturated`` the share of values within 0.01 of a bound of tanh, sigmoid and the like, None of
    other activations; ``srank`` the number of singular values that make 99 % of their sum (Kumar et al., 2021,
    Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning, arXiv:2010.14498), of at most
    2,048 samples.

    ``weight_norm`` and ``gradient_norm`` are of all weights of the node, or of the layer; the gradient is of a policy
    gradient with the error of the value. ``time_share`` is the node's part of the time of a step of policy and critic,
    None of inner layers. ``at_init`` has the numbers of the same spec freshly drawn, on the same steps.
    """

    path: str
    layer: str
    units: int
    mean: float
    std: float
    low: float
    high: float
    dead: float
    dormant: float
    saturated: float | None
    srank: int
    weight_norm: float
    gradient_norm: float
    time_share: float | None
    at_init: NodeProbe | None = None

    @property
    def worse(self) -> tuple[str, ...]:
        """The numbers that are clearly worse than at the beginning; () without a baseline.

        A share of units that is higher by 5 points or more, a rank below three quarters, a gradient that is not finite
        or is 0 and was not.
        """
        first = self.at_init
        if first is None:
            return ()
        worse = []
        for name in SHARES:
            now, then = getattr(self, name), getattr(first, name)
            if now is not None and then is not None and now - then >= RISE:
                worse.append(name)
        if self.srank < RANK_LEFT * first.srank:
            worse.append("srank")
        gradient = self.gradient_norm
        if not math.isfinite(gradient) or (gradient == 0 and first.gradient_norm > 0):
            worse.append("gradient_norm")
        return tuple(worse)


@dataclass(frozen=True)
class Probe:
    """What `composer.probe` returns; ``str()`` of it is the table.

    ``returns`` are those of the episodes that ended in the steps, ``notes`` say what could not be measured.
    """

    nodes: tuple[NodeProbe, ...]
    steps: int
    seed: int
    tau: float = TAU
    returns: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        from composer.probing.table import table

        return table(self)

    def __getitem__(self, path: str) -> NodeProbe:
        """The output of the node at ``path``. Raises KeyError for a path that there is not."""
        for node in self.nodes:
            if node.path == path and node.layer.startswith("output"):
                return node
        from perception_blocks.words import hint

        near = hint(path, [node.path for node in self.outputs])
        raise KeyError(f"there is no node {path!r}{near}")

    @property
    def outputs(self) -> tuple[NodeProbe, ...]:
        """The nodes alone, without the layers in them."""
        return tuple(node for node in self.nodes if node.layer.startswith("output"))

    @property
    def worse(self) -> tuple[NodeProbe, ...]:
        """The nodes and layers of which something is worse than at the beginning."""
        return tuple(node for node in self.nodes if node.worse)

    def metrics(self) -> dict[str, float]:
        """The numbers of each node for a log: {"probe/policy/latent/dormant": 0.1, ...}, inner layers included."""
        return {
            f"probe/{node.path}{_suffix(node.layer)}/{name}": float(value)
            for node in self.nodes
            for name, value in _logged(node)
        }

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        nodes = [dataclasses.asdict(node) | {"worse": list(node.worse)} for node in self.nodes]
        return {
            "steps": self.steps,
            "seed": self.seed,
            "tau": self.tau,
            "returns": list(self.returns),
            "notes": list(self.notes),
            "nodes": [_finite(node) for node in nodes],
        }


def _logged(node: NodeProbe) -> Iterable[tuple[str, float]]:
    names = ["dead", "dormant", "saturated", "srank", "weight_norm", "gradient_norm"]
    values = [(name, getattr(node, name)) for name in names]
    return [(name, value) for name, value in values if value is not None]


def _suffix(layer: str) -> str:
    return "" if layer == "output" else f"/{layer.replace(' ', '_')}"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are null."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
