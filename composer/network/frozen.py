"""Parts of a model that are not trained: without gradients, in eval mode, with statistics that stand still."""

from __future__ import annotations

from typing import Any

from torch import nn

from composer.network.paths import ModelPart
from perception_blocks.blocks.scale import NormalizeBlock

__all__ = ["freeze"]


class _StaysInEval:
    """In the place of a module's ``train``: whoever sets the mode of the module or of what holds it, it is eval."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return type(self._module).train(self._module, False)


def freeze(part: ModelPart) -> None:
    """Train nothing of ``part`` from now on. Copies of the model, pickled ones too, stay frozen.

    Dropout is off, and neither batch norms nor `normalize` blocks change their statistics.
    """
    for parameter in part.parameters.values():
        parameter.requires_grad_(False)
    for module in part.modules:
        # By instance: a class of its own would be unknown to what looks at types, and mode hooks do not exist.
        attributes: dict[str, Any] = vars(module)
        attributes["train"] = _StaysInEval(module)
        if isinstance(module, NormalizeBlock):
            module.stands_still = True
    for module in part.modules:
        # The form of copies has parameters of its own, which tables show.
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        module.eval()
