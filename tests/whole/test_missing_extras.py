"""What needs a library that is not installed says which, and which extra brings it; nothing else needs one."""

import configparser
import re
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import composer
from composer.cli.commands import main
from composer.errors import MissingExtraSpecError, SpecError
from perception_blocks.registry import BLOCKS, EXTRAS, MissingExtraError
from tests.helpers import fresh
from tests.helpers.language_models import hf_model, saved
from tests.helpers.paths import ROOT

# Libraries that do not go together with the others: their tests make environments of their own.
ELSEWHERE = {"rllib", "benchmarl"}
LIBRARIES = [library for libraries in EXTRAS.values() for library in libraries]
DENSE = """
version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: 8}
    more: {block: needy, in: latent}
  heads: {in: more}
"""


def brought_by(text, brought):
    """Add to ``brought`` what a requirement such as ``gymnasium[box2d]>=1`` brings, and what that needs in turn."""
    needed = Requirement(text)
    known = brought.setdefault(canonicalize_name(needed.name), set())
    new = {"", *needed.extras} - known
    known |= new
    for line in (requires(needed.name) or ()) if new else ():
        marker = Requirement(line).marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in new):
            brought_by(line, brought)


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra not in ELSEWHERE])
def test_an_extra_brings_the_libraries_that_are_said_to_come_with_it(extra):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    brought = {}
    for line in filter(None, setup["options.extras_require"][extra].split("\n")):
        brought_by(line, brought)
    packages = packages_distributions()
    owners = {lib: {canonicalize_name(owner) for owner in packages[lib]} for lib in EXTRAS[extra]}
    assert [library for library, of in owners.items() if not of & brought.keys()] == []


def extras_of_a_command(words):
    """The extras that ``composer ...`` needs, as far as its words say."""
    verb = words[1]
    needs = {
        "train": {"train"},
        "eval": {"train"},
        "run": {"train"},
        "lsp": {"editor"},
        "watch": {"editor"},
    }
    if verb != "train" or {"--resume", "--config"} & set(words):
        return needs.get(verb, set())
    trainer = words[words.index("--trainer") + 1] if "--trainer" in words else "sb3"
    return needs[verb] | ({trainer.replace("_", "-")} & EXTRAS.keys())


def extras_of_a_page(text):
    """The extras that its Python imports, and that its commands need."""
    homes = {library: extra for extra, libraries in EXTRAS.items() for library in libraries}
    imported = re.findall(r"^ *(?:from|import) (\w+)", text, re.M)
    commands = re.findall(r"^\$ (composer .*)$", text, re.M)
    needs = [extras_of_a_command(command.split()) for command in commands]
    return {homes[name] for name in imported if name in homes}.union(*needs)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_that_installs_extras_installs_what_its_examples_need(path):
    text = path.read_text()
    lines = re.findall(r"pip install [^`\n]*", text)
    # the library is installed from a clone, with the versions that were tested
    assert [line for line in lines if "perception-composer" in line] == []
    brought = {
        e for line in lines for part in re.findall(r'"\.\[(.*?)\]"', line) for e in part.split(",")
    }
    assert brought <= EXTRAS.keys() | {"dev"}
    words = {word for line in lines for word in line.split()}
    also = {extra for extra, libraries in EXTRAS.items() if words & {*libraries}}
    also |= {"ray"} if "rllib" in brought else set()
    missing = extras_of_a_page(text) - brought - also
    assert not (brought and missing), f"its pip line lacks {missing}"


def without_libraries(code):
    """What ``code`` prints, in a process that has none of the libraries; both streams in one."""
    first = f"import sys; sys.modules.update(dict.fromkeys({LIBRARIES!r}))\n"
    done = fresh.run(f"{first}sys.stderr = sys.stdout\n{code}", ROOT, [ROOT])
    return done.returncode, done.stdout + done.stderr


NEEDS = {
    "check configs/knights_archers.yaml": (
        "configs/knights_archers.yaml:6:14: the environment "
        "'pettingzoo:butterfly/knights_archers_zombies_v11'", "pettingzoo", "pettingzoo",
    ),
    "show configs/token_gpt2.yaml --allow environments": (
        "configs/token_gpt2.yaml:12:14: block 'transformer'", "transformers", "llm",
    ),
    "show configs/tiny_vla.yaml --allow environments --allow networks": (
        "configs/tiny_vla.yaml:6:14: the import of 'networks.tiny_vla'", "tokenizers", "llm",
    ),
    "init pettingzoo:mpe/simple_spread_v3": (
        "the environment 'pettingzoo:mpe/simple_spread_v3'", "mpe2", "pettingzoo",
    ),
    "init ALE/Pong-v5": ("the environment 'ALE/Pong-v5'", "ale_py", "envs"),
    "init ale_py:ALE/Pong-v5": ("the environment 'ale_py:ALE/Pong-v5'", "ale_py", "envs"),
    "init Ant-v5": ("the environment 'Ant-v5'", "mujoco", "envs"),
    "init LunarLander-v3": ("the environment 'LunarLander-v3'", "Box2D", "envs"),
    "init MiniGrid-Empty-5x5-v0": (
        "the environment 'MiniGrid-Empty-5x5-v0'", "minigrid", "envs",
    ),
    "check configs/cartpole.yaml --env BabyAI-GoToObj-v0 --allow minigrid": (
        "the import of 'minigrid'", "minigrid", "envs",
    ),
    "blocks message_passing": (
        "composer blocks: block 'message_passing'", "torch_geometric", "graph",
    ),
    "train configs/cartpole.yaml --steps 9 -o run": (
        "composer train: a training", "stable_baselines3', 'sb3_contrib', 'matplotlib' and 'tqdm",
        "sb3,train",
    ),
    "train configs/cartpole.yaml --steps 9 -o run --trainer torchrl": (
        "composer train: a training", "torchrl', 'tensordict', 'matplotlib' and 'tqdm",
        "torchrl,train",
    ),
    "train --resume run": ("composer train: a training", "matplotlib' and 'tqdm", "train"),
    "eval agent.safetensors": (
        "composer eval: a training or its evaluation", "matplotlib", "train",
    ),
    "watch configs/cartpole.yaml": (
        "composer watch: a live picture", "starlette', 'uvicorn' and 'watchfiles", "editor",
    ),
    "blocks vision_model": ("composer blocks: block 'vision_model'", "transformers", "llm"),
    "run sft -o run": ("composer run: the folder of a run", "matplotlib", "train"),
    "run ppo": ("composer run: a vocabulary", "tokenizers", "llm"),
    "lsp": ("composer lsp: the language server", "lsprotocol", "editor"),
    "export configs/cartpole.yaml -o model.onnx": (
        "composer export: an .onnx file", "onnx', 'onnxscript' and 'onnxruntime", "onnx",
    ),
}  # fmt: skip


