"""The command line: what is printed, what is returned, and that a user's mistake is never a traceback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from gymnasium.spaces import Box, Discrete

import composer
from composer.checkpoint.container import CheckpointError, write_file
from composer.cli.commands import main
from composer.errors import SpecError
from composer.reference.help import GRAPHS, describe_block, example_of, list_blocks
from composer.spaces.json_form import spaces_to_json
from composer.spec.nodes import NESTED
from composer.summary.table import summarize
from perception_blocks.port import format_shape
from perception_blocks.registry import BLOCKS
from tests.helpers.paths import CONFIGS, ROOT, TESTS

CARTPOLE = (CONFIGS / "cartpole.yaml").read_text()
BROKEN_CLASS = """
import torch
from torch import nn

class Broken(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        raise RuntimeError("no such table")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder, with the spec of the first example in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("agent.yaml").write_text(CARTPOLE)
    return tmp_path


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of one command."""
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def run_process(*arguments, **keywords):
    command = [sys.executable, "-m", "composer", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, **keywords)


# --- what works ---


def test_check_says_that_all_is_good(capsys):
    assert run(capsys, "check", "agent.yaml") == (0, "agent.yaml: good; 9,155 parameters\n", "")


def test_check_without_an_environment_does_what_it_can(capsys):
    Path("agent.yaml").write_text(CARTPOLE.replace("environment: CartPole-v1\n", ""))
    message = (
        "agent.yaml: the structure is good; shapes and heads are not checked "
        "(no environment: give one with --env ID)\n"
    )
    assert run(capsys, "check", "agent.yaml") == (0, message, "")
    good = "agent.yaml: good; 9,155 parameters\n"
    assert run(capsys, "check", "agent.yaml", "--env", "CartPole-v1") == (0, good, "")


TWO_MISTAKES = """\
version: 1
policy:
  graph:
    first: {block: dnse, in: observation, hidden_units: 8}
    second: {block: dense, in: observation, hidden_unit: 8}
    both: {block: concat, in: [first, second]}
  heads: {in: both}
"""


def test_a_mistake_in_the_structure_hides_no_wrong_setting_where_there_is_an_environment(capsys):
    Path("two.yaml").write_text(TWO_MISTAKES)
    structure = "two.yaml:4:20: unknown block 'dnse'; did you mean 'dense'?\n"
    setting = "two.yaml:5:45: 'hidden_unit' is not a setting of block 'dense'; did you mean 'hidden_units'?\n"
    assert run(capsys, "check", "two.yaml") == (1, "", structure)
    assert run(capsys, "check", "two.yaml", "--env", "CartPole-v1") == (1, "", structure + setting)
    assert run(capsys, "show", "two.yaml", "--env", "CartPole-v1") == (1, "", structure + setting)
    # What cannot be made is not said before the structure is right.
    assert run(capsys, "check", "two.yaml", "--env", "CartPoel-v1") == (1, "", structure)


def test_set_replaces_values_and_may_be_repeated(capsys):
    options = ["--set", "params.width=8", "--set", "policy.graph.latent.activation=relu"]
    assert run(capsys, "check", "agent.yaml", *options)[1] == "agent.yaml: good; 1,427 parameters\n"


def test_show_prints_the_summary(capsys):
    status, out, err = run(capsys, "show", "agent.yaml")
    assert (status, err) == (0, "")
    expected = composer.compose(Path("agent.yaml"), device="meta", seed=0).summary()
    assert out == f"{expected}\n"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "html", "dot", "mmd"])
def test_draw_writes_and_overwrites_a_picture(capsys, suffix):
    Path(f"agent.{suffix}").write_text("old")
    result = run(capsys, "draw", "agent.yaml", "-o", f"agent.{suffix}")
    assert result == (0, f"wrote agent.{suffix}\n", "")
    assert Path(f"agent.{suffix}").read_bytes() != b"old"


def test_init_writes_a_spec_that_check_accepts(capsys):
    wrote = "wrote new.yaml; next: composer check new.yaml\n"
    arguments = ("init", "Pendulum-v1", "--no-schema", "-o", "new.yaml")
    assert run(capsys, *arguments) == (0, wrote, "")
    assert not Path("spec.schema.json").exists()
    status, out, _ = run(capsys, "check", "new.yaml")
    assert (status, out.startswith("new.yaml: good; ")) == (0, True)
    assert run(capsys, "init", "Pendulum-v1") == (0, Path("new.yaml").read_text(), "")


def test_init_writes_the_schema_beside_a_spec_and_names_it_to_editors(capsys):
    Path("specs").mkdir()
    wrote = "wrote specs/new.yaml and specs/spec.schema.json; next: composer check specs/new.yaml\n"
    assert run(capsys, "init", "CartPole-v1", "-o", "specs/new.yaml") == (0, wrote, "")
    line, _, text = Path("specs/new.yaml").read_text().partition("\n")
    assert line == "# yaml-language-server: $schema=spec.schema.json"
    assert text == run(capsys, "init", "CartPole-v1")[1]
    assert Path("specs/spec.schema.json").read_text() == run(capsys, "schema")[1]
    assert run(capsys, "check", "specs/new.yaml")[0] == 0
    kept = '{"title": "Perception composer spec", "mine": true}'
    Path("specs/spec.schema.json").write_text(kept)
    wrote = "wrote specs/more.yaml; next: composer check specs/more.yaml\n"
    assert run(capsys, "init", "CartPole-v1", "-o", "specs/more.yaml") == (0, wrote, "")
    assert Path("specs/more.yaml").read_text() == f"{line}\n{text}"
    assert Path("specs/spec.schema.json").read_text() == kept


def test_a_file_of_the_schemas_name_that_is_something_else_stays_and_is_not_named(capsys):
    Path("spec.schema.json").write_text("{}")
    wrote = (
        "wrote new.yaml, without a schema because 'spec.schema.json' is something else; "
        "next: composer check new.yaml\n"
    )
    assert run(capsys, "init", "CartPole-v1", "-o", "new.yaml") == (0, wrote, "")
    assert "$schema" not in Path("new.yaml").read_text()
    assert Path("spec.schema.json").read_text() == "{}"


def test_a_schema_is_written_in_place_of_an_older_one_alone(capsys):
    Path("own_policies.py").write_text(OWN_POLICY)
    for _ in range(2):
        arguments = ("schema", "-o", "s.json", "--allow", "own_policies")
        assert run(capsys, *arguments) == (0, "wrote s.json\n", "")
    assert "own_policies.Policy" in Path("s.json").read_text()
    message = "composer schema: 'agent.yaml' is there already and is no schema of specs; remove it or choose another name\n"
    before = Path("agent.yaml").read_text()
    assert run(capsys, "schema", "-o", "agent.yaml") == (1, "", message)
    assert Path("agent.yaml").read_text() == before


OWN_POLICY = """
from torch import nn
class Policy(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes, units: int = 8):
        super().__init__()
"""


def test_init_says_what_check_has_to_be_told(capsys):
    Path("my_own_envs.py").write_text("import gymnasium\n")
    arguments = ("init", "Pendulum-v1", "-o", "new.yaml", "--allow", "my_own_envs")
    wrote = (
        "wrote new.yaml and spec.schema.json; next: composer check new.yaml --allow my_own_envs\n"
    )
    assert run(capsys, *arguments) == (0, wrote, "")
    wrote = "wrote other.yaml; next: composer check other.yaml --allow gymnasium\n"
    assert run(capsys, "init", "gymnasium:Pendulum-v1", "-o", "other.yaml") == (0, wrote, "")


def test_a_checkpoint_is_checked_and_shown_like_its_spec(capsys):
    composer.compose(Path("agent.yaml"), seed=0).save("agent.safetensors")
    counted = run(capsys, "check", "agent.yaml")[1].partition("good; ")[2]
    result = run(capsys, "check", "agent.safetensors")
    assert result == (0, f"agent.safetensors: good; {counted}", "")
    shown = run(capsys, "show", "agent.safetensors", "--env", "Acrobot-v1")
    assert (shown[0], shown[2]) == (0, "")
    assert "(6,) -> " in shown[1]
    Path("agent.safetensors").write_bytes(b"PK")
    status, _, err = run(capsys, "show", "agent.safetensors")
    assert status == 1
    assert err.startswith("composer show: 'agent.safetensors' is no safetensors file, or a damaged")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--env", "Pendulum-v1"], "policy.latent.linears.0.weight is (64, 4) in the file, the model needs (64, 3)"),
        (
            ["--set", "policy.graph.latent.hidden_units=[64,8]"],
            "policy.latent.linears.1.bias is (64,) in the file, the model needs (8,)",
        ),
        (
            ["--set", "policy.graph.latent.hidden_units=[64]"],
            "policy.latent.linears.1.bias (64,) is in the file, the model has no such tensor",
        ),
        (
            ["--set", "critic.graph.latent.hidden_units=[64,64,64]"],
            "critic.latent.linears.2.bias (64,) is not in the file",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "command", [["check"], ["export", "-o", "agent.pt2"], ["train", "-o", "run", "--steps", "8"]]
)
def test_a_checkpoint_whose_weights_do_not_fit_is_refused(capsys, command, options, difference):
    composer.compose(Path("agent.yaml"), seed=0).save("agent.safetensors")
    status, out, err = run(capsys, *command, "agent.safetensors", *options)
    assert (status, out) == (1, "")
    if command[0] == "train" and "--env" in options:
        assert "is a model for other spaces than the environment's" in err
        return
    assert err.startswith(
        f"composer {command[0]}: the weights do not fit this model; leave out what changes it, "
        "such as --set or --env\n"
    )
    assert f"  {difference}\n" in err
    assert not Path("run").exists()


@pytest.mark.parametrize("command", ["check", "show", "diff"])
def test_a_problem_of_a_spec_in_a_checkpoint_is_placed_in_that_file(capsys, command):
    text = "version: 1\npolicy:\n  graph: {latent: {block: dense, in: [}}\n"
    record = {
        "format_version": 1, "spec": text, "observation_space": {}, "action_space": {}, "seed": 0,
        "dtype": "float32", "modules": [], "versions": {}, "tied": {}, "blocks": {},
    }  # fmt: skip
    space = spaces_to_json(Discrete(2))
    write_file("two.safetensors", {}, {**record, "observation_space": space, "action_space": space})
    arguments = ["agent.yaml", "two.safetensors"] if command == "diff" else ["two.safetensors"]
    status, _, err = run(capsys, command, *arguments)
    assert status == 1
    assert err.startswith("two.safetensors, its spec:3:")


def test_a_spec_and_a_checkpoint_taken_for_one_another_name_the_other_function():
    composer.compose(Path("agent.yaml"), seed=0).save("agent.safetensors")
    with pytest.raises(SpecError) as caught:
        composer.compose("agent.safetensors")
    assert str(caught.value) == (
        "agent.safetensors:1:1: 'agent.safetensors' is a checkpoint, not a spec; composer.load makes a model from it"
    )
    with pytest.raises(CheckpointError) as caught:
        composer.load("agent.yaml")
    assert str(caught.value) == (
        "'agent.yaml' is a spec, not a checkpoint; composer.compose makes a model from it"
    )


# --- Ctrl-C ---

# The console script of an installation, in which Ctrl-C comes when a module is imported, and may be made something else.
CONSOLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                if "LOST" in os.environ:
                    raise ImportError("initialization failed") from None
                raise

sys.meta_path.insert(0, Finder())
from composer.cli.commands import main
sys.exit(main())
"""


AT = [
    ("check", "composer.cli.commands"), ("check", "argparse"), ("check", "composer.source.load"), ("check", "torch"),
    ("show", "torch.nn"), ("show", "composer.summary.table"), ("train", "composer.training.session"),
]  # fmt: skip
LOST = {"LOST": "1"}


@pytest.mark.parametrize(
    ("command", "module", "lost"),
    [
        *((*place, LOST if place[1] in ("argparse", "torch") else {}) for place in AT),
        *(pytest.param(*place, LOST, marks=pytest.mark.full) for place in AT),
    ],
)
def test_ctrl_c_ends_a_command_in_a_line(folder, command, module, lost):
    Path("composer").write_text(CONSOLE)
    options = ["--steps", "8", "-o", "run"] if command == "train" else []
    done = subprocess.run(
        [sys.executable, "composer", command, "agent.yaml", *options], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AT": module, **lost},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("command", ["check", "show", "blocks", "schema"])
def test_ctrl_c_in_a_command_that_another_program_calls(capfd, monkeypatch, command):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for module in ("output", "commands"):
        monkeypatch.setattr(f"composer.cli.{module}.write", interrupt)
    arguments = [] if command in ("blocks", "schema") else ["agent.yaml"]
    assert main([command, *arguments]) == 130
    assert capfd.readouterr().err == "interrupted\n"


def test_schema_is_json(capsys):
    status, out, err = run(capsys, "schema")
    assert (status, err) == (0, "")
    assert json.loads(out)["$schema"] == "http://json-schema.org/draft-07/schema#"


def test_diff_of_specs_and_checkpoints(capsys):
    text = CARTPOLE.replace("CartPole-v1", "Acrobot-v1").replace(", activation: tanh", "", 1)
    Path("other.yaml").write_text(text.replace("kind: state", "kind: state\n  init: zeros"))
    lines = """\
~ environment: 'CartPole-v1' -> 'Acrobot-v1'
- policy.graph.latent.activation: 'tanh'
+ critic.init: 'zeros'
"""
    sizes = """
node                       parameters  result
~ policy/latent        4,480 -> 4,608
~ policy/heads/action      130 -> 195  (2,) -> (3,)
~ critic/latent        4,480 -> 4,608
all                    9,155 -> 9,476
"""
    status, out, err = run(capsys, "diff", "agent.yaml", "other.yaml")
    assert (status, err) == (0, "")
    assert out == lines + sizes
    assert run(capsys, "diff", "agent.yaml", "other.yaml", "--exit-code") == (1, out, "")
    assert run(capsys, "diff", "agent.yaml", "agent.yaml") == (0, "no differences\n", "")
    assert run(capsys, "diff", "agent.yaml", "agent.yaml", "--exit-code")[0] == 0
    assert run(capsys, "diff", "agent.yaml", "missing.yaml", "--exit-code")[0] == 2
    composer.compose(Path("agent.yaml"), seed=0).save("agent.safetensors")
    Path("agent.safetensors").rename("agent.ckpt")
    assert run(capsys, "diff", "agent.ckpt", "other.yaml") == (0, out, "")


def test_diff_says_why_sizes_are_not_compared_and_where_they_are_equal(capsys):
    Path("other.yaml").write_text(CARTPOLE.replace("environment: CartPole-v1\n", ""))
    assert run(capsys, "diff", "agent.yaml", "other.yaml")[1] == (
        "- environment: 'CartPole-v1'\n\n"
        "sizes are not compared: other.yaml names no environment; give one with --env ID\n"
    )
    out = run(capsys, "diff", "agent.yaml", "other.yaml", "--env", "CartPole-v1")[1]
    assert out == "- environment: 'CartPole-v1'\n\nequal sizes: 9,155 parameters\n"


def test_nodes_of_one_spec_alone_have_a_sign(capsys):
    text = CARTPOLE.replace(
        "  heads:", "    more: {block: dense, in: latent, hidden_units: 4}\n  heads:", 1
    ).replace("heads: {in: latent}", "heads: {in: more}", 1)
    Path("other.yaml").write_text(text)
    assert "\n+ policy/more" in run(capsys, "diff", "agent.yaml", "other.yaml")[1]
    assert "\n- policy/more" in run(capsys, "diff", "other.yaml", "agent.yaml")[1]


# --- on a terminal ---


def test_show_fits_the_terminal_with_its_headings_bold(capsys, monkeypatch):
    piped = run(capsys, "show", "agent.yaml")[1]
    assert max(map(len, piped.splitlines())) > 60
    assert "\x1b" not in piped
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = run(capsys, "show", "agent.yaml")[1]
    assert shown.startswith("\x1b[1mnode ")
    plain = re.sub(r"\x1b\[\dm", "", shown)
    assert max(map(len, plain.splitlines())) <= 50
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(capsys, "show", "agent.yaml")[1] == plain
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run(capsys, "blocks")[1].splitlines())) <= 80
    described = run(capsys, "blocks", "lstm")[1]
    assert max(map(len, described.splitlines())) <= 80
    assert (
        described.split("\nSettings:")[0].split()
        == describe_block("lstm").split("\nSettings:")[0].split()
    )
    assert not re.search(
        r"^ ", described.split("\nSettings:")[0], re.MULTILINE
    )  # paragraphs, not lines


