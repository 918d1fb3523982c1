"""Names in a spec that refer to other names in it: inputs, `same_as`, `shares`.

The observations of the environment are not known here.
"""

from __future__ import annotations

from collections.abc import Iterable

from composer.errors import Path, Problems
from composer.spec.model_spec import NetworkSpec, NodeSpec
from perception_blocks.dag import Dag, DagNode, DagProblem
from perception_blocks.words import did_you_mean

__all__ = ["check_graph", "check_shares", "names_value", "origins", "sinks", "written_values"]


def check_graph(
    nodes: dict[str, NodeSpec],
    path: Path,
    problems: Problems,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
) -> None:
    """Note cycles, duplicate names and wrong `same_as` in a graph and in the graphs nested in it.

    ``inputs`` and ``outputs`` are known for a nested graph only; its unknown and unused names are noted as well.
    """
    for problem in _dag(nodes, inputs, outputs).problems():
        _add(problem, nodes, path, problems)
    for node in nodes.values():
        if node.same_as is not None:
            _check_same_as(node, nodes, problems)
        if node.graph:
            inner = list(node.inputs) if isinstance(node.inputs, dict) else None
            check_graph(node.graph, (*node.path, "graph"), problems, inner, node.inner_outputs)


def check_shares(network: NetworkSpec, problems: Problems) -> None:
    """Note each of `shares` that is no value of the network's graph; a class or a template is not checked here."""
    if network.graph is None:
        return
    values = [name for node in network.graph.values() for name in node.writes]
    for index, name in enumerate(network.shares):
        if name not in values:
            message = f"the graph has no value {name!r} to share" + did_you_mean(name, values)
            problems.add((*network.path, "shares", index), message)


def origins(nodes: dict[str, NodeSpec], names: Iterable[str]) -> dict[str, frozenset[str]]:
    """For each of the values ``names``, the inputs of the graph that it depends on."""
    written = written_values(nodes)
    inputs_by_name = {}
    for name in names:
        needed = _dag(nodes, None, [name]).needed()
        values = {name, *(value for node in needed for value in nodes[node].reads)}
        inputs_by_name[name] = frozenset(values - written)
    return inputs_by_name


def written_values(nodes: dict[str, NodeSpec]) -> set[str]:
    """The values that the nodes of a graph write."""
    return {value for node in nodes.values() for value in node.writes}


def names_value(network: NetworkSpec, name: str) -> bool:
    """Whether ``network`` names the value ``name`` as an input: in its ``observations``, or in a node of its graph."""
    is_read = any(name in node.reads for node in network.written_nodes)
    is_observed = is_read and name not in written_values(network.graph or {})
    return is_observed or name in (network.observations or ())


def sinks(nodes: dict[str, NodeSpec]) -> list[str]:
    """The values that no node reads."""
    return _dag(nodes, None, None).sinks()


def _dag(
    nodes: dict[str, NodeSpec], inputs: Iterable[str] | None, outputs: Iterable[str] | None
) -> Dag:
    steps = [DagNode(node.name, node.reads, node.writes) for node in nodes.values()]
    return Dag(steps, inputs, outputs)


def _add(problem: DagProblem, nodes: dict[str, NodeSpec], path: Path, problems: Problems) -> None:
    """Note a problem of the Dag at its cause in the spec."""
    node = nodes.get(problem.node or "")
    if node is None:
        side = "in" if problem.kind == "unused_input" else "out"
        problems.add((*path[:-1], side), problem.message)
    elif problem.kind in ("unknown", "cycle"):
        problems.add((*node.path, "in"), problem.message)
    elif problem.kind == "duplicate" and node.out is not None:
        problems.add((*node.path, "out"), problem.message)
    else:
        problems.add(node.path, problem.message, key=True)


def _check_same_as(node: NodeSpec, nodes: dict[str, NodeSpec], problems: Problems) -> None:
    path, others = (*node.path, "same_as"), (name for name in nodes if name != node.name)
    if node.same_as not in nodes or node.same_as == node.name:
        itself = " itself" if node.same_as == node.name else ""
        message = f"'same_as' must name another node of this graph, got {node.same_as!r}{itself}"
        problems.add(path, message + did_you_mean(node.same_as or "", others))
    elif (first := nodes[node.same_as].same_as) is not None:
        way_out = "name the node that has the block"
        problems.add(path, f"{node.same_as!r} is itself the same as {first!r}; {way_out}")
