"""`composer.checkpoint.weights`, by the path that specs and pages have taught."""

from composer.checkpoint.weights import load_weights

__all__ = ["load_weights"]
