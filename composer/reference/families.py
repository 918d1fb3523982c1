"""The families of the blocks: each is a page of ``docs/blocks/`` and a part of what `composer blocks` lists."""

from __future__ import annotations

from perception_blocks.registry import BLOCKS

__all__ = ["FAMILIES", "families", "title_of"]

OURS = "perception_blocks.blocks."
# Family -> the modules whose blocks belong to it, in this order.
FAMILIES = {
    "basic": "dense residual_dense noisy combine elementwise reshape embed features scale preprocess",
    "convolution": "conv residual_conv vision_model",
    "pooling-and-sets": "pooling sets",
    "attention": "attention attention_conv transformer language_model",
    "memory": "recurrent windows linear_memory gtrxl decoder",
    "graphs": "adjacency graph_network message_passing",
    "heads-and-values": "heads",
    "your-own": "custom",
}
# Blocks that belong to another family than the rest of their module.
ELSEWHERE = {"linear_output": "heads-and-values", "vgg_conv_gap": "convolution"}


def families() -> dict[str, list[str]]:
    """Family -> the names of our blocks in it, each block in one family.

    Raises LookupError for a block of a module that belongs to no family.
    """
    pages: dict[str, list[str]] = {page: [] for page in FAMILIES}
    page_of = {module: page for page, modules in FAMILIES.items() for module in modules.split()}
    modules = {name: BLOCKS.module_of(name) for name in BLOCKS}
    ours = {name: m.removeprefix(OURS) for name, m in modules.items() if m.startswith(OURS)}
    for name, module in ours.items():
        if module not in page_of:
            raise LookupError(f"the block {name!r} is in no family: name {module!r} in FAMILIES")
    for module, page in page_of.items():
        for name in (name for name in ours if ours[name] == module):
            pages[ELSEWHERE.get(name, page)].append(name)
    return pages


def title_of(family: str) -> str:
    """
    >>> title_of("pooling-and-sets")
    'Pooling and sets'
    """
    return family.replace("-", " ").capitalize()
