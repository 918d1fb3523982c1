"""gymnasium's spaces as flat Ports, their values as tensors and back, and the actors they belong to."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Actor", "Actors", "SpaceTree", "first_steps", "spaces_from_json", "spaces_to_json"]
__all__ += ["map_nested", "stack_nested", "to_numpy_nested", "to_tensors_nested", "unstack_nested"]
__all__ += ["with_previous"]

if TYPE_CHECKING:
    from composer.spaces.actors import Actor, Actors
    from composer.spaces.episode_starts import first_steps
    from composer.spaces.json_form import spaces_from_json, spaces_to_json
    from composer.spaces.nested import (
        map_nested,
        stack_nested,
        to_numpy_nested,
        to_tensors_nested,
        unstack_nested,
    )
    from composer.spaces.recalling import with_previous
    from composer.spaces.tree import SpaceTree
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "actors": "Actor Actors",
            "episode_starts": "first_steps",
            "json_form": "spaces_from_json spaces_to_json",
            "nested": "map_nested stack_nested to_numpy_nested to_tensors_nested unstack_nested",
            "recalling": "with_previous",
            "tree": "SpaceTree",
        },
    )
