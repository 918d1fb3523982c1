"""The options of a run in one YAML file, for `composer train --config`; the ``run.json`` of a run is one too."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from composer.errors import Problem, Problems, SpecError
from composer.source.files import allowed_folders, as_argument, outside, real_path
from composer.source.load import Source, load_source, stored_source
from composer.spec.fields import Fields
from composer.training.stored import FORMAT, read_record, task_of
from composer.training.trainer import TrainingError
from composer.trust import check_environment
from perception_blocks.words import describe

__all__ = ["KINDS", "RunConfig", "read_config"]

_TEXT, _COUNT, _FLAG, _MAPPING = "a text", "a whole number", "true or false", "a mapping"
# The keys of a config, and what their values are.
KINDS = {
    "spec": "a file, or a mapping",
    "env": _TEXT,
    "set": "a mapping, or a list of texts such as params.width=128",
    "output": _TEXT,
    "trainer": _TEXT,
    "algorithm": _TEXT,
    "settings": _MAPPING,
    "steps": _COUNT,
    "seed": _COUNT,
    "seeds": "a list of whole numbers",
    "envs": _COUNT,
    "env_set": _MAPPING,
    "subprocess": _FLAG,
    "device": _TEXT,
    "threads": _COUNT,
    "eval_episodes": _COUNT,
    "eval_every": _COUNT,
    "checkpoint_every": _COUNT,
    "probe_every": _COUNT,
    "keep": _COUNT,
    "tensorboard": _FLAG,
    "video": _FLAG,
}
OF_THE_CALLER = {"allow": "--allow", "limits": "--limit", "limit": "--limit", "resume": "--resume"}


@dataclass(frozen=True)
class RunConfig:
    """``options`` are by the names of `KINDS` but for ``spec``, which is a ``file`` or the ``source`` itself."""

    options: Mapping[str, Any]
    file: str | None = None
    source: Source | None = None


def read_config(
    path: str | Path, allow: Iterable[str] = (), given: Collection[str] = ()
) -> RunConfig:
    """The config in the file at ``path``, for a caller who has said the options ``given`` himself.

    A spec that it names, and its ``output``, lie beside or below it, in the current folder, or in a folder that
    ``allow`` names, which also has the modules of its ``env``. Raises SpecError with every error in it, at its place.
    """
    source = load_source(Path(path), allow=allow)
    if source.data.get("format") in (FORMAT, "composer-seeds"):
        return _of_a_run(Path(path), source.data["format"], allow, given)
    problems = Problems(source, source.problems)
    _refuse_what_callers_say(source.data, problems)
    fields = Fields(source.data, (), problems)
    fields.unknown([*KINDS, *OF_THE_CALLER], "a config")
    for key in source.data.keys() & KINDS.keys():
        if not _fits(KINDS[key], source.data[key]):
            fields.note(key, f"{key!r} must be {KINDS[key]}, got {describe(source.data[key])}")
    options = {key: source.data[key] for key in KINDS if key in source.data and key != "spec"}
    folders = [real_path(os.path.dirname(path)), real_path(""), *allowed_folders(allow)]
    for key, value in options.items():
        if (
            key not in given
            and isinstance(value, str)
            and (wrong := _refusal(key, value, allow, folders))
        ):
            fields.note(key, wrong)
    spec, file = source.data.get("spec"), None
    if isinstance(spec, str):
        file = _file(spec, path, folders, fields)
    problems.raise_if_any()
    inline = load_source(spec) if isinstance(spec, Mapping) else None
    return RunConfig(options, file, inline)


def _refuse_what_callers_say(data: Mapping[str, Any], problems: Problems) -> None:
    """What a file may import, and how much it may take, it cannot say itself."""
    for key in data.keys() & OF_THE_CALLER.keys():
        message = (
            f"{key!r} is for whoever starts the run, not for a file; give {OF_THE_CALLER[key]}"
        )
        problems.add((key,), message, key=True)


def _fits(kind: str, value: object) -> bool:
    if kind == _TEXT:
        return isinstance(value, str) and value != ""
    if kind == _COUNT:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == _FLAG:
        return isinstance(value, bool)
    if kind == KINDS["seeds"]:
        return (
            isinstance(value, list) and all(_fits(_COUNT, each) for each in value) and value != []
        )
    if isinstance(value, Mapping):
        return True
    if kind == KINDS["spec"]:
        return _fits(_TEXT, value)
    return (
        kind == KINDS["set"] and isinstance(value, list) and all(isinstance(v, str) for v in value)
    )


def _refusal(key: str, value: str, allow: Iterable[str], folders: Iterable[str]) -> str | None:
    """Why a file may not say this, which would import a module or write elsewhere; None if it may."""
    if key == "env":
        return check_environment(value, allow)
    if key == "output" and outside(value, folders) is not None:
        return (
            f"{value!r} is outside of the current folder, and of the config's; if it may be there, give "
            f"-o {as_argument(value)}"
        )
    return None


def _file(spec: str, config: str | Path, folders: Iterable[str], fields: Fields) -> str | None:
    """The path of the ``spec``, from the folder of the ``config`` or else from the current one."""
    beside = os.path.join(os.path.dirname(config), spec)
    place = beside if os.path.lexists(beside) else spec
    if not os.path.lexists(place):
        fields.note(
            "spec", f"there is no file {spec!r} beside the config, or in the current folder"
        )
        return None
    if (refusal := outside(place, folders)) is not None:
        fields.note("spec", refusal.replace("the spec;", "the config;"))
    return place


def _of_a_run(path: Path, kind: str, allow: Iterable[str], given: Collection[str]) -> RunConfig:
    """The options of a run that has been. Raises SpecError for a ``run.json`` that cannot be read or trusted."""
    try:
        record = read_record(path, kind)
        options = asdict(task_of(record, path, ["seeds"]))
    except TrainingError as error:
        raise SpecError([Problem(str(error))]) from error
    source = stored_source(options.pop("spec"), path)
    options["env"] = options.pop("environment")
    if "env" not in given and (problem := check_environment(options["env"], allow)):
        raise SpecError([Problem(problem)])
    seeds = record.get("seeds")
    if kind != FORMAT and _fits(KINDS["seeds"], seeds):
        del options["seed"]
        options["seeds"] = seeds
    return RunConfig(options, None, source)
