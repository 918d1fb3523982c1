"""The networks of other systems' configurations as specs. Their files are read; nothing in them is executed."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["KINDS", "ForeignWeights", "Imported", "Kind", "Taken", "import_config"]
__all__ += ["read_checkpoint"]

if TYPE_CHECKING:
    from composer.importing.checkpoints import ForeignWeights, read_checkpoint
    from composer.importing.config import import_config
    from composer.importing.imported import Imported
    from composer.importing.kinds import KINDS, Kind
    from composer.importing.taken import Taken
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "checkpoints": "ForeignWeights read_checkpoint",
            "config": "import_config",
            "imported": "Imported",
            "kinds": "KINDS Kind",
            "taken": "Taken",
        },
    )
