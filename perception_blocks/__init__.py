"""What a network is made of: blocks, and graphs of blocks whose shapes are known before any weight exists."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = [
    "ACTIVATIONS",
    "BLOCKS",
    "FUNCTIONS",
    "INITIALIZERS",
    "ActionMaskingBlock",
    "Activation",
    "AddBlock",
    "AdjacencyBlock",
    "AttentionPoolingBlock",
    "CategoricalValueBlock",
    "ChannelsFirstBlock",
    "ConcatBlock",
    "CorrelationBlock",
    "CrossAttentionBlock",
    "DecoderBlock",
    "DeepSetBlock",
    "DenseBlock",
    "DetachBlock",
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
    "InputShapeError",
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
    "PermuteBlock",
    "PointNetBlock",
    "Port",
    "PositionalEncodingBlock",
    "PositiveInt",
    "PreprocessImageBlock",
    "QuantileValueBlock",
    "Range",
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
    "VisionModelBlock",
    "init",
    "make_activation",
    "one_vector",
]

if TYPE_CHECKING:
    from perception_blocks import init
    from perception_blocks.activations import make_activation
    from perception_blocks.base_block import MemoryBlock, PerceptionBlock, one_vector
    from perception_blocks.blocks.adjacency import (
        AdjacencyBlock,
        GraphAttentionBlock,
        GraphConvBlock,
    )
    from perception_blocks.blocks.attention import (
        CrossAttentionBlock,
        MultiHeadAttentionBlock,
        SelfAttentionSeqBlock,
    )
    from perception_blocks.blocks.attention_conv import SelfAttentionConvBlock
    from perception_blocks.blocks.combine import ConcatBlock
    from perception_blocks.blocks.conv import (
        NatureCnnBlock,
        NatureCnnDenseBlock,
        StridedConvBlock,
        StridedConvDenseBlock,
        VggConvBlock,
        VggConvDenseBlock,
    )
    from perception_blocks.blocks.custom import FunctionalBlock
    from perception_blocks.blocks.decoder import DecoderBlock
    from perception_blocks.blocks.dense import DenseBlock, FlattenDenseBlock, LinearOutputBlock
    from perception_blocks.blocks.elementwise import (
        AddBlock,
        CorrelationBlock,
        GatedSumBlock,
        MultiplyBlock,
    )
    from perception_blocks.blocks.embed import EmbeddingBlock, OneHotBlock
    from perception_blocks.blocks.features import FourierFeaturesBlock, PositionalEncodingBlock
    from perception_blocks.blocks.graph_network import GraphNetworkBlock
    from perception_blocks.blocks.gtrxl import GtrxlBlock
    from perception_blocks.blocks.heads import (
        ActionMaskingBlock,
        CategoricalValueBlock,
        DuelingBlock,
        QuantileValueBlock,
        ValueBlock,
    )
    from perception_blocks.blocks.language_model import TransformerBlock
    from perception_blocks.blocks.linear_memory import LruBlock, MinGruBlock
    from perception_blocks.blocks.message_passing import MessagePassingBlock
    from perception_blocks.blocks.noisy import NoisyDenseBlock
    from perception_blocks.blocks.pooling import (
        GlobalAveragePoolingBlock,
        MaskedGlobalPoolingBlock,
        VggConvGapBlock,
    )
    from perception_blocks.blocks.preprocess import PreprocessImageBlock
    from perception_blocks.blocks.recurrent import GruBlock, LstmBlock, LstmLastStepBlock, RnnBlock
    from perception_blocks.blocks.reshape import (
        ChannelsFirstBlock,
        DetachBlock,
        FlattenBlock,
        MultiIndexSliceBlock,
        PermuteBlock,
        RepeatToMatchBlock,
        SliceBlock,
    )
    from perception_blocks.blocks.residual_conv import ImpalaCnnBlock, ResConvBlock
    from perception_blocks.blocks.residual_dense import ResidualDenseBlock
    from perception_blocks.blocks.scale import NormalizeBlock, ScaleImageBlock
    from perception_blocks.blocks.sets import AttentionPoolingBlock, DeepSetBlock, PointNetBlock
    from perception_blocks.blocks.transformer import TransformerEncoderBlock
    from perception_blocks.blocks.vision_model import VisionModelBlock
    from perception_blocks.blocks.windows import FrameStackBlock
    from perception_blocks.graph.graph import Graph, GraphError
    from perception_blocks.inference import InferenceBlock
    from perception_blocks.port import InputShapeError, Port
    from perception_blocks.registry import ACTIVATIONS, BLOCKS, FUNCTIONS, INITIALIZERS, Registry
    from perception_blocks.settings import Activation, PositiveInt, Range
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "activations": "make_activation",
            "base_block": "MemoryBlock PerceptionBlock one_vector",
            "blocks.adjacency": "AdjacencyBlock GraphAttentionBlock GraphConvBlock",
            "blocks.attention": "CrossAttentionBlock MultiHeadAttentionBlock SelfAttentionSeqBlock",
            "blocks.attention_conv": "SelfAttentionConvBlock",
            "blocks.combine": "ConcatBlock",
            "blocks.conv": "NatureCnnBlock NatureCnnDenseBlock StridedConvBlock "
            "StridedConvDenseBlock VggConvBlock VggConvDenseBlock",
            "blocks.custom": "FunctionalBlock",
            "blocks.decoder": "DecoderBlock",
            "blocks.dense": "DenseBlock FlattenDenseBlock LinearOutputBlock",
            "blocks.elementwise": "AddBlock CorrelationBlock GatedSumBlock MultiplyBlock",
            "blocks.embed": "EmbeddingBlock OneHotBlock",
            "blocks.features": "FourierFeaturesBlock PositionalEncodingBlock",
            "blocks.graph_network": "GraphNetworkBlock",
            "blocks.gtrxl": "GtrxlBlock",
            "blocks.heads": "ActionMaskingBlock CategoricalValueBlock "
            "DuelingBlock QuantileValueBlock ValueBlock",
            "blocks.language_model": "TransformerBlock",
            "blocks.linear_memory": "LruBlock MinGruBlock",
            "blocks.message_passing": "MessagePassingBlock",
            "blocks.noisy": "NoisyDenseBlock",
            "blocks.pooling": "GlobalAveragePoolingBlock MaskedGlobalPoolingBlock VggConvGapBlock",
            "blocks.preprocess": "PreprocessImageBlock",
            "blocks.recurrent": "GruBlock LstmBlock LstmLastStepBlock RnnBlock",
            "blocks.reshape": "ChannelsFirstBlock DetachBlock FlattenBlock MultiIndexSliceBlock "
            "PermuteBlock RepeatToMatchBlock SliceBlock",
            "blocks.residual_conv": "ImpalaCnnBlock ResConvBlock",
            "blocks.residual_dense": "ResidualDenseBlock",
            "blocks.scale": "NormalizeBlock ScaleImageBlock",
            "blocks.sets": "AttentionPoolingBlock DeepSetBlock PointNetBlock",
            "blocks.transformer": "TransformerEncoderBlock",
            "blocks.vision_model": "VisionModelBlock",
            "blocks.windows": "FrameStackBlock",
            "graph.graph": "Graph GraphError",
            "inference": "InferenceBlock",
            "port": "InputShapeError Port",
            "registry": "ACTIVATIONS BLOCKS FUNCTIONS INITIALIZERS Registry",
            "settings": "Activation PositiveInt Range",
        },
        submodules=("init",),
    )
