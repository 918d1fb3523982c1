"""Data flow one way: a room imports only from rooms before it, and inside a room a file only from files before it.

A room is a folder of one of the two packages. Imports inside of functions count as well.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

import composer
import perception_blocks
from tests.helpers.paths import ROOT

# Room: its files in reading order | the libraries that it may import. Who adds a file enters it here; a package's root
# stands in several lines, because some of its files come before the rooms and some after them.
ROOMS = """
perception_blocks: synonyms words registry lazy reading dag port settings random_states init activations trial_copy hidden measure direct base_block block | torch numpy networkx
perception_blocks.blocks: precision masks features dense residual_dense noisy conv_plan conv residual_conv attention attention_conv transformer pooling sets adjacency graph_network message_passing recurrent_layers recurrent windows linear_memory gtrxl combine elementwise heads reshape embed lora adapted rotary key_value_cache decoder_layers decoder_settings model_folder families family_tables family_weights family_folder family_proof decoder body_config body_block language_config language_model vision_config vision_model scale preprocess custom | torch transformers torch_geometric safetensors peft
perception_blocks.lowering: program code rules lowered | torch
perception_blocks.graph: collector graph wiring built construct assemble | torch networkx
perception_blocks.ensemble: layers network ensemble | torch
perception_blocks: inference | torch networkx
composer: errors atomic batch_axes limits | torch
composer.source: values spans files scalars params parse dump overlay extends load foreign | yaml
composer: trust |
composer.spec: keys fields top_level parallel action_model model_spec nodes template references wrapper_names read network_file places diff |
composer.spaces: nested sizes values kinds variable_readers variable tree action_inputs actors json_form pettingzoo previous lookup episode_starts recalling samples observer | gymnasium numpy torch pettingzoo mpe2
composer.distributions: candidates base joint autoregressive discrete cells bounds beta continuous gsde deterministic rules | torch numpy gymnasium
composer.network: network autoregressive sharded registries module groups structured paths frozen | torch
composer.lowered: network actions policy model | torch numpy
composer.template: kinds expansion starter | torch gymnasium
composer.reference: words families help pages schema_parts targets schema | torch
composer.checkpoint: container plain_spec file torch_file first_weights adapters weights blending | torch safetensors
composer.policy: policy structured sequence_view | torch numpy
composer.critic: values targets base structured structured_state_action state state_action central shared_state shared_state_action delta_state | torch
composer.host: rows step optimizing | torch
composer.wrappers: interface slots composed heads samples hybrid combination hidden_state noise second_models transformer wrapping | torch numpy
composer.summary: networks flops rows layout table | torch
composer.diagram: picture folding labels sketch trunks dot mermaid render html drawing | torch pygraphviz graphviz
composer.export: values wrappers network files parity checks exporting | torch onnxscript onnxruntime numpy
composer.build: budget construction context observation_groups plans custom_class network_builder stacking critic central_critic structured_critic policy_and_critic untouched checking parts_of_spec composed_network network_checkpoint | torch
composer.language: pretrained action_bins value_head hf processors action_plan action_files action_spec overview generating action_proof action_model action_entry | torch transformers huggingface_hub safetensors gymnasium numpy
composer: model | torch gymnasium
composer.probing: node measure table drawing result play watched replay run | torch numpy gymnasium
composer.importing: taken imported python_syntax python_config document kinds nodes rl_games skrl_network skrl rsl_rl inert_pickle sb3_statistics config sb3_archive sb3_spaces sb3_policies sb3_settings sb3_layers sb3 sb3_files rllib rllib_files mlagents sb3_agent checkpoints adopting | torch
composer.parallel: plan launch tensor layout calls sharding materialize pieces optimizer_state state trials prove | torch safetensors numpy
composer.training: trainer telling environment evaluation curve records events video exclusive stored folder interruption progress options recorder failures resumed about session seeds config compare judging | torch gymnasium numpy matplotlib tqdm filelock imageio_ffmpeg
composer.training.actors: settings passes advantages rollout updates trainer | torch gymnasium numpy
composer.adapters: reasons needs host local_ray | torch gymnasium numpy ray
composer.adapters.sb3: policies contrib off_policy agents training | torch gymnasium numpy stable_baselines3 sb3_contrib
composer.adapters.torchrl: fields distribution functions checks copies modules sequences models algorithm on_policy off_policy training | torch gymnasium numpy torchrl tensordict
composer.adapters.rsl_rl: groups checks exported memory models environments training | torch gymnasium numpy rsl_rl tensordict
composer.adapters.rl_games: hosted checks environments models training | torch gymnasium numpy rl_games
composer.adapters.skrl: checks composed agents runner training | torch gymnasium numpy skrl
composer.adapters.rllib: distribution module learner specs checks reporting runners training | torch gymnasium numpy ray
composer.adapters.benchmarl: model | torch benchmarl tensordict torchrl
composer.adapters.tianshou: models training | torch gymnasium numpy tianshou
composer.adapters.tokens: vocabulary datasets sequences torchrl_env gym_env modules | torch gymnasium numpy torchrl tensordict transformers
composer.adapters: token_env token_gym sb3_policies sb3_contrib sb3_off_policy |
composer: weights token_views discrete_actions model_registry |
composer.dataflow: context | torch
composer.dataflow.data: balance samples rows tokenizers datasets text_datasets | torch numpy transformers tokenizers
composer.dataflow.algorithms: packing optimization decoding models interfaces timeouts rewards classifier sft preference generation policy_gradient ppo | torch gymnasium transformers
composer.dataflow.calls: experiment model_entries call_graph call_spec experiments overview |
composer.dataflow.running: model_building schedule written text_files run_log run_folder local cluster worker on_ray session | torch gymnasium matplotlib ray
composer.editor: fixes cursor choices names client_settings checked child space_process environments given module_cache facts memory mend analysis asked_node why hover watch_look watch_files watch_opener watch_state watch_server completion places checks checker diagnostics described documents server features | torch starlette uvicorn watchfiles pygls lsprotocol
composer.cli: ctrl_c output loading write_out train runs prove run options lsp watch importing why probe differences schema_file init check commands | gymnasium
composer: __main__ |
"""
# Their libraries do not go together with the others, and are not installed here.
ELSEWHERE = {"composer.adapters.rllib", "composer.adapters.benchmarl"}
MOST_FILES_AT_ROOT = {"composer": 12, "perception_blocks": 19}
TORCH_FREE = [
    "perception_blocks",
    "perception_blocks.words",
    "perception_blocks.registry",
    "perception_blocks.dag",
    "perception_blocks.settings",
    "composer",
    "composer.errors",
    "composer.model_registry",
    "composer.source",
    "composer.source.load",
    "composer.spec",
    "composer.spec.read",
    "composer.spec.network_file",
    "composer.importing.config",
    "composer.editor.features",
    "composer.cli",
]


def rooms() -> Iterator[tuple[str, Sequence[str], set[str]]]:
    """Every line of ROOMS: the room, its files, its libraries."""
    for line in ROOMS.strip().splitlines():
        room, _, rest = line.partition(":")
        files, _, libraries = rest.partition("|")
        yield room, files.split(), set(libraries.split())


READING_ORDER = [f"{room}.{file}" for room, files, _ in rooms() for file in files]
LIBRARIES = {f"{room}.{file}": libraries for room, files, libraries in rooms() for file in files}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("perception_blocks", "composer")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
}
FACES = {
    ".".join(path.parent.relative_to(ROOT).parts): path
    for package in ("perception_blocks", "composer")
    for path in sorted((ROOT / package).rglob("__init__.py"))
}


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import; ``from package import name`` counts as ``package.name``."""
    return [*_imports(path)]


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in FACES:
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def is_ours(name: str) -> bool:
    return name.split(".")[0] in ("composer", "perception_blocks")


