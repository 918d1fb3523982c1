"""The kinds of configurations that can be imported, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from composer.importing.document import Document
from composer.importing.imported import Imported
from perception_blocks.registry import Registry

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """How configurations of one system are read.

    ``files`` says in a few words what they look like. ``recognizes`` looks at a `Document`; ``read`` makes the spec,
    and takes the name of a class or an entry where a file has several. It raises SpecError by key and reason.
    """

    files: str
    recognizes: Callable[[Document], bool]
    read: Callable[[Document, str | None], Imported]


KINDS = Registry("kind of configuration")
"""Name -> `Kind`, in the order in which they are tried."""
KINDS.register("rl_games", "composer.importing.rl_games:RL_GAMES")
KINDS.register("sb3", "composer.importing.sb3_files:SB3")
KINDS.register("skrl", "composer.importing.skrl:SKRL")
KINDS.register("rllib", "composer.importing.rllib_files:RLLIB")
KINDS.register("mlagents", "composer.importing.mlagents:MLAGENTS")
KINDS.register("rsl_rl", "composer.importing.rsl_rl:RSL_RL")
