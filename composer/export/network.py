"""The network of a file: one function from a dict of tensors to a dict of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from composer.distributions.autoregressive import AutoregressiveDistribution
from composer.export.values import (
    AnyCritic,
    ExportedActors,
    ExportPart,
    Interface,
    Place,
    Value,
    roots_of,
)
from composer.export.wrappers import MeanNoise
from composer.network.module import StatefulModule, longest_episode
from composer.network.network import Inputs, State, Tensors, share_of
from composer.policy.structured import AnyPolicy
from composer.spaces.kinds import to_space_value
from perception_blocks.words import as_module_name

__all__ = ["ExportedNetwork"]

Resets: TypeAlias = Tensor | Mapping[str | None, Tensor] | None


class ExportedNetwork(nn.Module):
    """A policy, a critic or both, for one step or, with ``unroll``, for that many; of one actor or of all.

    The inputs are complete: a critic that reads shared values has the policy inside. ``wrappers`` change actions, the
    first one first.
    """

    def __init__(
        self,
        policy: AnyPolicy,
        critic: AnyCritic | None,
        part: ExportPart,
        unroll: int | None,
        wrappers: Sequence[MeanNoise] = (),
    ) -> None:
        super().__init__()
        self.part = part
        self.steps = unroll
        self.wrappers = tuple(wrappers)
        roots = roots_of(policy, critic, part)
        object.__setattr__(self, "policy", policy)  # no children: see _adopt
        object.__setattr__(self, "critic", roots.get("critic"))
        self.runs_policy = "policy" in roots
        for name, root in roots.items():
            self._adopt(name, root)
        self.actors = ExportedActors(policy, self.critic, self.runs_policy)
        self.interface = Interface(self.actors, roots, unroll)

    policy: AnyPolicy
    critic: AnyCritic | None

    @property
    def inputs(self) -> dict[str, Value]:
        return self.interface.inputs

    @property
    def outputs(self) -> dict[str, Value]:
        """Empty until the first run."""
        return self.interface.outputs

    @property
    def longest_episode(self) -> int | None:
        """How many steps its memory has room for; None for any number."""
        return longest_episode(self.policy, self.critic)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Outputs by name; the state after the step comes with them."""
        face, actors = self.interface, self.actors
        observations = face.by_actor("observation", inputs)
        state, resets = face.of_kind("state", inputs), self._resets(inputs, observations)
        outputs: dict[Place, Tensor] = {}
        shared: Any = {}
        if self.runs_policy:
            before = self._share(state, "policy")
            shared, after = self._call(self.policy, [actors.whole(observations)], before, resets)
            if self.part != "critic":
                for actor, logits in actors.parts(shared).items():
                    outputs |= self._decided(actor, logits, observations[actor])
            outputs |= self._states("policy", after)
        if self.critic is not None:
            before = self._share(state, "critic")
            values, after = self._judged(self.critic, inputs, observations, before, resets, shared)
            outputs |= {("value", *place): value for place, value in values.items()}
            outputs |= self._states("critic", after)
        return face.named(outputs)

    def example(self, batch: int) -> Tensors:
        """Zeros as inputs, for tracing; axes that vary have sizes of their own."""
        sizes: dict[str, int] = {"batch": batch}
        for value in self.inputs.values():
            for axis in value.axes:
                if isinstance(axis, str):
                    sizes.setdefault(axis, batch + len(sizes))
        return {name: value.zeros(sizes) for name, value in self.inputs.items()}

    def _decided(
        self, actor: str | None, outputs: Tensors, observations: Tensors
    ) -> dict[Place, Tensor]:
        """The logits of one actor, and its action: the modes of its distributions, changed by its wrappers."""
        policy = self.actors.policies[actor]
        masks = Inputs()
        if policy.masks:
            keys = policy.masks.values()
            masks = Inputs(policy.observer.read(observations, keys, policy.dtype, policy.device))
        distribution = policy.distribution_of(outputs, masks, None, 1.0)
        mode: Any = distribution.mode()
        if isinstance(distribution, AutoregressiveDistribution):
            outputs = distribution.logits(mode)
        leaves = policy.action_tree.leaves
        modes: Tensors = mode if isinstance(mode, dict) else {next(iter(leaves)): mode}
        for wrapper in self.wrappers:
            modes = wrapper(modes)
        decided: dict[Place, Tensor] = {("logits", actor, key): outputs[key] for key in leaves}
        for key, leaf in leaves.items():
            decided["action", actor, key] = to_space_value(leaf, modes[key])
        return decided

    def _judged(
        self,
        critic: AnyCritic,
        inputs: Mapping[str, Tensor],
        observations: Mapping[str | None, Tensors],
        state: State,
        resets: Resets,
        shared: object,
    ) -> tuple[dict[tuple[str | None, str], Tensor], State]:
        """Values by actor and key, and the critic's state after."""
        actors = self.actors
        arguments: list[object] = [actors.whole(observations)]
        if critic.takes_action:
            arguments.append(self._taken(inputs))
        keywords: dict[str, object] = {"shared": shared}
        if critic.reads_presence:
            told = self.interface.by_actor("present", inputs)
            keywords["present"] = {actor: next(iter(of.values())) for actor, of in told.items()}
        values, after = self._call(critic, arguments, state, resets, **keywords)
        is_by_actor = actors.critic_of(next(iter(actors.policies))) is not critic
        by_actor = values if is_by_actor else {None: values}
        return {(a, key): value for a, of in by_actor.items() for key, value in of.items()}, after

    def _taken(self, inputs: Mapping[str, Tensor]) -> object:
        """The actions that the critic reads, as distributions have them; None where it reads none."""
        taken = {
            actor: self.actors.policies[actor].from_environment(leaves)
            for actor, leaves in self.interface.by_actor("taken", inputs).items()
            if leaves
        }
        return self.actors.whole(taken) if taken else None

    def _call(
        self,
        module: StatefulModule,
        arguments: list[object],
        state: State,
        resets: Resets,
        **keywords: object,
    ) -> tuple[Any, State]:
        """The result of a policy or critic for one step or for all of them, and its state after."""
        if not module.has_memory:
            return module(*arguments, **keywords), {}
        call = module if self.steps is None else module.unroll
        return call(*arguments, state, resets, **keywords)

    def _resets(
        self, inputs: Mapping[str, Tensor], observations: Mapping[str | None, Tensors]
    ) -> Resets:
        """The resets of all actors; by actor if the number of some is open, repeated for each agent of those."""
        resets = self.interface.of_kind("resets", inputs).get("resets")
        if resets is None or not self.actors.crowds:
            return resets
        by_actor = {}
        for actor, values in observations.items():
            by_actor[actor] = resets
            if actor in self.actors.crowds:
                agents = next(iter(values.values())).shape[1]
                by_actor[actor] = resets.unsqueeze(1).expand(-1, agents, *resets.shape[1:])
        return by_actor

    def _states(self, part: str, after: State) -> dict[Place, Tensor]:
        face = self.interface
        return {("state", None, face.state_key(part, key)): v for key, v in after.items()}

    def _share(self, state: State, part: str) -> State:
        """The state of ``part``, under the part's names."""
        return share_of(part, state) if self.interface.state_key(part, "") else state

    def _adopt(self, part: str, root: nn.Module) -> None:
        """Register the weights of ``root`` under flat names: in ``weights/policy/latent/linears/0``.

        Torch's exporter looks them up as attributes, where a node that is named like a method ("value") is not found.
        """
        for path, module in root.named_modules(prefix=part):
            if module._parameters or module._buffers:
                holder = nn.Module()
                for registry in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
                    object.__setattr__(holder, registry, getattr(module, registry))
                name = as_module_name(f"weights/{path}".replace(".", "/"))
                while name in self._modules:
                    name += "_"
                self.add_module(name, holder)