def test_an_allowed_module_may_lie_beside_the_spec(capsys):
    Path("my_own_nets.py").write_text(
        "from torch import nn\nclass Twice(nn.Module):\n    def forward(self, x): return 2 * x\n"
    )
    text = CARTPOLE.replace("heads: {in: latent}", "heads: {in: twice}").replace(
        "  heads:", "    twice: {block: my_own_nets.Twice, in: latent}\n  heads:"
    )
    Path("agent.yaml").write_text(text)
    refused = (
        "agent.yaml:9:20: 'my_own_nets.Twice' is outside the allowed modules (none); "
        "pass allow=['my_own_nets'] or --allow my_own_nets if you trust it\n"
    )
    assert run(capsys, "check", "agent.yaml") == (1, "", refused)
    assert run(capsys, "check", "agent.yaml", "--allow", "my_own_nets")[0] == 0


# --- blocks ---


def test_blocks_lists_all_of_them(capsys):
    status, out, err = run(capsys, "blocks")
    assert (status, err) == (0, "")
    assert out == f"{list_blocks()}\n"
    assert all(re.search(f"^  {name} ", out, re.MULTILINE) for name in BLOCKS)
    assert "\nactivations: celu, elu," in out
    lines = out.splitlines()
    dense = next(index for index, line in enumerate(lines) if line.startswith("  dense "))
    assert lines[dense].endswith("(F,) -> (hidden_units[-1],).")
    assert lines[0] == "Basic"
    assert "\nPooling and sets\n" in out
    shown = "hidden_units*, activation, norm, dropout, bias, last_activation"
    assert lines[dense + 1].strip() == shown


