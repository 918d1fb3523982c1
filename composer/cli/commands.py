"""The command line: a verb and a file. It calls the library, prints, and returns the exit status.

0: good. 1: the input is wrong; a message says why. 2: wrong usage. 128 plus the number of a signal that interrupted it.
With --traceback the traceback of an exception in a user's class is printed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from composer.cli.ctrl_c import STATUS, interrupted_in_a_line, say_interrupted
from composer.cli.prove import add_prove_options, run_prove
from composer.cli.run import add_run_options, run_experiment, with_overrides
from composer.cli.runs import add_compare_options, add_eval_options, model_of, run_compare, run_eval
from composer.cli.train import add_train_options, run_train, take_config
from composer.errors import RefusedError, SpecError
from composer.source.files import as_argument, begins_as_checkpoint, is_regular, real_path
from perception_blocks.words import readable

if TYPE_CHECKING:
    from composer.build.composed_network import ComposedNetwork
    from composer.dataflow.experiment import Experiment
    from composer.model import Model
    from composer.source.load import Source

    Loaded: TypeAlias = tuple[Source, dict[str, Any]]

__all__ = ["main"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        with interrupted_in_a_line():
            return _run(argv)
    except KeyboardInterrupt:
        say_interrupted()
        return STATUS


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest := with_overrides(arguments, rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if argv is None:  # a process of our own
        os.environ["PYTHONSAFEPATH"] = "1"  # what it starts imports nothing from the current folder
    _allow_more(arguments)
    from perception_blocks.registry import MissingExtraError, NameTakenError

    status = 0
    try:
        for name in OF_MODELS.get(arguments.command, ()):
            setattr(arguments, name, model_of(getattr(arguments, name)))
        status = arguments.run(arguments) or 0
        sys.stdout.flush()  # here, where a closed pipe can still be caught
    except (SpecError, RefusedError, _UserError, NameTakenError, MissingExtraError) as error:
        return _answer(arguments, error)
    except ModuleNotFoundError as error:  # in a function of an allowed module
        from composer.trust import advice_on_missing

        advice = advice_on_missing(error)
        if not advice:
            raise
        return _answer(arguments, error, advice)
    except BrokenPipeError:  # `composer blocks | head`
        _silence_output()
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            return _fail_in_a_class(arguments, error)
        _silence_output()
        return _fail(
            f"composer {arguments.command}: the output cannot be written: {error.strerror}"
        )
    except Exception as error:
        return _fail_in_a_class(arguments, error)
    return status


def _answer(arguments: argparse.Namespace, error: Exception, advice: str = "") -> int:
    if arguments.traceback:
        import traceback  # takes longer to import than the command line

        traceback.print_exc()
        return 1
    where = "" if isinstance(error, SpecError) else f"composer {arguments.command}: "
    return _fail(f"{where}{error}{advice}")


def _silence_output() -> None:
    """At its end the process does not try again to write the rest of the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _allow_more(arguments: argparse.Namespace) -> None:
    """Add COMPOSER_ALLOW to --allow; allowed modules may lie in the current folder, or in the folder of the spec."""
    given = getattr(arguments, "allow", None)
    if given is None:
        return
    more = os.environ.get("COMPOSER_ALLOW", "").split(",")
    arguments.allow = [*given, *(name.strip() for name in more if name.strip())]
    from composer.trust import allow_beside

    file = getattr(arguments, "file", None)
    folders = [real_path(folder) for folder in ("", os.path.dirname(file or ""))]
    allow_beside(folders, arguments.allow)


class _UserError(Exception):
    """Wrong input of the user; the text says what and what to do."""


@contextmanager
def _as_user_errors(*kinds: type[Exception], before: str = "") -> Iterator[None]:
    """Raise exceptions of these ``kinds`` as a _UserError, whose text begins with ``before``."""
    try:
        yield
    except kinds as error:
        raise _UserError(f"{before}{error}") from error


