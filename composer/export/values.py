"""What goes into an exported file and what comes out: names, kinds and axes, of one actor or of several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from composer.critic.base import CriticModule
from composer.critic.shared_state import PRESENT
from composer.critic.structured import StructuredCriticBase
from composer.network.network import Tensors
from composer.network.structured import StructuredModule
from composer.policy.policy import Policy
from composer.policy.structured import StructuredPolicy
from composer.spaces.kinds import Leaf
from composer.spaces.samples import space_dtype
from perception_blocks.port import Port
from perception_blocks.words import is_plain

__all__ = [
    "AnyCritic",
    "AnyPolicy",
    "ExportPart",
    "ExportedActors",
    "Interface",
    "Place",
    "Value",
    "roots_of",
]

AnyPolicy: TypeAlias = Policy | StructuredPolicy
AnyCritic: TypeAlias = CriticModule | StructuredCriticBase
ExportPart = Literal["policy", "critic", "model"]
Kind = Literal["observation", "taken", "present", "state", "resets", "logits", "action", "value"]
Place = tuple[Kind, str | None, str]  # kind, actor, key
_NUMBERED = re.compile(r"(input|output)_\d+$")
Axes = tuple[int | str, ...]
Role = Literal["input", "output"]


@dataclass(frozen=True)
class Value:
    """An input or output: its ``name`` in the file, the ``key`` that the model knows it by, and its form.

    The name follows from the key where that `is_plain`, and is a number (``input_3``) where not.

    An axis is a number, or the name of one whose size varies. ``next`` is the output that a state becomes. ``taken`` is
    an action, as the environment takes it, that a critic of actions is asked about. ``actor`` is whose it is, where
    there are several; of a state, that is in its key.
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
        """What tells it from all others."""
        return self.kind, self.actor, self.key

    def zeros(self, sizes: Mapping[str, int]) -> Tensor:
        """Zeros of its form; ``sizes`` has those of axes that vary."""
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
    """What runs in a file, by name: the policy is in it where it is asked for, or where the critic reads it."""
    roots: dict[str, AnyPolicy | AnyCritic] = {}
    if part != "critic" or (critic is not None and critic.shared):
        roots["policy"] = policy
    if part != "policy" and critic is not None:
        roots["critic"] = critic
    return roots


