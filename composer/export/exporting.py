"""A model as a file that runs without this library: ``.onnx`` or ``.pt2``, kept only if it computes the same."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from composer.atomic import WriteError, replace_with
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.plain_spec import plain_spec
from composer.errors import RefusedError
from composer.export.checks import argument_problems, model_problems
from composer.export.files import FORMATS, METADATA, FileFormat, trace
from composer.export.network import ExportedNetwork
from composer.export.parity import (
    BATCHES,
    STEPS,
    TOLERANCE,
    Difference,
    largest_difference,
    random_inputs,
    zero_state,
)
from composer.export.values import AnyCritic, ExportableModel, ExportPart, Value
from composer.export.wrappers import MeanNoise, mean_noises, wrapped_policy
from composer.network.module import NetworkModule
from composer.network.network import Network
from composer.policy.policy import Policy
from composer.policy.structured import AnyPolicy
from composer.source.dump import dump_yaml
from composer.spaces.actors import ActorKey
from composer.spaces.json_form import spaces_to_json
from composer.wrappers.interface import IModelWrapper
from composer.wrappers.wrapping import wrap_policy
from perception_blocks.registry import MissingExtraError

__all__ = ["METADATA", "ExportError", "ExportReport", "copied", "export_model"]


class ExportError(RefusedError):
    """The model cannot be exported; the message gives every reason, and what to do."""


@dataclass(frozen=True)
class ExportReport:
    """The file at ``path``: its inputs and outputs, and their largest difference from the model."""

    path: Path
    inputs: list[Value] = field(repr=False)
    outputs: list[Value] = field(repr=False)
    difference: float

    def __str__(self) -> str:
        lines = ["inputs", *(f"  {value}" for value in self.inputs)]
        lines += ["outputs", *(f"  {value}" for value in self.outputs)]
        sizes = ", ".join(map(str, BATCHES[:-1])) + f" and {BATCHES[-1]}"
        lines += [
            f"{STEPS} steps with batches of {sizes}: at most {self.difference:.1e} from the model"
        ]
        return "\n".join([*lines, f"wrote {self.path}"])


def export_model(
    model: ExportableModel,
    path: str | os.PathLike[str],
    *,
    part: ExportPart = "policy",
    unroll: int | None = None,
    actor: ActorKey | None = None,
    wrapped: object = None,
) -> ExportReport:
    """Write ``model`` to ``path``, as `Model.export` says. Raises ExportError, and then writes nothing."""
    target = Path(path)
    chosen = _format(target)
    policy, critic = _parts_of(model, part, actor)
    problems = list(argument_problems(part, unroll, critic))
    wrappers = _wrappers(model, policy, part, actor, wrapped, problems)
    problems += model_problems(policy, critic, part, target.suffix)
    if problems:
        raise ExportError(f"{os.fspath(path)!r} cannot be exported: " + "\n  ".join(problems))
    with torch.autocast("cpu", enabled=False):  # as the file will run, whatever the caller has set
        policy, critic = copied(policy, critic)
        network = _named(ExportedNetwork(policy, critic, part, unroll, wrappers).eval())
        worst = _write(network, chosen, target, _metadata(model, network, actor))
    inputs, outputs = list(network.inputs.values()), list(network.outputs.values())
    return ExportReport(target, inputs, outputs, worst.size)


def _wrappers(
    model: ExportableModel,
    policy: AnyPolicy,
    part: ExportPart,
    actor: ActorKey | None,
    wrapped: object,
    problems: list[str],
) -> list[MeanNoise]:
    """The wrappers that change actions: of ``wrapped``, or else of the spec; adds ``problems``."""
    if wrapped is None:
        if part == "critic" or not isinstance(policy, Policy) or not model.spec.policy.wrap:
            return []
        return mean_noises(wrap_policy(policy, model.spec.policy.wrap), problems)
    inner = wrapped_policy(wrapped)
    # Each access to an actor's policy creates a new one.
    same = inner is policy or (
        actor is not None and inner is not None and inner.logits_shapes == policy.logits_shapes
    )
    if same and isinstance(wrapped, IModelWrapper):
        return mean_noises(wrapped, problems)
    name = "model.policy" if actor is None else f"model.policy[{actor!r}]"
    got = f"a {type(wrapped).__name__}" if inner is None else "another policy in wrappers"
    problems.append(f"wrapped is what composer.model_wrap({name}, ...) gives, got {got}")
    return []


def _write(
    network: ExportedNetwork, chosen: FileFormat, target: Path, metadata: Mapping[str, object]
) -> Difference:
    """Put the file in its place, if it computes what ``network`` does; the largest difference between them."""
    program = _traced(network)
    worst = Difference("", 0.0, 0, 0)

    def write(temporary: str) -> None:
        nonlocal worst
        try:
            chosen.write(program, network, metadata, temporary)
            run = chosen.read(temporary)
        except OSError:
            raise
        except Exception as error:
            raise ExportError(
                f"{str(target)!r} cannot be written: {type(error).__name__}: {_first_line(error)}"
            ) from error
        worst = largest_difference(network, run)
        if not worst.size <= TOLERANCE:
            raise ExportError(_unequal(target, worst))

    try:
        replace_with(target, write)
    except WriteError as error:
        raise ExportError(str(error)) from error
    return worst


def _format(path: Path) -> FileFormat:
    chosen = FORMATS.get(path.suffix)
    if chosen is None:
        kinds = " or ".join(FORMATS)
        raise ExportError(f"{str(path)!r} must end in {kinds}, which says what kind of file it is")
    try:
        chosen.require()
    except MissingExtraError as error:
        raise ExportError(str(error)) from error
    return chosen


def _parts_of(
    model: ExportableModel, part: str, actor: ActorKey | None
) -> tuple[AnyPolicy, AnyCritic | None]:
    """The exported policy and critic: of all actors, or of ``actor`` alone."""
    critic = None if part == "policy" else model.critic
    if actor is None:
        return model.policy, critic
    if None in model.policy.policies:
        raise ExportError(f"this model has one policy, and no separate one for {actor!r}")
    if critic is not None and critic.only_for_all:
        raise ExportError(
            f"{critic.only_for_all}, so {actor!r} has no critic alone; export all actors, or part='policy'"
        )
    try:
        return model.policy[actor], None if critic is None else critic[actor]  # type: ignore[index]
    except KeyError as error:
        raise ExportError(error.args[0]) from error


def copied(policy: AnyPolicy, critic: AnyCritic | None) -> tuple[AnyPolicy, AnyCritic | None]:
    """A copy for use: on the CPU, in eval mode, in float32 at least."""
    modules = [module for root in (policy, critic) if root is not None for module in root.modules()]
    registered = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values())]
    weights = [t for t in registered if t is not None]
    computed = [t for m in modules for t in vars(m).values()]  # as pruning has it
    # Tensors with a history cannot be copied as they are: rows of the stacks that networks of one form share are such.
    memo: dict[int, Tensor] = {id(t): t.detach().clone() for t in computed if _has_history(t)}
    memo |= {id(t): nn.Parameter(t.detach().clone(), False) for t in weights if _has_history(t)}
    policy, critic = copy.deepcopy((policy, critic), memo)
    narrow = torch.finfo(policy.dtype).bits < 32
    for module in filter(None, (policy, critic)):
        module.to(device="cpu", dtype=torch.float32 if narrow else policy.dtype).eval()
    return policy, critic


def _named(network: ExportedNetwork) -> ExportedNetwork:
    """``network`` after a first run, which names its outputs."""
    with torch.no_grad():
        inputs = next(random_inputs(network, BATCHES[1], 1))
        network(dict(zero_state(network, BATCHES[1])) | inputs)
    return network


def _has_history(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and not value.is_leaf


def _traced(network: ExportedNetwork) -> ExportedProgram:
    try:
        return trace(network)
    except Exception as error:
        place = _failing_module(network, error)
        reason = _first_line(error)
        raise ExportError(f"{place} cannot be traced: {type(error).__name__}: {reason}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _failing_module(network: ExportedNetwork, error: BaseException) -> str:
    """The innermost module of the model in which ``error`` was raised, by its path and class."""
    names: dict[int, str] = {}
    for part, module in (("policy", network.policy), ("critic", network.critic)):
        if module is not None:
            names |= {id(inner): name for name, inner in module.named_modules(prefix=part)}
            names |= {id(net.module): part for net in _networks_of(module)}
    failing, trace_back = network, error.__traceback__
    while trace_back is not None:
        owner = trace_back.tb_frame.f_locals.get("self")
        failing = owner if id(owner) in names else failing
        trace_back = trace_back.tb_next
    return f"{names.get(id(failing), 'the model')!r} ({type(failing).__qualname__})"


def _networks_of(module: AnyPolicy | AnyCritic) -> list[Network]:
    """The networks that a policy or critic runs itself."""
    if isinstance(module, NetworkModule):
        return [module.network]
    return [member.network for group in module.groups for member in group.members]


def _unequal(path: Path, worst: Difference) -> str:
    return (
        f"{str(path)!r} is not kept: its output {worst.output!r} differs from the model's by {worst.size:.1e} "
        f"(step {worst.step} with a batch of {worst.batch}), more than {TOLERANCE:.0e}"
    )


def _metadata(
    model: ExportableModel, network: ExportedNetwork, actor: ActorKey | None
) -> dict[str, object]:
    """The metadata of a file, for JSON."""
    policy = network.policy
    try:
        spec = dump_yaml(plain_spec(model.source.data))
    except CheckpointError:  # it holds a class or function without a name
        spec = None
    return {
        "format_version": 1,
        "part": network.part,
        "unroll": network.steps,
        "actor": None if actor is None else str(actor),
        "inputs": {name: _described(value) for name, value in network.inputs.items()},
        "outputs": {name: _described(value) for name, value in network.outputs.items()},
        "state": {v.name: v.next for v in network.inputs.values() if v.kind == "state"},
        "observation_space": spaces_to_json(policy.observation_space),
        "action_space": spaces_to_json(policy.action_space),
        "spec": spec,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _described(value: Value) -> dict[str, object]:
    dtype = str(value.dtype).removeprefix("torch.")
    described = {"kind": value.kind, "key": value.key, "shape": list(value.axes), "dtype": dtype}
    return described if value.actor is None else {**described, "actor": value.actor}
