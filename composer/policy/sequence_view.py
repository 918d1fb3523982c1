"""Two views of one network over tokens: one acts step by step, the other reads whole sequences at once to train.

They share every module, train and eval mode included, so training one changes the other. Inference at length k gives
the outputs of training at position k - 1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from composer.distributions.discrete import NoLegalChoiceError
from composer.network.module import NetworkModule
from composer.network.network import Tensors
from composer.policy.policy import Policy
from perception_blocks.blocks.decoder import DecoderBlock
from perception_blocks.graph.assemble import BuiltNode
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import format_shape
from perception_blocks.words import listing

__all__ = ["PackedView", "SequenceView", "token_views", "writing_states"]

TRANSFORMER = "transformer"  # the block that can give features at every position of its sequence
DECODER = "decoder"  # the block that can read sequences one after the other


def token_views(policy: Any, critic: Any = None) -> tuple[Any, ...]:
    """(training, inference) of a token policy; with its critic (actor training, inference, critic training, inference).

    The inference views are ``policy`` and ``critic`` themselves. Raises ValueError for a network that cannot read a
    whole sequence at once: one needs memory, or transformer blocks with ``read: last`` and nothing else that reads
    observations.
    """
    actor = SequenceView(policy)
    if critic is None:
        return actor, policy
    return actor, policy, SequenceView(critic, actor if critic.shared else None), critic


class SequenceView(nn.Module):
    """A policy's logits, or a critic's values, at every position of sequences that begin with their first token.

    ``view(sequence, sequence_mask)``, both (B, L), gives {name: (B, L, k)}; what stands at places that the mask leaves
    out means nothing. A critic that reads values of its policy needs the policy's view as ``actor``.
    """

    def __init__(self, network: NetworkModule, actor: SequenceView | None = None) -> None:
        super().__init__()
        if not isinstance(network, NetworkModule):
            kind = type(network).__name__
            raise ValueError(f"token_views takes model.policy and model.critic, got a {kind}")
        module = network.network.module
        if not isinstance(module, InferenceBlock):
            raise ValueError(
                "only a graph of blocks can be read at every place; this network is a custom class"
            )
        if network.shared and actor is None:
            raise ValueError(
                f"this critic reads {listing(network.shared)} of its policy; make the views of both: "
                "token_views(policy, critic), or the factory 'actor_critic' of a model"
            )
        self.reads = sequence_inputs(network, module)
        self.network = network if network.has_memory else reading_all(network, module)
        object.__setattr__(self, "actor", actor)  # its parameters are the actor's, not this view's

    actor: SequenceView | None

    def forward(self, sequence: Tensor, sequence_mask: Tensor | None = None) -> Tensors:
        refuse_other_inputs(sequence, sequence_mask)
        if sequence_mask is None:
            sequence_mask = torch.ones_like(sequence, dtype=torch.bool)
        given = {"sequence": sequence.long(), "mask": sequence_mask}
        inputs = {name: given[what] for name, what in self.reads.items()}
        if self.actor is not None:
            shared = self.actor(sequence, sequence_mask)
            inputs |= {name: shared[name] for name in self.network.shared}
        if not self.network.has_memory:
            return self.network.run(inputs, None, None)[0]
        state = self.network.initial_state(sequence.shape[:-1])
        return self.network.run(inputs, state, None, unroll=True)[0]

    def distribution(
        self,
        sequence: Tensor,
        sequence_mask: Tensor | None = None,
        action_mask: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Any:
        """The policy's distribution of the next token at every position, within ``action_mask`` (B, L, k).

        None is no mask: the mask of the spec is an observation of the last position only, so give masks of all
        positions here, or none.
        """
        policy = self.network
        if not isinstance(policy, Policy):
            raise ValueError("a critic has no distribution; this is the view of one")
        (action,) = policy.distributions
        masks = {action: action_mask}
        logits = self(sequence, sequence_mask)
        try:
            return policy.distributions(logits, masks, temperature).parts[action]
        except NoLegalChoiceError as error:
            raise error.of("'action_mask'") from None

    def log_prob(self, sequence: Tensor, sequence_mask: Tensor | None = None) -> Tensor:
        """The log-probability (B,) of each whole sequence, given its first token.

        It is the sum over the tokens after the first for which ``sequence_mask`` is true; padding adds nothing.
        """
        refuse_other_inputs(sequence, sequence_mask)
        if sequence_mask is None:
            sequence_mask = torch.ones_like(sequence, dtype=torch.bool)
        of_tokens = self.distribution(sequence[..., :-1], sequence_mask[..., :-1])
        each = of_tokens.log_prob(sequence[..., 1:])
        return torch.where(sequence_mask[..., 1:] != 0, each, 0.0).sum(-1)


class PackedView(nn.Module):
    """A policy's logits, or a critic's values, of sequences that stand one after the other, without padding.

    ``view(tokens, lengths)``, tokens (N,) and how many of them each sequence has, gives {name: (N, k)}: each sequence
    is read as if it were alone. A critic that reads values of its policy needs the policy's view as ``actor``.

    Raises ValueError unless the only memory of the network is one block `decoder`, or it reads its policy alone.
    """

    def __init__(self, network: NetworkModule, actor: PackedView | None = None) -> None:
        super().__init__()
        sequence_view = SequenceView(network, None if actor is None else actor.sequence_view)
        object.__setattr__(self, "sequence_view", sequence_view)  # whose checks hold here too
        module = network.network.module
        assert isinstance(module, InferenceBlock)
        memories = [node for node in module.nodes if node.state_shapes]
        blocks = [module.module_of(node) for node in memories]
        only_shared = actor is not None and not sequence_view.reads
        if not only_shared and (len(blocks) != 1 or not isinstance(blocks[0], DecoderBlock)):
            names = listing(node.node.name for node in memories) or "none"
            raise ValueError(
                f"only a network whose memory is one decoder reads packed sequences; its memories: {names}"
            )
        self.network = with_twins(network, module, {DECODER: {"forward": self._packed}})
        self.network.network.state_shapes = {}
        object.__setattr__(self, "decoder", None if only_shared else blocks[0])
        object.__setattr__(self, "actor", actor)  # its parameters are the actor's, not this view's

    sequence_view: SequenceView
    decoder: DecoderBlock | None
    actor: PackedView | None
    _lengths: Tensor | Sequence[int] = ()

    def forward(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Tensors:
        inputs: Tensors = dict.fromkeys(self.sequence_view.reads, tokens)
        if self.actor is not None:
            shared = self.actor(tokens, lengths)
            inputs |= {name: shared[name] for name in self.network.shared}
        self._lengths = lengths
        return self.network.run(inputs, None, None)[0]

    def _packed(self, tokens: Tensor) -> Tensor:
        # The decoder's hooks have run, as this is in the place of its forward.
        assert self.decoder is not None
        return DecoderBlock.packed(self.decoder, tokens, self._lengths)


def refuse_other_inputs(sequence: Any, sequence_mask: Any) -> None:
    """Raise ValueError unless there are tokens, and a mask of the same shape if any."""
    masks = {} if sequence_mask is None else {"sequence_mask": sequence_mask}
    for name, given in {"sequence": sequence, **masks}.items():
        if not isinstance(given, Tensor):
            raise ValueError(f"{name!r} must be a tensor (B, L), got a {type(given).__name__}")
    if sequence.is_floating_point():
        raise ValueError(f"'sequence' must hold tokens, whole numbers, got {sequence.dtype}")
    if sequence_mask is not None and sequence_mask.shape != sequence.shape:
        needed, got = format_shape(sequence.shape), format_shape(sequence_mask.shape)
        raise ValueError(f"'sequence_mask' must have the shape of 'sequence', {needed}, got {got}")


def sequence_inputs(network: NetworkModule, module: InferenceBlock) -> dict[str, str]:
    """Which of the network's inputs is the ``sequence``, and which its ``mask``.

    Raises ValueError where it reads something else, which has no place in a sequence.
    """
    observed = [name for name in module.in_ports if name not in network.shared]
    if network.has_memory:
        ports = [module.in_ports[name] for name in observed]
        if len(ports) <= 1 and all(port.is_integer and port.shape == () for port in ports):
            return dict.fromkeys(observed, "sequence")
        rule = "with memory, a token network reads one token at each step"
        raise ValueError(f"{rule}; it reads {listing(observed)}")
    reads: dict[str, str] = {}
    for node in module.nodes:
        if node.label == TRANSFORMER:
            reads |= dict(zip(node.step.inputs, ("sequence", "mask")))
    others = [shown for node in module.nodes if (shown := _other(node, observed))]
    others += [
        f"{TRANSFORMER} {node.node.name!r} has read: all, so what follows sees all places at once; write read: last"
        for node in module.nodes
        if node.label == TRANSFORMER and module.module_of(node).read == "all"
    ]
    if others or (observed and not reads):
        why = "; ".join(others) or "nothing in it has memory or is a transformer"
        raise ValueError(f"the network cannot read a whole sequence at once: {why}")
    return reads


def _other(node: BuiltNode, observed: list[str]) -> str | None:
    """What a node reads of the environment that has one value for a whole sequence."""
    names = [name for name in node.step.inputs if name in observed]
    if node.label == TRANSFORMER or not names:
        return None
    return f"{node.label} {node.node.name!r} reads {listing(names)}"


def reading_all(network: NetworkModule, module: InferenceBlock) -> NetworkModule:
    """A copy in which transformer blocks give features at every position; all modules inside are the same ones."""
    return with_twins(network, module, {TRANSFORMER: {"read": "all"}})


def writing_states(network: NetworkModule) -> NetworkModule:
    """A copy for those who keep no state but the last: its decoders write into the state that they are given."""
    module = network.network.module
    assert isinstance(module, InferenceBlock)
    return with_twins(network, module, {DECODER: {"writes_state": True}})


def with_twins(
    network: NetworkModule, module: InferenceBlock, changes: Mapping[str, Mapping[str, Any]]
) -> NetworkModule:
    """A copy in which blocks have other attributes: ``changes``, by the name of the block. All modules are shared.

    The copies are flat: hooks on what is copied, such as those that gather the shards of its weights, run in them too.
    """
    inner = _twin(module)
    inner._modules = dict(module._modules)
    for node in module.nodes:
        if node.label in changes:
            *groups, name = node.step.module
            home = inner
            for group in groups:
                home._modules[group] = _twin(home._modules[group])
                home = home._modules[group]
                home._modules = dict(home._modules)
            home._modules[name] = _twin(home._modules[name])
            vars(home._modules[name]).update(changes[node.label])
    twin = _twin(network)
    object.__setattr__(twin, "network", copy.copy(network.network))
    twin.network.module = inner
    twin.view(inner)
    return twin


def _twin(module: Any) -> Any:
    """``module`` again, sharing all that it holds; `copy.copy` would ask a sharded one, which says no."""
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    return twin
