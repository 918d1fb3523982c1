"""The command `composer init`: a first spec for an environment, or a spec with its templates as graphs."""

from __future__ import annotations

import argparse
import os
from contextlib import closing

from composer.cli.loading import (
    UserError,
    as_user_errors,
    composed_model,
    is_action_model,
    write_text,
)
from composer.cli.output import say
from composer.source.files import as_argument

__all__ = ["run_init"]


def run_init(arguments: argparse.Namespace) -> None:
    if arguments.env is None and arguments.file is None:
        arguments.usage_error("give an environment, or a spec with --from")
    text = _start(arguments) if arguments.file is None else _written_out(arguments)
    if arguments.output is None:
        say(text, end="")
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
    say(f"wrote {written}; next: composer check {as_argument(arguments.output)}{options}")


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
