"""Models over several processes: sharded by FSDP2, with tensor parallelism, started by torchrun."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Mesh", "Plan", "compose", "consolidate", "load", "optimizer", "save", "shard", "start"]

if TYPE_CHECKING:
    from composer.parallel.launch import Mesh, start
    from composer.parallel.materialize import compose
    from composer.parallel.plan import Plan
    from composer.parallel.sharding import optimizer, shard
    from composer.parallel.state import consolidate, load, save
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "launch": "Mesh start",
            "materialize": "compose",
            "plan": "Plan",
            "sharding": "optimizer shard",
            "state": "consolidate load save",
        },
    )
