"""What a network is made of: blocks, and graphs of blocks whose shapes are known before any weight exists."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = [
    "ACTIVATIONS",
    "BLOCKS",
    "INITIALIZERS",
    "ActionMaskingBlock",
    "AddBlock",
    "AdjacencyBlock",
    "AttentionPoolingBlock",
    "CategoricalValueBlock",
    "ConcatBlock",
    "CorrelationBlock",
    "CrossAttentionBlock",
    "DeepSetBlock",
    "DenseBlock",
    "DuelingBlock",
    "EmbeddingBlock",
    "FlattenBlock",
    "FlattenDenseBlock",
    "FourierFeaturesBlock",
    "FrameStackBlock",
    "FunctionalBlock",
    "GatedSumBlock",
    "GlobalAveragePoolingBlock",
    "Graph",
    "GraphAttentionBlock",
    "GraphConvBlock",
    "GraphError",
    "GraphNetworkBlock",
    "GruBlock",
    "GtrxlBlock",
    "ImpalaCnnBlock",
    "InferenceBlock",
    "LinearOutputBlock",
    "LruBlock",
    "LstmBlock",
    "LstmLastStepBlock",
    "MaskedGlobalPoolingBlock",
    "MemoryBlock",
    "MessagePassingBlock",
    "MinGruBlock",
    "MultiHeadAttentionBlock",
    "MultiIndexSliceBlock",
    "MultiplyBlock",
    "NatureCnnBlock",
    "NatureCnnDenseBlock",
    "NoisyDenseBlock",
    "NormalizeBlock",
    "OneHotBlock",
    "PerceptionBlock",
    "PointNetBlock",
    "Port",
    "PositionalEncodingBlock",
    "QuantileValueBlock",
    "Registry",
    "RepeatToMatchBlock",
    "ResConvBlock",
    "ResidualDenseBlock",
    "RnnBlock",
    "ScaleImageBlock",
    "SelfAttentionConvBlock",
    "SelfAttentionSeqBlock",
    "SliceBlock",
    "StridedConvBlock",
    "StridedConvDenseBlock",
    "TransformerBlock",
    "TransformerEncoderBlock",
    "ValueBlock",
    "VggConvBlock",
    "VggConvDenseBlock",
    "VggConvGapBlock",
    "init",
]

if TYPE_CHECKING:
    from perception_blocks import init
    from perception_blocks.attention import (
        CrossAttentionBlock,
        MultiHeadAttentionBlock,
        SelfAttentionSeqBlock,
    )
    from perception_blocks.attention_conv import SelfAttentionConvBlock
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
    from perception_blocks.elementwise import (
        AddBlock,
        CorrelationBlock,
        GatedSumBlock,
        MultiplyBlock,
    )
    from perception_blocks.embed import EmbeddingBlock, OneHotBlock
    from perception_blocks.features import FourierFeaturesBlock, PositionalEncodingBlock
    from perception_blocks.graph import Graph, GraphError
    from perception_blocks.graph_nets import AdjacencyBlock, GraphAttentionBlock, GraphConvBlock
    from perception_blocks.graph_network import GraphNetworkBlock
    from perception_blocks.gtrxl import GtrxlBlock
    from perception_blocks.heads import (
        ActionMaskingBlock,
        CategoricalValueBlock,
        DuelingBlock,
        QuantileValueBlock,
        ValueBlock,
    )
    from perception_blocks.inference import InferenceBlock
    from perception_blocks.language_model import TransformerBlock
    from perception_blocks.linear_memory import LruBlock, MinGruBlock
    from perception_blocks.memory import FrameStackBlock
    from perception_blocks.message_passing import MessagePassingBlock
    from perception_blocks.noisy import NoisyDenseBlock
    from perception_blocks.pooling import (
        GlobalAveragePoolingBlock,
        MaskedGlobalPoolingBlock,
        VggConvGapBlock,
    )
    from perception_blocks.port import Port
    from perception_blocks.recurrent import GruBlock, LstmBlock, LstmLastStepBlock, RnnBlock
    from perception_blocks.registry import ACTIVATIONS, BLOCKS, INITIALIZERS, Registry
    from perception_blocks.reshape import (
        FlattenBlock,
        MultiIndexSliceBlock,
        RepeatToMatchBlock,
        SliceBlock,
    )
    from perception_blocks.residual_conv import ImpalaCnnBlock, ResConvBlock
    from perception_blocks.residual_dense import ResidualDenseBlock
    from perception_blocks.scale import NormalizeBlock, ScaleImageBlock
    from perception_blocks.sets import AttentionPoolingBlock, DeepSetBlock, PointNetBlock
    from perception_blocks.transformer import TransformerEncoderBlock
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "attention": "CrossAttentionBlock MultiHeadAttentionBlock SelfAttentionSeqBlock",
            "attention_conv": "SelfAttentionConvBlock",
            "block": "MemoryBlock PerceptionBlock",
            "combine": "ConcatBlock",
            "conv": "NatureCnnBlock NatureCnnDenseBlock StridedConvBlock StridedConvDenseBlock "
            "VggConvBlock VggConvDenseBlock",
            "custom": "FunctionalBlock",
            "dense": "DenseBlock FlattenDenseBlock LinearOutputBlock",
            "elementwise": "AddBlock CorrelationBlock GatedSumBlock MultiplyBlock",
            "embed": "EmbeddingBlock OneHotBlock",
            "features": "FourierFeaturesBlock PositionalEncodingBlock",
            "graph": "Graph GraphError",
            "graph_nets": "AdjacencyBlock GraphAttentionBlock GraphConvBlock",
            "graph_network": "GraphNetworkBlock",
            "gtrxl": "GtrxlBlock",
            "heads": "ActionMaskingBlock CategoricalValueBlock DuelingBlock QuantileValueBlock "
            "ValueBlock",
            "inference": "InferenceBlock",
            "language_model": "TransformerBlock",
            "linear_memory": "LruBlock MinGruBlock",
            "memory": "FrameStackBlock",
            "message_passing": "MessagePassingBlock",
            "noisy": "NoisyDenseBlock",
            "pooling": "GlobalAveragePoolingBlock MaskedGlobalPoolingBlock VggConvGapBlock",
            "port": "Port",
            "recurrent": "GruBlock LstmBlock LstmLastStepBlock RnnBlock",
            "registry": "ACTIVATIONS BLOCKS INITIALIZERS Registry",
            "reshape": "FlattenBlock MultiIndexSliceBlock RepeatToMatchBlock SliceBlock",
            "residual_conv": "ImpalaCnnBlock ResConvBlock",
            "residual_dense": "ResidualDenseBlock",
            "scale": "NormalizeBlock ScaleImageBlock",
            "sets": "AttentionPoolingBlock DeepSetBlock PointNetBlock",
            "transformer": "TransformerEncoderBlock",
        },
        submodules=("init",),
    )
