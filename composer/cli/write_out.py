"""A model's spec with graphs in place of its templates, as YAML to edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from composer.checkpoint.plain_spec import plain_spec
from composer.model import Model
from composer.spec.model_spec import NetworkSpec
from composer.template.starter import entry, node_data

__all__ = ["written_out"]

Form: TypeAlias = "Mapping[str | None, Form]"
# The mappings that take several lines, by key (None: any key), and the mappings in them; any other takes one line.
_NETWORK: Form = {"graph": {}}
_PART: Form = {**_NETWORK, "networks": {None: _NETWORK}}
_SPEC: Form = {"policy": _PART, "critic": _PART}


def written_out(model: Model) -> str:
    """The text of a spec that composes the same model, without templates.

    Raises ValueError if the spec has none, or a value that YAML cannot hold.
    """
    if not model.expanded:
        raise ValueError("the spec has no template to write out")
    data = plain_spec(model.source.data)
    for (part, *path), network in model.expanded.items():
        if path:  # ("networks", its name or number)
            networks = data[part]["networks"]
            if isinstance(networks, list):  # the same as names that are numbers
                networks = {str(index): value for index, value in enumerate(networks)}
            key = str(path[-1])
            data[part]["networks"] = {**networks, key: _as_graph(networks[key], network)}
        else:
            data[part] = _as_graph(data[part], network)
    return "\n".join(_lines(data, _SPEC)) + "\n"


def _as_graph(written: Mapping[str, object], network: NetworkSpec) -> dict[str, object]:
    """The network ``written`` in the spec, with its graph in place of its template."""
    assert network.graph is not None
    assert network.heads is not None
    graph = {"graph": plain_spec({n.name: node_data(n) for n in network.graph.values()})}
    if network.heads.default is not None and "heads" not in written:
        graph["heads"] = {"in": network.heads.default.reads[0]}
    data: dict[str, object] = {}
    for key, value in written.items():
        data |= graph if key == "template" else {key: value}
    return data if "shares" not in data else {**data, "shares": list(network.shares)}


def _lines(data: Mapping[str, object], form: Form, indent: int = 0) -> Iterator[str]:
    for key, value in data.items():
        inner = form.get(key, form.get(None))
        if indent == 0 and inner is not None:
            yield ""
        if inner is None or not isinstance(value, dict) or not value:
            yield " " * indent + entry(key, value)
        else:
            yield " " * indent + entry(key, None).removesuffix(" null")
            yield from _lines(value, inner, indent + 2)
