"""A spec with `network` as a model of BenchMARL, which says what goes in, how wide the output is, and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from benchmarl.models.common import Model, ModelConfig  # type: ignore[import-not-found]
from tensordict import TensorDictBase
from torch import Tensor, nn

from composer.build.composed_network import compose_network
from composer.build.construction import chosen_seed
from perception_blocks.init import derive_seed
from perception_blocks.port import Port

__all__ = ["ComposedModel", "ComposedModelConfig"]


class ComposedModel(Model):
    """The networks of one group of agents, for a policy or a critic.

    With shared parameters there is one network, else one for each agent. A decentralised network sees what one agent
    observes: inputs (F,). A centralised one sees all agents: inputs (agents, F), or the global state. Inputs are called
    as the last part of BenchMARL's keys, such as "observation", "state" and "action".
    """

    def __init__(
        self,
        spec: Any,
        allow: Sequence[str],
        overrides: Sequence[Any],
        seed: int | None,
        **host: Any,
    ) -> None:
        super().__init__(**host)
        self._names = {key: key if isinstance(key, str) else key[-1] for key in self.in_keys}
        inputs = {self._names[key]: self._port(self.input_spec[key]) for key in self.in_keys}
        out_key = self.out_key if isinstance(self.out_key, str) else self.out_key[-1]
        self._out = out_key
        first = chosen_seed(seed)
        self.networks = nn.ModuleList(
            compose_network(
                spec, inputs, {out_key: self.output_leaf_spec.shape[-1]}, allow=allow,
                overrides=overrides, seed=derive_seed(first, index), device=self.device,
            )
            for index in range(1 if self.share_params else self.n_agents)
        )  # fmt: skip
        if any(network.has_memory for network in self.networks):
            raise ValueError(
                "BenchMARL asks for the form of a memory before it says what the network reads, so that a spec with "
                "memory has no place there; leave the memory out, or use BenchMARL's GruConfig"
            )

    def _port(self, spec: Any) -> Port:
        """What a network knows of an input of BenchMARL."""
        drops_agents = self.input_has_agent_dim and not self.centralised
        shape = tuple(spec.shape[1:] if drops_agents else spec.shape)
        if spec.dtype.is_floating_point:
            return Port(shape)
        return Port(shape, dtype=torch.int64, cardinality=getattr(spec.space, "n", None))

    def _forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        inputs = {name: tensordict.get(key) for key, name in self._names.items()}
        if self.share_params:
            output = self.networks[0](inputs)[self._out]
        else:
            outputs = [self._of_agent(index, inputs) for index in range(self.n_agents)]
            output = torch.stack(outputs, -2)
        tensordict.set(self.out_key, output)
        return tensordict

    def _of_agent(self, index: int, inputs: dict[str, Tensor]) -> Tensor:
        """The output of the agent's own network."""
        network: Any = self.networks[index]
        if self.input_has_agent_dim and not self.centralised:
            ranks = {name: len(shape) for name, shape in network.in_shapes.items()}
            inputs = {name: value.select(-1 - ranks[name], index) for name, value in inputs.items()}
        return network(inputs)[self._out]


@dataclass
class ComposedModelConfig(ModelConfig):
    """A model from ``spec``, as `composer.compose_network` takes it: a file, YAML text or a mapping with `network`.

    ``allow`` and ``overrides`` are as there; ``seed=None`` draws the weights from torch's global generator, which
    BenchMARL seeds.
    """

    spec: Any
    allow: Sequence[str] = ()
    overrides: Sequence[Any] = ()
    seed: int | None = None

    @staticmethod
    def associated_class() -> type[ComposedModel]:
        return ComposedModel
