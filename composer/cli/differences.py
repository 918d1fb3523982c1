"""`composer diff`: what differs between two specs, and between the sizes of what they describe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from composer.cli.loading import (
    UserError,
    composed_model,
    composed_network,
    data_of,
    experiment_of,
    is_action_model,
    is_checkpoint,
    load_given,
)
from composer.errors import SpecError
from perception_blocks.registry import MissingExtraError
from perception_blocks.words import printable

if TYPE_CHECKING:
    from composer.summary.rows import Row
    from composer.summary.table import Summary

__all__ = ["compared"]

LONGEST = 60  # characters of the path of a node


def compared(arguments: argparse.Namespace) -> list[str]:
    """A line for each difference between the specs, then the sizes that differ; empty where nothing differs."""
    from composer.spec.diff import diff_specs

    files = (arguments.first, arguments.second)
    lines = diff_specs(*(data_of(file, arguments.allow) for file in files))
    if not lines and not all(map(is_checkpoint, files)):
        return []
    try:
        before, after = (_summary(arguments, file) for file in files)
    except (UserError, SpecError, MissingExtraError) as error:
        return [*lines, "", f"sizes are not compared: {error}"] if lines else []
    if before is None or after is None:
        return lines
    sizes = _sizes(before, after)
    if not sizes and lines:
        sizes = [f"equal sizes: {after.parameters:,} parameters"]
    return [*lines, *([""] if lines and sizes else []), *sizes]


def _summary(arguments: argparse.Namespace, file: str) -> Summary | None:
    """None for what has no nodes of ours: an experiment, or an action model."""
    from composer.summary.table import summarize

    given = argparse.Namespace(**{**vars(arguments), "file": file, "overrides": []})
    loaded = load_given(given)
    if experiment_of(given, loaded) is not None or is_action_model(loaded[0]):
        return None
    source, spaces = loaded
    network = composed_network(given, source)
    if network is None and not (spaces or source.data.get("environment")):
        raise UserError(f"{file} names no environment; give one with --env ID")
    return summarize(network or composed_model(given, loaded))


def _sizes(before: Summary, after: Summary) -> list[str]:
    """A table of the nodes whose parameters or results differ."""
    from composer.summary.layout import aligned

    old, new = ({row.path: row for row in summary.rows} for summary in (before, after))
    paths = list(dict.fromkeys([*old, *new]))
    rows = [row for path in paths if (row := _row(path, old.get(path), new.get(path)))]
    if not rows:
        return []
    total = _change(before.parameters, after.parameters)
    return aligned(["node", "parameters", "result"], [*rows, ["all", total, ""]])


def _row(path: Sequence[str], old: Row | None, new: Row | None) -> list[str] | None:
    """The sizes of one node before and after; None where they are equal."""
    name = printable("/".join(path), LONGEST)
    if old is None or new is None:
        row, sign = (new, "+") if old is None else (old, "-")
        assert row is not None
        return [f"{sign} {name}", f"{row.parameters:,}", row.results.removeprefix("-> ")]
    if (old.parameters, old.out_shapes) == (new.parameters, new.out_shapes):
        return None
    same = old.out_shapes == new.out_shapes
    result = "" if same else f"{old.results.removeprefix('-> ')} {new.results}"
    return [f"~ {name}", _change(old.parameters, new.parameters), result]


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"
