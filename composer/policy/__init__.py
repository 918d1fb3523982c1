"""What acts: a policy of one actor, or of several."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["PackedView", "Policy", "SequenceView", "StructuredPolicy", "token_views"]

if TYPE_CHECKING:
    from composer.policy.policy import Policy
    from composer.policy.sequence_view import PackedView, SequenceView, token_views
    from composer.policy.structured import StructuredPolicy
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "policy": "Policy",
            "sequence_view": "PackedView SequenceView token_views",
            "structured": "StructuredPolicy",
        },
    )
