"""What is wrong with blocks and settings of nodes whose structure is good, in a spec whose structure is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from composer.build.budget import Budget, LimitReached
from composer.build.construction import SeededConstruction
from composer.build.context import BuildContext, BuildNotes
from composer.build.policy_and_critic import build_policy_and_critic
from composer.errors import Path, Problem, Problems
from composer.limits import Limits
from composer.source.load import Source
from composer.spaces.actors import read_actors
from composer.spaces.lookup import Spaces, is_by_actor
from composer.spec.model_spec import ModelSpec, NodeSpec, of_one_actor

__all__ = ["faults_of_untouched"]


def faults_of_untouched(
    spec: ModelSpec,
    structure: Sequence[Problem],
    spaces: Spaces,
    allow: tuple[str, ...],
    limits: Limits,
    notes: BuildNotes | None = None,
    construction: Callable[..., SeededConstruction] = SeededConstruction,
) -> list[Problem]:
    """The problems of blocks and settings of nodes that none of the problems of the ``structure`` is about.

    Nodes whose structure is wrong are not built, so that nothing follows from them. Whatever else would be wrong may be
    a consequence, and is left out; so is an exception from a user's class. ``notes`` gets what becomes known.
    """
    source, notes = spec.source, notes or BuildNotes()
    problems = Problems(source, structure)
    broken = _broken_places(spec, source, structure)
    context = BuildContext(
        source, problems, allow, 0, True, Budget(limits), broken, True, construction
    )
    try:
        actors = read_actors(*spaces) if is_by_actor(spaces[0]) else None
        model_spec = of_one_actor(spec) if actors is None else spec
        build_policy_and_critic(model_spec, context, spaces, actors, torch.float32, notes)
    except (Exception, LimitReached):
        pass  # what was noted up to there is true all the same
    fresh = list(problems)[len(structure) :]
    return [problem for problem in fresh if (problem.path, problem.message) in notes.faults]


def _broken_places(
    spec: ModelSpec, source: Source, structure: Iterable[Problem]
) -> frozenset[Path]:
    """The places of the problems, and of nodes that refer to params where these have wrong values."""
    places = {problem.path for problem in structure}
    if any(problem.path[:1] == ("params",) and not problem.key for problem in structure):
        places |= {node.path for node in _all_nodes(spec) if source.refers(node.path)}
    return frozenset(places)


def _all_nodes(spec: ModelSpec) -> list[NodeSpec]:
    parts = (spec.policy, spec.critic) if spec.critic else (spec.policy,)
    networks = [network for part in parts for network in part.networks.values()]
    nodes = [node for network in networks for node in network.written_nodes]
    for node in nodes:  # which grows
        nodes += (node.graph or {}).values()
    return nodes