def test_a_block_is_described_with_settings_example_and_shapes(capsys):
    status, out, err = run(capsys, "blocks", "gru")
    assert (status, err) == (0, "")
    assert out.endswith("""
Settings:
  hidden_units: a positive integer (required), size of the output, or of the output of each layer
  num_layers: an integer between 1 and 1000 (default: 1), the number of layers
  dropout: a number between 0 and 1 (default: 0.0), the share of values set to zero in train mode
  layer_norm: true or false (default: false), normalise the output of each layer
  bidirectional: true or false (default: false), read windows from both ends, which doubles the features

In a graph:
  latent: {block: gru, in: observation, hidden_units: 4, num_layers: 2}

Shapes:
  observation (3,) -> (4,), carrying h (2, 4) from step to step
""")


@pytest.mark.parametrize("name", NESTED)
def test_the_blocks_that_hold_a_graph_are_listed_and_described(capsys, name):
    summary = GRAPHS[name].partition("\n")[0]
    assert re.search(f"^  {name} +{summary}$", run(capsys, "blocks")[1], re.MULTILINE)
    status, out, _ = run(capsys, "blocks", name)
    assert (status, out.splitlines()[0], out.splitlines()[2]) == (0, name, summary)
    line = re.search(r"In a graph:\n  (.*)\n", out)
    assert line is not None
    spec = f"version: 1\npolicy:\n  graph:\n    {line[1]}\n    flat: {{block: flatten, in: y}}\n  heads: {{in: flat}}\n"
    model = composer.compose(
        spec, observation_space=Box(-1, 1, (3,)), action_space=Discrete(2), device="meta"
    )
    (row,) = [row for row in summarize(model).rows[1:] if row.block == name]
    assert out.splitlines()[-1] == f"  x (3,) -> y {format_shape(*row.out_shapes)}"