def _fail_in_a_class(arguments: argparse.Namespace, error: Exception) -> int:
    """Print an exception in a user's class as a line, with the place that its note names; raise any other again."""
    notes = getattr(error, "__notes__", [])
    if arguments.traceback or not notes:
        raise
    place, text = notes[-1].removeprefix("in "), str(error)
    begin, _, rest = text.partition(": ")
    if rest and begin in place:  # both say where it was
        text = rest
    return _fail(f"{place}: {type(error).__name__}: {text} (--traceback shows all of it)")


def _fail(text: str) -> int:
    _say(text, file=sys.stderr)
    return 1


def _say(text: object, end: str = "\n", file: TextIO | None = None) -> None:
    """Print ``text``, which may quote files, with escapes for what a terminal cannot show."""
    stream = sys.stdout if file is None else file
    shown = readable(str(text)) + end
    encoding = stream.encoding or "utf-8"
    stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))


def _parser() -> argparse.ArgumentParser:
    from composer import __version__

    parser = argparse.ArgumentParser(
        prog="composer", description="Policies and critics from a YAML spec."
    )
    parser.add_argument("--version", action="version", version=f"composer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (run, options, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        options(command)
        command.add_argument(
            "--traceback", action="store_true", help="show where in Python an error comes from"
        )
    return parser


def _add_init_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("env", metavar="ENV", nargs="?", help="an environment id, such as CartPole-v1")
    add(
        "--from", metavar="SPEC", dest="file", help="write out the templates of this spec as graphs"
    )
    add("-o", "--output", metavar="FILE", help="where to write it (default: print it)")
    _add_allow(parser, "a module that makes the environment known")
    _add_limit(parser)
    parser.set_defaults(overrides=[], usage_error=parser.error)


def _add_spec(parser: argparse.ArgumentParser) -> None:
    text = "a spec, a checkpoint, or an experiment: a file or a name"
    parser.add_argument("file", metavar="FILE", help=text)
    _add_spec_options(parser)


def _add_draw_options(parser: argparse.ArgumentParser) -> None:
    _add_spec(parser)
    _add_out(parser, "png, svg, pdf, html, dot or mmd by its suffix")


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a spec or a checkpoint")
    _add_spec_options(parser)
    _add_out(parser, "onnx or pt2 by its suffix")
    add = parser.add_argument
    add(
        "--part", choices=["policy", "critic", "model"], default="policy",
        help="policy: logits and the deterministic action (default), critic: values, model: both",
    )  # fmt: skip
    add("--unroll", metavar="T", type=int, help="T steps at once (default: one step)")
    add("--actor", metavar="KEY", help="of several actors this one alone")


def _add_out(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=text)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    text = "a spec, or a checkpoint to begin with"
    parser.add_argument("file", metavar="SPEC", nargs="?", help=text)
    _add_spec_options(parser)
    add_train_options(parser)


def _add_proof_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="SPEC", help="a spec")
    _add_spec_options(parser)
    add_prove_options(parser)


def _add_block_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a block (default: list all)")
    _add_schema_options(parser)


def _add_schema_options(parser: argparse.ArgumentParser) -> None:
    _add_allow(parser, "a module that registers blocks")


def _add_diff_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a spec or a checkpoint")
    parser.add_argument("second", metavar="B", help="another one")
    _add_allow(parser, "a folder/ of files that the specs name")


def _add_spec_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", metavar="ID", help="the environment (default: the spec's own)")
    what = "a module whose classes the spec may use, or a folder/ of files that it names"
    _add_allow(parser, what)
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="replace a value of the spec, such as params.width=128 (repeatable)",
    )  # fmt: skip
    _add_limit(parser)


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", metavar="NAME=NUMBER", action="append", default=[], dest="limits", type=_limit,
        help="allow more than the limit, such as copies=5000 (repeatable)",
    )  # fmt: skip


