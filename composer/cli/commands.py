"""The command line: a verb and a file. It calls the library, prints, and returns the exit status.

0: good. 1: the input is wrong; a message says why. 2: wrong usage. 128 plus the number of a signal that interrupted it.
With --traceback the traceback of an exception in a user's class is printed.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from composer.cli.check import run_check
from composer.cli.ctrl_c import STATUS, interrupted_in_a_line, say_interrupted
from composer.cli.differences import compared
from composer.cli.importing import add_import_options, run_import
from composer.cli.init import run_init
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
    model_of,
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
from composer.cli.output import say, say_fitted, silence_output, width_of_terminal, write
from composer.cli.probe import add_probe_options, run_probe
from composer.cli.prove import run_prove
from composer.cli.run import add_run_options, run_experiment, with_overrides
from composer.cli.runs import add_compare_options, add_eval_options, run_compare, run_eval
from composer.cli.train import run_train
from composer.cli.watch import add_watch_options, run_watch
from composer.cli.why import add_why_options, run_why
from composer.errors import RefusedError, SpecError
from composer.source.files import real_path

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
        silence_output()
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            return _fail_in_a_class(arguments, error)
        silence_output()
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
    say(text, file=sys.stderr)
    return 1


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


def _show(arguments: argparse.Namespace) -> None:
    loaded = load_given(arguments)
    if (experiment := experiment_of(arguments, loaded)) is not None:
        from composer.dataflow.calls.overview import summary_of

        return say_fitted(summary_of(experiment))
    model = composed_network(arguments, loaded[0]) or composed_model(arguments, loaded)
    if is_action_model(loaded[0]):
        return say_fitted(model.summary())
    from composer.summary.table import summarize

    width = width_of_terminal()
    text = summarize(model).text(width, color=width is not None and not os.environ.get("NO_COLOR"))
    write(f"{text}\n", sys.stdout)


def _draw(arguments: argparse.Namespace) -> None:
    loaded = load_given(arguments)
    if (experiment := experiment_of(arguments, loaded)) is not None:
        from composer.dataflow.calls.overview import draw_experiment

        with as_user_errors(ValueError):
            path = draw_experiment(experiment, arguments.output)
    else:
        model = composed_network(arguments, loaded[0]) or composed_model(arguments, loaded)
        with as_user_errors(ValueError):
            path = model.draw(arguments.output)
    say(f"wrote {path}")


def _watch(arguments: argparse.Namespace) -> None:
    def say_at_once(text: str) -> None:
        say(text)
        sys.stdout.flush()  # it is waited for, also through a pipe

    run_watch(arguments, say_at_once)


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
        say(f"{arguments.file} is no checkpoint: its weights are initial ones, not trained")
    say(report)


def _why(arguments: argparse.Namespace) -> None:
    for text in run_why(arguments):
        say_fitted(text)


def _import(arguments: argparse.Namespace) -> None:
    for text in run_import(arguments):
        say(text)


def _eval(arguments: argparse.Namespace) -> int:
    text, status = run_eval(arguments)
    say(text)
    return status


def _probe(arguments: argparse.Namespace) -> None:
    for text in run_probe(arguments):
        write(f"{text}\n", sys.stdout)


def _compare(arguments: argparse.Namespace) -> None:
    say(run_compare(arguments))


def _prove(arguments: argparse.Namespace) -> int:
    if is_checkpoint(arguments.file):
        raise UserError(f"{arguments.file} is a checkpoint; composer prove takes a spec")
    composed_model(arguments)  # says what is wrong with the spec before processes are started
    text, status = run_prove(arguments)
    say(text)
    return status


def _blocks(arguments: argparse.Namespace) -> None:
    from composer.reference.help import describe_block, list_blocks
    from composer.trust import import_allowed
    from perception_blocks.registry import UnknownNameError

    import_allowed(arguments.allow)
    with as_user_errors(UnknownNameError, ImportError):
        if arguments.name is None:
            return say(list_blocks(width_of_terminal()))
        say(describe_block(arguments.name, width_of_terminal()))


def _schema(arguments: argparse.Namespace) -> None:
    from composer.cli.schema_file import schema_text, write_schema

    if arguments.output is None:
        return say(schema_text(arguments.allow))
    write_schema(arguments.output, arguments.allow)
    say(f"wrote {arguments.output}")


def _diff(arguments: argparse.Namespace) -> int:
    lines = compared(arguments)
    say("\n".join(lines) if lines else "no differences")
    return 1 if lines and arguments.exit_code else 0


# The arguments of a command that may be the folder of a run, for its best model.
OF_MODELS = dict.fromkeys(("check", "show", "draw", "export", "why"), ("file",)) | {
    "diff": ("first", "second")
}
# Command: the function that runs it, the function that adds its options, and its help.
COMMANDS: dict[str, tuple[Callable[..., int | None], Callable[..., None], str]] = {
    "init": (
        run_init,
        add_init_options,
        "write a starting spec, from an environment or from templates",
    ),
    "import": (
        _import,
        add_import_options,
        "write the networks of another library's configuration as a spec",
    ),
    "check": (
        run_check,
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
    "train": (run_train, add_training_options, "train a model, or continue a run"),
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
