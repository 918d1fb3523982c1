"""The blocks, one family in each file; `perception_blocks` has them by name."""
