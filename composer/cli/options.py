"""The options of the commands on specs and models."""

from __future__ import annotations

import argparse

from composer.cli.prove import add_prove_options
from composer.cli.train import add_train_options

__all__ = [
    "add_init_options",
    "add_spec",
    "add_draw_options",
    "add_export_options",
    "add_training_options",
    "add_proof_options",
    "add_block_options",
    "add_schema_options",
    "add_diff_options",
    "add_spec_options",
    "add_limit",
    "add_allow",
]

OF_RUNS = "a spec, a checkpoint, or the folder of a run"


def add_init_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("env", metavar="ENV", nargs="?", help="an environment id, such as CartPole-v1")
    add(
        "--from", metavar="SPEC", dest="file", help="write out the templates of this spec as graphs"
    )
    add("-o", "--output", metavar="FILE", help="where to write it (default: print it)")
    text = "no JSON Schema beside it, and no comment that names it to editors"
    add("--no-schema", action="store_true", help=text)
    add_allow(parser, "a module that makes the environment known")
    add_limit(parser)
    parser.set_defaults(overrides=[], usage_error=parser.error)


def add_spec(parser: argparse.ArgumentParser) -> None:
    text = "a spec, a checkpoint, the folder of a run, or an experiment: a file or a name"
    parser.add_argument("file", metavar="FILE", help=text)
    add_spec_options(parser)


def add_draw_options(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    _add_out(parser, "png, svg, pdf, html, dot or mmd by its suffix")


def add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=OF_RUNS)
    add_spec_options(parser)
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


def add_training_options(parser: argparse.ArgumentParser) -> None:
    text = "a spec, or a checkpoint or the folder of a run to begin with"
    parser.add_argument("file", metavar="SPEC", nargs="?", help=text)
    add_spec_options(parser)
    add_train_options(parser)


def add_proof_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="SPEC", help="a spec")
    add_spec_options(parser)
    add_prove_options(parser)


def add_block_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a block (default: list all)")
    add_allow(parser, "a module that registers blocks")


def add_schema_options(parser: argparse.ArgumentParser) -> None:
    text = "where to write it, in place of an older one (default: print it)"
    parser.add_argument("-o", "--output", metavar="FILE", help=text)
    add_allow(parser, "a module that registers blocks, or whose classes '_target_' names")


def add_diff_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("first", metavar="A", help=OF_RUNS)
    add("second", metavar="B", help="another one")
    add("--env", metavar="ID", help="the environment (default: the one that each spec names)")
    what = "a module whose classes the specs may use, or a folder/ of files that they name"
    add_allow(parser, what)
    add_limit(parser)
    add(
        "--exit-code", action="store_true",
        help="exit with 1 where something differs, and with 2 where a file is wrong",
    )  # fmt: skip


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", metavar="ID", help="the environment (default: the spec's own)")
    what = "a module whose classes the spec may use, or a folder/ of files that it names"
    add_allow(parser, what)
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="replace a value of the spec, such as params.width=128 (repeatable)",
    )  # fmt: skip
    add_limit(parser)


def add_limit(parser: argparse.ArgumentParser) -> None:
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


def add_allow(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--allow", metavar="MODULE", action="append", default=[], help=f"{text} (repeatable)"
    )