class ExportedActors:
    """Whose networks are in a file: the policies by actor, or the only one under None, and what the critic reads.

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

    def whole(self, by_actor: Mapping[str | None, Any]) -> Any:
        """Values by actor as a policy or critic takes them: those of the only one alone."""
        return by_actor if self.several else by_actor[None]

    def parts(self, whole: Any) -> dict[str | None, Tensors]:
        """The way back."""
        return dict(whole) if self.several else {None: whole}

    def critic_of(self, actor: str | None) -> CriticModule | None:
        """The critic that judges ``actor``, alone or with others; None where there is none."""
        return None if self.critic is None else self.critic.critic_of(actor)

    def leaves(self, actor: str | None) -> dict[str, Leaf]:
        """The observations of ``actor`` that are read, and the masks without which they cannot be."""
        policy = self.policies[actor]
        tree = policy.observer.tree
        keys = set(self._read_by_critic(actor) & tree.ports.keys())
        if self.runs_policy:
            keys |= {*policy.network.in_ports, *policy.masks.values()}
        masks = {tree.ports[key].mask for key in policy.observer.keys if key in keys}
        return {key: leaf for key, leaf in tree.leaves.items() if key in keys | masks}

    def taken(self, actor: str | None) -> dict[str, Leaf]:
        """The action that the critic values; one with a value for each choice needs none."""
        critic = self.critic_of(actor)
        sources = {} if critic is None else critic.input_sources()
        is_read = any(source.kind == "action" for source in sources.values())
        return dict(self.policies[actor].action_tree.leaves) if is_read else {}

    @property
    def tells_presence(self) -> bool:
        """Whether the critic reads who is there."""
        return self.critic is not None and self.critic.reads_presence

    def leading(self, actor: str | None, steps: int | None) -> Axes:
        """The axes before a value's own: the batch, agents that are not counted, and steps where several go in."""
        agents = () if actor not in self.crowds else (self.crowds[str(actor)],)
        return ("batch", *agents, *(() if steps is None else (steps,)))

    def states(self, module: AnyPolicy | AnyCritic) -> Iterator[tuple[str, Axes]]:
        """The names and axes of what the policy or critic ``module`` carries."""
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
    """Inputs and outputs of a file by name. Outputs are named by the first run, which says what there is.

    Observations have their flat keys and the state the names of ``initial_state``; what is of one of several actors has
    that one's name before it. Where two would have one name, the later one has its kind before it. What is not plain is
    numbered: ``input_3`` is the fourth input.
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
        self._names: dict[Role, set[str]] = {"input": set(), "output": set()}
        self._lengths = self._axes_that_vary()
        inputs = [*self._observations(), *self._taken(), *self._present(), *self._states(modules)]
        if any(value.kind == "state" for value in inputs):
            name, axes = self._unused("resets", "state", "input"), actors.leading(None, steps)
            inputs.append(Value(name, "resets", "resets", axes, torch.bool))
        self.inputs = {value.name: value for value in inputs}
        self.outputs: dict[str, Value] = {}
        self._next = {value.key: value.next for value in inputs if value.next is not None}

    def state_key(self, part: str, key: str) -> str:
        """What a state of a part is called: where several parts have one, as the whole model does."""
        return f"{part}/{key}" if self._prefixed else key

    def of_kind(self, kind: Kind, tensors: Mapping[str, Tensor]) -> Tensors:
        """The inputs of one kind by key."""
        return {v.key: tensors[name] for name, v in self.inputs.items() if v.kind == kind}

    def by_actor(self, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str | None, Tensors]:
        """The inputs of one kind by actor and key; of an actor who has none, an empty dict."""
        found: dict[str | None, Tensors] = {actor: {} for actor in self.actors.policies}
        for name, value in self.inputs.items():
            if value.kind == kind:
                found[value.actor][value.key] = tensors[name]
        return found

    def named(self, found: Mapping[Place, Tensor]) -> Tensors:
        """What a run has found, by name."""
        if not self.outputs:
            self._name_outputs(found)
        names = {value.place: name for name, value in self.outputs.items()}
        return {names[place]: tensor for place, tensor in found.items()}

    # --- names ---

    def _observations(self) -> Iterator[Value]:
        for actor, policy in self.actors.policies.items():
            ports = policy.observer.tree.ports
            for key, leaf in self.actors.leaves(actor).items():
                mask = _varies_with(ports, key)
                shape = (self._lengths[mask] if n is None else n for n in leaf.port.shape)
                yield self._input("observation", actor, key, key, tuple(shape), space_dtype(leaf))

    def _axes_that_vary(self) -> dict[str, str]:
        """What the axes that vary are called, by the masks of their values (`_varies_with`)."""
        found = [
            _varies_with(policy.observer.tree.ports, key)
            for actor, policy in self.actors.policies.items()
            for key, leaf in self.actors.leaves(actor).items()
            if None in leaf.port.shape
        ]
        return _axis_names(found, "", {"batch", *self.actors.crowds.values()})

    def _taken(self) -> Iterator[Value]:
        for actor in self.actors.policies:
            leaves = self.actors.taken(actor)
            for key, leaf in leaves.items():
                name = "taken" if self._acts_once(actor) else f"taken/{key}"
                yield self._input("taken", actor, key, name, leaf.shape, space_dtype(leaf))

    def _present(self) -> Iterator[Value]:
        for actor in self.actors.policies if self.actors.tells_presence else ():
            yield self._input("present", actor, PRESENT, PRESENT, (), torch.bool)

    def _states(self, modules: Mapping[str, AnyPolicy | AnyCritic]) -> Iterator[Value]:
        for part, module in modules.items():
            for key, axes in self.actors.states(module):
                key = self.state_key(part, key)
                name = self._unused(key, "state", "input")
                after = self._unused(f"next/{name}", "state", "output")
                yield Value(name, "state", key, axes, self.dtype, after)

    def _input(
        self, kind: Kind, actor: str | None, key: str, name: str, shape: Axes, dtype: torch.dtype
    ) -> Value:
        before = "observation" if kind == "observation" else "input"
        name = self._unused(_of_actor(actor, name), before, "input")
        axes = (*self.actors.leading(actor, self.steps), *shape)
        return Value(name, kind, key, axes, dtype, actor=actor)

    def _name_outputs(self, found: Mapping[Place, Tensor]) -> None:
        states = {value.key: value for value in self.inputs.values() if value.kind == "state"}
        for (kind, actor, key), tensor in found.items():
            if kind == "state":
                name, axes = self._next[key], states[key].axes
            else:
                name, leading = (
                    self._output_name(kind, actor, key),
                    self.actors.leading(actor, self.steps),
                )
                axes = (*leading, *tensor.shape[len(leading) :])
            self.outputs[name] = Value(name, kind, key, axes, tensor.dtype, actor=actor)

    def _output_name(self, kind: Kind, actor: str | None, key: str) -> str:
        """``value`` as the critic calls it; ``logits`` and ``action``, followed by which where there are several."""
        name = key if kind == "value" else kind if self._acts_once(actor) else f"{kind}/{key}"
        return self._unused(_of_actor(actor, name), "output", "output")

    def _acts_once(self, actor: str | None) -> bool:
        return self.actors.policies[actor].action_tree.is_single

    def _unused(self, name: str, kind: str, role: Role) -> str:
        """``name``, or a number where it is not plain; with ``kind`` before it where it is taken."""
        if not is_plain(name):
            name = f"{role}_{len(self._names[role])}"
        while any(name in names for names in self._names.values()):
            name = f"{kind}/{name}"
        self._names[role].add(name)
        return name


def _of_actor(actor: str | None, name: str) -> str:
    return name if actor is None else f"{actor}/{name}"


def _varies_with(ports: Mapping[str, Port], key: str) -> str:
    """What says how long an axis is: equal for all values whose masks are called alike, of whichever actor.

    Actors that share a network run as one batch, in which sets are equally long.
    """
    return ports[key].mask or key


def _axis_names(texts: Iterable[str], ending: str, taken: Iterable[str]) -> dict[str, str]:
    """A name for each of ``texts`` that no other has, nor any of ``taken``: an axis of one name has one size."""
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
