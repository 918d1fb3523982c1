"""The layers that policies and critics of Stable-Baselines3 have before their heads, as nodes."""

from __future__ import annotations

from typing import Any

from composer.importing.imported import Imported
from composer.importing.nodes import OBSERVATION, Nodes
from composer.importing.sb3_settings import Sb3Settings

__all__ = ["FEATURES", "Sb3Layers"]

FEATURES = "features"  # the node that an extractor ends with
_OF_NORMS = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "ra_mean",
    "running_var": "ra_var",
    "num_batches_tracked": "steps",
}


class Sb3Layers:
    """Appends to the graphs of ``out`` what ``settings`` ask for."""

    def __init__(self, out: Imported, settings: Sb3Settings) -> None:
        self.out, self.settings = out, settings

    def nodes(self, part: str) -> Nodes:
        return Nodes(
            self.out, part, observations=[seen.key for seen in self.settings.agent.seen or ()]
        )

    def features(self, nodes: Nodes, theirs: str) -> bool:
        """Append what the features extractor called ``theirs`` does; whether it has weights."""
        units = self.settings.units_of_images()
        if self.settings.extractor == "NatureCNN":
            self._cnn(nodes, "image", FEATURES, OBSERVATION, theirs, units)
            return True
        if self.settings.agent.seen is None:
            return False
        return self._known(nodes, theirs, units)

    def _known(self, nodes: Nodes, theirs: str, units: int) -> bool:
        """Append a node for each observation that is not a vector yet, and join them; whether one has weights."""
        vectors, has_weights = [], False
        for seen in self.settings.agent.seen or ():
            name = nodes.last = seen.key
            if seen.form == "categories":
                nodes.add(f"{name}_codes", "one_hot")
            elif seen.form == "image" and self.settings.extractor == "CombinedExtractor":
                inner = f"{theirs}.extractors.{seen.theirs}"
                self._cnn(nodes, f"{name}_image", f"{name}_features", seen.key, inner, units)
                has_weights = True
            elif seen.form == "image":
                self._scaled(nodes, f"{name}_image", seen.key)
                nodes.add(f"{name}_features", "flatten")
            elif seen.form == "array":
                nodes.add(f"{name}_features", "flatten")
            vectors.append(nodes.last)
        if len(vectors) > 1:
            nodes.add(FEATURES, "concat", vectors)
        return has_weights

    def _cnn(
        self, nodes: Nodes, image: str, name: str, reads: str, theirs: str, units: int
    ) -> None:
        self._scaled(nodes, image, reads)
        name = nodes.add(name, "nature_cnn_dense", hidden_units=units)
        for index in range(3):
            nodes.weigh(f"{name}.conv.convs.{index}", f"{theirs}.cnn.{2 * index}")
        nodes.weigh(f"{name}.flatten_dense.dense.linears.0", f"{theirs}.linear.0")

    def _scaled(self, nodes: Nodes, name: str, reads: str) -> None:
        bounds: dict[str, Any] = {} if self.settings.scales else {"low": 0, "high": 1}  # as it is
        nodes.add(name, "scale_image", reads, **bounds)

    def latent(self, nodes: Nodes, units: list[int], theirs: str, name: str = "latent") -> str:
        """Append the linear layers called ``theirs``; where the next one would be."""
        if units:
            names = [f"{theirs}.{2 * index}" for index in range(len(units))]
            nodes.dense(name, units, self.settings.activation, names)
        return f"{theirs}.{2 * len(units)}"

    def normed(self, nodes: Nodes, units: list[int], theirs: str, width: int | None) -> str:
        """As `latent`, with a norm before each linear layer, also the next one. The first reads ``width`` numbers."""
        kwargs = self.settings.kwargs
        rule: dict[str, Any] = {
            "eps": kwargs.number("batch_norm_eps", 0.001, 0.0, 1.0),
            "momentum": kwargs.number("batch_norm_momentum", 0.01, 0.0, 1.0),
        }
        if width is None:
            reason = "its observations are not known here, and norms need their number; import an agent that was saved"
            kwargs.refuse(None, reason)
        for index, size in enumerate([*units, None]):
            norm = nodes.add(f"norm_{index}", "torch.nn.BatchNorm1d", num_features=width, **rule)
            for ours, inner in _OF_NORMS.items():
                nodes.weigh(f"{norm}.{ours}", f"{theirs}.{3 * index}.{inner}")
            if size is not None:
                name = f"latent_{index}"
                nodes.dense(name, [size], self.settings.activation, [f"{theirs}.{3 * index + 1}"])
                width = size
        return f"{theirs}.{3 * len(units) + 1}"

    def memory(self, nodes: Nodes, theirs: str) -> None:
        layers = self.settings.kwargs.layers("n_lstm_layers", 1)
        units = self.settings.kwargs.whole("lstm_hidden_size", 256)
        init = {"init": "default"} if self.settings.is_orthogonal else {}
        more: dict[str, Any] = {"num_layers": layers} if layers > 1 else {}
        memory = nodes.add("memory", "lstm", hidden_units=units, **more, **init)
        for index in range(layers):
            nodes.weigh(f"{memory}.layers.{index}", f"{theirs}#{index}")