def test_blocks_of_an_allowed_module_are_listed_too(capsys):
    Path("my_own_blocks.py").write_text(
        "from perception_blocks import PerceptionBlock\n"
        "from perception_blocks.registry import BLOCKS\n"
        '@BLOCKS.register("my_own")\n'
        "class Mine(PerceptionBlock):\n"
        '    """Does nothing."""\n'
        "    def __init__(self, in_shapes): super().__init__(in_shapes)\n"
        "    def forward(self, x): return x\n"
    )
    try:
        allow = ["--allow", "my_own_blocks"]
        assert (
            "\nOthers\n  my_own                  Does nothing.\n"
            in run(capsys, "blocks", *allow)[1]
        )
        described = "my_own\n\nDoes nothing.\n\nSettings:\n  none\n"
        assert run(capsys, "blocks", "my_own", *allow) == (0, described, "")
        assert "block_my_own" in json.loads(run(capsys, "schema", *allow)[1])["definitions"]
    finally:
        BLOCKS._entries.pop("my_own", None)
        sys.modules.pop("my_own_blocks", None)


@pytest.mark.parametrize("name", list(BLOCKS))
def test_every_block_is_described_with_its_example(name):
    text = describe_block(name)
    example = example_of(name)
    assert example is not None
    assert f"  {example}\n" in text
    assert "`" not in text
    assert ">>>" not in text


