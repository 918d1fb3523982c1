"""What a statement of Python's syntax tree assigns, names and holds."""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator

__all__ = ["assignments", "first_line", "imports", "is_program", "is_super", "path_of", "walk"]

_SUPER = re.compile(r"super\([\w, ]*\)\.__post_init__\(\)")


def assignments(item: ast.stmt) -> list[tuple[ast.expr, ast.expr]] | None:
    """The targets and values of an assignment; None of any other statement."""
    if isinstance(item, ast.AnnAssign):
        return [] if item.value is None else [(item.target, item.value)]
    if not isinstance(item, ast.Assign):
        return None
    pairs: list[tuple[ast.expr, ast.expr]] = []
    for target in item.targets:
        if not isinstance(target, ast.Tuple | ast.List):
            pairs.append((target, item.value))
        elif isinstance(item.value, ast.Tuple | ast.List) and _are_alike(target, item.value):
            pairs += zip(target.elts, item.value.elts, strict=True)
        else:
            return None
    return pairs


def _are_alike(target: ast.Tuple | ast.List, value: ast.Tuple | ast.List) -> bool:
    is_plain = not any(isinstance(each, ast.Starred) for each in [*target.elts, *value.elts])
    return is_plain and len(target.elts) == len(value.elts)


def imports(item: ast.stmt) -> list[tuple[str, str | None, str]]:
    """Of an import of a module beside the file: the module, the name in it (None: itself), and what it is called here.

    ``from .rough import Cfg`` and ``from rough import Cfg`` may both be meant so, ``from lab.rough import Cfg`` is not.
    """
    if isinstance(item, ast.Import):
        return [(n.name, None, n.asname or n.name) for n in item.names if "." not in n.name]
    if not isinstance(item, ast.ImportFrom) or item.level > 1 or "." in (item.module or ""):
        return []
    if item.module is None:
        return [(n.name, None, n.asname or n.name) for n in item.names]
    return [(item.module, n.name, n.asname or n.name) for n in item.names]


def path_of(node: ast.expr) -> list[str] | None:
    """``cfg.policy["activation"]`` as its names; None of any other expression."""
    path: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        if isinstance(node, ast.Attribute):
            path.append(node.attr)
        elif isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            path.append(node.slice.value)
        else:
            return None
        node = node.value
    return [node.id, *reversed(path)] if isinstance(node, ast.Name) else None


def walk(item: ast.stmt) -> Iterator[ast.AST]:
    """``item`` and all in it, but not what is in functions and classes."""
    nodes: deque[ast.AST] = deque([item])
    while nodes:
        node = nodes.popleft()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)


def is_super(item: ast.stmt) -> bool:
    """Whether it is ``super().__post_init__()``."""
    call = item.value if isinstance(item, ast.Expr) else None
    return isinstance(call, ast.Call) and bool(_SUPER.fullmatch(ast.unparse(call)))


def is_program(item: ast.stmt) -> bool:
    """Whether it is ``if __name__ == "__main__":``, which is no part of what others import."""
    return isinstance(item, ast.If) and "__name__" in ast.unparse(item.test)


def first_line(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0]
