"""The rooms of both packages as DOT, from the list in tests/whole/test_imports.py and the imports in the code."""

from collections import Counter
from collections.abc import Sequence

import networkx

from tests.whole.test_imports import MODULES, imports, rooms

PACKAGES = ("perception_blocks", "composer")
HEAD = """digraph {
  graph [fontname="Helvetica,Arial,sans-serif", ranksep=0.35, nodesep=0.15]
  node [fontname="Helvetica,Arial,sans-serif", fontsize=11, shape=box, style="rounded,filled", fillcolor="#eef3fb"]
  node [color="#9aa5b1"]
  edge [color="#9aa5b1", arrowsize=0.6]"""


def rooms_as_dot() -> str:
    """A box for each line of ROOMS; an arrow points to what a room imports, unless other arrows lead there as well."""
    lines = list(rooms())
    place = {
        f"{room}.{file}": number for number, (room, files, _) in enumerate(lines) for file in files
    }
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(lines)))
    for module, number in place.items():
        targets = {place[name] for _, name in imports(MODULES[module]) if name in place}
        graph.add_edges_from((number, target) for target in targets - {number})
    several = {room for room, count in Counter(room for room, _, _ in lines).items() if count > 1}
    text = [HEAD]
    for package in PACKAGES:
        text.append(
            f'subgraph cluster_{package} {{ label={package}; color="#9aa5b1"; style=rounded'
        )
        for number, (room, files, _) in enumerate(lines):
            if room.split(".")[0] == package:
                text.append(f"{number} [{box(room, files if room in several else [])}]")
        text.append("}")
    text += [f"{a} -> {b}" for a, b in sorted(networkx.transitive_reduction(graph).edges)]
    return "\n".join([*text, "}"])


def box(room: str, files: Sequence[str]) -> str:
    """A room by its name, and by ``files`` where it has several boxes, as the root of a package has."""
    _, _, name = room.partition(".")
    rows = [", ".join(files[i : i + 4]) for i in range(0, len(files), 4)]
    label = "\\n".join([name, *rows] if name else rows)
    return f'label="{label}"{"" if name else ", fillcolor=white"}'
