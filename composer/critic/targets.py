"""Target copies: a critic again, over weights of its own that follow slowly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import nn

from composer.checkpoint.blending import Buffers, blend
from composer.network.groups import SeparateNetworks
from composer.network.module import NetworkModule

__all__ = ["Targeted"]


class Targeted(nn.Module):
    """What critics with a target have in common, whether they are of one Space or of several actors.

    ``target`` is the same critic with weights of its own, never trained and always in eval mode; ``update_targets``
    alone moves it. Normalisers are not copied: both read and scale by the same ones. A target has no target.
    """

    target: Self
    added: ClassVar[tuple[str, ...]] = ("target", "value_normalizer")  # children beside the network
    stays_in_eval: bool

    @property
    def members(self) -> list[Any]:
        """The critics that it is made of, each once: of one Space, itself."""
        return [self]

    @property
    def has_target(self) -> bool:
        """A target has none of its own."""
        return "target" in self._modules

    @property
    def online(self) -> nn.Module:
        """The weights of the network without its target: an optimiser updates them, the target follows them."""
        return _network_of(self, self.added)

    def update_targets(self, tau: float, buffers: Buffers = "copy") -> None:
        """Move the weights of ``target`` by ``tau`` (0 to 1) of the way to those of this critic.

        ``buffers`` says what becomes of statistics such as those of batch normalisation.
        """
        blend(self.target, self.online, tau, buffers)

    def make_target(self) -> None:
        """Make ``target`` a copy of this critic as it is now, in place of the one before."""
        self._modules.pop("target", None)
        copies = {id(part): part for part in self._common()}
        # The weights of one of separate actors are slices, which deepcopy refuses.
        slices = [t for t in self.state_dict(keep_vars=True).values() if not t.is_leaf]
        copies |= {id(tensor): tensor.detach().clone() for tensor in slices}
        target = copy.deepcopy(self, copies)
        for critic in target.members:
            critic._modules.pop("value_normalizer", None)  # it is a child of the online one alone
        target.stays_in_eval = True
        self._modules["target"] = target.requires_grad_(False).eval()

    def _common(self) -> Sequence[Any]:
        """What target and online critic have in common."""
        raise TypeError(f"{type(self).__name__} must define _common")


def _network_of(critic: nn.Module, added: Sequence[str]) -> nn.Module:
    """The tensors of ``critic`` and of the critics in it, without the children called ``added``."""
    network = nn.Module()
    network._parameters, network._buffers = critic._parameters, critic._buffers
    network._modules = {
        name: _network_of(child, added)
        if isinstance(child, NetworkModule | SeparateNetworks)
        else child
        for name, child in critic._modules.items()
        if name not in added
    }
    return network
