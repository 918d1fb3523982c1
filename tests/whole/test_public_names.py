"""The names users rely on: what both packages export, and how they do it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import composer
import perception_blocks
from tests.helpers.paths import ROOT

PACKAGES = [composer, perception_blocks]

COMPOSER = """
    MODELS BaseModelWrapper ComposedNetwork Critic IModelWrapper Model Policy SpecError StructuredPolicy __version__ adopt_weights any_batch blend compose
    compose_network draw find_model first_steps import_config load load_network model_wrap probe register_wrapper with_previous
"""
PERCEPTION_BLOCKS = """
    ACTIVATIONS BLOCKS FUNCTIONS INITIALIZERS ActionMaskingBlock Activation AddBlock AdjacencyBlock AttentionPoolingBlock CategoricalValueBlock
    ChannelsFirstBlock ConcatBlock CorrelationBlock CrossAttentionBlock DecoderBlock DeepSetBlock DenseBlock DetachBlock DuelingBlock EmbeddingBlock FlattenBlock
    FlattenDenseBlock FourierFeaturesBlock FrameStackBlock FunctionalBlock GatedSumBlock GlobalAveragePoolingBlock
    Graph GraphAttentionBlock GraphConvBlock GraphError GraphNetworkBlock GruBlock GtrxlBlock ImpalaCnnBlock
    InferenceBlock InputShapeError LinearOutputBlock LruBlock LstmBlock LstmLastStepBlock MaskedGlobalPoolingBlock MemoryBlock
    MessagePassingBlock MinGruBlock MultiHeadAttentionBlock MultiIndexSliceBlock MultiplyBlock NatureCnnBlock NatureCnnDenseBlock
    NoisyDenseBlock NormalizeBlock OneHotBlock PerceptionBlock PermuteBlock PointNetBlock Port PositionalEncodingBlock
    PositiveInt PreprocessImageBlock QuantileValueBlock Range Registry RepeatToMatchBlock ResConvBlock ResidualDenseBlock RnnBlock ScaleImageBlock
    SelfAttentionConvBlock SelfAttentionSeqBlock SliceBlock StridedConvBlock StridedConvDenseBlock
    TransformerBlock TransformerEncoderBlock ValueBlock VggConvBlock VggConvDenseBlock VggConvGapBlock VisionModelBlock init
    make_activation one_vector
"""


def test_the_public_names_of_composer_are_these():
    assert composer.__all__ == COMPOSER.split()


def test_the_public_names_of_perception_blocks_are_these():
    assert perception_blocks.__all__ == PERCEPTION_BLOCKS.split()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_can_be_had_and_is_listed(package):
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)
        assert name in dir(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_public_names(package):
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imported = {a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert imported == set(package.__all__) - {"__version__"}


def test_every_registered_block_is_public():
    blocks = {perception_blocks.BLOCKS.get(name) for name in perception_blocks.BLOCKS}
    ours = {b.__name__ for b in blocks if b.__module__.startswith("perception_blocks.")}
    assert ours <= set(perception_blocks.__all__)


def test_a_misspelt_name_suggests_the_right_one():
    with pytest.raises(AttributeError) as error:
        composer.compos  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert (
        str(error.value) == "module 'composer' has no attribute 'compos'; did you mean 'compose'?"
    )
    with pytest.raises(AttributeError) as error:
        perception_blocks.Grahp  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert (
        str(error.value)
        == "module 'perception_blocks' has no attribute 'Grahp'; did you mean 'Graph'?"
    )


def test_a_submodule_is_an_attribute_without_being_imported():
    code = "import perception_blocks as p; assert p.init.orthogonal is p.init.orthogonal"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


FORWARDED = {
    "composer.weights": "load_weights",
    "composer.token_views": "SequenceView token_views",
    "composer.discrete_actions": "Bernoulli Categorical MultiCategorical",
    "composer.adapters.token_env": "TokenEnv",
    "composer.adapters.token_gym": "TokenGym token_spaces",
    "composer.adapters.sb3_policies": "ActorCritic",
    "composer.adapters.sb3_contrib": "MaskableActorCritic RecurrentActorCritic",
    "composer.adapters.sb3_off_policy": "QPolicy SACPolicy TD3Policy",
    "perception_blocks.block": "InputShapeError MemoryBlock PerceptionBlock one_vector",
}


@pytest.mark.parametrize("path", FORWARDED)
def test_paths_that_pages_and_saved_files_contain_lead_to_todays_classes(path):
    """Pages have taught them; specs contain an id, and agents of Stable-Baselines3 the class of their policy."""
    module = importlib.import_module(path)
    assert sorted(module.__all__) == sorted(FORWARDED[path].split())
    for name in module.__all__:
        home = getattr(module, name).__module__
        assert home != path
        assert getattr(importlib.import_module(home), name) is getattr(module, name)
