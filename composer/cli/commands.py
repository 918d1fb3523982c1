"""The command line: a verb and a file. It calls the library, prints, and returns the exit status.

0: good. 1: the input is wrong; a message says why. 2: wrong usage. 128 plus the number of a signal that interrupted it.
With --traceback the traceback of an exception in a user's class is printed.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Callable, Sequence, Sized
from contextlib import closing
from typing import TYPE_CHECKING, Any, TextIO

from composer.cli.ctrl_c import STATUS, interrupted_in_a_line, say_interrupted
from composer.cli.differences import compared
from composer.cli.importing import add_import_options, run_import
from composer.cli.loading import (
    UserError,
    as_user_errors,
    composed_model,
    composed_network,
    experiment_of,
    fill,
    is_action_model,
    is_checkpoint,
    load_given,
    model_of_source,
    read_source,
    write_text,
)
from composer.cli.lsp import add_lsp_options, run_lsp
from composer.cli.options import (
    add_block_options,
    add_diff_options,
    add_draw_options,
    add_export_options,
    add_init_options,
    add_proof_options,
    add_schema_options,
    add_spec,
    add_training_options,
)
from composer.cli.probe import add_probe_options, run_probe
from composer.cli.prove import run_prove
from composer.cli.run import add_run_options, run_experiment, with_overrides
from composer.cli.runs import add_compare_options, add_eval_options, model_of, run_compare, run_eval
from composer.cli.train import run_train, take_config
from composer.cli.watch import add_watch_options, run_watch
from composer.cli.why import add_why_options, run_why
from composer.errors import RefusedError, SpecError
from composer.source.files import as_argument, real_path
from perception_blocks.words import readable, wrapped

if TYPE_CHECKING:
    from composer.dataflow.experiment import Experiment
    from composer.source.load import Source

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
    except (SpecError, RefusedError, UserError, NameTakenError, MissingExtraError) as error:
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
    status = _fail(f"{where}{error}{advice}")
    return 2 if getattr(arguments, "exit_code", False) else status  # 1 is for differences


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
    _write(readable(str(text)) + end, sys.stdout if file is None else file)


def _write(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _width_of_terminal() -> int | None:
    """The columns of the terminal; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _say_fitted(text: str) -> None:
    """Print ``text`` in lines as long as the terminal's; those after the first of a line are indented."""
    width = _width_of_terminal()
    _say("\n".join(part for line in text.splitlines() for part in wrapped(line, width)))


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


def _init(arguments: argparse.Namespace) -> None:
    if arguments.env is None and arguments.file is None:
        arguments.usage_error("give an environment, or a spec with --from")
    text = _start(arguments) if arguments.file is None else _written_out(arguments)
    if arguments.output is None:
        _say(text, end="")
        return
    if os.path.exists(arguments.output):
        raise UserError(f"{arguments.output!r} is there already; remove it or choose another name")
    from composer.cli.schema_file import write_spec
    from composer.trust import allow_options

    if arguments.no_schema:
        write_text(arguments.output, text)
        written = arguments.output
    else:
        written = write_spec(arguments.output, text, arguments.allow)
    options = allow_options(arguments.allow, arguments.env)
    _say(f"wrote {written}; next: composer check {as_argument(arguments.output)}{options}")


def _start(arguments: argparse.Namespace) -> str:
    """A first spec for an environment."""
    from composer.spaces.lookup import environment_spaces, is_by_actor, make_environment
    from composer.template.starter import starting_actor_spec, starting_spec
    from composer.trust import import_allowed

    import_allowed(arguments.allow)
    env = make_environment(arguments.env)
    with closing(env), as_user_errors(ValueError):
        spaces = environment_spaces(env, dict(arguments.limits))
        write = starting_actor_spec if is_by_actor(spaces[0]) else starting_spec
        return write(*spaces, arguments.env, arguments.allow)


def _written_out(arguments: argparse.Namespace) -> str:
    """A spec with its templates as graphs."""
    model = composed_model(arguments)
    if is_action_model(model.source):
        raise UserError(f"{arguments.file}: an action model has no templates to write out")
    from composer.cli.write_out import written_out

    with as_user_errors(ValueError, before=f"{arguments.file}: "):
        return written_out(model)


