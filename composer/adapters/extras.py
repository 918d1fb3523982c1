"""What an adapter says when the library that it adapts to is not installed."""

from __future__ import annotations

from perception_blocks.registry import MissingExtraError

__all__ = ["missing_extra"]


def missing_extra(what: str, error: ImportError, extra: str) -> MissingExtraError:
    """The error that names the extra which brings the library.

    >>> str(missing_extra("TokenEnv", ImportError("gone", name="torchrl.envs"), "torchrl"))
    'TokenEnv needs \\'torchrl\\'; install it with: pip install "perception-composer[torchrl]"'
    """
    library = (error.name or extra).partition(".")[0]
    return MissingExtraError(
        f'{what} needs {library!r}; install it with: pip install "perception-composer[{extra}]"'
    )