def _limit(text: str) -> tuple[str, int]:
    """One ``--limit``. Raises ArgumentTypeError."""
    from composer.limits import limits_from

    name, _, number = text.partition("=")
    try:
        limits_from({name: int(number)})
    except ValueError as error:
        reason = str(error) if number.isdigit() else f"write NAME=NUMBER, got {text!r}"
        raise argparse.ArgumentTypeError(reason) from error
    return name, int(number)


def _add_allow(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--allow", metavar="MODULE", action="append", default=[], help=f"{text} (repeatable)"
    )


def _compose(arguments: argparse.Namespace, loaded: Loaded | None = None) -> Model:
    """The model without weights. The structure is checked first, without torch, so that errors in it are quick."""
    source, spaces = _read(arguments, loaded)
    if not (spaces or source.data.get("environment") or _is_action_model(source)):
        raise _UserError("the spec names no environment; give one with --env ID")
    return _composed(arguments, source, spaces)


def _is_action_model(source: Source) -> bool:
    """Whether it describes an action model, which may do without an environment."""
    return source.data.get("model") is not None


def _is_network(source: Source) -> bool:
    """Whether it describes a network without actions."""
    from composer.spec.top_level import is_network

    return is_network(source.data)


def _composed_network(arguments: argparse.Namespace, source: Source) -> ComposedNetwork | None:
    """The network without actions that was loaded, without weights; None for a model."""
    if not _is_network(source):
        return None
    if arguments.env is not None:
        raise _UserError(
            f"{arguments.file} describes a network without actions, which has no environment; leave out --env"
        )
    from composer.build.composed_network import compose_network

    limits = dict(arguments.limits)
    return compose_network(source, allow=arguments.allow, device="meta", seed=0, limits=limits)


def _composed(arguments: argparse.Namespace, source: Source, spaces: dict[str, Any]) -> Model:
    from composer.model import compose

    limits = dict(arguments.limits)
    if _is_action_model(source) and _is_checkpoint(arguments.file):
        from composer.model import load

        return load(arguments.file, arguments.allow, limits=limits)  # its processor is in the file
    return compose(source, allow=arguments.allow, device="meta", seed=0, limits=limits, **spaces)


def _read(
    arguments: argparse.Namespace, loaded: Loaded | None = None, *, makes_environment: bool = True
) -> Loaded:
    """The Source of a spec whose structure is good, and the spaces or environment of the caller or the checkpoint.

    ``loaded`` is what `_load` gives, where it was called already.
    """
    from composer.spec.read import read_spec
    from composer.trust import import_extensions

    source, spaces = loaded or _load(arguments)
    if _is_experiment(source):
        raise _UserError(
            f"{arguments.file} describes an experiment of several models, and composer {arguments.command} takes a "
            f"model; `composer run {as_argument(arguments.file)}` runs it"
        )
    if _is_network(source):
        raise _UserError(
            f"{arguments.file} describes a network without actions, and composer {arguments.command} takes a model; "
            "composer.compose_network builds it"
        )
    import_extensions(source, arguments.allow)
    makes_environment = makes_environment and not (spaces or _is_checkpoint(arguments.file))
    limits = dict(arguments.limits)
    read_spec(source, arguments.allow, makes_environment=makes_environment, limits=limits)
    return source, spaces


def _load(arguments: argparse.Namespace) -> Loaded:
    """The Source of a spec, whatever it says, and the spaces or environment of the caller or the checkpoint."""
    from composer.trust import import_allowed

    import_allowed(arguments.allow)
    return _source_and_spaces(arguments)


def _is_experiment(source: Source) -> bool:
    from composer.dataflow.experiment import is_experiment

    return is_experiment(source.data)


def _experiment(arguments: argparse.Namespace, loaded: Loaded) -> Experiment | None:
    """The checked experiment that was loaded; None for a model."""
    source, _ = loaded
    if not _is_experiment(source):
        return None
    if arguments.env is not None:
        raise _UserError(
            f"{arguments.file} describes an experiment, which has no environment; leave out --env"
        )
    from composer.dataflow.call_spec import read_experiment

    return read_experiment(source, allow=arguments.allow)