def _check(arguments: argparse.Namespace) -> None:
    loaded = load_given(arguments)
    if (experiment := experiment_of(arguments, loaded)) is not None:
        return _check_experiment(arguments, experiment)
    if (network := composed_network(arguments, loaded[0])) is not None:
        count = sum(parameter.numel() for parameter in network.parameters())
        return _say(f"{arguments.file}: good; {count:,} parameters")
    source, spaces = read_source(arguments, loaded, is_composed=True)
    if is_action_model(source):
        return _check_action_model(arguments, source, spaces)
    if not (spaces or source.data.get("environment")):
        _say(
            f"{arguments.file}: the structure is good; shapes and heads are not checked "
            "(no environment: give one with --env ID)"
        )
        return
    model = model_of_source(arguments, source, spaces)
    fill(model, arguments.file)
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

    model: Any = model_of_source(arguments, source, spaces)
    if not is_checkpoint(arguments.file):
        model.materialize()
    count = sum(parameter.numel() for parameter in model.parameters())
    good = f"{arguments.file}: good; {count:,} parameters"
    if model.processor is None:
        return _say(f"{good}; it did not act: {why_no_processor(model)}")
    try:
        difference = model.prove()
    except ProofError as error:
        raise UserError(f"{arguments.file}: {error}") from error
    except Exception as error:  # in a class of the model type
        error.add_note(
            f"in {arguments.file}: an action of made observations, and its log-probabilities"
        )
        raise
    _say(
        f"{good}; log-probabilities and values of an action, calculated again, differ by {difference:.0e}"
    )


def _show(arguments: argparse.Namespace) -> None:
    loaded = load_given(arguments)
    if (experiment := experiment_of(arguments, loaded)) is not None:
        from composer.dataflow.overview import summary_of

        return _say_fitted(summary_of(experiment))
    model = composed_network(arguments, loaded[0]) or composed_model(arguments, loaded)
    if is_action_model(loaded[0]):
        return _say_fitted(model.summary())
    from composer.summary.table import summarize

    width = _width_of_terminal()
    text = summarize(model).text(width, color=width is not None and not os.environ.get("NO_COLOR"))
    _write(f"{text}\n", sys.stdout)


def _draw(arguments: argparse.Namespace) -> None:
    loaded = load_given(arguments)
    if (experiment := experiment_of(arguments, loaded)) is not None:
        from composer.dataflow.overview import draw_experiment

        with as_user_errors(ValueError):
            path = draw_experiment(experiment, arguments.output)
    else:
        model = composed_network(arguments, loaded[0]) or composed_model(arguments, loaded)
        with as_user_errors(ValueError):
            path = model.draw(arguments.output)
    _say(f"wrote {path}")


def _watch(arguments: argparse.Namespace) -> None:
    def say(text: str) -> None:
        _say(text)
        sys.stdout.flush()  # it is waited for, also through a pipe

    run_watch(arguments, say)


def _export(arguments: argparse.Namespace) -> None:
    model = composed_model(arguments)
    if is_action_model(model.source):
        model.export(arguments.output)  # which says why not
    model.materialize()
    is_trained = fill(model, arguments.file)
    report = model.export(
        arguments.output, part=arguments.part, unroll=arguments.unroll, actor=arguments.actor
    )
    if not is_trained:
        _say(f"{arguments.file} is no checkpoint: its weights are initial ones, not trained")
    _say(report)


def _refuse_partial(arguments: argparse.Namespace, weights: str | None) -> None:
    """Usage errors of --weights and --partial."""
    if arguments.resume is not None and (arguments.weights is not None or arguments.partial):
        arguments.usage_error("a resumed run has its weights; leave out --weights and --partial")
    if arguments.partial and weights is None:
        arguments.usage_error("--partial needs a checkpoint: as SPEC, or with --weights FILE")
    if arguments.partial and arguments.seeds is not None:
        arguments.usage_error("--partial is for a run with one seed; give --seed N, not --seeds")


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
        source, _ = read_source(arguments, (inline, {}), makes_environment=arguments.env is None)
    elif arguments.file is not None:
        arguments.file = model_of(arguments.file)
        makes_environment = arguments.env is None and arguments.resume is None
        source, _ = read_source(arguments, makes_environment=makes_environment)
        weights = arguments.file if is_checkpoint(arguments.file) else None
    if arguments.weights is not None:
        weights = model_of(arguments.weights)
    _refuse_partial(arguments, weights)
    return run_train(arguments, source, weights)


