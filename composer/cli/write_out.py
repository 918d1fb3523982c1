"""A model's spec with its templates written out as the graphs that they stand for, as YAML to edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from composer.checkpoint.plain_spec import plain_spec
from composer.model import Model
from composer.spec.model_spec import NetworkSpec
from composer.template.starter import entry, node_data

__all__ = ["written_out"]

Form: TypeAlias = "Mapping[str | None, Form]"
# Which mappings are written over several lines, by key (None: any key), and those within them; the others take one.
_NETWORK: Form = {"graph": {}}
_ROLE: Form = {**_NETWORK, "networks": {None: _NETWORK}}
_SPEC: Form = {"policy": _ROLE, "critic": _ROLE}


def written_out(model: Model) -> str:
    """The text of a spec that composes the same model, without templates.

    Raises ValueError where the spec has none, or holds what YAML cannot.
    """
    if not model.expanded:
        raise ValueError("the spec has no template to write out")
    data = plain_spec(model.source.data)
    for (role, *place), network in model.expanded.items():
        if place:  # networks, and the name or number of one
            networks = data[role]["networks"]
            if isinstance(networks, list):  # the same as names that are numbers
                networks = {str(index): value for index, value in enumerate(networks)}
            key = str(place[-1])
            data[role]["networks"] = {**networks, key: _as_graph(networks[key], network)}
        else:
            data[role] = _as_graph(data[role], network)
    return "\n".join(_lines(data, _SPEC)) + "\n"


def _as_graph(written: Mapping[str, Any], network: NetworkSpec) -> dict[str, Any]:
    """A network as it is ``written``, with its graph in place of its template."""
    assert network.graph is not None
    assert network.heads is not None
    graph = {"graph": plain_spec({n.name: node_data(n) for n in network.graph.values()})}
    if network.heads.default is not None and "heads" not in written:
        graph["heads"] = {"in": network.heads.default.reads[0]}
    data: dict[str, Any] = {}
    for key, value in written.items():
        data |= graph if key == "template" else {key: value}
    return data if "shares" not in data else {**data, "shares": list(network.shares)}


def _lines(data: Mapping[str, Any], form: Form, indent: int = 0) -> Iterator[str]:
    for key, value in data.items():
        inner = form.get(key, form.get(None))
        if indent == 0 and inner is not None:
            yield ""
        if inner is None or not isinstance(value, dict) or not value:
            yield " " * indent + entry(key, value)
        else:
            yield " " * indent + entry(key, None).removesuffix(" null")
            yield from _lines(value, inner, indent + 2)