def test_every_file_has_its_place_in_a_room():
    assert sorted(MODULES) == sorted(READING_ORDER)


@pytest.mark.parametrize(("package", "most"), MOST_FILES_AT_ROOT.items())
def test_few_files_lie_at_the_root_of_a_package(package, most):
    assert len(list((ROOT / package).glob("*.py"))) <= most


def test_the_map_in_the_documentation_has_every_room_in_reading_order():
    text = (ROOT / "docs" / "contributing.md").read_text()
    rows = re.findall(r"^\| `((?:composer|perception_blocks)[\w.]*)` \|", text, re.M)
    assert rows == list(dict.fromkeys(room for room, _, _ in rooms()))


def test_a_file_imports_only_from_rooms_and_files_before_it():
    wrong = [
        f"{module}:{line} imports {name}"
        for place, module in enumerate(READING_ORDER)
        for line, name in imports(MODULES[module])
        if is_ours(name) and name not in READING_ORDER[:place] and name != "composer.__version__"
    ]
    assert wrong == []


def test_a_face_imports_only_from_its_own_room():
    """But for the two packages themselves, whose names come from everywhere in them."""
    wrong = [
        f"{face}:{line} imports {name}"
        for face, path in FACES.items()
        for line, name in imports(path)
        if is_ours(name) and not name.startswith(f"{face}.") and name != "perception_blocks.lazy"
    ]
    assert wrong == []


def test_a_library_is_imported_only_where_it_belongs():
    wrong = [
        f"{module}:{line} imports {name}"
        for module, path in MODULES.items()
        for line, name in imports(path)
        if not is_ours(name)
        and name.split(".")[0] not in {*LIBRARIES[module], *sys.stdlib_module_names}
    ]
    assert wrong == []


def test_reading_a_spec_needs_no_torch():
    code = (
        "import importlib, sys\nfor module in sys.argv[1:]:\n    importlib.import_module(module)\n"
    )
    code += "    assert 'torch' not in sys.modules, module"
    done = subprocess.run(
        [sys.executable, "-c", code, *TORCH_FREE], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("face", FACES)
def test_no_module_or_room_is_named_like_a_public_name(face):
    """Importing such a module would replace the lazy attribute of its package."""
    module = sys.modules.get(face) or __import__(face, fromlist=["_"])
    inside = {
        name.removeprefix(f"{face}.").split(".")[0]
        for name in [*MODULES, *FACES]
        if name.startswith(f"{face}.")
    }
    public = {*getattr(module, "__all__", ())} - (
        {"init"} if face == "perception_blocks" else set()
    )
    assert inside & public == set()


@pytest.mark.parametrize("face", [face for face in FACES if face not in ELSEWHERE])
def test_every_public_name_of_a_room_can_be_had(face):
    module = __import__(face, fromlist=["_"])
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is getattr(module, name)
        assert name in dir(module)


def test_the_packages_are_those_that_are_installed():
    assert Path(composer.__file__).parent == ROOT / "composer"
    assert Path(perception_blocks.__file__).parent == ROOT / "perception_blocks"
