"""compose: a spec and an environment's spaces in, a checked Model out. load: the same from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium
import torch
from torch import nn

from composer.build.budget import Budget, LimitReached
from composer.build.checking import checked_spec
from composer.build.construction import chosen_seed, on_cpu, refuse_too_large
from composer.build.context import BuildContext
from composer.build.parts_of_spec import finish_parts, prepare_parts
from composer.build.policy_and_critic import PolicyAndCritic, build_policy_and_critic
from composer.checkpoint.adapters import (
    merge_adapters,
    require_adapters,
    require_scales,
    with_own_weights,
    without_adapted_weights,
)
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import (
    LoadReport,
    fill,
    is_dtype,
    read_record,
    read_tensors,
    require_blocks,
    restore_gradients,
    write_checkpoint,
)
from composer.checkpoint.first_weights import FirstWeights
from composer.checkpoint.plain_spec import saved_spec
from composer.checkpoint.weights import renamed
from composer.critic.base import CriticModule
from composer.critic.structured import StructuredCriticBase
from composer.errors import Problems
from composer.host.optimizing import parameter_groups, prepare_optimizer, scales_of
from composer.host.rows import pack_state, unpack_state, width_of
from composer.host.step import Step, step_of, structured_step_of, structured_value_of, value_of
from composer.language.action_entry import action_composer, load_action_model
from composer.limits import GivenLimits, Limits, limits_from
from composer.lowered.model import LoweredModel
from composer.network.module import under
from composer.network.network import State, Tensors, own_share
from composer.network.paths import nodes_of_tensors
from composer.network.sharded import refuse_sharded
from composer.network.structured import StructuredModule
from composer.policy.policy import Policy
from composer.policy.structured import AnyPolicy, one_policy
from composer.source.dump import dump_yaml
from composer.source.load import Override, Source, load_source, stored_source
from composer.spaces.actors import ActorKey, read_actors
from composer.spaces.json_form import spaces_to_json
from composer.spaces.lookup import Spaces, find_spaces, is_by_actor
from composer.spec.model_spec import ModelSpec, of_one_actor
from composer.spec.top_level import is_network
from composer.trust import allow_list, import_allowed, import_extensions
from composer.wrappers.interface import IModelWrapper
from composer.wrappers.wrapping import wrap_policy
from perception_blocks.graph.collector import collection_paused
from perception_blocks.port import Shape
from perception_blocks.reading import files_found
from perception_blocks.words import sparing

if TYPE_CHECKING:
    from composer.export.exporting import ExportReport
    from composer.export.values import ExportPart

__all__ = ["Model", "compose", "load"]

Part: TypeAlias = AnyPolicy | CriticModule | StructuredCriticBase


TARGET = "critic.target."  # begins the names of a copy that is never trained


class Model(nn.Module):
    """A policy and, if the spec has one, a critic. ``model(observations)`` returns (logits, values).

    ``policy`` and ``critic`` (or None) are its parts, ``seed`` the seed of the initial weights, ``spec`` the resolved
    spec, ``size_limits`` the limits of `compose`, ``first_weights`` what was read for the spec's
    `weights`. Only weights, statistics of normalisers and ``train`` / ``eval`` mode
    change.
    """

    def __init__(
        self, source: Source, spec: ModelSpec, parts: PolicyAndCritic, seed: int, limits: Limits
    ) -> None:
        super().__init__()
        self.policy: AnyPolicy = parts.policy
        self.critic: CriticModule | StructuredCriticBase | None = parts.critic
        self.seed = seed
        self.size_limits = limits
        self.source = source
        self.spec = spec
        self.load_report: LoadReport | None = None
        self.first_weights: tuple[FirstWeights, ...] = ()
        self.expanded = parts.expanded
        self._constructions = parts.constructions
        self._wrapped: IModelWrapper | None = None
        self._sharding: Any = (
            None  # of composer.parallel, once the weights are spread over processes
        )

    @property
    def observation_space(self) -> Any:
        """The observation space, or a dict of observation spaces by actor."""
        return self.policy.observation_space

    @property
    def action_space(self) -> Any:
        """The action space, or a dict of action spaces by actor."""
        return self.policy.action_space

    @property
    def has_memory(self) -> bool:
        """Whether policy or critic carries a state from step to step."""
        return any(part.has_memory for part in self._parts().values())

    def forward(
        self,
        observations: object,
        state: State | None = None,
        resets: object = None,
        *,
        action: object = None,
    ) -> Any:
        """Return (logits, values), both dicts; shared layers of policy and critic run once.

        If policy or critic has memory, return (logits, values, state). The keys of a state begin with ``policy/`` and
        ``critic/``; where only one of them has memory its own state will do, and comes back under the same keys. A
        critic of actions values ``action``, an action of the distribution.
        """
        has_memory = self.has_memory
        if has_memory and state is None:
            raise ValueError(
                "this model has memory; call model(observations, state, resets), "
                "beginning with model.initial_state(batch_size)"
            )
        logits, state = _advance(self.policy, state, observations, resets)
        values: Tensors = {}
        if self.critic is not None:
            keywords = self._for_critic(logits, action)
            values, state = _advance(self.critic, state, observations, resets, **keywords)
        return (logits, values, state) if has_memory else (logits, values)

    def initial_state(
        self,
        batch_size: int | tuple[int, ...] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        actors: Iterable[ActorKey] | None = None,
    ) -> State:
        """A zero state of policy and critic for ``batch_size`` environments, of ``actors`` or of all known actors."""
        if actors is not None and not isinstance(self.policy, StructuredModule):
            raise ValueError("'actors' is for steps and agents, of which this model has none")
        chosen = {} if actors is None else {"actors": list(actors)}
        state = {}
        for name, part in self._parts().items():
            keywords: dict[str, Any] = chosen if isinstance(part, StructuredModule) else {}
            state |= under(name, part.initial_state(batch_size, device, dtype, **keywords))
        return state

    def step(
        self,
        observations: Any,
        action: Any = None,
        state: State | None = None,
        resets: object = None,
        *,
        unroll: bool = False,
        mask: Any = None,
        deterministic: bool = False,
        entropy: bool = True,
        present: Mapping[Any, object] | None = None,
    ) -> Step:
        """All that a trainer needs of one step: distribution, action, log_prob, entropy, value and state.

        ``observations`` are the environment's, with any leading axes (...); ``action`` is as the distribution has it
        (`from_environment` makes it of an environment's), None draws one, without gradient. With ``unroll``
        observations and ``resets`` are sequences (..., T), ``state`` is the one before the first step. ``mask`` adds to
        the masks of the spec. Shared layers of policy and critic run once. ``entropy=False`` leaves that out.

        Of several actors observations, actions, masks and results are dicts by actor; the value is one for all where
        the critic is of kind shared_state, and ``present`` is as that critic takes it.

        ``value`` is None without a critic, ``state`` None without memory, ``log_prob`` and ``entropy`` where an action
        has no density. Raises ValueError for a critic of actions, which values no state, for a network class that
        defines ``act``, and for a model with memory without a ``state``.
        """
        policy, critic = self._for_steps(state)
        if isinstance(policy, Policy):
            self._refuse_present(present)
            return step_of(
                policy, critic, observations, action, state, resets,
                unroll=unroll, mask=mask, deterministic=deterministic, entropy=entropy,
            )  # fmt: skip
        return structured_step_of(
            policy, critic, observations, action, state, resets,
            unroll=unroll, mask=mask, deterministic=deterministic, entropy=entropy, present=present,
        )  # fmt: skip

    def value(
        self,
        observations: Any,
        state: State | None = None,
        resets: object = None,
        *,
        unroll: bool = False,
        present: Mapping[Any, object] | None = None,
    ) -> Any:
        """The value (...) of ``observations``, for bootstrapping; None without a critic.

        Arguments, the value of several actors and errors are as for `step`. The policy runs only where the critic reads
        values of it.
        """
        policy, critic = self._for_steps(state)
        if critic is None:
            return None
        if isinstance(policy, Policy):
            self._refuse_present(present)
            return value_of(policy, critic, observations, state, resets, unroll=unroll)
        return structured_value_of(
            policy, critic, observations, state, resets, unroll=unroll, present=present
        )

    def to_environment(self, action: Any) -> Any:
        """An action as the distribution has it, any leading axes, as the environment takes it: numpy, whole, legal.

        Of several actors: a dict by actor.
        """
        return self.policy.to_environment(action)

    def from_environment(self, action: Any) -> Any:
        """An environment's action, any leading axes, as the distribution has it: zero-based, tensors, flat keys.

        Of several actors: a dict by actor.
        """
        return self.policy.from_environment(action)

    @property
    def state_shapes(self) -> dict[str, Shape]:
        """The shapes of the state of policy and critic, without leading axes; empty without memory."""
        shapes: dict[str, Shape] = {}
        for name, part in self._parts().items():
            shapes |= under(name, part.state_shapes)
        return shapes

    @property
    def state_width(self) -> int:
        """How many numbers the state of one environment has; 0 without memory."""
        return width_of(self.state_shapes)

    def pack_state(self, state: State) -> torch.Tensor:
        """``state``, of policy and critic, as one row for each environment: (..., state_width).

        Raises ValueError for a state of other names or shapes; agents whose number is not known have no row.
        """
        return pack_state(self._under_parts(state), self.state_shapes)

    def unpack_state(self, row: torch.Tensor) -> State:
        """The state whose `pack_state` is ``row`` (..., state_width), under the names of `initial_state`.

        Its tensors have the model's dtype. Raises ValueError for a row of another width.
        """
        return unpack_state(row, self.state_shapes, self.policy.dtype)

    def materialize(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Model:
        """Allocate the weights of a model composed on ``device="meta"``; they are those of composing it directly.

        Raises SpecError, naming the largest node, if they do not fit into the memory of ``device``.
        """
        refuse_sharded(self, "materialize()")
        if not self._constructions:
            raise ValueError("this model has its weights already")
        target = torch.device(device)
        wanted: torch.dtype = self.policy.dtype if dtype is None else dtype
        try:
            refuse_too_large(self._constructions, target, wanted)
            for construction in self._constructions:
                construction.materialize(target, wanted)
        except LimitReached as reached:
            raise reached.as_error(self.source) from reached.__cause__
        self.policy.reset_distributions(self.seed)
        self._constructions = []
        # Tensors of the default dtype are there already, and a walk over a large model takes time.
        policy = self.policy
        is_there = target == policy.device and wanted == policy.dtype == torch.get_default_dtype()
        model = self if is_there else self.to(device=target, dtype=wanted)
        self.first_weights = finish_parts(self, self.spec, Problems(self.source))
        return model

    @property
    def wrapped(self) -> IModelWrapper:
        """The policy in the wrappers of the spec's `wrap`, the innermost first; created once, as it stores states."""
        if not self.spec.policy.wrap:
            raise ValueError(
                "the spec has no 'wrap' in its policy; add one, or wrap model.policy with composer.model_wrap"
            )
        if self._wrapped is None:
            self._wrapped = wrap_policy(one_policy(self.policy), self.spec.policy.wrap)
        return self._wrapped

    def lower(self) -> LoweredModel:
        """The model as straight-line code, faster on small batches; its ``policy`` is ``model.policy.lower()``."""
        refuse_sharded(self, "lower()")
        return LoweredModel(self)

    def summary(self) -> str:
        """Shapes, parameters and FLOPs of every node, as an aligned table."""
        # Not above: counting FLOPs needs more of torch than composing does.
        from composer.summary.table import summarize

        return str(summarize(self))

    def draw(self, path: str | FilePath) -> FilePath:
        """Draw policy and critic in one picture; the extension (png, svg, pdf, html, dot, mmd) selects the format."""
        from composer.diagram.drawing import draw

        return draw(self, path)

    def export(
        self,
        path: str | FilePath,
        *,
        part: ExportPart = "policy",
        unroll: int | None = None,
        actor: Any = None,
        wrapped: IModelWrapper | None = None,
    ) -> ExportReport:
        """Write a file that runs without this library: ``.onnx``, or ``.pt2`` of torch.export. The batch may vary.

        ``part`` "policy" gives logits and the deterministic action as the environment takes it, "critic" values,
        "model" both. With memory the state is an input and an output; ``unroll`` makes it so many steps at once. Of
        several actors ``actor`` selects one; without it the file has all. In the wrappers of the spec's `wrap`, or of
        ``wrapped``, the policy acts without exploration and noise. The file is kept if it equals the model over 50
        random steps.

        Raises ExportError with every reason why the model cannot be exported; then there is no file.
        """
        refuse_sharded(self, "export()")
        # Not above: torch's exporters take as long to import as torch itself.
        from composer.export.exporting import export_model

        return export_model(self, path, part=part, unroll=unroll, actor=actor, wrapped=wrapped)

    def save(self, path: str | FilePath, *, adapters_only: bool = False) -> None:
        """Write weights, spec, spaces and seed to one safetensors file; it appears whole or not at all.

        With ``adapters_only`` the file has no weights of blocks with ``lora`` but their adapters, for `load_weights`.
        Of a sharded model every process calls this: the weights are gathered, and the first process writes the file.
        Raises CheckpointError if something in the spec has no name by which it can be loaded.
        """
        if adapters_only:
            refuse_sharded(self, "save(adapters_only=True)")
            about = {**self.checkpoint_about(), "action_model": {"adapters_only": True}}
            write_checkpoint(path, self, only=without_adapted_weights(self), **about)
        elif self._sharding is not None:
            self._sharding.save(path)
        else:
            write_checkpoint(path, self, **self.checkpoint_about())

    def merge_adapters(self) -> None:
        """Add the LoRA adapters of every block to its weights, and remove them. What the model computes is the same.

        A model that is saved afterwards has no ``lora`` in its spec, and is loaded without peft.
        """
        refuse_sharded(self, "merge_adapters()")
        merge_adapters(self)

    def load_weights(
        self,
        path: str | FilePath,
        *,
        strict: bool = True,
        rename: Mapping[str, str] | None = None,
    ) -> LoadReport:
        """Load the weights of a checkpoint into this model, which may have been composed from another spec.

        ``rename`` maps nodes of the checkpoint to their names here: ``{"old": "new"}``, or by path
        ``{"policy/old": "critic/new"}``. Raises CheckpointError with every difference by name; ``strict=False`` loads
        what fits, of each node all or nothing, and reports the rest.
        """
        refuse_sharded(self, "load_weights()")
        record = read_record(path)
        if strict:
            require_adapters(self, path, record)
        require_scales(self, path, record)
        tensors = read_tensors(path, record)
        if record.action_model.get("adapters_only"):
            tensors = with_own_weights(self, tensors)
        if rename:
            tensors = renamed(tensors, rename, str(path), [*self.state_dict()])
        nodes = {} if strict else nodes_of_tensors(self)
        return fill(self, tensors, strict=strict, nodes=nodes)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameters that are trained, in groups: ``torch.optim.Adam(model.parameter_groups(3e-4))``.

        The learning rate of a group is ``learning_rate`` times the spec's `learning_rate_scale`; what is frozen is in
        none. Schedulers of torch keep the ratios. Other settings are for all groups: ``Adam(groups, eps=1e-5)``.
        """
        return parameter_groups(self.parameters(), self.learning_rate_scales(), learning_rate)

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """The same for an ``optimizer`` of this model that others have made, before its first step.

        Frozen parameters leave it, and each step scales the learning rates that its groups have then.
        """
        prepare_optimizer(optimizer, self.learning_rate_scales())

    def learning_rate_scales(self) -> dict[int, float]:
        """The spec's `learning_rate_scale` of each parameter that has one, by its id."""
        return scales_of(self, self.spec.learning_rate_scale)

    def update_normalizers(
        self, observations: Any = None, returns: Any = None, group: Any = None
    ) -> None:
        """Update the running statistics of the spec's ``normalize`` with a batch of observations.

        ``returns`` (any shape) update the statistics of the critic's ``normalize_value``.

        With torch.distributed every process of ``group`` (None: all processes) must call this with its observations,
        and every process gets the statistics of all; with ``group=False`` only this process updates its statistics.
        """
        if observations is not None:
            self.policy.update_normalizers(observations, group)
        if returns is not None:
            self._critic().update_normalizer(returns, group)

    def merge_normalizers(self, other: Model) -> None:
        """Merge the statistics of ``other``, a model that has seen other observations, into those of this model."""
        self.policy.merge_normalizers(other.policy)
        if self.critic is not None:
            self.critic.merge_normalizer(other._critic())

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """As of every module; composer.parallel.load is for a sharded model."""
        refuse_sharded(self, "load_state_dict()")
        return super().load_state_dict(*arguments, **keywords)

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_sharded(self, "a copy")
        return super().__reduce_ex__(protocol)

    def checkpoint_about(self) -> dict[str, Any]:
        """What its checkpoint says beside the weights."""
        return {
            "spec": dump_yaml(saved_spec(self.source.data, self)),
            "observation_space": spaces_to_json(self.observation_space),
            "action_space": spaces_to_json(self.action_space),
            "seed": self.seed,
            "dtype": self.policy.dtype,
            "critics": [self.spec.critic.kind] if self.spec.critic else [],
            "gradients": self._gradients(),
        }

    def _gradients(self) -> dict[str, Any] | None:
        """The names of the parameters that are not trained; None where no one has chosen any."""
        frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        is_chosen = self.spec.freeze or not all(name.startswith(TARGET) for name in frozen)
        return {"frozen": frozen} if is_chosen else None

    def _for_steps(self, state: State | None) -> tuple[AnyPolicy, Any]:
        """Policy and critic. ValueError where `step` means nothing, and for memory without a state."""
        modules = self._modules  # not by attribute: nn.Module has a slow lookup
        policy: AnyPolicy = modules["policy"]  # type: ignore[assignment]
        critic: Any = modules.get("critic")
        if critic is not None and critic.takes_action:
            raise ValueError(
                "the critic of this model values actions, which step() and value() do not; call "
                "model(observations, action=action), or give the model a critic of kind: state"
            )
        if (name := policy.class_that_acts) is not None:
            raise ValueError(
                f"the network class {name!r} defines 'act', whose actions have no distribution; call "
                "model.policy.act(observations), or leave 'act' out of the class"
            )
        if state is None and (policy.has_memory or (critic is not None and critic.has_memory)):
            raise ValueError(
                "this model has memory; call model.step(observations, state=state, resets=resets), "
                "beginning with model.initial_state(batch_size)"
            )
        return policy, critic

    def _refuse_present(self, present: object) -> None:
        if present is not None:
            raise ValueError("'present' is for steps and agents, of which this model has none")

    def _under_parts(self, state: State) -> State:
        """``state`` under the names of `initial_state`, where it may be of the only part with memory."""
        parts = [part for part in self._parts().values() if part.has_memory]
        if len(parts) != 1:
            return state
        (part,) = parts
        share, whole = own_share(part.part, state, part.is_own_state)
        return under(part.part, share) if whole is None else state

    def _critic(self) -> CriticModule | StructuredCriticBase:
        if self.critic is None:
            raise ValueError("this model has no critic, and so no returns to normalise")
        return self.critic

    def _parts(self) -> dict[str, Part]:
        parts: dict[str, Part] = {"policy": self.policy}
        return parts if self.critic is None else {**parts, "critic": self.critic}

    def _for_critic(self, logits: Tensors, action: object) -> dict[str, Any]:
        """What the critic takes beside observations."""
        assert self.critic is not None
        keywords: dict[str, Any] = {"shared": logits} if self.critic.shared else {}
        if action is None:
            return keywords
        if not self.critic.takes_action:
            raise ValueError("the critic of this model values states; call it without an action")
        return {**keywords, "action": action}


def _advance(
    part: Part, state: State | None, observations: object, resets: object, **keywords: Any
) -> tuple[Tensors, State | None]:
    """The outputs of a part of the model, and ``state`` with its share advanced."""
    if state is None or not part.has_memory:
        return part(observations, **keywords), state
    return part(observations, state=state, resets=resets, **keywords)


@collection_paused()
@sparing
def compose(
    spec: Any,
    env: Any = None,
    observation_space: gymnasium.Space | Mapping[Any, gymnasium.Space] | None = None,
    action_space: gymnasium.Space | Mapping[Any, gymnasium.Space] | None = None,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    limits: GivenLimits = None,
) -> Model:
    """Build a model from ``spec`` (a YAML file, YAML text, a mapping, an OmegaConf config or a model's ``source``).

    ``env`` is an environment, a vector environment, one of PettingZoo, or an id; without it the two spaces, or else the
    spec's own ``environment``. Spaces of steps and agents come as mappings: ``{"pick": space, ("place", 0): space}``.
    ``allow`` names modules whose classes the spec may use, and folders (with a slash: ``"../shared/"``) in which it may
    name files, beside its own. ``device="meta"`` composes without weights until ``model.materialize(device)``.
    ``seed=None`` draws one from torch's global generator. ``limits`` says how much spec and spaces may ask for,
    such as ``{"copies": 5000}`` (see `composer.limits.Limits`).

    A spec with `model` gives a `composer.language.ActionModel`; it may do without an environment.

    Raises SpecError with every problem of the spec. An exception of a user's class is passed on.
    """
    if not is_dtype(dtype):
        raise ValueError(f"dtype is a floating point type such as torch.float32, got {dtype!r}")
    allow = allow_list(allow)
    limits = limits_from(limits)
    import_allowed(allow)
    source = load_source(spec, overrides, allow)
    import_extensions(source, allow)
    makes_environment = env is None and (observation_space is None or action_space is None)
    given = env, observation_space, action_space
    model_spec = checked_spec(source, given, makes_environment, allow, limits)
    if model_spec.model is not None:
        spaces = (None, None)
        if model_spec.environment is not None or not makes_environment:
            spaces = find_spaces(model_spec, *given, limits)
        return action_composer(source)(
            source, model_spec, spaces, device=device, dtype=dtype, seed=chosen_seed(seed), limits=limits
        )  # fmt: skip
    spaces = find_spaces(model_spec, *given, limits)
    return _built(model_spec, spaces, allow, torch.device(device), dtype, chosen_seed(seed), limits)


def _built(
    spec: ModelSpec,
    spaces: Spaces,
    allow: tuple[str, ...],
    target: torch.device,
    dtype: torch.dtype,
    seed: int,
    limits: Limits,
) -> Model:
    """The model of ``spec`` for ``spaces``; on the meta device without weights."""
    source, is_meta = spec.source, target.type == "meta"
    actors = read_actors(*spaces) if is_by_actor(spaces[0]) else None
    if actors is None:
        spec = of_one_actor(spec)
    context = BuildContext(source, Problems(source), allow, seed, is_meta, Budget(limits))
    with on_cpu(), files_found(source.find_file, has_weights=source.is_stored):
        try:
            parts = build_policy_and_critic(spec, context, spaces, actors, dtype)
        except LimitReached as reached:
            raise reached.as_error(source) from None
        model = Model(source, spec, parts, seed, limits)
        prepare_parts(model, spec, context.problems, reads=is_meta)
        return model if is_meta else model.materialize(target, dtype)


def load(
    path: str | FilePath,
    allow: Iterable[str] = (),
    *,
    device: torch.device | str = "cpu",
    strict: bool = True,
    limits: GivenLimits = None,
) -> Model:
    """Load the model that ``model.save(path)`` wrote. ``allow`` names the modules of the classes that its spec uses.

    ``limits`` are as for `compose`.

    Raises CheckpointError for a damaged or foreign file, for blocks that are not registered and for weights that do not
    fit, and SpecError for a class that is not allowed. ``strict=False`` loads the weights that fit, and
    ``model.load_report`` lists the others.
    """
    allow = allow_list(allow)
    record = read_record(path)
    import_allowed(allow)
    require_blocks(record)
    if record.action_model:
        return load_action_model(path, record, allow, device, strict, limits)
    source = stored_source(record.spec, path)
    if is_network(source.data):
        raise CheckpointError(
            f"{os.fspath(path)!r} is a network without actions, which composer.load_network loads"
        )
    observation_space, action_space = record.spaces(limits)
    model = compose(
        source,
        observation_space=observation_space,
        action_space=action_space,
        allow=allow,
        device=device,
        dtype=getattr(torch, record.dtype),
        seed=record.seed,
        limits=limits,
    )
    nodes = {} if strict else nodes_of_tensors(model)
    model.load_report = fill(model, read_tensors(path, record), strict=strict, nodes=nodes)
    restore_gradients(model, record)
    return model