def _source_and_spaces(arguments: argparse.Namespace) -> Loaded:
    from composer.source.load import is_name, load_source, stored_source

    given = {} if arguments.env is None else {"env": arguments.env}
    if not _is_checkpoint(arguments.file):
        from composer.dataflow.experiment import registered_spec

        if not is_name(arguments.file):
            file, overrides = Path(arguments.file), arguments.overrides
        else:
            from composer.dataflow.experiments import translated

            file = arguments.file
            overrides = translated(file, arguments.overrides)
        return load_source(file, overrides, arguments.allow, registered_spec), given
    from composer.checkpoint.file import read_record, require_blocks

    record = read_record(arguments.file)
    require_blocks(record)
    if record.action_model:
        return stored_source(record.spec, arguments.file, arguments.overrides), given
    observation_space, action_space = record.spaces(dict(arguments.limits))
    held = {"observation_space": observation_space, "action_space": action_space}
    return stored_source(record.spec, arguments.file, arguments.overrides), given or held


def _init(arguments: argparse.Namespace) -> None:
    if arguments.env is None and arguments.file is None:
        arguments.usage_error("give an environment, or a spec with --from")
    text = _start(arguments) if arguments.file is None else _written_out(arguments)
    if arguments.output is None:
        _say(text, end="")
        return
    if os.path.exists(arguments.output):
        raise _UserError(f"{arguments.output!r} is there already; remove it or choose another name")
    from composer.atomic import WriteError, replace_with

    with _as_user_errors(WriteError):
        replace_with(arguments.output, lambda name: Path(name).write_text(text, encoding="utf-8"))
    from composer.trust import allow_options

    options = allow_options(arguments.allow, arguments.env)
    _say(f"wrote {arguments.output}; next: composer check {arguments.output}{options}")


def _start(arguments: argparse.Namespace) -> str:
    """A first spec for an environment."""
    from composer.spaces.lookup import environment_spaces, is_by_actor, make_environment
    from composer.template.starter import starting_actor_spec, starting_spec
    from composer.trust import import_allowed

    import_allowed(arguments.allow)
    env = make_environment(arguments.env)
    with closing(env), _as_user_errors(ValueError):
        spaces = environment_spaces(env, dict(arguments.limits))
        write = starting_actor_spec if is_by_actor(spaces[0]) else starting_spec
        return write(*spaces, arguments.env, arguments.allow)


def _written_out(arguments: argparse.Namespace) -> str:
    """A spec with its templates as graphs."""
    model = _compose(arguments)
    if _is_action_model(model.source):
        raise _UserError(f"{arguments.file}: an action model has no templates to write out")
    from composer.cli.write_out import written_out

    with _as_user_errors(ValueError, before=f"{arguments.file}: "):
        return written_out(model)


def _check(arguments: argparse.Namespace) -> None:
    loaded = _load(arguments)
    if (experiment := _experiment(arguments, loaded)) is not None:
        return _check_experiment(arguments, experiment)
    if (network := _composed_network(arguments, loaded[0])) is not None:
        count = sum(parameter.numel() for parameter in network.parameters())
        return _say(f"{arguments.file}: good; {count:,} parameters")
    source, spaces = _read(arguments, loaded)
    if _is_action_model(source):
        return _check_action_model(arguments, source, spaces)
    if not (spaces or source.data.get("environment")):
        _say(
            f"{arguments.file}: the structure is good; shapes and heads are not checked "
            "(no environment: give one with --env ID)"
        )
        return
    model = _composed(arguments, source, spaces)
    _fill(model, arguments.file)
    count = sum(parameter.numel() for parameter in model.parameters())
    _say(f"{arguments.file}: good; {count:,} parameters")


