"""Policy: observations to logits, logits to distributions, distributions to legal actions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from composer.distributions.autoregressive import (
    MOST_COMBINATIONS,
    AutoregressiveDistribution,
)
from composer.distributions.base import (
    Distribution,
    NoNumberError,
    no_action_to_mask,
    with_observation,
)
from composer.distributions.discrete import NoLegalChoiceError
from composer.distributions.joint import (
    ActionDistributions,
    check_joint,
    distribution_of_row,
    no_noise_to_hold,
    refuse_no_size,
)
from composer.lowered.policy import LoweredPolicy
from composer.network.autoregressive import AutoregressiveNetwork
from composer.network.module import InputSource, NetworkModule, OutputMeaning
from composer.network.network import ACTOR, Inputs, Network, State, Tensors, ToldNetwork
from composer.network.sharded import refuse_sharded
from composer.network.structured import StructuredModule
from composer.spaces.action_inputs import ActionInputs
from composer.spaces.actors import Actor
from composer.spaces.kinds import Space, as_tensor
from composer.spaces.observer import Observer
from composer.spaces.tree import SpaceTree, drawn_actions, holds_tensors, to_environment
from composer.spaces.values import as_flags
from perception_blocks.base_block import is_traced
from perception_blocks.direct import is_plain
from perception_blocks.init import local_generator
from perception_blocks.port import format_shape
from perception_blocks.words import listing

if TYPE_CHECKING:
    from perception_blocks.blocks.scale import Group

__all__ = ["Policy"]


class Policy(NetworkModule):
    """A policy of one actor. ``policy(observations)`` returns a dict of logits and of values shared with the critic.

    Observations are those of the environment (nested, numpy or tensors), with any leading axes or none. With memory,
    ``policy(observations, state, resets)`` returns (logits, state); ``resets`` is true where an observation is the
    first of its episode. The policy is a pure function: it stores no state. Forward hooks on it run in `unroll`,
    `distribution` and `act` too, and what they return is used.
    """

    def __init__(
        self,
        network: Network,
        observer: Observer,
        action_tree: SpaceTree,
        distributions: ActionDistributions,
        *,
        masks: Mapping[str, str],
        shares: tuple[str, ...],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(network, dtype)
        object.__setattr__(self, "observer", observer)
        self.action_tree = action_tree
        self._drawn_tree = drawn_actions(action_tree)
        self._action_inputs = ActionInputs(action_tree)
        self._joint = None  # the combinations of the actions that heads read, if there are few
        if isinstance(network, AutoregressiveNetwork):
            self._joint = self._action_inputs.joint_choices(network.read, MOST_COMBINATIONS)
        self._only = next(iter(action_tree.leaves))  # the only action, of a policy of one
        self.masks = dict(masks)  # action -> observation
        distributions.masked = self.masks
        distributions.after = {
            head: f"the action of {listing(heads)}" for head, heads in network.after.items()
        }
        self.shares = shares
        self.reads_actor = ACTOR in network.in_ports and ACTOR not in observer.tree.ports
        observed = [key for key in network.in_ports if key != ACTOR or not self.reads_actor]
        self.read_keys = tuple(dict.fromkeys([*observed, *self.masks.values()]))
        self._modules["distributions"] = distributions
        if observer.normalizers:
            self._modules["normalizers"] = observer.normalizers

    observer: Observer
    part = "policy"
    actors: Sequence[Actor] = ()  # of a policy of several, these

    @property
    def policies(self) -> dict[str | None, Policy]:
        """The policies by actor, as in a policy of several actors; here the only key is None."""
        return {None: self}

    def input_sources(self) -> dict[str, InputSource]:
        ports, normalized = self.observer.tree.ports | self.network.in_ports, self.observer.keys
        sources = {
            key: InputSource("observation", key, ports[key], normalized=key in normalized)
            for key in self.read_keys
        }
        told = {ACTOR: InputSource("actor", ACTOR, ports[ACTOR])} if self.reads_actor else {}
        return sources | told

    def output_meanings(self) -> dict[str, OutputMeaning]:
        families = dict(self.distributions.items())
        return {
            n: OutputMeaning(port, families.get(n), self.masks.get(n), n not in families)
            for n, port in self.network.out_ports.items()
        }

    def own_children(self) -> dict[str, nn.Module]:
        return {"distributions": self.distributions, "normalizers": self.observer.normalizers}

    @property
    def distributions(self) -> ActionDistributions:
        """By action, what turns its logits into a distribution."""
        return self._modules["distributions"]  # type: ignore[return-value]

    @property
    def draws_in_stages(self) -> bool:
        """Whether heads read what other heads have drawn, so that their logits follow from actions."""
        return self._stages is not None

    def forward(
        self,
        observations: object,
        state: State | None = None,
        resets: object = None,
        *,
        actions: object = None,
        unroll: bool = False,
    ) -> Any:
        """Logits by action, shapes (...) + (k,), and shared values; with memory (outputs, state).

        Where heads read what other heads have drawn (`draws_in_stages`), these are the logits of the heads that read no
        action, and beside them the values, by name, that the other heads go on from. ``actions``, as a distribution has
        them, give the logits of all heads.
        """
        outputs, after = self.evaluate(self.read(observations), state, resets, unroll)
        if actions is not None:
            outputs = self._given_actions(outputs, actions)
        return self._returned(outputs, after, unroll)

    @property
    def _stages(self) -> AutoregressiveNetwork | None:
        """The network, if its heads read what other heads have drawn."""
        network = self.network.network if isinstance(self.network, ToldNetwork) else self.network
        return network if isinstance(network, AutoregressiveNetwork) else None

    def _given_actions(self, outputs: Tensors, actions: object) -> Tensors:
        """Shared values, and the logits of all heads given ``actions``, from the ``outputs`` of the first stage."""
        network = self._stages
        if network is None:
            raise ValueError(
                "no head of this policy reads an action, so its logits are the same for all; leave out 'actions'"
            )
        check_joint(actions, self.distributions)
        vectors = self._action_inputs.read(actions, self.dtype, self.device)
        values = {**network.start(outputs), **vectors}
        for stage in range(1, len(network.heads)):
            values = network.advanced(stage, values)
        shared = {name: outputs[name] for name in self.shares}
        return {name: network.logits(name, values) for name in self.distributions} | shared

    def distribution(
        self,
        observations: object,
        state: State | None = None,
        resets: object = None,
        *,
        unroll: bool = False,
        mask: object = None,
        temperature: float = 1.0,
    ) -> Any:
        """The distribution over actions, of batch shape (...); with memory (distribution, state).

        With ``unroll`` the observations are sequences (..., T), as for `unroll`. ``mask`` (true = legal, shape of the
        logits; by action where there are several) adds to the masks that the spec takes from observations. A
        ``temperature`` below 1 sharpens.
        """
        if is_plain(self, Policy) and not is_traced():  # what a call without hooks does
            observations = self.read(observations)
            outputs, after = self.evaluate(observations, state, resets, unroll)
        else:
            result = self(observations, state, resets, unroll=unroll)
            outputs, after = self._split(result, unroll)
        distribution = self.distribution_of(outputs, observations, mask, temperature)
        return self._returned(distribution, after)

    def act(
        self,
        observation: object,
        state: State | None = None,
        resets: object = None,
        *,
        deterministic: bool = False,
        mask: object = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Return an action that the environment accepts: batched if ``observation`` is, a tensor if it is one.

        With memory, return (action, state). ``deterministic`` returns the mode of the distribution. If the network is a
        user's class that defines ``act``, that method is called instead.
        """
        method = self.users_own("act")
        if method is not None:
            return method(observation) if state is None else method(observation, state, resets)
        with torch.no_grad():
            result = self.distribution(
                observation, state, resets, mask=mask, temperature=temperature
            )
            distribution, after = self._split(result)
            action = self.action_of(distribution, observation, deterministic, generator)
        return self._returned(action, after)

    def lower(self) -> LoweredPolicy:
        """A faster policy for acting: straight-line code that reads the parameters, with ``act``."""
        refuse_sharded(self, "lower()")
        return LoweredPolicy(self, Policy)

    def from_environment(self, action: object) -> Any:
        """An environment's action (any leading axes) in the form of the distribution: zero-based, tensors, flat keys.

        Use it before ``distribution(...).log_prob`` for actions of an environment or a data set.
        """
        flat = self.action_tree.to_tensors(action, dtype=self.dtype, device=self.device)
        return flat[self._only] if self.action_tree.is_single else flat

    def to_environment(self, action: Tensor | Tensors) -> Any:
        """An action as the distribution has it, any leading axes, as the environment takes it: numpy, whole, legal.

        Numbers of a Box are clipped to its bounds. The other way is `from_environment`. Raises ValueError for a choice
        that there is not, and for an action of another shape.
        """
        drawn = self._drawn_tree.to_tensors(action, dtype=self.dtype)
        return to_environment(self.action_tree, drawn, as_numpy=True)

    @property
    def logits_shapes(self) -> dict[str, tuple[int, ...]]:
        """Action -> the shape of its logits, without leading axes."""
        return self.distributions.logits_shapes

    @property
    def observation_space(self) -> Space:
        """The observation space."""
        return self.observer.tree.space

    @property
    def action_space(self) -> Space:
        """The action space."""
        return self.action_tree.space

    def reset_distributions(self, seed: int, *path: str | int) -> None:
        """Initialise the parameters of the distributions."""
        self.distributions.reset_parameters(local_generator(seed, "distributions", *path))

    def resample_exploration(
        self, batch_size: int = 1, generator: torch.Generator | None = None
    ) -> None:
        """Draw the noise of actions with the distribution `gsde`, and hold it: samples then are smooth in time.

        Each sample adds noise that is a function of the observation alone until this is called again, as at the start
        of an episode or every few steps, or `release_exploration` is. With ``batch_size``, the number of environments,
        each row of the last batch axis has noise of its own; a batch of another size has the noise of the first. What
        is held is not saved. Raises ValueError for a policy without such an action.
        """
        refuse_no_size(batch_size)
        families = [family for _, family in self.distributions.items() if family.holds_noise]
        if not families:
            raise ValueError(no_noise_to_hold(self.distributions))
        for family in families:
            family.hold_noise(batch_size, generator)

    def release_exploration(self) -> None:
        """Let every sample have fresh noise again; see `resample_exploration`."""
        for _, family in self.distributions.items():
            family.release_noise()

    def update_normalizers(self, observations: object, group: Group = None) -> None:
        """Update the running statistics of observations, as `Model.update_normalizers` does."""
        self.observer.update(observations, self.dtype, self.device, group)

    def merge_normalizers(self, other: NetworkModule | StructuredModule) -> None:
        """Merge the statistics of ``other``, a policy that has seen other observations."""
        if not isinstance(other, Policy):
            raise ValueError("these are policies of other actors, whose statistics are not merged")
        self.observer.merge(other.observer)

    def with_network(self, network: Network) -> Policy:
        """The same with another network of this form, which gets the distributions and normalisers as children."""
        policy = Policy(
            network, self.observer, self.action_tree, self.distributions,
            masks=self.masks, shares=self.shares, dtype=self.dtype,
        )  # fmt: skip
        policy._device = self.device
        return policy.train(self.training)

    # --- step by step, for policies of several actors ---

    def read(self, observations: object, keys: Iterable[str] | None = None) -> Inputs:
        """What the network reads, and the masks of actions, as tensors; of these observations ``keys``, if given."""
        if isinstance(observations, Inputs):
            return observations
        preprocess = self.users_own("preprocess")
        if preprocess is not None:
            observations = preprocess(observations)
        keys = self.read_keys if keys is None else keys
        return Inputs(self.observer.read(observations, keys, self.dtype, self.device))

    def distribution_of(
        self, outputs: Tensors, observations: object, mask: object, temperature: float
    ) -> Distribution:
        """The distribution that the network's ``outputs`` stand for, masked by ``observations`` and by ``mask``."""
        if not is_traced() and not is_plain(self, Policy):
            self.refuse_other_logits(outputs)
        inputs = self.read(observations, self.masks.values()) if self.masks else {}
        masks = {action: inputs[key] for action, key in self.masks.items()}
        added = self._given_masks(mask)
        for action, given in added.items():
            given = as_flags("mask", as_tensor("mask", given)).to(self.device)
            if action in masks:
                name = f"the mask of action {action!r}"
                given = given & as_flags(name, masks[action])
            masks[action] = given
        stages = self._stages
        if stages is not None:
            return self._in_stages(stages, outputs, observations, masks, added, temperature)
        try:
            joint = self.distributions(outputs, masks, temperature)
        except (NoLegalChoiceError, NoNumberError) as error:
            raise self._explained(error, observations, added) from None
        return joint.parts[self._only] if self.action_tree.is_single else joint

    def _in_stages(
        self,
        network: AutoregressiveNetwork,
        outputs: Tensors,
        observations: object,
        masks: Mapping[str, Tensor],
        added: Collection[str],
        temperature: float,
    ) -> AutoregressiveDistribution:
        def part(head: str, logits: Tensor) -> Distribution:
            try:
                return self.distributions.of(head, logits, masks, temperature)
            except (NoLegalChoiceError, NoNumberError) as error:
                raise self._explained(error, observations, added) from None

        families = self.distributions.items()
        return AutoregressiveDistribution(
            network, network.start(outputs), part, self._action_inputs, self._joint,
            tuple(self.distributions), self.dtype, all(family.has_density for _, family in families),
        )  # fmt: skip

    def _explained(
        self,
        error: NoLegalChoiceError | NoNumberError,
        observations: object,
        added: Collection[str],
    ) -> ValueError:
        """``error`` of a distribution with the observation that it comes from; ``added`` are masks of the caller."""
        if isinstance(error, NoNumberError):
            return with_observation(error, self.read(observations))
        if error.action not in self.masks:
            return error
        also = " within the mask that was given" if error.action in added else ""
        return error.of(f"observation {self.masks[error.action]!r}{also}")

    def distribution_of_row(self, row: Tensor) -> Distribution:
        """The distribution whose ``row()`` is ``row`` (..., P): no weight, observation or mask is read.

        Raises ValueError for a row of another width, and for a distribution that has none.
        """
        return distribution_of_row(self.distributions, row, is_single=self.action_tree.is_single)

    def refuse_other_logits(self, outputs: object) -> None:
        """Raise ValueError for logits of another width than the distributions take: a hook may return anything."""
        values = outputs if isinstance(outputs, Mapping) else {}
        for name, shape in self.logits_shapes.items():
            logits = values.get(name)
            if isinstance(logits, Tensor) and tuple(logits.shape[-len(shape) :]) != shape:
                got, needed = format_shape(logits.shape), format_shape(shape)
                raise ValueError(
                    f"the logits of action {name!r} have the shape {got}, but its distribution takes {needed} at the "
                    "end; a hook on this policy must keep their width"
                )

    def action_of(
        self,
        distribution: Distribution,
        observation: object,
        deterministic: bool,
        generator: torch.Generator | None,
    ) -> Any:
        """An action that the environment accepts, tensor-valued as ``observation`` is."""
        drawn = self.drawn(distribution, deterministic, generator)
        return to_environment(self.action_tree, drawn, as_numpy=not holds_tensors(observation))

    def drawn(
        self, distribution: Distribution, deterministic: bool, generator: torch.Generator | None
    ) -> Tensors:
        """The mode or a sample, by flat key."""
        value = distribution.mode() if deterministic else distribution.sample(generator)
        return value if isinstance(value, dict) else {self._only: value}

    def as_observed(self, flat: Tensors) -> Any:
        """Observations by flat key, in the structure of the space for a class that defines its own ``preprocess``."""
        return self.observer.tree.unflatten(flat) if self.users_own("preprocess") else flat

    def users_own(self, method: str) -> Any:
        """A method that the user's network class defines; a node of that name is none."""
        module = self.network.module
        return getattr(module, method) if hasattr(type(module), method) else None

    @property
    def class_that_acts(self) -> str | None:
        """The name of the user's network class, if it defines ``act``."""
        kind = type(self.network.module)
        return kind.__name__ if hasattr(kind, "act") else None

    def _given_masks(self, mask: object) -> dict[str, Any]:
        if mask is None:
            return {}
        if not isinstance(mask, Mapping):
            if not self.action_tree.is_single:
                names = listing(self.distributions)
                raise ValueError(f"this policy has several actions: give mask as a dict of {names}")
            return {self._only: mask}
        for name in mask:
            if name not in self.distributions:
                raise ValueError(no_action_to_mask(name, self.distributions))
        return dict(mask)


Policy.direct = Policy
