"""compose: a spec and an environment's spaces in, a checked Model out. load: the same from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import gymnasium
import torch
from torch import nn

from composer.build import build_network
from composer.checkpoint import (
    LoadReport,
    fill,
    plain_spec,
    read_record,
    read_tensors,
    require_blocks,
    write_checkpoint,
)
from composer.construction import SeededConstruction, chosen_seed
from composer.critic import CRITICS, Critic
from composer.demand import Context, Demand
from composer.distributions import (
    DISTRIBUTIONS,
    ActionDistributions,
    DistributionRuleError,
    build_distributions,
)
from composer.errors import Path, Problems, SpecError
from composer.model_spec import CriticSpec, ModelSpec, NetworkSpec, PolicySpec
from composer.network import NetworkModule, State, Tensors
from composer.observer import Observer
from composer.policy import Policy
from composer.source import Override, Source, dump_yaml, load_source
from composer.space_json import space_to_json
from composer.space_lookup import find_spaces
from composer.spaces import SpaceError, SpaceTree, flatten_space
from composer.spec import read_spec
from composer.trust import allow_list, import_allowed
from perception_blocks.init import local_generator
from perception_blocks.port import Port, format_shape
from perception_blocks.registry import did_you_mean

__all__ = ["Model", "compose", "load"]


class Model(nn.Module):
    """A policy and, where the spec has one, its critic. ``model(observations)`` gives (logits, values).

    ``seed`` is what its initial weights were drawn from, ``spec`` the resolved spec. Nothing but the weights, the
    normalisers' statistics and ``train`` / ``eval`` mode ever changes in it.
    """

    def __init__(
        self,
        source: Source,
        spec: ModelSpec,
        policy: Policy,
        critic: Critic | None,
        constructions: Iterable[SeededConstruction],
        seed: int,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.seed = seed
        self.source = source
        self.spec = spec
        self.load_report: LoadReport | None = None
        self._constructions = list(constructions)

    @property
    def observation_space(self) -> gymnasium.Space:
        return self.policy.observer.tree.space

    @property
    def action_space(self) -> gymnasium.Space:
        return self.policy.action_tree.space

    @property
    def has_memory(self) -> bool:
        return any(part.has_memory for part in self._parts().values())

    def forward(self, observations: Any, state: State | None = None, resets: Any = None) -> Any:
        """(logits, values), both dicts; what policy and critic share runs once.

        With memory anywhere, (logits, values, state); its state holds that of both, under ``policy/`` and ``critic/``.
        """
        if not self.has_memory:
            logits = self.policy(observations)
            return logits, self._values(observations, logits)
        if state is None:
            raise ValueError(
                "this model has memory; call model(observations, state, resets), "
                "beginning with model.initial_state(batch_size)"
            )
        logits, after = _advance(self.policy, "policy", state, observations, resets)
        values: Tensors = {}
        if self.critic is not None:
            shared = logits if self.critic.shared else None
            values, more = _advance(
                self.critic, "critic", state, observations, resets, shared=shared
            )
            after |= more
        return logits, values, after

    def initial_state(
        self,
        batch_size: int | tuple[int, ...] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """A zero state of policy and critic for ``batch_size`` environments."""
        return {
            f"{name}/{key}": value
            for name, part in self._parts().items()
            for key, value in part.initial_state(batch_size, device, dtype).items()
        }

    def materialize(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Model:
        """Give a model composed on ``device="meta"`` its weights: those that composing directly would have drawn."""
        if not self._constructions:
            raise ValueError("this model has its weights already")
        target = torch.device(device)
        dtype = dtype or self.policy.dtype
        for construction in self._constructions:
            construction.materialize(target, dtype)
        self.policy.distributions.reset_parameters(local_generator(self.seed, "distributions"))
        self._constructions = []
        return self.to(device=target, dtype=dtype)

    def summary(self) -> str:
        """Shapes, parameters and FLOPs of every node, as an aligned table."""
        # Not above: counting FLOPs needs more of torch than composing does.
        from composer.summary import summarize

        return str(summarize(self))

    def draw(self, path: str | FilePath) -> FilePath:
        """Draw policy and critic in one picture: png, svg, pdf, html, dot or mmd by the suffix."""
        from composer.diagram import draw

        return draw(self, path)

    def save(self, path: str | FilePath) -> None:
        """Write weights, spec, spaces and seed to one safetensors file; it appears whole or not at all.

        Raises CheckpointError where something in the spec has no name by which it can be found again.
        """
        write_checkpoint(
            path,
            self,
            spec=dump_yaml(plain_spec(self.source.data)),
            observation_space=space_to_json(self.observation_space),
            action_space=space_to_json(self.action_space),
            seed=self.seed,
            dtype=self.policy.dtype,
        )

    def load_weights(self, path: str | FilePath, *, strict: bool = True) -> LoadReport:
        """Load the weights of a checkpoint into this model, which may have been composed from another spec.

        Raises CheckpointError with every difference by name; ``strict=False`` loads what fits and reports the rest.
        """
        return fill(self, read_tensors(path, read_record(path)), strict=strict)

    def update_normalizers(self, observations: Any) -> None:
        """Count a batch of observations into the running statistics of the spec's ``normalize``."""
        self.policy.observer.update(observations, self.policy.dtype, self.policy.device)

    def _parts(self) -> dict[str, NetworkModule]:
        parts: dict[str, NetworkModule] = {"policy": self.policy}
        return parts if self.critic is None else {**parts, "critic": self.critic}

    def _values(self, observations: Any, logits: Tensors) -> Tensors:
        if self.critic is None:
            return {}
        return self.critic(observations, shared=logits if self.critic.shared else None)


