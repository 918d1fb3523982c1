"""The complex agent as classes: what policy and critic have in common is their base class.

Both look at the screen and at the inventory, put the two together and remember. Only the last layers differ.
"""

from torch import nn

from perception_blocks import Graph, InferenceBlock


class ComplexNet(nn.Module):
    """Screen and inventory -> a memory of ``memory_units``, which subclasses read in `add_outputs`."""

    def __init__(self, obs_shapes, conv_channels, hidden_units, memory_units):
        super().__init__()
        graph = Graph(obs_shapes)
        # Plain shapes come without the bounds of the space, so they are said here.
        graph.add("scaled", "scale_image", "screen", low=0, high=255)
        graph.add(
            "latent_screen", "vgg_conv_dense", "scaled",
            hidden_channels=conv_channels, hidden_units=hidden_units,
        )  # fmt: skip
        graph.add("latent_inventory", "dense", "inventory", hidden_units=hidden_units)
        graph.add("both", "concat", ["latent_screen", "latent_inventory"])
        graph.add("latent", "dense", "both", hidden_units=hidden_units)
        graph.add("memory", "lstm", "latent", hidden_units=memory_units)
        self.net = InferenceBlock(graph, outputs=self.add_outputs(graph))
        self.state_shapes = self.net.state_shapes

    def add_outputs(self, graph) -> list[str]:
        """Add the last nodes to ``graph``; returns the names of the outputs."""
        raise TypeError(f"{type(self).__name__} must define add_outputs")

    def forward(self, inputs, state, resets):
        return self.net(inputs, state, resets)


class ComplexPolicy(ComplexNet):
    def __init__(self, obs_shapes, action_logits_shapes, **settings):
        self._widths = {action: width for action, (width,) in action_logits_shapes.items()}
        super().__init__(obs_shapes, **settings)

    def add_outputs(self, graph) -> list[str]:
        for action, width in self._widths.items():
            graph.add(action, "linear_output", "memory", output_units=width)
        return list(self._widths)


class ComplexCritic(ComplexNet):
    def add_outputs(self, graph) -> list[str]:
        graph.add("value", "linear_output", "memory", output_units=1)
        return ["value"]
