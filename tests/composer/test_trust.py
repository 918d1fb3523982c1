"""No spec runs code that its caller did not allow."""

import ast
import builtins
import contextlib
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import composer
from composer.checkpoint.container import CheckpointError
from composer.cli.commands import main
from composer.errors import SpecError
from composer.trust import PathError, allow_list, check_trusted, import_allowed, import_trusted

NETS = """
    import os
    import json.decoder
    from torch import nn
    from other_nets import Borrowed

    class Critic(nn.Module):
        class Inner(nn.Module): ...

    class Plain: ...

    critic = Critic()

    def build(): ...
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A package ``my_nets`` with a submodule, and the modules beside it."""
    files = {
        "my_nets/__init__.py": textwrap.dedent(NETS),
        "my_nets/deep.py": "from torch import nn\nclass Deep(nn.Module): ...\n",
        "other_nets.py": "from torch import nn\nclass Borrowed(nn.Module): ...\n",
        "failing_nets.py": "raise RuntimeError('no weights on the disk')\n",
        "needy_nets.py": "import a_module_that_is_nowhere\n",
    }
    (tmp_path / "my_nets").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def message_of(path, allow=(), base=nn.Module) -> str:
    with pytest.raises(PathError) as caught:
        import_trusted(path, allow, base)
    return str(caught.value)


@pytest.mark.parametrize(
    "path", ["torch.nn.LayerNorm", "torch.nn.modules.linear.Linear", "my_nets.Critic", "my_nets"]
)
def test_torch_modules_and_allowed_modules_are_trusted(path):
    assert check_trusted(path, ["my_nets"]) is None


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "my_nets2.Critic",
        "my.nets",
        "torch.load",
        "torch.nn.functional.relu",
        "torch.nn.init",
        "torch.nn.LayerNorm.__class__",
        "torch.nn.utils.Thing",
        "torchx.nn.LayerNorm",
    ],
)
def test_whatever_else_is_not(path):
    top = path.split(".")[0]
    assert check_trusted(path, ["my_nets"]) == (
        f"{path!r} is outside the allowed modules (my_nets); "
        f"pass allow=[{top!r}] or --allow {top} if you trust it"
    )


@pytest.mark.parametrize(
    "path", ["", ".", "a.", ".a", "a b", "a..b", "os.system('x')", "a\n", "1.a"]
)
def test_what_is_no_path_is_named(path):
    assert check_trusted(path, ["a"]) == f"{path!r} is not a dotted path such as 'my_nets.Critic'"


def test_classes_are_found_in_modules_submodules_and_classes(nets):
    assert import_trusted("torch.nn.LayerNorm", [], nn.Module) is nn.LayerNorm
    assert import_trusted("my_nets.Critic", ["my_nets"], nn.Module).__name__ == "Critic"
    assert import_trusted("my_nets.deep.Deep", ["my_nets"], nn.Module).__name__ == "Deep"
    assert import_trusted("my_nets.deep.Deep", ["my_nets.deep"], nn.Module).__name__ == "Deep"
    assert import_trusted("my_nets.Critic.Inner", ["my_nets"], nn.Module).__name__ == "Inner"