# --- what is wrong with the input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "agnt.yaml"], "there is no file 'agnt.yaml'; did you mean 'agent.yaml'?"),
        (["check", "."], "'.' is a folder, not a file"),
        (["check", "version: 1"], "there is no file 'version: 1'"),
        (["show", "bare.yaml"], "composer show: the spec names no environment; give one with --env ID"),
        (["draw", "bare.yaml", "-o", "a.png"], "composer draw: the spec names no environment; give one with --env ID"),
        (
            ["check", "agent.yaml", "--env", "CartPoel-v1"],
            "the environment 'CartPoel-v1' cannot be made: Environment `CartPoel` doesn't exist. Did you mean: `CartPole`?\n"
            "  If a module of yours registers it, allow that: allow=['my_envs'] or --allow my_envs",
        ),
        (
            ["check", "agent.yaml", "--env", "no_envs:Some-v0"],
            "the environment 'no_envs:Some-v0' cannot be made: No module named 'no_envs'",
        ),
        (
            ["init", "CartPoel-v1"],
            "the environment 'CartPoel-v1' cannot be made: Environment `CartPoel` doesn't exist. Did you mean: `CartPole`?\n"
            "  If a module of yours registers it, allow that: allow=['my_envs'] or --allow my_envs",
        ),
        (
            ["check", "agent.yaml", "--allow", "no_such_nets"],
            "there is no module 'no_such_nets'; start in its folder, or add it to PYTHONPATH (for an editor: to composer.path)",
        ),
        (
            ["check", "agent.yaml", "--set", "params.wdth=3"],
            "--set params.wdth=3: nothing refers to the param 'wdth'; did you mean 'width'?",
        ),
        (
            ["check", "agent.yaml", "--set", "policy.graph.latent.hidden_units=0"],
            "--set policy.graph.latent.hidden_units=0: 'hidden_units' must be a positive integer or a list of "
            "positive integers, got 0",
        ),
        (["init", "CartPole-v1", "-o", "agent.yaml"], "composer init: 'agent.yaml' is there already; remove it or choose another name"),
        (["init", "CartPole-v1", "-o", "no/agent.yaml"], "composer init: 'no/agent.yaml' cannot be written: there is no folder 'no'"),
        (["draw", "agent.yaml", "-o", "no/a.png"], "composer draw: 'no/a.png' cannot be written: there is no folder 'no'"),
        (["draw", "agent.yaml", "-o", "a.pgn"], "composer draw: 'pgn' is not a format of diagrams; did you mean 'png'?"),
        (["blocks", "dens"], "composer blocks: unknown block 'dens'; did you mean 'dense'?"),
        (["diff", "agent.yaml", "zzz"], "there is no file 'zzz'"),
        (["diff", "agent.yaml", "x.safetensors"], "composer diff: there is no file 'x.safetensors'"),
        (
            ["diff", "agent.yaml", "text.safetensors"],
            "composer diff: 'text.safetensors' is no safetensors file, or a damaged one: Error while deserializing header: header too small",
        ),
        (
            ["check", "wrong.yaml"],
            "wrong.yaml:8:84: 'activatoin' is not a setting of block 'dense'; did you mean 'activation'?\n"
            "wrong.yaml:14:84: 'activatoin' is not a setting of block 'dense'; did you mean 'activation'?",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_words_and_with_status_1(capsys, arguments, message):
    Path("bare.yaml").write_text(CARTPOLE.replace("environment: CartPole-v1\n", ""))
    Path("wrong.yaml").write_text(CARTPOLE.replace("activation:", "activatoin:"))
    Path("text.safetensors").write_text("text")
    assert run(capsys, *arguments) == (1, "", f"{message}\n")


def test_an_output_that_cannot_be_written_is_said(capsys, monkeypatch):
    def full(self, *arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    message = "composer init: 'new.yaml' cannot be written: No space left on device\n"
    assert run(capsys, "init", "CartPole-v1", "-o", "new.yaml") == (1, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["chek", "agent.yaml"], "invalid choice: 'chek'"),
        (["check"], "the following arguments are required: FILE"),
        (["draw", "agent.yaml"], "the following arguments are required: -o/--output"),
        (["check", "agent.yaml", "--alow", "x"], "unrecognized arguments: --alow x"),
        (["show", "agent.yaml", "--set"], "argument --set: expected one argument"),
    ],
)
def test_wrong_usage_has_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


