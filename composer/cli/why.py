"""`composer why`: where the shapes of a node come from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from composer.cli.loading import UserError, is_network, load_given, refuse_experiment
from composer.cli.options import add_spec_options
from composer.errors import Problem, SpecError

if TYPE_CHECKING:
    from composer.editor.analysis import Analysis
    from composer.editor.given import Given
    from composer.source.load import Source
    from composer.spec.model_spec import ModelSpec

__all__ = ["add_why_options", "run_why"]


def add_why_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a spec, a checkpoint, or the folder of a run")
    add(
        "node", metavar="NODE",
        help="a node, such as latent or policy/latent, or a line of the spec, or FILE:LINE",
    )  # fmt: skip
    add_spec_options(parser)


def run_why(arguments: argparse.Namespace) -> Iterator[str]:
    """The answer; then the problems of the spec are raised, if there are any."""
    from composer.editor.asked_node import NoSuchNodeError, node_asked
    from composer.editor.why import why

    source, given = load_given(arguments)
    refuse_experiment(arguments, source)
    if is_network(source) and arguments.env is not None:
        raise UserError(
            f"{arguments.file} describes a network without actions, which has no environment; leave out --env"
        )
    analysis = _analysis(arguments, source, given)
    try:
        place = node_asked(analysis, arguments.node)
    except NoSuchNodeError as error:
        if not analysis.problems:
            raise
        unknown = [Problem(str(error))] if analysis.nodes else []
        raise SpecError([*analysis.problems, *unknown]) from None
    yield why(analysis, place)
    if analysis.problems:
        raise SpecError(analysis.problems)
    if analysis.unknown:
        yield "shapes are not known without an environment: give one with --env ID"


def _analysis(arguments: argparse.Namespace, source: Source, given: dict[str, Any]) -> Analysis:
    from composer.editor.analysis import analyse_source
    from composer.trust import import_extensions

    import_extensions(source, arguments.allow)
    limits = dict(arguments.limits)

    def spaces(spec: ModelSpec, text: str) -> Given:
        from composer.editor.environments import MadeSpaces
        from composer.editor.given import Given
        from composer.spaces.lookup import find_spaces
        from composer.trust import check_environment

        name = arguments.env or spec.environment
        if name is None and not given:
            return Given(unknown="no environment")
        if not given and check_environment(str(name), arguments.allow):
            return Given(unknown="the environment is not allowed")  # a problem of the structure
        try:
            return Given(
                name, MadeSpaces(find_spaces(spec, **{"env": None, **given}, limits=limits))
            )
        except SpecError as error:
            return Given(unknown="the environment cannot be made", problems=error.problems)

    return analyse_source(source, spaces, arguments.allow, limits)
