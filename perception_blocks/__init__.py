"""What a network is made of: blocks, and graphs of blocks whose shapes are known before any weight exists."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = [
    "ACTIVATIONS",
    "BLOCKS",
    "INITIALIZERS",
    "ConcatBlock",
    "DenseBlock",
    "EmbeddingBlock",
    "FlattenBlock",
    "FlattenDenseBlock",
    "FunctionalBlock",
    "Graph",
    "GraphError",
    "GruBlock",
    "InferenceBlock",
    "LinearOutputBlock",
    "LstmBlock",
    "LstmLastStepBlock",
    "MemoryBlock",
    "NatureCnnBlock",
    "NatureCnnDenseBlock",
    "NormalizeBlock",
    "OneHotBlock",
    "PerceptionBlock",
    "Port",
    "Registry",
    "ScaleImageBlock",
    "StridedConvBlock",
    "StridedConvDenseBlock",
    "VggConvBlock",
    "VggConvDenseBlock",
    "init",
]

if TYPE_CHECKING:
    from perception_blocks import init
    from perception_blocks.block import MemoryBlock, PerceptionBlock
    from perception_blocks.combine import ConcatBlock
    from perception_blocks.conv import (
        NatureCnnBlock,
        NatureCnnDenseBlock,
        StridedConvBlock,
        StridedConvDenseBlock,
        VggConvBlock,
        VggConvDenseBlock,
    )
    from perception_blocks.custom import FunctionalBlock
    from perception_blocks.dense import DenseBlock, FlattenDenseBlock, LinearOutputBlock
    from perception_blocks.embed import EmbeddingBlock, OneHotBlock
    from perception_blocks.graph import Graph, GraphError
    from perception_blocks.inference import InferenceBlock
    from perception_blocks.port import Port
    from perception_blocks.recurrent import GruBlock, LstmBlock, LstmLastStepBlock
    from perception_blocks.registry import ACTIVATIONS, BLOCKS, INITIALIZERS, Registry
    from perception_blocks.reshape import FlattenBlock
    from perception_blocks.scale import NormalizeBlock, ScaleImageBlock
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "block": "MemoryBlock PerceptionBlock",
            "combine": "ConcatBlock",
            "conv": "NatureCnnBlock NatureCnnDenseBlock StridedConvBlock StridedConvDenseBlock "
            "VggConvBlock VggConvDenseBlock",
            "custom": "FunctionalBlock",
            "dense": "DenseBlock FlattenDenseBlock LinearOutputBlock",
            "embed": "EmbeddingBlock OneHotBlock",
            "graph": "Graph GraphError",
            "inference": "InferenceBlock",
            "port": "Port",
            "recurrent": "GruBlock LstmBlock LstmLastStepBlock",
            "registry": "ACTIVATIONS BLOCKS INITIALIZERS Registry",
            "reshape": "FlattenBlock",
            "scale": "NormalizeBlock ScaleImageBlock",
        },
        submodules=("init",),
    )