def _why(arguments: argparse.Namespace) -> None:
    for text in run_why(arguments):
        _say_fitted(text)


def _import(arguments: argparse.Namespace) -> None:
    for text in run_import(arguments):
        _say(text)


def _eval(arguments: argparse.Namespace) -> int:
    text, status = run_eval(arguments)
    _say(text)
    return status


def _probe(arguments: argparse.Namespace) -> None:
    for text in run_probe(arguments):
        _write(f"{text}\n", sys.stdout)


def _compare(arguments: argparse.Namespace) -> None:
    _say(run_compare(arguments))


def _prove(arguments: argparse.Namespace) -> int:
    if is_checkpoint(arguments.file):
        raise UserError(f"{arguments.file} is a checkpoint; composer prove takes a spec")
    composed_model(arguments)  # says what is wrong with the spec before processes are started
    text, status = run_prove(arguments)
    _say(text)
    return status


def _blocks(arguments: argparse.Namespace) -> None:
    from composer.reference.help import describe_block, list_blocks
    from composer.trust import import_allowed
    from perception_blocks.registry import UnknownNameError

    import_allowed(arguments.allow)
    with as_user_errors(UnknownNameError, ImportError):
        if arguments.name is None:
            return _say(list_blocks(_width_of_terminal()))
        _say(describe_block(arguments.name, _width_of_terminal()))


def _schema(arguments: argparse.Namespace) -> None:
    from composer.cli.schema_file import schema_text, write_schema

    if arguments.output is None:
        return _say(schema_text(arguments.allow))
    write_schema(arguments.output, arguments.allow)
    _say(f"wrote {arguments.output}")


def _diff(arguments: argparse.Namespace) -> int:
    lines = compared(arguments)
    _say("\n".join(lines) if lines else "no differences")
    return 1 if lines and arguments.exit_code else 0


# The arguments of a command that may be the folder of a run, for its best model.
OF_MODELS = dict.fromkeys(("check", "show", "draw", "export", "why"), ("file",)) | {
    "diff": ("first", "second")
}
# Command: the function that runs it, the function that adds its options, and its help.
COMMANDS: dict[str, tuple[Callable[..., int | None], Callable[..., None], str]] = {
    "init": (
        _init,
        add_init_options,
        "write a starting spec, from an environment or from templates",
    ),
    "import": (
        _import,
        add_import_options,
        "write the networks of another library's configuration as a spec",
    ),
    "check": (
        _check,
        add_spec,
        "check a spec; with an environment its shapes too; an action model also acts once; or an experiment",
    ),
    "show": (
        _show,
        add_spec,
        "print shapes, parameters and FLOPs of every node, the parts of an action model, or the calls of an experiment",
    ),
    "why": (_why, add_why_options, "print where the shapes of a node come from"),
    "draw": (
        _draw,
        add_draw_options,
        "draw policy and critic, an action model, or the calls of an experiment, in one picture",
    ),
    "watch": (
        _watch,
        add_watch_options,
        "show the picture of a spec in the browser, drawn anew whenever a file of it is saved",
    ),
    "export": (
        _export,
        add_export_options,
        "write a file that runs without this library (not of an action model)",
    ),
    "train": (_train, add_training_options, "train a model, or continue a run"),
    "eval": (
        _eval,
        add_eval_options,
        "play episodes with a model, or with the best model of a run",
    ),
    "probe": (
        _probe,
        add_probe_options,
        "measure what the nodes of a model do in its environment",
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
    "prove": (_prove, add_proof_options, "show that several processes compute what one does"),
    "blocks": (_blocks, add_block_options, "list the blocks, or describe one"),
    "schema": (_schema, add_schema_options, "print or write the JSON Schema of specs, for editors"),
    "lsp": (
        run_lsp,
        add_lsp_options,
        "check specs while they are written: a language server for editors",
    ),
    "diff": (_diff, add_diff_options, "print what differs between two specs or checkpoints"),
}
