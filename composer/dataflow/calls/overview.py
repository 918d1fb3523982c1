"""An experiment as a table and as a picture: models are frames, calls boxes, and values stand at the arrows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from composer.dataflow.algorithms.interfaces import INTERFACES
from composer.dataflow.calls.experiment import CallSpec, Experiment, ModelEntry
from composer.dataflow.data.samples import LENGTHS, in_words
from composer.diagram.drawing import write_picture
from composer.diagram.picture import Box, Frame, Picture
from composer.source.dump import dump_flow
from composer.summary.layout import aligned
from perception_blocks.dag import Dag, DagNode
from perception_blocks.settings import settings_of
from perception_blocks.words import cut

__all__ = ["draw_experiment", "picture_of", "summary_of"]

DATA = "data"  # the box of the data set; those of calls and models have prefixes
LONGEST = 60  # characters of what the user wrote


def writers(experiment: Experiment) -> dict[str, CallSpec]:
    """Who writes each value; what is not among them comes from the data set."""
    return {v: call for call in experiment.calls.values() for v in call.writes.values()}


# --- the picture ---------------------------------------------------------------------------------------------------


def draw_experiment(
    experiment: Experiment, path: str | os.PathLike[str], *, format: str | None = None
) -> Path:
    """Draw an experiment into the file ``path``, in the formats of `composer.draw`; returns the path.

    Raises ValueError as `composer.draw` does.
    """
    return write_picture(picture_of(experiment), path, format)


def picture_of(experiment: Experiment) -> Picture:
    """Models that no call and no hook names are not drawn: they are not built."""
    calls, writer = experiment.ordered_calls(), writers(experiment)
    nodes, labels = [DagNode(DATA)], {}
    boxes = {DATA: _data_box(experiment)}
    for call in calls:
        read: dict[str, list[str]] = {}
        for value in dict.fromkeys(call.reads.values()):
            source = f"call_{writer[value].name}" if value in writer else DATA
            read.setdefault(source, []).append(value)
        name = f"call_{call.name}"
        nodes.append(DagNode(name, tuple(read)))
        labels |= {(source, name): ", ".join(values) for source, values in read.items()}
        boxes[name] = _call_box(experiment, call)
    return Picture(
        dag=Dag(nodes, None, None),
        boxes=boxes,
        frames={f"model_{name}": _frame(experiment, name) for name in experiment.used_models()},
        caption=_caption(experiment),
        labels=labels,
        hooks=tuple(
            (f"call_{hook.after}", f"model_{hook.target}", f"{hook.eta:g} of {hook.source}")
            for hook in experiment.hooks
        ),
    )


def _data_box(experiment: Experiment) -> Box:
    data = experiment.data
    details = {name: cut(str(value), LONGEST) for name, value in data.settings.items()}
    line = f"batches of {data.batch_size}"
    return Box("input", data.dataset, (line,), details=details | _line(experiment, data.path))


def _call_box(experiment: Experiment, call: CallSpec) -> Box:
    kind = "training" if call.verb == "train_step" else "block"
    lines = [f"{call.verb} · {call.interface}", *filter(None, [_settings(call)])]
    renamed = {name: value for name, value in call.writes.items() if name != value}
    details = {
        "reads": ", ".join(dict.fromkeys(call.reads.values())),
        "writes": ", ".join(call.writes.values()),
        "renamed": ", ".join(f"{name} is {value}" for name, value in renamed.items()),
    }
    shown = {key: text for key, text in details.items() if text}
    frame = None if call.model is None else f"model_{call.model}"
    return Box(
        kind, call.name, tuple(lines), frame=frame, details=shown | _line(experiment, call.path)
    )


def _frame(experiment: Experiment, name: str) -> Frame:
    entry = experiment.models[name]
    remarks = ["critic" if entry.is_critic else "", _origin(entry), _lr(entry)]
    return Frame(name, ", ".join(filter(None, remarks)), network=True)


def _origin(entry: ModelEntry) -> str:
    """Where a model comes from, in a few words."""
    if entry.like is not None:
        return f"like {entry.like}"
    ((kind, given),) = entry.origin.items()
    if kind == "decoder" and isinstance(given, dict):
        family = given.get("family")
        return f"{family} decoder" if family else "decoder"
    return f"{kind} {cut(given, LONGEST)}" if isinstance(given, str) else kind


def _lr(entry: ModelEntry) -> str:
    return "" if entry.optimizer is None else f"lr {entry.optimizer['lr']:g}"


def _line(experiment: Experiment, path: tuple[str | int, ...]) -> dict[str, str]:
    position = experiment.source.position(path)
    return {} if position is None else {"line": str(position)}


def _caption(experiment: Experiment) -> str:
    run = experiment.run
    return f"{experiment.name}: {run.iterations} iterations, seed {run.seed}"


# --- the table -----------------------------------------------------------------------------------------------------


def summary_of(experiment: Experiment) -> str:
    """Tables of the models, of the calls in their order and of the values; the same text for the same experiment."""
    sections = [_models(experiment), _calls(experiment), _values(experiment)]
    blocks = [*sections, _remarks(experiment)]
    return "\n\n".join("\n".join(line.rstrip() for line in lines) for lines in blocks)


def _models(experiment: Experiment) -> list[str]:
    used = experiment.used_models()
    rows = []
    for name, entry in experiment.models.items():
        calls = [call.name for call in experiment.calls.values() if call.model == name]
        kind = "critic" if entry.is_critic else "actor"
        uses = ", ".join(calls) or ("a hook" if name in used else "no call: it is not built")
        rows.append([name, kind, _origin(entry), _lr(entry).removeprefix("lr "), uses])
    return aligned(["model", "kind", "from", "lr", "calls"], rows)


def _calls(experiment: Experiment) -> list[str]:
    rows = []
    for call in experiment.ordered_calls():
        reads, writes = (_named(names.items()) for names in (call.reads, call.writes))
        row = [call.name, call.model or "", call.verb, call.interface, reads, writes]
        rows.append([*row, _settings(call)])
    return aligned(["call", "model", "do", "with", "reads", "writes", "settings"], rows)


def _settings(call: CallSpec) -> str:
    """The settings of a call that are not those that its interface has anyway."""
    settings = call.settings
    if call.interface in INTERFACES:  # a path is imported only where the caller allows it
        defaults, _ = settings_of(INTERFACES.get(call.interface), skip=0)
        settings = {
            name: value
            for name, value in settings.items()
            if name not in defaults or defaults[name].default != value
        }
    return cut(dump_flow(settings).strip("{}"), LONGEST) if settings else ""


def _named(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(value if name == value else f"{name}: {value}" for name, value in pairs)


def _values(experiment: Experiment) -> list[str]:
    """Each value, who writes it, how many numbers it has, and who reads it."""
    writer = writers(experiment)
    readers: dict[str, list[str]] = {}
    for call in experiment.ordered_calls():
        for value in dict.fromkeys(call.reads.values()):
            readers.setdefault(value, []).append(call.name)
    names = {v: name for call in experiment.calls.values() for name, v in call.writes.items()}
    given = [value for value in readers if value not in writer]
    rows = []
    for value in [*given, *writer]:
        name = names.get(value, value)
        lengths = in_words(LENGTHS.get(name)) if name in LENGTHS else ""
        by = writer[value].name if value in writer else "the data set"
        rows.append([value, by, lengths, ", ".join(readers.get(value, []))])
    return aligned(["value", "from", "numbers", "read by"], rows)


def _remarks(experiment: Experiment) -> list[str]:
    data, run = experiment.data, experiment.run
    settings = f", {dump_flow(data.settings).strip('{}')}" if data.settings else ""
    lines = [
        f"data        {data.dataset}, batches of {data.batch_size}{cut(settings, 2 * LONGEST)}"
    ]
    for hook in experiment.hooks:
        rest = 1 - hook.eta
        mixed = f"{hook.eta:g} * {hook.source} + {rest:g} * {hook.target}"
        lines.append(f"hook        after {hook.after}: {hook.target} becomes {mixed}")
    saves = "" if run.save_every is None else f", saved every {run.save_every}"
    lines.append(f"iterations  {run.iterations}{saves}; seed {run.seed}")
    workers = f", {run.workers} workers" if run.runner != "local" else ""
    return [*lines, f"runner      {run.runner}{workers}"]
