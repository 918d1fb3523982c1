"""`composer.policy`'s views of token policies, by the path that pages have taught."""

from composer.policy.sequence_view import SequenceView, token_views

__all__ = ["SequenceView", "token_views"]