def test_every_command_names_the_extra_in_one_line():
    code = (
        "from composer.cli.commands import main\n"
        f"for command in {list(NEEDS)!r}:\n"
        "    sys.path.insert(0, 'configs'); assert main(command.split()) == 1, command"
    )
    lines = [
        f"{what} needs '{libraries}'; install {'them' if ' ' in libraries else 'it'} with: "
        f'pip install "perception-composer[{extra}]"'
        for what, libraries, extra in NEEDS.values()
    ]
    assert without_libraries(code) == (0, "\n".join(lines) + "\n")


def test_the_demo_leaves_out_what_needs_an_extra_and_ends_well():
    status, said = without_libraries(
        "import runpy; sys.path.insert(0, 'configs')\n"
        + "runpy.run_path('configs/demo.py', run_name='__main__')"
    )
    assert status == 0, said
    assert "extras are not installed (see above): knights_archers, tiny_vla, token_gpt2.\n" in said
    assert said.count("\nleft out: ") == 3


def test_without_the_libraries_the_schema_has_every_block():
    code = "from composer.reference.schema import json_schema; print(json_schema())"
    status, said = without_libraries(code)
    assert status == 0, said
    assert [name for name in BLOCKS if f"'block_{name}'" not in said] == []


@pytest.fixture
def _needy(monkeypatch):
    monkeypatch.setattr(BLOCKS, "_entries", dict(BLOCKS._entries))
    BLOCKS.register("needy", "no_such_library.blocks:Needy", extra="llm")


@pytest.mark.usefixtures("_needy")
def test_a_spec_that_lacks_an_extra_alone_can_be_told_from_a_wrong_one():
    needs = (
        "block 'needy' needs 'no_such_library'; "
        'install it with: pip install "perception-composer[llm]"'
    )
    with pytest.raises(MissingExtraError) as caught:
        composer.compose(DENSE)
    assert type(caught.value) is MissingExtraSpecError
    assert str(caught.value) == f"<spec>:7:19: {needs}"
    with pytest.raises(SpecError) as wrong:
        composer.compose(DENSE.replace("hidden_units", "hiden_units"))
    assert type(wrong.value) is SpecError
    assert [problem.message for problem in wrong.value.problems] == [
        "'hiden_units' is not a setting of block 'dense'; did you mean 'hidden_units'?",
        needs,
    ]


def test_language_models_are_read_without_the_library_that_wrote_them(tmp_path):
    """Only what transformers has to confirm needs it: a folder to write, and a family to register."""
    saved(hf_model("gemma"), tmp_path / "read")
    code = f"""
from composer.adapters.tokens import token_spaces
import composer
from composer.language import from_hf, to_hf
from perception_blocks.registry import MissingExtraError
spec, tensors = from_hf({str(tmp_path / "read")!r})
observations, actions = token_spaces(40, 24)
model = composer.compose(spec, observation_space=observations, action_space=actions)
print(model.load_state_dict(tensors))
try:
    to_hf(model, {str(tmp_path / "written")!r})
except MissingExtraError as error:
    print(error)
"""
    assert without_libraries(code) == (
        0,
        "<All keys matched successfully>\n"
        "family 'gemma' needs 'transformers'; install it with: pip install \"perception-composer[llm]\"\n",
    )
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("extra", sorted(ELSEWHERE))
def test_an_adapter_of_a_library_that_is_elsewhere_names_its_extra(extra):
    code = (
        f"from composer.adapters import {extra}\ntry:\n    getattr({extra}, {extra}.__all__[-1])\n"
    )
    code += "except ImportError as error:\n    print(type(error).__name__, error)"
    status, printed = without_libraries(code)
    library = {"rllib": "ray"}.get(extra, extra)
    assert (status, printed) == (
        0,
        f"MissingExtraError composer.adapters.{extra} needs {library!r}; install it in an environment of its own, from "
        f'a clone of the repository: pip install -c .ci/constraints-{extra}.txt ".[{extra}]"\n',
    )


def test_a_trainer_whose_library_is_elsewhere_names_its_environment(capsys):
    spec = str(ROOT / "configs" / "cartpole.yaml")
    assert main(["train", spec, "--trainer", "rllib", "--steps", "1", "-o", "run"]) == 1
    assert capsys.readouterr().err == (
        "composer train: --trainer rllib needs 'tree'; install it in an environment of its own, from a clone of the "
        'repository: pip install -c .ci/constraints-rllib.txt ".[rllib,train]"\n'
    )