# --- as a process ---


def test_the_exit_status_of_the_process():
    good, wrong, usage = (
        run_process("check", "agent.yaml"),
        run_process("check", "x"),
        run_process(),
    )
    assert (good.returncode, wrong.returncode, usage.returncode) == (0, 1, 2)
    assert wrong.stderr == "there is no file 'x'\n"


def test_a_wrong_structure_is_answered_without_torch():
    Path("agent.yaml").write_text(CARTPOLE.replace("policy:", "polcy:"))
    code = (
        "import sys; from composer.cli.commands import main\n"
        "print(main(['check', 'agent.yaml']), 'torch' in sys.modules, 'gymnasium' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "1 False False\n"
    message = "agent.yaml:6:1: 'polcy' is not a key of a spec; did you mean 'policy'?\n"
    assert done.stderr == message


def test_an_error_in_a_users_own_class_is_told_in_a_line_and_shown_whole_where_asked():
    Path("own_nets.py").write_text(BROKEN_CLASS)
    Path("agent.yaml").write_text(
        "version: 1\nenvironment: CartPole-v1\npolicy: {_target_: own_nets.Broken}\n"
    )
    command = ["check", "agent.yaml", "--allow", "own_nets"]
    done = run_process(*command)
    place = f"agent.yaml:3:9: policy (own_nets.Broken), raised at {Path('own_nets.py').resolve()}:8"
    assert (done.returncode, done.stderr) == (
        1,
        f"{place}: RuntimeError: no such table (--traceback shows all of it)\n",
    )
    done = run_process(*command, "--traceback")
    assert done.returncode == 1
    assert 'raise RuntimeError("no such table")' in done.stderr
    assert done.stderr.endswith(f"RuntimeError: no such table\nin {place}\n")


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "composer", "schema"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")


# --- help ---


@pytest.mark.parametrize(
    "command",
    [
        "",
        "init",
        "check",
        "show",
        "draw",
        "watch",
        "train",
        "eval",
        "compare",
        "prove",
        "blocks",
        "schema",
        "diff",
        "import",
        "lsp",
        "probe",
        "why",
    ],
)
def test_help_is_what_it_was(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([*([command] if command else []), "--help"])
    assert caught.value.code == 0
    name = f"help_{command}.txt" if command else "help.txt"
    assert capsys.readouterr().out == (TESTS / "golden" / name).read_text()


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"composer {composer.__version__}\n"


# --- what is allowed ---

ROBOT = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register("Robot-v0", CartPoleEnv)
"""
OWN_BLOCK = """
from perception_blocks import BLOCKS, DenseBlock

@BLOCKS.register({name!r}, replace={replace})
class Own(DenseBlock): ...
"""


@pytest.fixture
def robot(folder, monkeypatch):
    """A module ``robot_env`` in the current folder, which is not imported yet."""
    Path("robot_env.py").write_text(ROBOT)
    yield
    sys.modules.pop("robot_env", None)
    gymnasium.registry.pop("Robot-v0", None)


def test_init_says_which_module_to_allow(robot, capsys):
    beside = "a file of that name is here, but is not allowed: --allow robot_env if you trust it"
    assert run(capsys, "init", "robot_env:Robot-v0") == (
        1, "",
        f"the environment 'robot_env:Robot-v0' cannot be made: No module named 'robot_env'; {beside}\n",
    )  # fmt: skip
    status, _, error = run(capsys, "init", "Robot-v0")
    assert status == 1
    assert error.endswith(
        "\n  If a module of yours registers it, allow that: allow=['my_envs'] or --allow my_envs\n"
    )
    for environment in ("robot_env:Robot-v0", "Robot-v0"):
        assert run(capsys, "init", environment, "--allow", "robot_env")[0] == 0


def test_composer_allow_is_for_the_command_line_alone(robot, capsys, monkeypatch):
    Path("agent.yaml").write_text(CARTPOLE.replace("CartPole-v1", "robot_env:Robot-v0"))
    assert run(capsys, "check", "agent.yaml")[0] == 1
    monkeypatch.setenv("COMPOSER_ALLOW", "json, robot_env")
    assert run(capsys, "check", "agent.yaml") == (0, "agent.yaml: good; 9,155 parameters\n", "")
    assert run(capsys, "init", "Robot-v0")[0] == 0
    with pytest.raises(composer.SpecError, match="would run code"):
        composer.compose("agent.yaml")


def test_an_unknown_block_may_be_that_of_a_module_of_ones_own(capsys):
    Path("own_layer.py").write_text(OWN_BLOCK.format(name="quantum_layer", replace=False))
    Path("agent.yaml").write_text(CARTPOLE.replace("block: dense", "block: quantum_layer"))
    assert run(capsys, "check", "agent.yaml")[2].startswith(
        "agent.yaml:8:21: unknown block 'quantum_layer'; `composer blocks` lists them; one that a module of yours "
        "registers needs allow=['that_module'] or --allow that_module\n"
    )
    assert run(capsys, "check", "agent.yaml", "--allow", "own_layer")[0] == 0
    model = composer.compose("agent.yaml", allow=["own_layer"])
    model.save("model.safetensors")
    del sys.modules["own_layer"]
    BLOCKS._entries.pop("quantum_layer")
    assert run(capsys, "show", "model.safetensors") == (
        1, "",
        "composer show: the checkpoint was saved with blocks that are not known here: 'quantum_layer' of the module "
        "'own_layer'; install the package that registers them, or import the module: allow=['own_layer'] or "
        "--allow own_layer\n",
    )  # fmt: skip
    assert run(capsys, "show", "model.safetensors", "--allow", "own_layer")[0] == 0
    del sys.modules["own_layer"]


def test_traceback_shows_where_in_an_allowed_module_an_error_comes_from(capsys):
    Path("failing_module.py").write_text(
        "def load():\n    raise RuntimeError('no table')\nload()\n"
    )
    arguments = ("check", "agent.yaml", "--allow", "failing_module")
    message = "the module 'failing_module' cannot be imported: RuntimeError: no table"
    assert run(capsys, *arguments) == (1, "", f"{message}\n")
    status, out, error = run(capsys, *arguments, "--traceback")
    assert (status, out) == (1, "")
    assert 'failing_module.py", line 2, in load' in error
    assert error.endswith(f"{message}\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "my_nets.py",
            "allow names modules, not files, got 'my_nets.py'; did you mean 'my_nets'?",
        ),
        ("my nets", "'my nets' is not the name of a module, such as 'my_nets'"),
    ],
)
def test_what_is_no_module_cannot_be_allowed(capsys, given, message):
    assert run(capsys, "check", "agent.yaml", "--allow", given) == (1, "", f"{message}\n")


def test_a_python_file_is_no_spec(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_nets.py").write_text("import torch")
    for command in (["check"], ["show"], ["draw", "-o", "net.png"]):
        assert main([*command, "my_nets.py"]) == 1
        assert capsys.readouterr().err == (
            "'my_nets.py' is a Python file, not a spec; a spec names its classes: "
            "policy: {_target_: module.Class}\n"
        )
