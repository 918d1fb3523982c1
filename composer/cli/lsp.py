"""`composer lsp`: a language server for editors."""

from __future__ import annotations

import argparse

from composer.cli.options import add_allow

__all__ = ["add_lsp_options", "run_lsp"]


def add_lsp_options(parser: argparse.ArgumentParser) -> None:
    add_allow(parser, "a module that specs may use, beside those that the editor allows")


def run_lsp(arguments: argparse.Namespace) -> None:
    """Serve one editor on stdin and stdout. Does not return."""
    from perception_blocks.registry import EXTRAS, missing_extra, missing_library

    try:
        from composer.editor.features import language_server
        from composer.editor.server import serve
    except ModuleNotFoundError as error:
        if missing_library(error) not in EXTRAS["editor"]:
            raise
        raise missing_extra("the language server", error, "editor") from error
    serve(language_server(arguments.allow))
