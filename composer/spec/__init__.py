"""Plain data as a typed `ModelSpec`: every key of a spec is read here. Imports no torch."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ModelSpec", "diff_specs", "read_spec", "read_structure"]

if TYPE_CHECKING:
    from composer.spec.diff import diff_specs
    from composer.spec.model_spec import ModelSpec
    from composer.spec.read import read_spec, read_structure
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"diff": "diff_specs", "model_spec": "ModelSpec", "read": "read_spec read_structure"},
    )
