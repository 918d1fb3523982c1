"""The base classes of blocks, by the path that packages of blocks import."""

from perception_blocks.base_block import InputShapeError, MemoryBlock, PerceptionBlock, one_vector

__all__ = ["InputShapeError", "MemoryBlock", "PerceptionBlock", "one_vector"]