def test_allowed_modules_are_imported_first(nets):
    import_allowed(["my_nets.deep"])
    assert "my_nets.deep" in sys.modules


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_nets.Crtic", "'my_nets' has no 'Crtic'; did you mean 'Critic'?"),
        ("my_nets.dep.Deep", "'my_nets' has no 'dep'"),
        ("my_nets.build", "'my_nets.build' is not a class but a function"),
        ("my_nets.critic", "'my_nets.critic' is not a class but an object of type 'Critic'"),
        ("my_nets.critic.forward", "'my_nets.critic.forward' leads through 'my_nets.critic', which is an object of type 'Critic'"),
        ("my_nets.deep", "'my_nets.deep' is not a class but a module"),
        ("my_nets.Plain", "'my_nets.Plain' is no subclass of torch.nn.Module"),
        ("my_nets.os.system", "'my_nets.os.system' leads through 'os', outside the allowed modules"),
        ("my_nets.json.decoder.JSONDecoder", "'my_nets.json.decoder.JSONDecoder' leads through 'json', outside the allowed modules"),
        ("my_nets.Borrowed", "'my_nets.Borrowed' lives in 'other_nets', outside the allowed modules (my_nets); name it by the module that defines it, and allow that one"),
        ("torch.nn.Lineer", "'torch.nn' has no 'Lineer'; did you mean 'Linear'?"),
        ("torch.nn.Parameter", "'torch.nn.Parameter' is no subclass of torch.nn.Module"),
        ("torch.nn.DataParallel", "'torch.nn.DataParallel' lives in 'torch.nn.parallel.data_parallel', outside the allowed modules (my_nets); name it by the module that defines it, and allow that one"),
    ],
)  # fmt: skip
def test_what_is_not_the_class_that_is_needed_is_named(nets, path, message):
    assert message_of(path, ["my_nets"]) == message


def test_modules_that_cannot_be_imported_are_named_with_their_traceback(nets):
    assert message_of("no_nets.A", ["no_nets"]) == (
        "there is no module 'no_nets'; start in its folder, or add it to PYTHONPATH (for an editor: to composer.path)"
    )
    assert message_of("needy_nets.A", ["needy_nets"]) == (
        "the module 'needy_nets' cannot be imported: No module named 'a_module_that_is_nowhere'"
    )
    with pytest.raises(PathError) as caught:
        import_trusted("failing_nets.A", ["failing_nets"], nn.Module)
    assert str(caught.value) == (
        "the module 'failing_nets' cannot be imported: RuntimeError: no weights on the disk"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        ("my_nets", "allow is a list of modules, got the text 'my_nets'; write allow=['my_nets']"),
        ([3], "allow holds the names of modules, got an object of type 'int': 3"),
    ],
)
def test_what_is_no_list_of_modules_is_said(allow, message):
    with pytest.raises(PathError) as caught:
        allow_list(allow)
    assert str(caught.value) == message


def test_nothing_is_imported_before_it_is_trusted(nets):
    message_of("my_nets.Critic", ["other_nets.Borrowed.x"])
    assert "my_nets" not in sys.modules


def test_a_path_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(PathError("wrong")))
    assert (type(error), str(error)) == (PathError, "wrong")


# --- every route from a stranger's text to an import ---

