"""The inputs and outputs of an exported file: names, kinds and axes, of one actor or of several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from composer.critic.base import CriticModule
from composer.critic.central import PRESENT
from composer.critic.structured import StructuredCriticBase
from composer.network.network import Tensors
from composer.network.structured import StructuredModule
from composer.policy.policy import Policy
from composer.policy.structured import AnyPolicy
from composer.source.load import Source
from composer.spaces.kinds import Leaf
from composer.spaces.samples import space_dtype
from composer.spec.model_spec import ModelSpec
from perception_blocks.port import Port
from perception_blocks.words import is_plain

__all__ = ["AnyCritic", "ExportPart", "ExportableModel", "ExportedActors", "Interface"]
__all__ += ["Place", "Value", "roots_of"]

AnyCritic: TypeAlias = CriticModule | StructuredCriticBase
ExportPart = Literal["policy", "critic", "model"]
Kind = Literal["observation", "taken", "present", "state", "resets", "logits", "action", "value"]
Place = tuple[Kind, str | None, str]  # kind, actor, key
_NUMBERED = re.compile(r"(input|output)_\d+$")
Axes = tuple[int | str, ...]
Side = Literal["input", "output"]


class ExportableModel(Protocol):
    """The attributes of a `Model` that an export reads."""

    policy: AnyPolicy
    critic: AnyCritic | None
    spec: ModelSpec
    source: Source


@dataclass(frozen=True)
class Value:
    """An input or output: its ``name`` in the file, its ``key`` in the model, and its form.

    The name is the key if that `is_plain`, else a number (``input_3``). An axis is a number, or the name of an axis
    whose size varies. ``next`` is the output that a state becomes. ``taken`` is an action, as the environment takes it,
    whose value a critic gives. ``actor`` is the actor that it belongs to, where there are several; the key of a state
    has it.
    """

    name: str
    kind: Kind
    key: str
    axes: Axes
    dtype: torch.dtype
    next: str | None = None
    actor: str | None = None

    @property
    def place(self) -> Place:
        """Kind, actor and key, which no other value has."""
        return self.kind, self.actor, self.key

    def zeros(self, sizes: Mapping[str, int]) -> Tensor:
        """Zeros of its form; ``sizes`` has the sizes of axes that vary."""
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in self.axes]
        return torch.zeros(shape, dtype=self.dtype)

    def __str__(self) -> str:
        axes = ", ".join(map(str, self.axes)) + ("," if len(self.axes) == 1 else "")
        text = f"{self.name} ({axes}) {str(self.dtype).removeprefix('torch.')}"
        if not _NUMBERED.search(self.name):
            return text
        owner = "" if self.actor is None else f" of {self.actor!r}"
        return f"{text}, the {self.kind} {self.key!r}{owner}"


def roots_of(
    policy: AnyPolicy, critic: AnyCritic | None, part: ExportPart
) -> dict[str, AnyPolicy | AnyCritic]:
    """The modules in a file, by name: the policy is one if it is asked for, or if the critic reads it."""
    roots: dict[str, AnyPolicy | AnyCritic] = {}
    if part != "critic" or (critic is not None and critic.shared):
        roots["policy"] = policy
    if part != "policy" and critic is not None:
        roots["critic"] = critic
    return roots


class ExportedActors:
    """The policies in a file by actor, or the only one under None, and what the critic reads.

    ``runs_policy`` is false where the critic alone is in the file and reads nothing of the policy.
    """

    def __init__(
        self, policy: AnyPolicy, critic: AnyCritic | None, runs_policy: bool = True
    ) -> None:
        self.policies: dict[str | None, Policy] = dict(policy.policies.items())
        self.several = None not in self.policies
        open_names = [actor.name for actor in policy.actors if actor.is_open]
        self.crowds = _axis_names(open_names, "_agents", {"batch"})
        self.critic = critic
        self.runs_policy = runs_policy

    def whole(self, by_actor: Mapping[str | None, object]) -> object:
        """Values by actor as a policy or critic takes them; without several actors, the values alone."""
        return by_actor if self.several else by_actor[None]

    def parts(self, whole: Any) -> dict[str | None, Tensors]:
        """The way back."""
        return dict(whole) if self.several else {None: whole}

    def critic_of(self, actor: str | None) -> CriticModule | None:
        """The critic that judges ``actor``, alone or with others; None where there is none."""
        return None if self.critic is None else self.critic.critic_of(actor)

    def leaves(self, actor: str | None) -> dict[str, Leaf]:
        """The observations of ``actor`` that are read, and the masks that reading them needs."""
        policy = self.policies[actor]
        tree = policy.observer.tree
        keys = set(self._read_by_critic(actor) & tree.ports.keys())
        if self.runs_policy:
            keys |= {*policy.network.in_ports, *policy.masks.values()}
        masks = {tree.ports[key].mask for key in policy.observer.keys if key in keys}
        return {key: leaf for key, leaf in tree.leaves.items() if key in keys | masks}

    def taken(self, actor: str | None) -> dict[str, Leaf]:
        """The action that the critic reads; none for a critic with a value for each choice."""
        critic = self.critic_of(actor)
        sources = {} if critic is None else critic.input_sources()
        is_read = any(source.kind == "action" for source in sources.values())
        return dict(self.policies[actor].action_tree.leaves) if is_read else {}

    def leading(self, actor: str | None, steps: int | None) -> Axes:
        """The leading axes of a value: the batch, agents of an open number, and steps with ``unroll``."""
        agents = () if actor not in self.crowds else (self.crowds[str(actor)],)
        return ("batch", *agents, *(() if steps is None else (steps,)))

    def states(self, module: AnyPolicy | AnyCritic) -> Iterator[tuple[str, Axes]]:
        """The names and axes of the state of the policy or critic ``module``."""
        if not isinstance(module, StructuredModule):
            for name, shape in module.state_shapes.items():
                yield name, ("batch", *(size for size in shape if size is not None))
            return
        everyone = module.initial_state(actors=[actor.key for actor in module.actors])
        for name, state in everyone.items():
            owner = next(a.name for a in module.actors if name.startswith(f"{a.name}/"))
            yield name, (*self.leading(owner, None), *state.shape)

    def _read_by_critic(self, actor: str | None) -> set[str]:
        critic = self.critic_of(actor)
        sources = () if critic is None else critic.input_sources().values()
        seen = [source for source in sources if source.kind == "observation"]
        return {source.key for source in seen if not source.actors or actor in source.actors}


class Interface:
    """Inputs and outputs of a file by name. The first run names the outputs.

    Observations have their flat keys and the state the names of ``initial_state``, after the name of the actor where
    there are several. A name that is taken gets the kind before it. Names that are not plain are numbered: ``input_3``
    is the fourth input.
    """

    def __init__(
        self,
        actors: ExportedActors,
        modules: Mapping[str, AnyPolicy | AnyCritic],
        steps: int | None,
    ) -> None:
        self.actors = actors
        self.steps = steps
        self.dtype = next(iter(actors.policies.values())).dtype
        self._prefixed = len(modules) > 1
        self._names: dict[Side, set[str]] = {"input": set(), "output": set()}
        self._lengths = self._axes_that_vary()
        inputs = [*self._observations(), *self._taken(), *self._present(), *self._states(modules)]
        if any(value.kind == "state" for value in inputs):
            name, axes = self._unused("resets", "state", "input"), actors.leading(None, steps)
            inputs.append(Value(name, "resets", "resets", axes, torch.bool))
        self.inputs = {value.name: value for value in inputs}
        self.outputs: dict[str, Value] = {}
        self._next = {value.key: value.next for value in inputs if value.next is not None}

    def state_key(self, part: str, key: str) -> str:
        """The key of a state of ``part``: in a file of policy and critic, the model's."""
        return f"{part}/{key}" if self._prefixed else key

    def of_kind(self, kind: Kind, tensors: Mapping[str, Tensor]) -> Tensors:
        """The inputs of one kind by key."""
        return {v.key: tensors[name] for name, v in self.inputs.items() if v.kind == kind}

    def by_actor(self, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str | None, Tensors]:
        """The inputs of one kind by actor and key; of an actor who has none, an empty dict."""
        inputs: dict[str | None, Tensors] = {actor: {} for actor in self.actors.policies}
        for name, value in self.inputs.items():
            if value.kind == kind:
                inputs[value.actor][value.key] = tensors[name]
        return inputs

    def named(self, outputs: Mapping[Place, Tensor]) -> Tensors:
        """The outputs of a run by name."""
        if not self.outputs:
            self._name_outputs(outputs)
        names = {value.place: name for name, value in self.outputs.items()}
        return {names[place]: tensor for place, tensor in outputs.items()}

    # --- names ---

    def _observations(self) -> Iterator[Value]:
        for actor, policy in self.actors.policies.items():
            ports = policy.observer.tree.ports
            for key, leaf in self.actors.leaves(actor).items():
                mask = _varies_with(ports, key)
                shape = (self._lengths[mask] if n is None else n for n in leaf.port.shape)
                yield self._input("observation", actor, key, key, tuple(shape), space_dtype(leaf))

    def _axes_that_vary(self) -> dict[str, str]:
        """The names of the axes that vary, by the masks of their values (`_varies_with`)."""
        masks = [
            _varies_with(policy.observer.tree.ports, key)
            for actor, policy in self.actors.policies.items()
            for key, leaf in self.actors.leaves(actor).items()
            if None in leaf.port.shape
        ]
        return _axis_names(masks, "", {"batch", *self.actors.crowds.values()})

    def _taken(self) -> Iterator[Value]:
        for actor in self.actors.policies:
            for key, leaf in self.actors.taken(actor).items():
                name = "taken" if self._acts_once(actor) else f"taken/{key}"
                yield self._input("taken", actor, key, name, leaf.shape, space_dtype(leaf))

    def _present(self) -> Iterator[Value]:
        critic = self.actors.critic
        for actor in self.actors.policies if critic and critic.reads_presence else ():
            yield self._input("present", actor, PRESENT, PRESENT, (), torch.bool)

    def _states(self, modules: Mapping[str, AnyPolicy | AnyCritic]) -> Iterator[Value]:
        for part, module in modules.items():
            for key, axes in self.actors.states(module):
                chosen = module.state_names.get(key)
                key = self.state_key(part, key)
                name = self._unused(chosen or key, "state", "input")
                after = self._unused(f"next/{name}", "state", "output")
                yield Value(name, "state", key, axes, self.dtype, after)

    def _input(
        self, kind: Kind, actor: str | None, key: str, name: str, shape: Axes, dtype: torch.dtype
    ) -> Value:
        before = "observation" if kind == "observation" else "input"
        name = self._unused(_of_actor(actor, name), before, "input")
        axes = (*self.actors.leading(actor, self.steps), *shape)
        return Value(name, kind, key, axes, dtype, actor=actor)

    def _name_outputs(self, outputs: Mapping[Place, Tensor]) -> None:
        states = {value.key: value for value in self.inputs.values() if value.kind == "state"}
        for (kind, actor, key), tensor in outputs.items():
            if kind == "state":
                name, axes = self._next[key], states[key].axes
            else:
                name = self._output_name(kind, actor, key)
                leading = self.actors.leading(actor, self.steps)
                axes = (*leading, *tensor.shape[len(leading) :])
            self.outputs[name] = Value(name, kind, key, axes, tensor.dtype, actor=actor)

    def _output_name(self, kind: Kind, actor: str | None, key: str) -> str:
        """The critic's name of a value; ``logits`` and ``action``, with the key of the action if there are several."""
        name = key if kind == "value" else kind if self._acts_once(actor) else f"{kind}/{key}"
        return self._unused(_of_actor(actor, name), "output", "output")

    def _acts_once(self, actor: str | None) -> bool:
        return self.actors.policies[actor].action_tree.is_single

    def _unused(self, name: str, kind: str, side: Side) -> str:
        """``name``, or a number where it is not plain; with ``kind`` before it where it is taken."""
        if not is_plain(name):
            name = f"{side}_{len(self._names[side])}"
        while any(name in names for names in self._names.values()):
            name = f"{kind}/{name}"
        self._names[side].add(name)
        return name


def _of_actor(actor: str | None, name: str) -> str:
    return name if actor is None else f"{actor}/{name}"


def _varies_with(ports: Mapping[str, Port], key: str) -> str:
    """The name of the mask of a value, which decides the length of its axis, or the key of the value.

    Values of any actors with masks of one name are equally long: actors that share a network run as one batch.
    """
    return ports[key].mask or key


def _axis_names(texts: Iterable[str], ending: str, taken: Iterable[str]) -> dict[str, str]:
    """A unique name for each of ``texts``, none of ``taken``: axes of one name have one size."""
    names: dict[str, str] = {}
    used = set(taken)
    for text in dict.fromkeys(texts):
        plain = _identifier(text) + ending
        numbered = (f"{plain}_{number}" for number in count(2))
        names[text] = next(name for name in chain([plain], numbered) if name not in used)
        used.add(names[text])
    return names


def _identifier(text: str) -> str:
    name = re.sub(r"\W+", "_", text[:100]).strip("_")
    return name if name.isidentifier() else f"_{name}"
