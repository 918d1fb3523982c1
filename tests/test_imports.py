"""The way of the data goes in one direction: a module imports only from those before it, inside functions too."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import composer
import perception_blocks

ROOT = Path(__file__).parent.parent

# In reading order. Whoever adds a module says here what it may know of.
PERCEPTION_BLOCKS = """
    foreign synonyms registry lazy reading collector dag port ranges settings random_states init meta trial_copy measure block activations direct precision
    dense residual_dense noisy features conv_plan conv residual_conv masks pooling attention attention_conv transformer sets graph_nets graph_network message_passing
    recurrent_layers recurrent memory linear_memory gtrxl combine elementwise heads reshape embed language_config language_model moments scale custom
    lowering lower_code lower_rules lower_memory lowered graph wiring construct assemble stacked stacked_network ensemble inference
"""
COMPOSER = """
    errors atomic tree files scalars params overlay source trust limits fields model_spec nodes template_spec references wrappers.names spec
    block_words blocks_help block_pages spec_diff actors pettingzoo_spaces
    space_sizes space_values space_kinds space_readers variable_spaces spaces space_json space_lookup episode_starts observer
    distributions discrete_actions action_cells continuous_actions deterministic_actions schema template_kinds template starter actor_starter
    network budget construction demand roles value_heads custom_class build blending lowered_network lowered_actions lowered_policy policy group_parts turns together structured critic action_inputs targets state_action shared_state structured_critic structured_state_action critic_parts central_critic critic_groups
    wrappers.interface wrappers.slots wrappers.composed wrappers.heads wrappers.samples wrappers.hybrid wrappers.combination
    wrappers.hidden_state wrappers.noise wrappers.second_models wrappers.transformer wrappers.wrapping parts
    model_parts flops rows summary picture folding typeset sketch
    diagram_dot diagram_mermaid diagram_graphviz diagram_html diagram
    lowered_model batch_axes checkpoint_file checkpoint weights space_samples export_values export_wrappers export_network export_files export_parity export_checks export model adapters.token_sequences adapters.token_env adapters.token_gym adapters.algorithm_needs adapters.sb3_spaces adapters.sb3_checks adapters.sb3_policies adapters.sb3_contrib adapters.sb3_off_policy adapters.sb3 adapters.torchrl_fields adapters.torchrl_distribution adapters.torchrl_checks adapters.torchrl_parts adapters.torchrl_modules adapters.torchrl_adoption adapters.torchrl token_views model_registry
    training.trainer training.environment training.evaluation adapters.torchrl_algorithm adapters.torchrl_on_policy adapters.torchrl_off_policy adapters.torchrl_training_checks adapters.sb3_training adapters.torchrl_training training.curve training.folder training.interruption training.progress training.session training.command
    written_out ctrl_c cli __main__
"""
READING_ORDER = [f"perception_blocks.{name}" for name in PERCEPTION_BLOCKS.split()]
READING_ORDER += [f"composer.{name}" for name in COMPOSER.split()]
TORCH_FREE = [
    "perception_blocks",
    "perception_blocks.registry",
    "perception_blocks.dag",
    "perception_blocks.settings",
    "composer",
    "composer.errors",
    "composer.model_registry",
    "composer.source",
    "composer.spec",
]
# Which modules may import which library; a library that is not here is not imported at all.
LIBRARIES = {
    "torch": ["perception_blocks.*", "composer.*"],
    "numpy": ["perception_blocks.random_states", "composer.*"],
    "yaml": ["composer.source"],
    "gymnasium": [
        f"composer.{name}"
        for name in (
            "space*",
            "variable_spaces",
            "episode_starts",
            "distributions*",
            "parts",
            "model",
            "adapters.*",
            "training.environment",
            "cli",
        )
    ],
    "torchrl": ["composer.adapters.*"],
    "tensordict": ["composer.adapters.*"],
    "stable_baselines3": ["composer.adapters.sb3*"],
    "sb3_contrib": ["composer.adapters.sb3*"],
    "filelock": ["composer.training.folder"],
    "matplotlib": ["composer.training.curve"],
    "tqdm": ["composer.training.progress"],
    "pygraphviz": ["composer.diagram*"],
    "safetensors": ["composer.checkpoint_file", "perception_blocks.language_config"],
    "transformers": ["perception_blocks.language_*"],
    "pettingzoo": ["composer.pettingzoo_spaces"],
    "mpe2": ["composer.pettingzoo_spaces"],
    "torch_geometric": ["perception_blocks.message_passing"],
    "onnxscript": ["composer.export_files"],
    "onnxruntime": ["composer.export_files"],
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {
    module_name(path): path
    for package in ("perception_blocks", "composer")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; ``from package import name`` counts as ``package.name``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in ("composer", "perception_blocks"):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def is_ours(name: str) -> bool:
    return name.split(".")[0] in ("composer", "perception_blocks")


def test_every_module_has_its_place_in_the_reading_order():
    assert sorted(set(MODULES) - set(READING_ORDER)) == []


def test_the_map_in_the_documentation_has_every_module_in_reading_order():
    text = (ROOT / "docs" / "contributing.md").read_text()
    cells = re.findall(r"^\| (`[\w.]+`(?:, `[\w.]+`)*) \|", text, re.M)
    names = [name for cell in cells for name in re.findall(r"[\w.]+", cell)]
    assert names == [module.partition(".")[2] for module in READING_ORDER]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_modules_before_it(module):
    before = READING_ORDER[: READING_ORDER.index(module)]
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in imports(MODULES[module])
        if is_ours(name) and name not in before and name != "composer.__version__"
    ]
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_imported_only_where_it_belongs(module):
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in imports(MODULES[module])
        if not is_ours(name) and not may_import(module, name.split(".")[0])
    ]
    assert wrong == []


def may_import(module: str, library: str) -> bool:
    patterns = LIBRARIES.get(library, ())
    return library in sys.stdlib_module_names or any(fnmatch(module, p) for p in patterns)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_reading_a_spec_needs_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_module_is_named_like_a_public_name():
    """Importing such a module would replace the lazy attribute of its package."""
    modules = {name.split(".")[1] for name in MODULES}
    public = {*composer.__all__, *perception_blocks.__all__} - {"init"}  # init is the module
    assert modules & public == set()