EVIL = "the_evil_module"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that can be imported, so that only our refusal keeps it out."""
    (tmp_path / f"{EVIL}.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath(__file__).with_name('RAN').touch()\n"
        "class Net(nn.Linear): ...\ndef function(x): return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert EVIL not in sys.modules
    assert not (tmp_path / "RAN").exists()


BODY = "{block: dense, in: observation, hidden_units: 8}"
GRAPH = f"policy:\n  graph:\n    a: {BODY}\n  heads: {{in: a}}\n"
IMPORTS = {
    "environment": f"environment: {EVIL}:Some-v0\n{GRAPH}",
    "policy": f"policy: {{_target_: {EVIL}.Net}}\n",
    "critic": f"{GRAPH}critic: {{_target_: {EVIL}.Net}}\n",
    "block": GRAPH.replace("block: dense", f"block: {EVIL}.Net"),
    "head": GRAPH.replace("{in: a}", f"{{in: a, block: {EVIL}.Net}}"),
    "nested block": GRAPH.replace(
        BODY, f"{{block: graph, in: observation, graph: {{b: {{block: {EVIL}.Net, in: observation}}}}}}"
    ),
    "template": f"policy:\n  template: {{vector: {{block: {EVIL}.Net}}}}\n",
    "activation": GRAPH.replace("units: 8", f"units: 8, activation: {EVIL}.function"),
    "torch activation": GRAPH.replace("units: 8", "units: 8, activation: os.system"),
    "initialiser": GRAPH.replace("units: 8", f"units: 8, init: {EVIL}.function"),
    "function": GRAPH.replace(BODY, f"{{block: functional, in: observation, function: {EVIL}.function}}"),
    "wrapper": GRAPH + f"  wrap: [{EVIL}.Net]\n",
    "distribution": GRAPH + f"distributions: [{{action: action, distribution: {EVIL}.Net}}]\n",
    "way through torch": GRAPH.replace("block: dense", "block: torch.nn.modules.os.system"),
    "tag": GRAPH.replace("dense", f"!!python/object/apply:{EVIL}.function [1]"),
    "format": GRAPH.replace("dense", "'{0.__class__}'"),
    "param": f"params: {{p: {EVIL}.Net}}\n" + GRAPH.replace("dense", '"${params.p}"'),
}  # fmt: skip
BOX, TWO = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)


@pytest.mark.parametrize("route", IMPORTS)
def test_no_spec_imports_what_its_caller_did_not_allow(evil, route):
    text = f"version: 1\n{IMPORTS[route]}"
    (evil / "agent.yaml").write_text(text)
    env = None if route == "environment" else "CartPole-v1"
    for spec in (text, "agent.yaml"):
        with pytest.raises(SpecError):
            composer.compose(spec, env=env, allow=["math"])
    command = ["check", "agent.yaml", *(["--env", env] if env else [])]
    assert main(command) == 1
    assert main([*command, "--allow", "math"]) == 1


@pytest.mark.parametrize("route", IMPORTS)
def test_no_checkpoint_imports_what_its_caller_did_not_allow(evil, route):
    forge("agent.safetensors", spec=f"version: 1\n{IMPORTS[route]}")
    for command in (["check"], ["show"], ["draw", "-o", "x.dot"], ["export", "-o", "x.pt2"]):
        status = main([command[0], "agent.safetensors", *command[1:]])
        assert status == (0 if route == "environment" else 1)  # which is not made: spaces are there
    if route != "environment":
        with pytest.raises((SpecError, CheckpointError)):
            composer.load("agent.safetensors")


@pytest.mark.parametrize("key", ["modules", "blocks"])
def test_the_modules_that_a_checkpoint_names_are_not_imported(evil, key):
    named = {"modules": [EVIL], "blocks": {"no_such_block": EVIL}}
    forge("agent.safetensors", **{key: named[key]})
    if key == "modules":
        composer.load("agent.safetensors")
        return
    with pytest.raises(CheckpointError, match=f"allow=\\['{EVIL}'\\] or --allow {EVIL}"):
        composer.load("agent.safetensors")
    assert main(["show", "agent.safetensors"]) == 1


def test_what_a_message_advises_is_one_argument_whatever_a_checkpoint_names(evil, capsys):
    forge("agent.safetensors", blocks={"no_such_block": "a; touch RAN \x1b[31m"})
    assert main(["show", "agent.safetensors"]) == 1
    error = capsys.readouterr().err
    assert "--allow ''\"'\"'a; touch RAN \\x1b[31m'\"'\"''" in error
    assert "\x1b" not in error


def test_an_agent_makes_the_environment_of_a_spec_only_if_it_is_allowed(evil):
    from stable_baselines3 import PPO

    from composer.adapters.sb3.agents import agent

    text = f"version: 1\n{IMPORTS['environment']}"
    model = composer.compose(text, observation_space=BOX, action_space=TWO)
    for spec in (text, model):
        with pytest.raises(SpecError, match=f"the environment '{EVIL}:Some-v0' would run code"):
            agent(PPO, spec)


# --- every route to a file ---


def forge(path, **values):
    """A checkpoint whose header says ``values``, as if it had been saved so."""
    text = f"version: 1\n{GRAPH}"
    composer.compose(text, observation_space=BOX, action_space=TWO, seed=0).save(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header |= {name: json.dumps(value) for name, value in values.items()}
    header.pop("digests", None)
    save_file(tensors, path, metadata={k: v for k, v in header.items() if "digest" not in k})


SECRET = "api_key: sk-123\npassword: hunter2\n"


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """A folder ``got`` of a stranger's, and files of the user's beside it."""
    (tmp_path / "got" / "below").mkdir(parents=True)
    (tmp_path / "secret.yaml").write_text(SECRET)
    (tmp_path / "base.yaml").write_text(f"version: 1\n{GRAPH}")
    monkeypatch.chdir(tmp_path / "got")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["../secret.yaml", "{0}/secret.yaml", "link.yaml", "below/../../secret.yaml", "../got2/x.yaml"],
)
def test_a_spec_extends_files_beside_and_below_it_only(apart, name):
    (apart / "got" / "link.yaml").symlink_to(apart / "secret.yaml")
    (apart / "got2").mkdir()
    (apart / "got2" / "x.yaml").write_text(SECRET)
    (apart / "got" / "agent.yaml").write_text(f"extends: {name.format(apart)}\n")
    for spec in ("agent.yaml", apart / "got" / "agent.yaml"):
        with pytest.raises(SpecError, match="is neither beside nor below the spec") as caught:
            composer.compose(spec)
        assert "sk-123" not in str(caught.value)
        assert "api_key" not in str(caught.value)


def test_a_caller_may_allow_more_files(apart):
    Path("agent.yaml").write_text("extends: below/more.yaml\n")
    Path("below/more.yaml").write_text("extends: ../../base.yaml\n")
    spaces_given = {"observation_space": BOX, "action_space": TWO}
    with pytest.raises(SpecError) as caught:
        composer.compose("agent.yaml", **spaces_given)
    assert str(caught.value) == (
        f"below/more.yaml:1:10: '../base.yaml' is neither beside nor below the spec; pass allow=['{apart}/'] or "
        f"--allow {apart}/ if the spec may read it"
    )
    composer.compose("agent.yaml", **spaces_given, allow=[f"{apart}/"])
    composer.compose("agent.yaml", **spaces_given, allow=["../base.yaml"])
    for command in (["check", "agent.yaml"], ["diff", "agent.yaml", "agent.yaml"]):
        assert main(command) == 1
        assert main([*command, "--allow", "../"]) == 0


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket"])
def test_what_is_no_regular_file_is_not_opened(apart, kind, capsys):
    if kind == "pipe":
        os.mkfifo("odd")
    elif kind == "socket":
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as opened:
            opened.bind("odd")
    elif kind == "folder":
        os.mkdir("odd")
    else:
        Path("odd").symlink_to("/dev/zero")
    Path("agent.yaml").write_text("extends: odd\n")
    os.symlink("odd", "odd.safetensors")
    for command in (["check", "odd"], ["check", "agent.yaml"], ["show", "odd.safetensors"],
                    ["diff", "odd", "odd.safetensors"], ["train", "odd", "--steps", "1", "-o", "x"]):  # fmt: skip
        assert main(command) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "spec", ["secret.yaml", "{0}/secret.yaml", "extends: secret.yaml", "/etc/passwd"]
)
def test_the_spec_in_a_checkpoint_or_a_run_is_text(apart, monkeypatch, spec, capsys):
    monkeypatch.chdir(apart)
    spec = spec.format(apart)
    forge("agent.safetensors", spec=spec)
    Path("run").mkdir()
    task = {"spec": spec, "environment": "CartPole-v1", "steps": 10}
    Path("run/run.json").write_text(json.dumps({"format": "composer-run", "version": 1, **task}))
    torch.save({"steps": 1}, "run/trainer.pt")
    read = []
    monkeypatch.setattr(
        "composer.source.extends.read_text", lambda path, *_: read.append(path) or SECRET
    )
    with pytest.raises(SpecError):
        composer.load("agent.safetensors")
    for command in (["check", "agent.safetensors"], ["show", "agent.safetensors"],
                    ["diff", "agent.safetensors", "agent.safetensors"], ["train", "--resume", "run"]):  # fmt: skip
        assert main(command) == 1
    assert read == []
    printed = "".join(capsys.readouterr())
    assert not any(word in printed for word in ("sk-123", "hunter2", "root:"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SECRET, "f.txt:1:1: 'f.txt' is no spec: it has none of a spec's keys ("),
        ("root:x:0:0:root:/root:/bin/bash\n", "f.txt:1:1: a spec must be a mapping of keys to values, got a single value"),
        ("- sk-123\n", "f.txt:1:1: a spec must be a mapping of keys to values, got a list"),
        ("!!x sk-123\n", "f.txt:1:1: a spec must be a mapping of keys to values, got a single value"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_spec_is_not_shown(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("f.txt").write_text(text)
    Path("agent.yaml").write_text(f"version: 1\nextends: f.txt\n{GRAPH}")
    for spec in (Path("f.txt"), Path("agent.yaml")):
        with pytest.raises(SpecError) as caught:
            composer.compose(spec, observation_space=BOX, action_space=TWO)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
        assert not any(
            word in str(caught.value) for word in ("sk-123", "hunter2", "root:", "api_key")
        )


def test_the_weights_that_a_spec_names_lie_beside_it_or_are_allowed(apart):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=5, n_layer=1, n_head=1, n_embd=8, n_positions=8)
    for folder in ("body", "got/body"):
        transformers.GPT2Model(config).save_pretrained(apart / folder)
    given = {"observation_space": spaces.MultiDiscrete([5] * 6), "action_space": TWO}

    def compose(path, source="agent.yaml", **more):
        text = f"version: 1\n{GRAPH}".replace(
            BODY, f"{{block: transformer, checkpoint: {path}, in: observation}}"
        )
        Path("agent.yaml").write_text(text)
        return composer.compose(text if source is None else source, **given, **more)

    compose("body").save(apart / "good.safetensors")
    compose(apart / "got" / "body")
    compose("body", source=None, allow=[f"{apart}/got/"])
    compose(apart / "body", allow=[f"{apart}/body/"])
    os.symlink(apart / "body", "link")
    for path, source in (
        ("../body", "agent.yaml"),
        (apart / "body", "agent.yaml"),
        ("link", "agent.yaml"),
        ("body", None),
    ):
        with pytest.raises(SpecError, match="neither beside nor below the spec"):
            compose(path, source=source)
    os.unlink("body/model.safetensors")
    os.symlink(apart / "body" / "model.safetensors", "body/model.safetensors")
    with pytest.raises(SpecError, match="neither beside nor below the spec"):
        compose("body")
    text = f"version: 1\n{GRAPH}".replace(
        BODY, "{block: transformer, checkpoint: body, in: observation}"
    )
    with safe_open(apart / "good.safetensors", framework="pt") as file:
        header = {**file.metadata(), "spec": json.dumps(text)}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(
        tensors,
        "forged.safetensors",
        metadata={k: v for k, v in header.items() if "digest" not in k},
    )
    with pytest.raises(
        SpecError, match="a spec inside of a file reads no other file, and this one names 'body'"
    ):
        composer.load("forged.safetensors", allow=[f"{apart}/"])


def test_a_folder_of_weights_names_no_code(tmp_path):
    transformers = pytest.importorskip("transformers")
    from perception_blocks.blocks.language_config import FAMILIES, Folder

    config = transformers.GPT2Config(vocab_size=5, n_layer=1, n_head=1, n_embd=8, n_positions=8)
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values |= {
        "attn_implementation": "evil/kernel",
        "auto_map": {"AutoModel": "evil.Model"},
        "quantization_config": {},
    }
    path.write_text(json.dumps(values))
    made = Folder(str(tmp_path)).config(FAMILIES["gpt2"]).to_dict()
    assert not {"attn_implementation", "auto_map", "quantization_config"} & made.keys()
    assert "evil" not in json.dumps(made)


# --- the folders that a command meets ---

FILES = (
    "sitecustomize",
    "usercustomize",
    "json",
    "torch",
    "yaml",
    "numpy",
    "gymnasium",
    "pygraphviz",
    "triton",
    "dill",
)


@pytest.fixture
def strangers(tmp_path):
    """(a stranger's folder with a spec, an empty current folder, what shows that code of either ran)."""
    got, home, ran = tmp_path / "got", tmp_path / "home", tmp_path / "RAN"
    for folder in (got, home):
        folder.mkdir()
        for name in FILES:
            (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\n")
        info = folder / "x-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1\n")
        groups = ("perception_blocks.plugins", "gymnasium.envs", "torch.backends")
        (info / "entry_points.txt").write_text("".join(f"[{g}]\nx = dill\n" for g in groups))
    (home / "mine.py").write_text("")
    (home / "matplotlibrc").write_text("text.usetex: True\nbackend: module://dill\n")
    (got / "agent.yaml").write_text(
        f"version: 1\nenvironment: CartPole-v1\n{GRAPH}critic: {{graph: {{v: {BODY}}}}}\n"
    )
    return got, home, ran


QUICK = (
    ["check", "{0}/agent.yaml", "--allow", "mine"],
    ["draw", "{0}/agent.yaml", "-o", "x.png", "--allow", "mine"],
)
SLOW = (
    ["init", "CartPole-v1"],
    ["check", "{0}/agent.yaml"],
    ["show", "{0}/agent.yaml", "--allow", "mine"],
    ["export", "{0}/agent.yaml", "-o", "x.onnx", "--allow", "mine"],
    ["train", "{0}/agent.yaml", "--trainer", "sb3", "--steps", "64", "-o", "run", "--set-algorithm", "n_steps=32",
     "--eval-episodes", "1", "--allow", "mine"],
    ["prove", "{0}/agent.yaml", "--steps", "1", "--allow", "mine"],
    ["blocks", "--allow", "mine"],
    ["schema", "--allow", "mine"],
    ["diff", "{0}/agent.yaml", "{0}/agent.yaml", "--allow", "mine"],
)  # fmt: skip
STARTS = {
    "composer": [str(Path(sys.executable).with_name("composer"))],
    "python -m composer": [sys.executable, "-m", "composer"],
    "python -P -m composer": [sys.executable, "-P", "-m", "composer"],
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "command",
    [*QUICK, *(pytest.param(command, marks=pytest.mark.full) for command in SLOW)],
    ids=lambda command: command[0],
)
def test_a_command_runs_nothing_that_lies_in_its_folders(strangers, start, command):
    got, home, ran = strangers
    arguments = [*STARTS[start], *(part.format(got) for part in command)]
    done = subprocess.run(arguments, cwd=home, capture_output=True, text=True, check=False)
    assert not ran.exists(), ran.read_text()
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_a_picture_is_drawn_without_the_modules_of_a_script(strangers):
    """The child that draws gets nothing of the `sys.path` of the program that asks for it."""
    _, home, ran = strangers
    for name in set(FILES) - {"sitecustomize", "usercustomize", "pygraphviz"}:
        (home / f"{name}.py").unlink()  # a script's own imports come from its folder, as always
    shutil.rmtree(home / "x-1.dist-info")
    script = home / "script.py"
    script.write_text("import composer\ncomposer.compose('../got/agent.yaml').draw('x.png')\n")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=home, capture_output=True, text=True, check=False
    )
    assert (done.returncode, ran.exists()) == (0, False), done.stderr