def _advance(
    part: NetworkModule, name: str, state: State, observations: Any, resets: Any, **keywords: Any
) -> tuple[Tensors, State]:
    """Call a part of the model with its share of the state, and return its outputs and that share after."""
    if not part.has_memory:
        return part(observations, **keywords), {}
    own = {
        key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}/")
    }
    outputs, after = part(observations, own, resets, **keywords)
    return outputs, {f"{name}/{key}": value for key, value in after.items()}


def compose(
    spec: Any,
    env: Any = None,
    observation_space: gymnasium.Space | None = None,
    action_space: gymnasium.Space | None = None,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> Model:
    """A model from ``spec`` (a YAML file, YAML text, a mapping or an OmegaConf config) for an environment's spaces.

    ``env`` is an environment, a vector environment or an id; without it the two spaces, or else the spec's own
    ``environment``. ``allow`` names modules whose classes the spec may use. ``device="meta"`` composes without weights
    until ``model.materialize(device)``. ``seed=None`` draws one from torch's global generator.

    Raises SpecError with everything that is wrong with the spec. An exception from a user's own class passes through.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is a floating point type such as torch.float32, got {dtype!r}")
    allow = allow_list(allow)
    import_allowed(allow)
    source = load_source(spec, overrides)
    model_spec = read_spec(source, allow)
    spaces = find_spaces(model_spec, env, observation_space, action_space)
    seed = chosen_seed(seed)
    target = torch.device(device)
    context = Context(source, Problems(source), allow, seed, meta=target.type == "meta")
    with torch.device("cpu"):  # not on torch's default device, where generators may be others
        model = _Composer(model_spec, context, *spaces, dtype).model()
        return model if context.meta else model.materialize(target, dtype)


def load(
    path: str | FilePath,
    allow: Iterable[str] = (),
    *,
    device: torch.device | str = "cpu",
    strict: bool = True,
) -> Model:
    """The model that ``model.save(path)`` wrote. ``allow`` names the modules of the classes that its spec uses.

    Raises CheckpointError for a damaged or foreign file, for blocks that nobody has registered here and for weights
    that do not fit, SpecError for a class that is not allowed. With ``strict=False`` what fits is loaded, and
    ``model.load_report`` says what was not.
    """
    allow = allow_list(allow)
    record = read_record(path)
    import_allowed(allow)
    require_blocks(record)
    observation_space, action_space = record.spaces()
    model = compose(
        record.spec,
        observation_space=observation_space,
        action_space=action_space,
        allow=allow,
        device=device,
        dtype=getattr(torch, record.dtype),
        seed=record.seed,
    )
    model.load_report = fill(model, read_tensors(path, record), strict=strict)
    return model


class _Composer:
    """One run of compose: trees, distributions, policy, critic; problems are gathered in the context."""

    def __init__(
        self,
        spec: ModelSpec,
        context: Context,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self.context = context
        self.problems = context.problems
        self.dtype = dtype
        observations = self._tree(observation_space, "observation", spec.ignore, spec.texts)
        actions = self._tree(action_space, "action", (), {})
        if observations is None or actions is None:
            raise SpecError(self.problems)  # nothing more can be said
        self.observations, self.actions = observations, actions
        self.ports = dict(self.observations.ports)  # as networks see them

    def model(self) -> Model:
        self._refuse_unsupported()
        before = len(self.problems)
        families = self._families()
        rules_are_wrong = len(self.problems) > before
        observer = self._observer()
        masks = self._masks(families)
        built = self._policy_network(families, rules_are_wrong)
        critic = self._critic_network()
        if built and not self.problems:
            self._refuse_unread(set(masks.values()))
        self.problems.raise_if_any()
        assert built is not None
        network, construction = built
        spec = self.spec.policy.networks[None]
        policy = Policy(
            network, observer, self.actions, families,
            masks=masks, shares=spec.shares, dtype=self.dtype,
        )  # fmt: skip
        constructions = [construction]
        made_critic = None
        if critic is not None:
            assert self.spec.critic is not None
            constructions.append(critic[1])
            kind = CRITICS.get(self.spec.critic.kind)
            made_critic = kind(critic[0], observer, shared=spec.shares, dtype=self.dtype)
        return Model(
            self.context.source, self.spec, policy, made_critic, constructions, self.context.seed
        )

    def _tree(
        self,
        space: gymnasium.Space,
        root: str,
        ignore: tuple[str, ...],
        texts: dict[str, dict[str, Any]],
    ) -> SpaceTree | None:
        try:
            return flatten_space(space, root, ignore, texts)
        except SpaceError as error:
            for place, message in error.problems:
                if isinstance(place, str):
                    self.problems.add(("texts", place), message, key=True)
                else:
                    self.problems.add(() if place is None else ("ignore", place), message)
            wrong = {place for place, _ in error.problems}
            if None in wrong:
                return None
            # Only `ignore` and `texts` are wrong: without these entries the rest can be checked.
            ignored = [key for index, key in enumerate(ignore) if index not in wrong]
            known = {key: text for key, text in texts.items() if key not in wrong}
            return flatten_space(space, root, ignored, known)

    def _families(self) -> ActionDistributions:
        """The distribution of each action; where rules are wrong, as if they were not there."""
        rules = list(self.spec.distributions)
        while True:
            try:
                return build_distributions(self.actions, [rule.entry for rule in rules])
            except DistributionRuleError as error:
                for index, setting, message in error.problems:
                    path = rules[index].path
                    self.problems.add((*path, setting) if setting else path, message)
                wrong = {index for index, _, _ in error.problems}
                rules = [rule for index, rule in enumerate(rules) if index not in wrong]

    def _observer(self) -> Observer:
        known = []
        for index, key in enumerate(self.spec.normalize):
            port = self.ports.get(key)
            if port is None:
                self._refuse_observation(("normalize", index), key)
            elif port.is_integer:
                message = f"{key!r} holds integers that name or count; only numbers are normalised"
                self.problems.add(("normalize", index), message)
            elif key in self.observations.masks:
                message = f"{key!r} is a mask; only numbers are normalised"
                self.problems.add(("normalize", index), message)
            else:
                known.append(key)
                self.ports[key] = replace(port, dtype=torch.float32, low=None, high=None)
        return Observer(self.observations, known)

    def _refuse_observation(self, path: Path, key: str) -> None:
        """Note at ``path`` that ``key`` is no observation that can be used."""
        if key in self.spec.ignore:
            reason = "is left out by 'ignore'"
        else:
            listed = f"; there is {', '.join(map(repr, self.ports))}"
            reason = f"is not an observation{did_you_mean(key, self.ports) or listed}"
        self.problems.add(path, f"{key!r} {reason}")

    def _refuse_unsupported(self) -> None:
        """What the spec's format has a key for, but nothing yet does, must not be passed over in silence."""
        policy, critic = self.spec.policy, self.spec.critic
        given = {(*policy.path, "wrap"): policy.wrap, (*policy.path, "separate"): policy.separate}
        if critic is not None:
            given |= {
                (*critic.path, "stack"): critic.stack,
                (*critic.path, "ensemble"): critic.ensemble > 1,
                (*critic.path, "normalize_value"): critic.normalize_value,
            }
        for path, value in given.items():
            if value:
                self.problems.add(
                    path, f"{path[-1]!r} is not supported yet; leave it out", key=True
                )

    def _masks(self, families: ActionDistributions) -> dict[str, str]:
        path = (*self.spec.policy.path, "action_mask")
        masks = {}
        for action, key in self.spec.policy.action_mask.items():
            if action not in families:
                near = (
                    did_you_mean(action, families) or f"; there is {', '.join(map(repr, families))}"
                )
                self.problems.add((*path, action), f"{action!r} is no action{near}", key=True)
            elif key not in self.ports:
                self._refuse_observation((*path, action), key)
            elif self.ports[key].shape != families[action].logits_shape:
                got = format_shape(self.ports[key].shape)
                needed = format_shape(families[action].logits_shape)
                message = f"the mask {key!r} has the shape {got}, but the logits of {action!r} have {needed}"
                self.problems.add((*path, action), message)
            else:
                masks[action] = key
        return masks

    def _policy_network(self, families: ActionDistributions, rules_are_wrong: bool) -> Any:
        spec = self._single_network(self.spec.policy)
        widths = families.logits_shapes
        reasons = {}
        if not rules_are_wrong:
            for name, family in families.items():
                reasons[name] = f"its distribution {DISTRIBUTIONS.name_of(type(family))!r}"
        for index, name in enumerate(spec.shares):
            if name in widths or name in self.ports:
                what = "an action" if name in widths else "an observation"
                self.problems.add(
                    (*spec.path, "shares", index), f"{name!r} is also {what}; rename the node"
                )
        shares = tuple(name for name in spec.shares if name not in {**widths, **self.ports})
        demand = Demand(widths, reasons, shares, "action", {"action_logits_shapes": widths})
        return build_network("policy", spec, self._visible(spec), demand, self.context)

    def _critic_network(self) -> Any:
        if self.spec.critic is None:
            return None
        spec = self._single_network(self.spec.critic)
        if self.spec.critic.kind not in CRITICS:
            path = (*self.spec.critic.path, "kind")
            known = ", ".join(map(repr, CRITICS))
            message = (
                f"critics of kind {self.spec.critic.kind!r} are not supported yet; use {known}"
            )
            self.problems.add(path, message)
            return None
        shares = self.spec.policy.networks[None].shares
        if any(name not in self.context.shared for name in shares):
            return None  # the policy failed: what it would share is not known
        ports = {**self._visible(spec), **self.context.shared}
        policy_graph = self.spec.policy.networks[None].graph or {}
        for name in (name for node in policy_graph.values() for name in node.writes):
            advice = f"share it: write shares: [{name}] in the policy"
            self.context.hidden.setdefault(name, f"belongs to the policy; {advice}")
        demand = Demand({"value": (1,)}, {"value": "a critic"}, (), "value")
        return build_network("critic", spec, ports, demand, self.context)

    def _single_network(self, spec: PolicySpec | CriticSpec) -> NetworkSpec:
        if None not in spec.networks:
            self.problems.add(
                (*spec.path, "networks"),
                "networks by step or agent need an environment with steps or agents",
            )
            self.problems.raise_if_any()
        return spec.networks[None]

    def _visible(self, spec: NetworkSpec) -> dict[str, Port]:
        """The observations that a network may see; all of them while the list itself is wrong."""
        wanted = self.ports if spec.observations is None else self._with_masks(spec.observations)
        unknown = [key for key in wanted if key not in self.ports]
        for key in unknown:
            index = list(wanted).index(key)
            self._refuse_observation((*spec.path, "observations", index), key)
        self.context.hidden = dict.fromkeys(self.spec.ignore, "is left out by 'ignore'")
        if unknown:
            return dict(self.ports)
        out_of_sight = [key for key in self.ports if key not in wanted]
        reason = "is not among the 'observations' that this network may see"
        self.context.hidden |= dict.fromkeys(out_of_sight, reason)
        return {key: port for key, port in self.ports.items() if key in wanted}

    def _with_masks(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """``keys``, and the masks of what they name."""
        masks = [self.ports[key].mask for key in keys if key in self.ports]
        return (*keys, *dict.fromkeys(mask for mask in masks if mask and mask not in keys))

    def _refuse_unread(self, masks: set[str]) -> None:
        masking = {port.mask for port in self.ports.values()}  # a mask goes where its value goes
        for key in self.ports:
            if key not in masking and key not in self.context.read | masks:
                message = f"the observation {key!r} is read by no network; name it under 'ignore' if that is meant"
                self.problems.add(("policy",), message, key=True)
