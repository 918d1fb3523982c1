"""Models as RLModules of RLlib's new API stack (extra `rllib`, in an environment of its own)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ComposedLearner", "ComposedModule", "checked", "module_spec", "multi_module_spec"]

if TYPE_CHECKING:
    from composer.adapters.rllib.checks import checked
    from composer.adapters.rllib.learner import ComposedLearner
    from composer.adapters.rllib.module import ComposedModule
    from composer.adapters.rllib.specs import module_spec, multi_module_spec
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "checks": "checked",
            "learner": "ComposedLearner",
            "module": "ComposedModule",
            "specs": "module_spec multi_module_spec",
        },
        extra="rllib",
    )