def test_an_allowed_module_imports_of_its_folder_what_is_allowed_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("agent.yaml").write_text(
        "version: 1\nenvironment: CartPole-v1\n"
        "policy:\n  graph:\n    a: {block: trusted_nets.Net, in: observation}\n  heads: {in: a}\n"
    )
    Path("trusted_nets.py").write_text(
        "import trusted_helpers\nfrom torch import nn\n"
        "class Net(nn.Identity):\n"
        "    def forward(self, x):\n"
        "        import trusted_late\n"
        "        return trusted_late.same(x)\n"
    )
    Path("trusted_helpers.py").write_text("")
    Path("trusted_late.py").write_text("def same(x): return x\n")
    command = ["check", "agent.yaml", "--allow", "trusted_nets"]
    assert main(command) == 1
    assert capsys.readouterr().err == (
        "the module 'trusted_nets' cannot be imported: No module named 'trusted_helpers'; a file of that name is here, "
        "but is not allowed: --allow trusted_helpers if you trust it\n"
    )
    command += ["--allow", "trusted_helpers"]
    assert main(command) == 1
    assert capsys.readouterr().err == (
        "composer check: No module named 'trusted_late'; a file of that name is here, but is not allowed: "
        "--allow trusted_late if you trust it\n"
    )
    assert main([*command, "--allow", "trusted_late"]) == 0
    assert str(tmp_path) not in sys.path


