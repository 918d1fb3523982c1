"""Blocks and a critic of somebody else's. The entry point imports this module, which makes them known."""

import torch
from torch import nn

from composer.critic import CRITICS, Critic
from perception_blocks import BLOCKS, PerceptionBlock


@BLOCKS.register("sample_gate")
class SampleGateBlock(PerceptionBlock):
    """A linear layer times a learned gate: ``(F,)`` -> ``(units,)``.

    >>> SampleGateBlock([(3,)], units=8).out_shapes
    [(8,)]
    """

    def __init__(self, in_shapes, *, units: int = 64):
        super().__init__(in_shapes)
        (features,) = self.in_shapes[0]
        self.value = nn.Linear(features, units)
        self.gate = nn.Linear(features, units)

    def forward(self, x_F):
        return self.value(x_F) * torch.sigmoid(self.gate(x_F))


@CRITICS.register("sample_bounded")
class SampleBoundedCritic(Critic):
    """The value of a state, between -1 and 1."""

    def values_of(self, outputs):
        values = super().values_of(outputs)
        return values | {"value": values["value"].tanh()}
