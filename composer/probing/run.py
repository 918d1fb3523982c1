"""composer.probe: what a model's nodes do in its environment, beside the same spec freshly drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from composer.errors import SpecError
from composer.lowered.model import LoweredModel
from composer.model import Model, compose
from composer.network.sharded import refuse_sharded
from composer.probing.measure import TAU
from composer.probing.node import OUTPUT, Measured, NodeProbe
from composer.probing.play import Played, ProbeError, played, prepared
from composer.probing.replay import (
    Gradients,
    passed,
    replayed,
    single_steps,
    spans_of,
    starting_state,
)
from composer.probing.result import Probe
from composer.probing.watched import Watched, WatchedNode, copied, measured_layers, norm_of
from composer.spaces.lookup import make_environment
from composer.summary.networks import networks_by_name
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.random_states import random_states_kept

__all__ = ["probe"]

TIMED = 32  # steps of which the time is taken


def probe(
    model: Model | LoweredModel,
    env: Any,
    steps: int = 512,
    seed: int = 0,
    baseline: bool = True,
    *,
    tau: float = TAU,
    allow: Iterable[str] = (),
) -> Probe:
    """Act for ``steps`` in ``env``, and measure what each node of policy and critic gives, and the layers in it.

    ``env`` is an environment of gymnasium or PettingZoo, which stays open, or an id. Actions are drawn; ``seed`` is
    that of the first episode and of the draws, so that the same call gives the same numbers. ``tau`` is the threshold
    of the dormant score. With ``baseline`` each number has beside it that of the same spec freshly drawn (with the
    seed of the model and the model's normalisers), on the same steps; ``allow`` is as for `compose`, and is only needed
    where the classes of the spec have not been imported by the model itself. `NodeProbe` says what is measured.

    All steps are kept until the end, as the return of a step is that of what follows it: the memory grows with
    ``steps`` times the size of an observation. What is measured of the layers is added up batch by batch.

    Nothing of the model changes: it acts as a copy in eval mode, over the same weights, and no random state moves. A
    lowered model is measured as it was before.

    Raises ProbeError for an environment of other spaces, and one that fails; SpecError for an id that there is not.

    >>> import composer
    >>> spec = {"version": 1, "policy": {"template": {}}}
    >>> result = composer.probe(composer.compose(spec, env="CartPole-v1", seed=0), "CartPole-v1", steps=64)
    >>> result.worse
    ()
    """
    model = _checked(model)
    _refuse_wrong(steps, seed, tau)
    if env is None:
        raise ProbeError("probe acts in an environment: probe(model, env)")
    with _environment(env) as environment, _nothing_drawn(model, seed):
        environment = prepared(model, environment)
        watched = Watched(copied(model))
        record = played(watched.model, environment, steps, seed)
        first, notes = _baseline(model, allow, record, tau) if baseline else (None, ())
        _take_times(watched, record)
        numbers, gradients = _measured(watched, record, tau)
    return Probe(
        nodes=tuple(_as_nodes(watched, numbers, first)),
        steps=steps,
        seed=seed,
        tau=tau,
        returns=tuple(_ended(record)),
        notes=(*notes, *gradients.notes),
        model=model,
    )


Numbers = Mapping[tuple[str, str], NodeProbe]


def _refuse_wrong(steps: object, seed: object, tau: object) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps <= 0:
        raise ProbeError(f"steps must be a positive integer, got {steps!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ProbeError(f"seed must be an integer of 0 or more, got {seed!r}")
    if not isinstance(tau, int | float) or isinstance(tau, bool) or not 0 <= tau < math.inf:
        raise ProbeError(f"tau must be a number of 0 or more, got {tau!r}")


def _checked(model: object) -> Model:
    """The model itself. Raises ProbeError for what is none, or has no weights."""
    if isinstance(model, LoweredModel):
        model = model.model
    if not isinstance(model, Model):
        raise ProbeError(f"probe takes a Model, got a {type(model).__name__}")
    refuse_sharded(model, "probe()")
    if any(p.is_meta for p in model.parameters()):
        raise ProbeError("this model has no weights yet; call model.materialize(device)")
    return model


@contextmanager
def _environment(env: Any) -> Iterator[Any]:
    """``env``, or the one that an id names, which is closed afterwards."""
    is_id = isinstance(env, str)
    environment = make_environment(env) if is_id else env
    with closing(environment) if is_id else nullcontext():
        yield environment


@contextmanager
def _nothing_drawn(model: Model, seed: int) -> Iterator[None]:
    """All draws in this context follow from ``seed``, and the random states are then as they were."""
    devices = {p.device.index or 0 for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices), random_states_kept(seed):
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


def _baseline(
    model: Model, allow: Iterable[str], record: Played, tau: float
) -> tuple[Numbers | None, tuple[str, ...]]:
    """The numbers of the same spec freshly drawn; or None, and why there are none."""
    try:
        return _measured(Watched(copied(_fresh(model, allow))), record, tau)[0], ()
    except SpecError as error:
        return None, (f"no baseline: {error}",)


def _fresh(model: Model, allow: Iterable[str]) -> Model:
    """The same spec freshly drawn, with the statistics of the model's normalisers. Raises SpecError."""
    fresh = compose(
        model.source,
        observation_space=model.observation_space,
        action_space=model.action_space,
        allow=[*_imported(model), *allow],
        device=model.policy.device,
        dtype=model.policy.dtype,
        seed=model.seed,
        limits=model.size_limits,
    )
    known = dict(fresh.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, NormalizeBlock):
            known[name].load_state_dict(module.state_dict())
    return fresh


def _imported(model: Model) -> list[str]:
    """The packages of the classes and functions that the model is made of: they have been imported already."""
    networks = [net.network for net in networks_by_name(model).values()]
    roots = [model, *(root for net in networks for root in (net.module, net.form))]
    modules = {id(module): module for root in roots for module in root.modules()}.values()
    parts = [type(module) for module in modules]
    parts += [module.function for module in modules if hasattr(module, "function")]
    packages = {getattr(part, "__module__", "").partition(".")[0] for part in parts}
    return sorted(packages - {"", "torch", "perception_blocks", "composer", "builtins"})


def _take_times(watched: Watched, record: Played) -> None:
    """Run policy and critic on single steps, each from a zero state, as in acting."""
    model = watched.model
    singles = list(single_steps(model, record, TIMED))
    state = starting_state(model)
    steps = itertools.cycle(singles)

    def run() -> None:
        with torch.no_grad():
            passed(model, next(steps), state)

    run()  # the first call takes longer
    watched.timed(run, TIMED)


def _measured(watched: Watched, record: Played, tau: float) -> tuple[Numbers, Gradients]:
    """The numbers of all layers by (path, layer), without times."""
    spans = spans_of(watched.model, record)
    watched.record(len(spans))
    gradients = replayed(watched, record, spans)
    numbers = {
        (node.path, layer): _as_node(node, layer, measured, gradients)
        for node in watched.nodes
        for layer, measured in measured_layers(node, tau)
    }
    return numbers, gradients


def _as_node(node: WatchedNode, layer: str, measured: Measured, gradients: Gradients) -> NodeProbe:
    module = node.module if layer.startswith(OUTPUT) else node.layer(layer)
    weights: Sequence[nn.Parameter] = [] if module is None else list(module.parameters())
    return NodeProbe(
        path=node.path,
        layer=layer,
        weight_norm=norm_of(weights),
        gradient_norm=norm_of(gradients.by_weight.get(id(weight)) for weight in weights),
        time_share=None,
        **vars(measured),
    )


def _as_nodes(watched: Watched, numbers: Numbers, first: Numbers | None) -> Iterator[NodeProbe]:
    seconds = [node.seconds or 0.0 for node in watched.nodes]
    shares = {
        node.path: None if node.seconds is None else node.seconds / (sum(seconds) or 1.0)
        for node in watched.nodes
    }
    for (path, layer), node in numbers.items():
        share = shares[path] if node.is_output else None
        at_init = None if first is None else first.get((path, layer))
        yield replace(node, time_share=share, at_init=at_init)


def _ended(record: Played) -> Iterator[float]:
    """The returns of the episodes that ended: the sums of the rewards of all actors."""
    total = 0.0
    for index, reward in enumerate(record.rewards):
        total += sum(reward.values()) if isinstance(reward, dict) else reward
        if record.lasts[index]:
            yield total
            total = 0.0