def test_what_is_installed_comes_before_what_lies_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tabnanny.py").write_text("from pathlib import Path\nPath('RAN').touch()\n")
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)
    assert main(["blocks", "--allow", "tabnanny"]) == 0
    assert not Path("RAN").exists()


# --- what could run code, and why it may be there ---

# Whole names; of packages, whatever is in them.
POWERS = re.compile(
    r"exec|eval|compile|__import__|builtins"
    r"|importlib\.(import_module|reload|(util|machinery)\.\w+|metadata\.(entry_points|distributions))"
    r"|runpy|code|ctypes|pkgutil|site|subprocess|multiprocessing|pty|pickle|dill|cloudpickle|joblib|marshal|shelve"
    r"|os\.(system|popen|fork|startfile|exec\w*|spawn\w*|posix_spawn\w*)|numpy\.load"
    r"|torch\.(load|hub|package|jit\.(load|script\w*)|export\.load|utils\.cpp_extension|ops\.load_library)"
    r"|sys\.(path|meta_path|path_hooks|modules|settrace|setprofile)"
    r"|yaml\.(load|full_load|unsafe_load|Loader|FullLoader|UnsafeLoader)\w*"
)
# Of each module what it uses of these, how often, and why nothing of a stranger's can run by it.
LISTED = {
    "composer": ({"sys.path": 2}, "takes the current folder away where the command line starts"),
    "composer.diagram.render": (
        {"subprocess": 7},
        "Graphviz, by a list of arguments, on DOT in which every text is escaped",
    ),
    "composer.parallel.launch": (
        {"subprocess": 6},
        "torchrun, by a list of arguments; it runs this library's own module, which gets its task as JSON",
    ),
    "composer.adapters.local_ray": ({"sys.modules": 2}, "looks at what of Ray is imported; imports nothing"),
    "composer.dataflow.running.on_ray": (
        {"importlib.util.find_spec": 1, "sys.path": 2},
        "finds where allowed modules lie; takes folders away where a worker starts",
    ),
    "composer.dataflow.algorithms.timeouts": (
        {"multiprocessing": 9, "importlib.import_module": 1, "sys.modules": 2},
        "a process for a function that this process has imported; it says what it returned through a pipe of its own",
    ),
    "composer.checkpoint.torch_file": (
        {"torch.load": 1}, "weights_only=True: tensors and plain values, after a look at what else it names",
    ),
    "composer.reference.targets": (
        {"sys.modules": 2}, "lists classes of allowed modules that are imported already; imports nothing",
    ),
    "composer.parallel.state": ({"sys.modules": 1}, "looks whether a module is imported; imports nothing"),
    "perception_blocks.blocks.families": (
        {"importlib.import_module": 1}, "the class of a family, by the address with which it was registered in Python",
    ),
    "composer.export.files": (
        {"importlib.import_module": 1, "torch.export.load": 1},
        "libraries whose names stand in the code; a file that was written just before, with plain names only",
    ),
    "composer.spaces.lookup": (
        {"importlib.util.find_spec": 1}, "packages whose names stand in the code",
    ),
    "composer.cli.train": (
        {"importlib.util.find_spec": 2}, "packages whose names stand in the code",
    ),
    "composer.cli.watch": (
        {"importlib.util.find_spec": 2}, "packages whose names stand in the code",
    ),
    "composer.editor.child": (
        {"pickle": 4, "subprocess": 2, "sys.path": 1},
        "a process of our own that imports from the same folders; both sides read what the other has sent, no file",
    ),
    "composer.editor.checks": ({"sys.modules": 1}, "the files of allowed modules that are imported; imports nothing"),
    "composer.editor.environments": (
        {"subprocess": 7}, "an environment that the caller has allowed, in a process of its own",
    ),
    "composer.training.environment": (
        {"multiprocessing": 2, "pickle": 2}, "sees whether an environment can be sent to another process; loads nothing",
    ),
    "composer.source.values": ({"sys.modules": 1}, "looks whether OmegaConf is there; imports nothing"),
    "composer.trust": (
        {"importlib.import_module": 1, "importlib.util.find_spec": 2, "importlib.machinery.ModuleSpec": 2,
         "importlib.machinery.PathFinder": 3, "sys.meta_path": 4},
        "the place where dotted paths are judged, before they are imported",
    ),
    "perception_blocks.graph.construct": (
        {"importlib.import_module": 1}, "a dotted path that its caller has judged, or a class of torch.nn",
    ),
    "perception_blocks.lazy": (
        {"importlib.import_module": 3, "sys.modules": 2}, "modules of the package, by names that stand in the code",
    ),
    "perception_blocks.lowering.code": (
        {"exec": 1, "compile": 1}, "text in which every name is a number of ours",
    ),
    "perception_blocks.lowering.program": (
        {"builtins": 2, "compile": 1},
        "text in which every name is a number of ours",
    ),
    "perception_blocks.registry": (
        {"importlib.import_module": 1, "importlib.metadata.distributions": 1, "sys.path": 1, "sys.modules": 1},
        "addresses that stand in the code, and the plug-ins of installed packages",
    ),
}  # fmt: skip


