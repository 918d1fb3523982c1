"""What a probe says: the numbers of all nodes, as data, as a table and for a log."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from composer.probing.measure import TAU
from composer.probing.node import OUTPUT, NodeProbe
from composer.probing.table import table
from perception_blocks.words import hint, readable

if TYPE_CHECKING:
    from composer.diagram.picture import Picture
    from composer.model import Model
    from composer.probing.drawing import Color

__all__ = ["Probe"]


@dataclass(frozen=True)
class Probe:
    """What `composer.probe` returns; ``str()`` of it is the table.

    ``nodes`` are those of policy and critic in their order, each with the layers in it after it. ``returns`` are those
    of the episodes that ended in the steps, ``notes`` say what could not be measured, ``model`` is what was probed.
    """

    nodes: tuple[NodeProbe, ...]
    steps: int
    seed: int
    tau: float = TAU
    returns: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    model: Model | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text()

    def text(self, *, color: bool = False) -> str:
        """The table and what was played; with ``color`` what is worse than at the beginning is red in a terminal."""
        lines = [table(self.nodes, color=color), "", _played(self), *map(readable, self.notes)]
        if any(node.at_init for node in self.nodes):
            worse = _counted(len(self.worse), "line") if self.worse else "nothing"
            lines.append(f"worse than the same spec freshly drawn: {worse}")
        return "\n".join(lines)

    def __getitem__(self, path: str) -> NodeProbe:
        """The output of the node at ``path``. Raises KeyError for a path that there is not."""
        for node in self.outputs:
            if node.path == path:
                return node
        near = hint(path, dict.fromkeys(node.path for node in self.outputs))
        raise KeyError(f"there is no node {path!r}{near}")

    @property
    def outputs(self) -> tuple[NodeProbe, ...]:
        """The nodes alone, without the layers in them."""
        return tuple(node for node in self.nodes if node.is_output)

    @property
    def worse(self) -> tuple[NodeProbe, ...]:
        """The nodes and layers of which something is worse than at the beginning."""
        return tuple(node for node in self.nodes if node.worse)

    def picture(self, color: Color = "dormant") -> Picture:
        """The diagram of the model, in which a deep color says what is worse, or bad where there is no baseline.

        ``color`` is "dormant", "rank", "gradient" or "time". Raises ValueError for another, and for a model whose
        networks are plain PyTorch, of which there is no diagram.
        """
        from composer.probing.drawing import picture_of

        assert self.model is not None
        return picture_of(self.model, self.nodes, color)

    def draw(self, path: str | os.PathLike[str], color: Color = "dormant") -> Path:
        """Draw `picture` into the file ``path``, whose extension selects the format, as `composer.draw` does."""
        from composer.diagram.drawing import write_picture

        return write_picture(self.picture(color), path)

    def metrics(self) -> dict[str, float]:
        """The numbers of each node for a log: {"probe/policy/latent/dormant": 0.1, ...}, inner layers included."""
        return {
            f"probe/{node.path}{_suffix(node.layer)}/{name}": float(value)
            for node in self.nodes
            for name, value in _logged(node)
        }

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        nodes = [
            {"path": node.path, "layer": node.layer, **dataclasses.asdict(node)}
            | {"worse": list(node.worse)}
            for node in self.nodes
        ]
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
    return "" if layer == OUTPUT else f"/{layer.replace(' ', '_')}"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are null."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _played(probe: Probe) -> str:
    text = f"{probe.steps} steps, seed {probe.seed}"
    if probe.returns:
        ended = _counted(len(probe.returns), "episode")
        text += f"; {ended} ended, mean return {fmean(probe.returns):.4g}"
    return text


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
