"""A user's own ``nn.Module`` class as a network: found, constructed, run once on nothing, and its outputs checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from composer.build.construction import SeededConstruction
from composer.build.context import (
    BuildContext,
    Outcome,
    Requirements,
    checked_rule,
    width_problem,
)
from composer.network.module import EnsembleMember
from composer.network.network import CustomNetwork, EnsembleNetwork
from composer.spec.model_spec import NetworkSpec
from composer.spec.places import ENSEMBLE
from composer.trust import PathError, import_trusted
from perception_blocks.base_block import is_torchs
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.graph.built import ModuleKey
from perception_blocks.graph.construct import add_place
from perception_blocks.graph.wiring import refused_call
from perception_blocks.init import Rule, initializer
from perception_blocks.measure import (
    PROBE_BATCH,
    check_one_row,
    feature_shape,
    for_one_row,
    initialize_lazy,
    measure,
)
from perception_blocks.port import Port, format_shape
from perception_blocks.reading import without_lost_files
from perception_blocks.settings import check_settings
from perception_blocks.words import describe, did_you_mean, listing, near_name

__all__ = ["custom_network"]


def custom_network(
    spec: NetworkSpec,
    ports: Mapping[str, Port],
    requirements: Requirements,
    context: BuildContext,
    construction: SeededConstruction,
) -> Outcome:
    """The network of the class that ``spec`` names, or none when problems were noted.

    An exception from the class passes through, with a note that says where the spec names it.
    """
    before = len(context.problems)
    cls = _target_class(spec, context)
    if cls is not None:
        _check_arguments(cls, spec, requirements, context)
    rule = initializer(checked_rule(spec.init, (*spec.path, "init"), context))
    if cls is None or len(context.problems) > before:
        return Outcome()
    label = f"{cls.__module__}.{cls.__qualname__}"
    shapes = {name: port.shape for name, port in ports.items()}
    arguments = {"obs_shapes": shapes, **requirements.injected, **spec.arguments}
    make = partial(_made, cls, arguments, ports, rule)
    several = requirements.copies > 1
    try:
        module = make(construction.trial() if several else construction)
        asked = (requirements.heads, requirements.values, requirements.reasons)
        out_ports = construction.measured(
            (),
            (cls, arguments, ports, asked),
            lambda: _checked_outputs(module, label, ports, requirements),
        )
    except Exception as error:
        if _note_wrong_types(cls, spec, context):
            return Outcome()
        add_place(error, f"{construction.where(())} ({label})", cls)
        raise
    if isinstance(out_ports, str):
        context.problems.add((*spec.path, "_target_"), out_ports)
        return Outcome()
    if several:
        network = _copies(make, dict(ports), out_ports, requirements.copies, construction)
    else:
        network = CustomNetwork(module, dict(ports), out_ports)
    return Outcome(network, ports, out_ports)


def _made(
    cls: type[nn.Module],
    arguments: Mapping[str, Any],
    ports: Mapping[str, Port],
    rule: Rule | None,
    construction: SeededConstruction,
) -> nn.Module:
    def make(**given: Any) -> nn.Module:
        module = cls(**_fresh(given))
        initialize_lazy(module, list(ports.values()), partial(_call, list(ports)))
        return module

    factory = without_lost_files(cls, make, arguments)
    key = ModuleKey(cls, arguments, rule, tuple(ports.values()))
    module = construction.build((), factory, resettable=False, key=key)
    if rule is not None:
        construction.draw((), module, rule)
    return module


def _copies(
    make: Callable[[SeededConstruction], nn.Module],
    in_ports: dict[str, Port],
    out_ports: dict[str, Port],
    count: int,
    construction: SeededConstruction,
) -> EnsembleNetwork:
    """Copies of a class, each with weights of its own."""
    modules = [make(construction.copy((ENSEMBLE,), index)) for index in range(count)]
    copies = [EnsembleMember(CustomNetwork(module, in_ports, out_ports)) for module in modules]
    ensemble = EnsembleBlock(copies)
    construction.when_weights_exist(partial(ensemble.adopt, copies))
    return EnsembleNetwork(ENSEMBLE, ensemble, in_ports)


# --- the class and what it is constructed with ---


def _target_class(spec: NetworkSpec, context: BuildContext) -> type[nn.Module] | None:
    target, path = spec.target, (*spec.path, "_target_")
    if isinstance(target, str):
        try:
            target = import_trusted(target, context.allow, nn.Module)
        except PathError as error:
            context.problems.add(path, error.problems[0].message)
            return None
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        message = f"'_target_' is an nn.Module class or its dotted path, got {target!r}"
    elif is_torchs(target):
        message = (
            f"torch.nn.{target.__name__} is no whole network: '_target_' names a class of your own, whose forward "
            "takes a dict of observations and returns a dict"
        )
        if target.forward is not nn.Module.forward:
            message += "; use this one as a 'block' in a 'graph'"
    else:
        return target
    context.problems.add(path, message)
    return None


def _check_arguments(
    cls: type[nn.Module], spec: NetworkSpec, requirements: Requirements, context: BuildContext
) -> None:
    injected = {"obs_shapes": {}, **requirements.injected}
    label = f"class {cls.__qualname__!r}"
    problems = check_settings(cls, {**injected, **spec.arguments}, label, skip=0)
    refused = [p.setting for p in problems if p.misspelt and p.setting in injected]
    if refused:
        names = " and ".join(map(repr, refused))
        message = f"{label} must take {names} in its constructor: the composer passes them"
        context.problems.add((*spec.path, "_target_"), message)
    for problem in problems:
        if problem.setting in refused:
            continue
        if problem.misspelt:
            context.problems.add((*spec.path, problem.setting), problem.message, key=True)
        elif problem.setting not in spec.arguments and problem.setting not in injected:
            context.problems.add((*spec.path, "_target_"), problem.message)


def _note_wrong_types(cls: type[nn.Module], spec: NetworkSpec, context: BuildContext) -> bool:
    """Whether an argument is not what its annotation says: then an exception is no surprise."""
    problems = check_settings(cls, spec.arguments, "", partial=True, skip=0)
    for problem in problems:
        context.problems.add((*spec.path, problem.setting), problem.message)
    return bool(problems)


def _fresh(value: Any) -> Any:
    """The same in containers of its own: a class may empty the dict that it is given."""
    if isinstance(value, Mapping):
        return {key: _fresh(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_fresh, value))
    return value


# --- what it returns ---


def _wrong_module(module: nn.Module, label: str, requirements: Requirements) -> str:
    """What is wrong with the constructed module itself, or nothing."""
    taken = [name for name in requirements.added if name in module._modules]
    if taken:
        return f"{label} has a child {listing(taken)}, which the network itself needs; rename it"
    shapes = getattr(module, "state_shapes", None)
    if shapes is not None and not _are_shapes(shapes):
        form = "must map names to shapes such as {'h': (64,)}"
        return f"'state_shapes' of {label} {form}, got {describe(shapes)}"
    return ""


def _are_shapes(shapes: object) -> bool:
    return isinstance(shapes, Mapping) and all(
        isinstance(name, str)
        and isinstance(shape, list | tuple)
        and all(isinstance(size, int) and size >= 0 for size in shape)
        for name, shape in shapes.items()
    )


def _checked_outputs(
    module: nn.Module, label: str, ports: Mapping[str, Port], requirements: Requirements
) -> str | dict[str, Port]:
    """The Ports of what forward returns for data that is not there, or all that is wrong with it."""
    wrong_module = _wrong_module(module, label, requirements) or _wrong_call(module, label)
    if wrong_module:
        return wrong_module
    states = _state_shapes(module)
    result, after = _probe(module, ports, PROBE_BATCH), {}
    lines: list[str] = []
    if states:
        if not isinstance(result, tuple) or len(result) != 2:
            return f"{label} declares state_shapes, so forward must return (outputs, state), got {_kind(result)}"
        result, after = result
        lines = _wrong_state(after, states, label)
    outputs, wrong = _read_outputs(result, label, requirements)
    if not (wrong or lines):
        row = for_one_row(lambda: _probe(module, ports, 1))
        lines = [] if row is None else _wrong_row(row, result, after, list(outputs), label)
    return "\n".join([*wrong, *lines]) or outputs


def _wrong_call(module: nn.Module, label: str) -> str:
    """Why forward cannot be called as the composer calls it, by its signature."""
    given, called = ["observations"], "with one dict of tensors"
    if _state_shapes(module):
        given, called = ["observations", "state", "resets"], "with (observations, state, resets)"
    problem = refused_call(module, given)
    return f"{label} is called {called}: {problem}" if problem else ""


def _wrong_row(row: Any, batch: Any, after: Any, names: Sequence[str], label: str) -> list[str]:
    """What is wrong with what forward returns for one row, where all is well for a batch."""
    outputs, state = row if after else (row, {})
    checks = [(f"output {name!r} of {label}", outputs[name], batch[name]) for name in names]
    checks += [(f"the state {n!r} of {label}", state[n], like) for n, like in after.items()]
    lines = []
    for what, value, like in checks:
        try:
            check_one_row(value, like, what)
        except ValueError as error:
            lines.append(str(error))
    return lines


def _state_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    shapes = getattr(module, "state_shapes", None) or {}
    return {name: tuple(shape) for name, shape in shapes.items()}


def _probe(module: nn.Module, ports: Mapping[str, Port], batch: int) -> Any:
    """What forward returns for ``batch`` rows of data that is not there."""
    return measure(module, list(ports.values()), partial(_call, list(ports)), batch=batch)


def _call(names: Sequence[str], module: nn.Module, *tensors: Tensor) -> Any:
    """``module`` called as a network is, its memory empty."""
    inputs = dict(zip(names, tensors, strict=True))
    states = _state_shapes(module)
    if not states:
        return module(inputs)
    like = next((t for t in tensors if t.is_floating_point()), tensors[0].float())
    rows = tensors[0].shape[0]
    zeros = {name: like.new_zeros((rows, *shape)) for name, shape in states.items()}
    return module(inputs, zeros, None)


def _wrong_state(after: object, states: Mapping[str, tuple[int, ...]], label: str) -> list[str]:
    """What is wrong with the state that forward returns."""
    if not isinstance(after, Mapping):
        return [
            f"{label} returned {_kind(after)} as its state; it must be a dict with {listing(states)}"
        ]
    if after.keys() != states.keys():
        got = listing(after) or "nothing"
        return [f"{label} returned a state with {got}, but state_shapes declares {listing(states)}"]
    lines = []
    for name, shape in states.items():
        try:
            got = feature_shape(after[name], f"the state {name!r} of {label}")
        except ValueError as error:
            lines.append(str(error))
            continue
        if got != shape:
            shown = f"declares {format_shape(shape)}, but forward returns {format_shape(got)}"
            lines.append(f"the state {name!r} {shown}")
    return lines


def _kind(value: object) -> str:
    return "a dict" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _read_outputs(
    result: object, label: str, requirements: Requirements
) -> tuple[dict[str, Port], list[str]]:
    """The Ports of the outputs, and what is wrong with them."""
    wanted = [*requirements.heads, *requirements.values]
    if not isinstance(result, Mapping):
        rule = f"forward must return a dict with {listing(wanted)}"
        return {}, [f"{label} returned {_kind(result)}; {rule}"]
    known = [name for name in result if name not in requirements.extras]
    lines = _wrong_names(known, wanted, label)
    ports: dict[str, Port] = {}
    for name in [*wanted, *requirements.extras]:
        if name not in result:
            continue
        try:
            ports[name] = Port(feature_shape(result[name], f"output {name!r} of {label}"))
        except ValueError as error:
            lines.append(str(error))
            continue
        wrong = width_problem(name, ports[name].shape, requirements)
        if wrong and (*ports[name].shape, 1) == tuple(requirements.heads[name]):
            wrong += "; leave its last axis, of size 1: no squeeze() or squeeze(-1)"
        if wrong:
            lines.append(wrong)
    return ports, lines


def _wrong_names(names: Sequence[str], wanted: list[str], label: str) -> list[str]:
    """Outputs that are missing or too many; one that is misspelt counts once."""
    extra = [name for name in names if name not in wanted]
    missing = [name for name in wanted if name not in names]
    lines = [f"{label} returned no {name!r}{did_you_mean(name, extra)}" for name in missing]
    meant = {near_name(name, extra) for name in missing}
    rule = f"which is neither asked for nor shared; it must return {listing(wanted)}"
    lines += [f"{label} returned {name!r}, {rule}" for name in extra if name not in meant]
    return lines
