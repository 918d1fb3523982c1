"""What the commands read: specs, checkpoints and experiments as sources, and models of them; how they write texts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from composer.source.files import as_argument, begins_as_checkpoint, is_regular

if TYPE_CHECKING:
    from composer.build.composed_network import ComposedNetwork
    from composer.dataflow.calls.experiment import Experiment
    from composer.model import Model
    from composer.source.load import Source

    Loaded: TypeAlias = tuple[Source, dict[str, Any]]

__all__ = [
    "UserError",
    "as_user_errors",
    "composed_model",
    "is_action_model",
    "is_network",
    "composed_network",
    "model_of",
    "model_of_source",
    "read_source",
    "refuse_experiment",
    "load_given",
    "experiment_of",
    "data_of",
    "fill",
    "is_checkpoint",
    "write_text",
]


class UserError(Exception):
    """Wrong input of the user; the text says what and what to do."""


@contextmanager
def as_user_errors(*kinds: type[Exception], before: str = "") -> Iterator[None]:
    """Raise exceptions of these ``kinds`` as a UserError, whose text begins with ``before``."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{before}{error}") from error


def write_text(path: str, text: str) -> None:
    """Write all of a file or nothing. Raises UserError."""
    from composer.atomic import WriteError, replace_with

    with as_user_errors(WriteError):
        replace_with(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def composed_model(arguments: argparse.Namespace, loaded: Loaded | None = None) -> Model:
    """The model without weights. The structure is checked first, without torch, so that errors in it are quick.

    Where settings may be wrong as well, which need the environment, all that is wrong is said at once.
    """
    source, spaces = read_source(arguments, loaded, is_composed=True)
    if not (spaces or source.data.get("environment") or is_action_model(source)):
        raise UserError("the spec names no environment; give one with --env ID")
    return model_of_source(arguments, source, spaces)


def is_action_model(source: Source) -> bool:
    """Whether it describes an action model, which may do without an environment."""
    return source.data.get("model") is not None


def is_network(source: Source) -> bool:
    """Whether it describes a network without actions."""
    from composer.spec.top_level import is_network

    return is_network(source.data)


def composed_network(arguments: argparse.Namespace, source: Source) -> ComposedNetwork | None:
    """The network without actions that was loaded, without weights; None for a model."""
    if not is_network(source):
        return None
    if arguments.env is not None:
        raise UserError(
            f"{arguments.file} describes a network without actions, which has no environment; leave out --env"
        )
    from composer.build.composed_network import compose_network

    limits = dict(arguments.limits)
    return compose_network(source, allow=arguments.allow, device="meta", seed=0, limits=limits)


def model_of_source(arguments: argparse.Namespace, source: Source, spaces: dict[str, Any]) -> Model:
    from composer.model import compose

    limits = dict(arguments.limits)
    if is_action_model(source) and is_checkpoint(arguments.file):
        from composer.model import load

        return load(arguments.file, arguments.allow, limits=limits)  # its processor is in the file
    return compose(source, allow=arguments.allow, device="meta", seed=0, limits=limits, **spaces)


def read_source(
    arguments: argparse.Namespace,
    loaded: Loaded | None = None,
    *,
    makes_environment: bool = True,
    is_composed: bool = False,
) -> Loaded:
    """The Source of a spec whose structure is good, and the spaces or environment of the caller or the checkpoint.

    ``loaded`` is what `load_given` gives, where it was called already. If the spec ``is_composed`` next, that says what
    is wrong with its structure where it has more to say.
    """
    from composer.spec.read import may_hide_faults, read_structure
    from composer.trust import import_extensions

    source, spaces = loaded or load_given(arguments)
    refuse_experiment(arguments, source)
    if is_network(source):
        does = "load_network loads" if is_checkpoint(arguments.file) else "compose_network builds"
        raise UserError(
            f"{arguments.file} describes a network without actions, and composer {arguments.command} takes a model; "
            f"composer.{does} it"
        )
    import_extensions(source, arguments.allow)
    makes_environment = makes_environment and not (spaces or is_checkpoint(arguments.file))
    limits = dict(arguments.limits)
    spec, problems = read_structure(
        source, arguments.allow, makes_environment=makes_environment, limits=limits
    )
    has_spaces = spaces or (spec is not None and spec.environment is not None)
    if not (is_composed and has_spaces and may_hide_faults(spec, problems)):
        problems.raise_if_any()
    return source, spaces


def load_given(arguments: argparse.Namespace) -> Loaded:
    """The Source of a spec, whatever it says, and the spaces or environment of the caller or the checkpoint."""
    from composer.trust import import_allowed

    import_allowed(arguments.allow)
    return _source_and_spaces(arguments)


def refuse_experiment(arguments: argparse.Namespace, source: Source) -> None:
    """Raise UserError for a command that takes a model."""
    if _is_experiment(source):
        raise UserError(
            f"{arguments.file} describes an experiment of several models, and composer {arguments.command} takes a "
            f"model; `composer run {as_argument(arguments.file)}` runs it"
        )


def _is_experiment(source: Source) -> bool:
    from composer.dataflow.calls.experiment import is_experiment

    return is_experiment(source.data)


def experiment_of(arguments: argparse.Namespace, loaded: Loaded) -> Experiment | None:
    """The checked experiment that was loaded; None for a model."""
    source, _ = loaded
    if not _is_experiment(source):
        return None
    if arguments.env is not None:
        raise UserError(
            f"{arguments.file} describes an experiment, which has no environment; leave out --env"
        )
    from composer.dataflow.calls.call_spec import read_experiment

    return read_experiment(source, allow=arguments.allow)


def _source_and_spaces(arguments: argparse.Namespace) -> Loaded:
    from composer.source.extends import is_name
    from composer.source.load import load_source, stored_source

    given = {} if arguments.env is None else {"env": arguments.env}
    if not is_checkpoint(arguments.file):
        from composer.dataflow.calls.experiment import registered_spec

        if not is_name(arguments.file):
            file, overrides = Path(arguments.file), arguments.overrides
        else:
            from composer.dataflow.calls.experiments import translated

            file = arguments.file
            overrides = translated(file, arguments.overrides)
        return load_source(file, overrides, arguments.allow, registered_spec), given
    from composer.checkpoint.file import read_record, require_blocks

    record = read_record(arguments.file)
    require_blocks(record)
    source = stored_source(record.spec, arguments.file, arguments.overrides)
    if record.action_model or is_network(source):
        return source, given
    observation_space, action_space = record.spaces(dict(arguments.limits))
    held = {"observation_space": observation_space, "action_space": action_space}
    return source, given or held


def model_of(path: str) -> str:
    """``path``, or the best model of the run that it is the folder of."""
    if not any(os.path.isfile(os.path.join(path, name)) for name in ("run.json", "seeds.json")):
        return path
    from composer.training.judging import model_file

    return model_file(path)


def data_of(path: str, allow: Sequence[str]) -> Mapping[str, object]:
    """The resolved data of a spec, or of the spec in a checkpoint."""
    from composer.source.extends import is_name
    from composer.source.load import load_source, stored_source

    if not is_checkpoint(path):
        from composer.dataflow.calls.experiment import registered_spec

        file = path if is_name(path) else Path(path)
        return load_source(file, allow=allow, named=registered_spec).data
    from composer.checkpoint.file import read_record

    return stored_source(read_record(path).spec, path).data


def fill(model: Model, path: str) -> bool:
    """Load the weights of ``path``, if it is a checkpoint; returns whether it is."""
    if not is_checkpoint(path):
        return False
    from composer.checkpoint.file import fill_whole

    fill_whole(model, path)
    return True


def is_checkpoint(path: str) -> bool:
    """By its ending, or by its first bytes."""
    if path.endswith(".safetensors"):
        return True
    if not is_regular(path):
        return False
    try:
        with open(path, "rb") as file:
            return begins_as_checkpoint(file.read(9))
    except OSError:
        return False