def _check_experiment(arguments: argparse.Namespace, experiment: Experiment) -> None:
    """Its graph is good; its models are built without weights, so that shapes and files are checked too."""
    from composer.dataflow.local import LocalRunner

    runner = LocalRunner(experiment, arguments.allow, device="meta", shards=True)
    networks = (model.network for model in runner.models.values())
    count = sum(p.numel() for network in networks for p in network.parameters())
    calls, models = _counted(experiment.calls, "call"), _counted(runner.models, "model")
    _say(f"{arguments.file}: good; {calls} of {models} with {count:,} parameters")


def _counted(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _check_action_model(
    arguments: argparse.Namespace, source: Source, spaces: dict[str, Any]
) -> None:
    """Its weights are needed too: whether training sees what acting saw is seen by one action."""
    from composer.language.action_proof import ProofError
    from composer.language.overview import why_no_processor

    model: Any = _composed(arguments, source, spaces)
    if not _is_checkpoint(arguments.file):
        model.materialize()
    count = sum(parameter.numel() for parameter in model.parameters())
    good = f"{arguments.file}: good; {count:,} parameters"
    if model.processor is None:
        return _say(f"{good}; it did not act: {why_no_processor(model)}")
    try:
        difference = model.prove()
    except ProofError as error:
        raise _UserError(f"{arguments.file}: {error}") from error
    except Exception as error:  # in a class of the model type
        error.add_note(
            f"in {arguments.file}: an action of made observations, and its log-probabilities"
        )
        raise
    _say(
        f"{good}; log-probabilities and values of an action, calculated again, differ by {difference:.0e}"
    )


def _show(arguments: argparse.Namespace) -> None:
    loaded = _load(arguments)
    if (experiment := _experiment(arguments, loaded)) is not None:
        from composer.dataflow.overview import summary_of

        _say(summary_of(experiment))
        return
    network = _composed_network(arguments, loaded[0])
    _say((network or _compose(arguments, loaded)).summary())


def _draw(arguments: argparse.Namespace) -> None:
    loaded = _load(arguments)
    if (experiment := _experiment(arguments, loaded)) is not None:
        from composer.dataflow.overview import draw_experiment

        with _as_user_errors(ValueError):
            path = draw_experiment(experiment, arguments.output)
    else:
        model = _composed_network(arguments, loaded[0]) or _compose(arguments, loaded)
        with _as_user_errors(ValueError):
            path = model.draw(arguments.output)
    _say(f"wrote {path}")


def _export(arguments: argparse.Namespace) -> None:
    model = _compose(arguments)
    if _is_action_model(model.source):
        model.export(arguments.output)  # which says why not
    model.materialize()
    is_trained = _fill(model, arguments.file)
    report = model.export(
        arguments.output, part=arguments.part, unroll=arguments.unroll, actor=arguments.actor
    )
    if not is_trained:
        _say(f"{arguments.file} is no checkpoint: its weights are initial ones, not trained")
    _say(report)


def _train(arguments: argparse.Namespace) -> int:
    inline = None
    if arguments.config is not None:
        if arguments.resume is not None:
            arguments.usage_error("give --config FILE for a new run, or --resume DIR, not both")
        inline = take_config(arguments)
    spec = arguments.file if inline is None else inline
    if arguments.resume is None and None in (spec, arguments.output, arguments.steps):
        arguments.usage_error("give SPEC, --steps N and -o DIR, or --resume DIR")
    if arguments.resume is not None and arguments.output is not None:
        arguments.usage_error("give -o DIR for a new run, or --resume DIR, not both")
    source, weights = None, None
    if inline is not None:
        arguments.file = arguments.config
        source, _ = _read(arguments, (inline, {}), makes_environment=arguments.env is None)
    elif arguments.file is not None:
        arguments.file = model_of(arguments.file)
        makes_environment = arguments.env is None and arguments.resume is None
        source, _ = _read(arguments, makes_environment=makes_environment)
        weights = arguments.file if _is_checkpoint(arguments.file) else None
    return run_train(arguments, source, weights)


def _eval(arguments: argparse.Namespace) -> int:
    text, status = run_eval(arguments)
    _say(text)
    return status


def _compare(arguments: argparse.Namespace) -> None:
    _say(run_compare(arguments))


def _prove(arguments: argparse.Namespace) -> int:
    if _is_checkpoint(arguments.file):
        raise _UserError(f"{arguments.file} is a checkpoint; composer prove takes a spec")
    _compose(arguments)  # what is wrong with the spec shows here, before processes are started
    text, status = run_prove(arguments)
    _say(text)
    return status


def _blocks(arguments: argparse.Namespace) -> None:
    from composer.reference.help import describe_block, list_blocks
    from composer.trust import import_allowed
    from perception_blocks.registry import UnknownNameError

    import_allowed(arguments.allow)
    with _as_user_errors(UnknownNameError, ImportError):
        _say(list_blocks() if arguments.name is None else describe_block(arguments.name))


def _schema(arguments: argparse.Namespace) -> None:
    from composer.reference.schema import json_schema
    from composer.trust import import_allowed

    import_allowed(arguments.allow)
    _say(json.dumps(json_schema(), indent=2))


def _diff(arguments: argparse.Namespace) -> None:
    from composer.spec.diff import diff_specs

    first, second = (_data(name, arguments.allow) for name in (arguments.first, arguments.second))
    lines = diff_specs(first, second)
    _say("\n".join(lines) if lines else "no differences")


def _data(path: str, allow: Sequence[str]) -> Mapping[str, object]:
    """The resolved data of a spec, or of the spec in a checkpoint."""
    from composer.source.load import is_name, load_source, stored_source

    if not _is_checkpoint(path):
        from composer.dataflow.experiment import registered_spec

        file = path if is_name(path) else Path(path)
        return load_source(file, allow=allow, named=registered_spec).data
    from composer.checkpoint.file import read_record

    return stored_source(read_record(path).spec, path).data


def _fill(model: Model, path: str) -> bool:
    """Load the weights of ``path``, if it is a checkpoint; returns whether it is."""
    if not _is_checkpoint(path):
        return False
    from composer.checkpoint.file import fill_whole

    fill_whole(model, path)
    return True


def _is_checkpoint(path: str) -> bool:
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


# The arguments of a command that may be the folder of a run, for its best model.
OF_MODELS = dict.fromkeys(("check", "show", "draw", "export"), ("file",)) | {
    "diff": ("first", "second")
}
# Command: the function that runs it, the function that adds its options, and its help.
COMMANDS: dict[str, tuple[Callable[..., int | None], Callable[..., None], str]] = {
    "init": (
        _init,
        _add_init_options,
        "write a starting spec, from an environment or from templates",
    ),
    "check": (
        _check,
        _add_spec,
        "check a spec; with an environment its shapes too; an action model also acts once; or an experiment",
    ),
    "show": (
        _show,
        _add_spec,
        "print shapes, parameters and FLOPs of every node, the parts of an action model, or the calls of an experiment",
    ),
    "draw": (
        _draw,
        _add_draw_options,
        "draw policy and critic, an action model, or the calls of an experiment, in one picture",
    ),
    "export": (
        _export,
        _add_export_options,
        "write a file that runs without this library (not of an action model)",
    ),
    "train": (_train, _add_training_options, "train a model, or continue a run"),
    "eval": (
        _eval,
        add_eval_options,
        "play episodes with a model, or with the best model of a run",
    ),
    "compare": (
        _compare,
        add_compare_options,
        "print a table of runs, and what differs between them",
    ),
    "run": (
        run_experiment,
        add_run_options,
        "run an experiment: calls between models, on this process or on Ray",
    ),
    "prove": (_prove, _add_proof_options, "show that several processes compute what one does"),
    "blocks": (_blocks, _add_block_options, "list the blocks, or describe one"),
    "schema": (_schema, _add_schema_options, "print the JSON Schema of specs, for editors"),
    "diff": (_diff, _add_diff_options, "print what differs between two specs or checkpoints"),
}