def powers(tree: ast.AST) -> Counter[str]:
    """How often each of the `POWERS` is named, under whichever alias."""
    aliases: dict[str, str] = {}
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                aliases[bound] = alias.name if alias.asname else bound
                found.append(alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                found.append(f"{node.module}.{alias.name}")
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
            first, dot, rest = ast.unparse(node).partition(".")
            if first in aliases or first in vars(builtins):
                found.append(aliases.get(first, first) + dot + rest)
    return Counter(filter(None, map(_power, found)))


def _power(name: str) -> str | None:
    parts = name.split(".")
    beginnings = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((beginning for beginning in beginnings if POWERS.fullmatch(beginning)), None)


def test_nothing_that_could_run_code_is_used_without_its_reason():
    found = {}
    for package in ("composer", "perception_blocks"):
        root = Path(__import__(package).__file__).parent
        for path in sorted(root.rglob("*.py")):
            name = ".".join([package, *path.relative_to(root).with_suffix("").parts])
            used = powers(ast.parse(path.read_text(encoding="utf-8")))
            if used:
                found[name.removesuffix(".__init__")] = dict(used)
    assert found == {name: counts for name, (counts, _) in LISTED.items()}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("exec('1')", "exec"),
        ("run = eval", "eval"),
        ("import builtins as b; b.exec('1')", "builtins"),
        ("from importlib import import_module as get; get(x)", "importlib.import_module"),
        ("import importlib; importlib.import_module(x)", "importlib.import_module"),
        ("import subprocess as sp; sp.Popen(x)", "subprocess"),
        ("from os import system; system(x)", "os.system"),
        ("import torch as t; t.load(x)", "torch.load"),
        ("from torch import load; load(x)", "torch.load"),
        ("import pickle", "pickle"),
        ("__import__(x)", "__import__"),
        ("import sys; sys.path.insert(0, x)", "sys.path"),
        ("from yaml import UnsafeLoader", "yaml.UnsafeLoader"),
    ],
)
def test_the_audit_sees(text, name):
    assert powers(ast.parse(text))[name]


@pytest.mark.parametrize("text", ["re.compile(x)", "model.eval()", "torch.compile(x)", "a.load(x)"])
def test_the_audit_leaves_alone(text):
    assert not powers(ast.parse(text))
