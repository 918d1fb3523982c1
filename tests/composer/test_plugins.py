"""A package of somebody else's: installed, its blocks are there by name; gone, broken or in conflict, that is said."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.helpers import fresh
from tests.helpers.paths import ROOT, TESTS

SPEC = """\
version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: sample_gate, in: observation, units: 8}
    votes:
      block: ensemble
      copies: 2
      in: latent
      out: [vote]
      graph: {vote: {block: sample_gate, in: latent, units: 3}}
    mean: {block: flatten, in: vote}
  heads: {in: mean}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the sample package in it, as pip puts it there."""
    source = tmp_path_factory.mktemp("source") / "sample_plugin"
    shutil.copytree(TESTS / "helpers" / "sample_plugin", source)  # a build leaves its marks
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    pip += ["--no-index", "--disable-pip-version-check", "--target", str(target), str(source)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    return target


def run(folder, *packages, code=None, command=()):
    """Python in ``folder``, with ``packages`` beside the library: the command line, or ``code``."""
    return fresh.run(code or command, folder, [ROOT, *packages])


def package(folder, name, text):
    """An installed package of one module, with an entry point."""
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = f"[perception_blocks.plugins]\n{name} = {name}\n"
    (information / "entry_points.txt").write_text(points)
    (folder / f"{name}.py").write_text(text)
    return folder


def test_its_blocks_are_listed_and_described(installed, tmp_path):
    done = run(tmp_path, installed, command=["blocks"])
    assert "\nOthers\n  sample_gate " in done.stdout
    done = run(tmp_path, installed, command=["blocks", "sample_gate"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "sample_gate\n\n"
        "A linear layer times a learned gate: (F,) -> (units,).\n\n"
        "Settings:\n"
        "  units: an integer (default: 64)\n\n"
        "In a graph:\n"
        "  latent: {block: sample_gate, in: observation, units: 8}\n\n"
        "Shapes:\n"
        "  observation (3,) -> (8,)\n"
    )


def test_a_spec_uses_them_by_name_and_needs_no_permission(installed, tmp_path):
    (tmp_path / "agent.yaml").write_text(SPEC)
    done = run(tmp_path, installed, command=["check", "agent.yaml"])
    count = 2 * (4 * 8 + 8) + 2 * 2 * (8 * 3 + 3) + (6 * 2 + 2)
    assert (done.stdout, done.stderr) == (f"agent.yaml: good; {count} parameters\n", "")
    without = run(tmp_path, command=["check", "agent.yaml"])
    assert without.stderr == (
        "agent.yaml:5:21: unknown block 'sample_gate'; did you mean 'scale_image'?\n"
        "agent.yaml:11:29: unknown block 'sample_gate'; did you mean 'scale_image'?\n"
    )


def test_its_settings_are_checked_and_in_the_schema(installed, tmp_path):
    (tmp_path / "agent.yaml").write_text(SPEC.replace("units: 8", "units: wide"))
    done = run(tmp_path, installed, command=["check", "agent.yaml"])
    message = "agent.yaml:5:58: 'units' must be an integer, got 'wide'\n"
    assert (done.returncode, done.stderr) == (1, message)
    schema = json.loads(run(tmp_path, installed, command=["schema"]).stdout)
    assert schema["definitions"]["block_sample_gate"]["properties"]["units"]["default"] == 64


def test_a_checkpoint_says_whose_blocks_it_needs(installed, tmp_path):
    (tmp_path / "agent.yaml").write_text(SPEC)
    save = (
        "import composer; from composer.checkpoint.file import read_record\n"
        "composer.compose('agent.yaml', seed=1).save('agent.safetensors')\n"
        "record = read_record('agent.safetensors')\n"
        "print(record.modules, record.blocks)\n"
    )
    done = run(tmp_path, installed, code=save)
    assert done.stdout == "['sample_plugin_blocks'] {'sample_gate': 'sample_plugin_blocks'}\n"
    load = (
        "import composer, torch; model = composer.load('agent.safetensors')\n"
        "other = composer.compose('agent.yaml', seed=1)\n"
        "print(torch.equal(model.policy.latent.gate.weight, other.policy.latent.gate.weight))\n"
    )
    load = load.replace("policy.latent", "policy.get_submodule('latent')")
    assert run(tmp_path, installed, code=load).stdout == "True\n"
    done = run(tmp_path, code="import composer; composer.load('agent.safetensors')")
    name, _, message = done.stderr.splitlines()[-1].partition(": ")
    assert name.endswith(".CheckpointError")
    assert message == (
        "the checkpoint was saved with blocks that are not "
        "known here: 'sample_gate' of the module 'sample_plugin_blocks'; install the package that "
        "registers them, or import the module: allow=['sample_plugin_blocks'] or "
        "--allow sample_plugin_blocks"
    )


def test_a_kind_of_critic_of_a_plugin_is_there_by_its_name(installed, tmp_path):
    spec = f"{SPEC.rstrip()}\ncritic: {{kind: sample_bounded, template: {{}}}}\n"
    (tmp_path / "agent.yaml").write_text(spec)
    assert run(tmp_path, installed, command=["check", "agent.yaml"]).returncode == 0
    schema = json.loads(run(tmp_path, installed, command=["schema"]).stdout)
    assert "'sample_bounded'" in str(schema["definitions"]["critic"])
    save = (
        "import composer; from composer.checkpoint.file import read_record\n"
        "composer.compose('agent.yaml', seed=1).save('agent.safetensors')\n"
        "print(type(composer.load('agent.safetensors').critic).__name__)\n"
        "print(read_record('agent.safetensors').critics)\n"
    )
    done = run(tmp_path, installed, code=save)
    assert done.stdout == "SampleBoundedCritic\n{'sample_bounded': 'sample_plugin_blocks'}\n"
    done = run(tmp_path, command=["check", "agent.yaml", "--set", "policy.graph={}"])
    assert (
        "must be one of 'state', 'shared_state', 'delta_state', 'state_action', 'shared_state_action', got"
        in done.stderr
    )


def test_a_broken_plugin_is_a_warning_and_stops_nothing(tmp_path):
    broken = package(tmp_path / "packages", "broken_blocks", "raise RuntimeError('no luck')\n")
    done = run(tmp_path, broken, command=["blocks"])
    assert done.returncode == 0
    assert "\n  dense " in done.stdout
    assert (
        "UserWarning: plugin 'broken_blocks' (broken_blocks) could not be loaded: no luck"
        in done.stderr
    )


def test_a_name_that_two_want_is_an_error_that_names_both(installed, tmp_path):
    text = (
        "from perception_blocks import BLOCKS, PerceptionBlock\n"
        "@BLOCKS.register('sample_gate')\n"
        "class Gate(PerceptionBlock):\n"
        "    def forward(self, x):\n"
        "        return x\n"
    )
    rival = package(tmp_path / "packages", "rival_blocks", text)
    for packages in ((installed, rival), (rival, installed)):
        done = run(tmp_path, *packages, command=["blocks"])
        assert done.returncode == 1
        assert done.stderr.startswith("composer blocks: plugin ")
        assert "sample_plugin_blocks:SampleGateBlock" in done.stderr
        assert "rival_blocks:Gate" in done.stderr
        assert "choose another, or pass replace=True" in done.stderr
        assert done.stderr.count("\n") == 1


OWN_GATE = (
    "from perception_blocks import BLOCKS, PerceptionBlock\n"
    "@BLOCKS.register('sample_gate')\n"
    "class Gate(PerceptionBlock):\n"
    "    def forward(self, x):\n"
    "        return x\n"
)


def test_a_plugin_and_an_allowed_module_cannot_have_one_name(installed, tmp_path):
    (tmp_path / "own_gate.py").write_text(OWN_GATE)
    (tmp_path / "agent.yaml").write_text(SPEC)
    taken = (
        "the block name 'sample_gate' of own_gate:Gate is taken by sample_plugin_blocks:SampleGateBlock; choose "
        "another, or pass replace=True\n"
    )
    for command in (
        ["check", "agent.yaml"],
        ["show", "agent.yaml"],
        ["blocks"],
        ["schema"],
        ["init", "CartPole-v1"],
    ):
        done = run(tmp_path, installed, command=[*command, "--allow", "own_gate"])
        expected = f"the module 'own_gate' cannot be imported: {taken}"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    compose = "import composer; composer.compose('agent.yaml', allow=['own_gate'])"
    for code in (compose, f"import own_gate; {compose}"):
        done = run(tmp_path, installed, code=code)
        assert done.returncode == 1
        assert "'sample_gate'" in done.stderr
        assert "taken by" in done.stderr.splitlines()[-1]


def test_plugins_are_installed_and_never_those_of_the_current_folder(tmp_path):
    package(tmp_path, "stray_blocks", "open('RAN', 'w')\n")
    (tmp_path / "agent.yaml").write_text(SPEC)
    (tmp_path / "script.py").write_text(
        "from composer.cli.commands import main; main(['blocks'])\n"
    )
    run(tmp_path, command=["check", "agent.yaml"])
    run(tmp_path, code="import composer; composer.compose('agent.yaml')")
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, capture_output=True)
    assert not (tmp_path / "RAN").exists()
