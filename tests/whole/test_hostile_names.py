"""Names from outside are only text: whatever generates code or shows them, none of them runs, and none reaches a terminal."""

import json
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import gymnasium
import onnxruntime
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import composer
from composer.checkpoint.container import CheckpointError
from composer.cli.commands import main
from composer.errors import Problem, SpecError
from composer.export.exporting import METADATA
from composer.training.session import train
from composer.training.trainer import TrainingError
from perception_blocks.words import as_module_name, is_plain

RUN = "open('ran','w').close()"  # Python that leaves a file behind
RUN_TOO = 'open("ran","w").close()'
HOSTILE = [
    "agent's view",
    'the "goal"',
    "back\\slash\\",
    f"+str({RUN})+",
    f"'+str({RUN_TOO})+'",
    f'"+str({RUN})+"',
    f"'];{RUN_TOO};['",
    f'"];{RUN};["',
    f'");{RUN};("',
    f"{{{RUN}}}",
    f"\n{RUN}\n",
    f"\r    {RUN}\r    #",
    f'"""\n{RUN}\n"""',
    f"*/system(\"touch ran\");/*\\\n{RUN}",
    "__import__('os').system('touch ran')",
    "$(touch ran)`touch ran`; touch ran",
    "</script><script>alert(1)</script>",
    '"]; a [URL="javascript:alert(1)"]; b ["',
    "]-->|<b>x</b>|click[(\"`",
    "<img src='x'/>&amp;&lt;%s%n{0}",
    "\x1b[31mred\x1b[0m\x07\x00\x9b2J",
    "\u202egnp.txt\u2066\u200b",
    "$\\frac{1}{",
    "a" * 10_000,
    "line\u2028end",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("ran").exists()


def spaces(keys):
    observations = {key: Box(-1, 1, (n % 3 + 1,)) for n, key in enumerate(keys)}
    actions = {key: Discrete(n % 3 + 2) for n, key in enumerate(keys)}
    return {"observation_space": Dict(observations), "action_space": Dict(actions)}


def by_key(keys):
    """Keys of observations and actions, normalised, one of them a mask."""
    given = spaces(keys)
    mask, action = f"mask {keys[0]}", next(iter(given["action_space"]))
    given["observation_space"].spaces[mask] = MultiBinary(int(given["action_space"][action].n))
    policy = {"template": {}, "action_mask": {action: mask}}
    spec = {"version": 1, "normalize": list(keys), "policy": policy, "critic": {"template": {}}}
    return composer.compose(spec, **given, seed=0)


def by_actor(keys):
    """Actors with memory, a network for each."""
    policies = {key: {"template": {"memory": {"block": "gru", "hidden_units": 3}}} for key in keys}
    critics = {key: {"template": {}} for key in keys}
    spec = {"version": 1, "policy": {"networks": policies}, "critic": {"networks": critics}}
    given = {name: dict(space) for name, space in spaces(keys).items()}
    return composer.compose(spec, **given, seed=0)


KINDS = {"keys": by_key, "actors": by_actor}
every_kind = pytest.mark.parametrize("kind", KINDS)


FEW = [*HOSTILE[1::4], HOSTILE[20], HOSTILE[3]]  # of each sort of attack one or two


@pytest.fixture(scope="module", params=[FEW, pytest.param(HOSTILE, marks=pytest.mark.full)])
def files(tmp_path_factory, request):
    """A checkpoint of each kind, as from elsewhere."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for kind, make in KINDS.items():
        make(request.param).save(folder / f"{kind}.safetensors")
    return folder


def loaded(files, kind):
    return composer.load(files / f"{kind}.safetensors")


def inputs(model, batch=3):
    """Random observations by flat name."""
    policies = getattr(model.policy, "policies", {None: model.policy})
    generator = torch.Generator().manual_seed(0)
    return {
        actor: {
            key: torch.rand(batch, *leaf.shape, generator=generator).round()  # a mask has 0 and 1
            for key, leaf in policy.observer.tree.leaves.items()
        }
        for actor, policy in policies.items()
    }


def given(model, batch=3):
    """What the policy takes: observations of one actor, or of all and their state."""
    found = inputs(model, batch)
    if None in found:
        return (found[None],)
    state = model.policy.initial_state(batch)
    return found, state, torch.zeros(batch, dtype=torch.bool)


def flat(value):
    return torch.utils._pytree.tree_leaves(value)


def same(found, expected):
    for one, other in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(one, other)


def shown(text):
    """Nothing in ``text`` moves a cursor, colours, or turns what is read around."""
    assert all(c == "\n" or c.isprintable() for c in text)


# --- what runs ---


@every_kind
def test_a_checkpoint_from_elsewhere_loads_and_saves(kind, files):
    model = loaded(files, kind)
    model.save("again.safetensors")
    same(composer.load("again.safetensors").state_dict(), model.state_dict())
    assert repr(model).isascii()


@every_kind
def test_it_is_lowered_and_compiled(kind, files):
    model = loaded(files, kind)
    arguments = given(model)
    expected = model.policy(*arguments)
    same(model.policy.lower()(*arguments), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model.policy, backend="eager", dynamic=True)
    same(compiled(*arguments), expected)
    compiled(*given(model, 5))


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # of the compiler's own
@every_kind
def test_it_is_compiled_by_inductor(kind, files):
    model = loaded(files, kind)
    torch._dynamo.reset()
    same(torch.compile(model.policy)(*given(model)), model.policy(*given(model)))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@every_kind
def test_it_is_exported_under_numbers_and_the_file_tells_the_keys(kind, suffix, files):
    model = loaded(files, kind)
    report = model.export(f"model{suffix}", part="model")
    assert all(is_plain(value.name) for value in (*report.inputs, *report.outputs))
    shown(str(report))
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession("model.onnx")
        about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
        names = [value.name for value in session.get_inputs()]
        assert {value.shape[0] for value in session.get_inputs()} == {"batch"}
        assert {value.shape[0] for value in session.get_outputs()} == {"batch"}
    else:
        extra = {METADATA: ""}
        program = torch.export.load("model.pt2", extra_files=extra)
        about = json.loads(extra[METADATA])
        names = list(about["inputs"])
        program.module()
    places = [(about["inputs"][n].get("actor"), about["inputs"][n]["key"]) for n in names]
    wanted = [(actor, key) for actor, own in inputs(model).items() for key in own]
    assert set(wanted) <= set(places)


@pytest.mark.full
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_each_alone_is_exported(number, kind, suffix):
    kind([HOSTILE[number]]).export(f"model{suffix}", part="model")


@every_kind
def test_torchs_own_exporter_runs_no_name_of_a_module(kind, files):
    for module in loaded(files, kind).modules():
        for name in (*module._modules, *module._parameters, *module._buffers):
            assert as_module_name(name) == name


class HostileEnv(gymnasium.Env):
    action_space = Discrete(3)

    def __init__(self, keys):
        self.observation_space = spaces(keys)["observation_space"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self._steps += 1
        return self.observation_space.sample(), 1.0, self._steps == 5, False, {}


@pytest.mark.parametrize(
    ("trainer", "settings", "keys"),
    [
        ("sb3", {"n_steps": 16, "batch_size": 16}, HOSTILE),
        # Its collector drops what begins with "_", and says so.
        (
            "torchrl",
            {"frames_per_batch": 16, "minibatch_size": 16},
            [key for key in HOSTILE if not key.startswith("_")],
        ),
    ],
)
def test_it_is_trained(trainer, settings, keys, monkeypatch, capsys):
    made = EnvSpec("Hostile-v0", lambda: HostileEnv(keys))
    monkeypatch.setitem(gymnasium.registry, made.id, made)
    spec = {"version": 1, "normalize": keys, "policy": {"template": {}}}
    spec |= {"environment": made.id, "critic": {"template": {}}}
    train(spec, "run", trainer=trainer, steps=16, settings=settings, eval_episodes=1)
    shown("".join(capsys.readouterr()))


def test_a_key_that_torchrl_drops_is_refused(monkeypatch):
    made = EnvSpec("Hostile-v0", lambda: HostileEnv(["_x", "y"]))
    monkeypatch.setitem(gymnasium.registry, made.id, made)
    spec = {"version": 1, "environment": made.id, "policy": {"template": {}}}
    spec["critic"] = {"template": {}}
    with pytest.raises(TrainingError) as error:
        train(spec, "run", trainer="torchrl", steps=16)
    assert str(error.value) == (
        "ppo of torchrl cannot train this model:\n  its collector drops what begins with '_', such as the "
        "observation '_x'; rename it, or use the trainer sb3"
    )


# --- what is drawn and shown ---


@every_kind
@pytest.mark.parametrize("command", ["check", "show", "diff"])
def test_a_command_shows_it(command, kind, files, capsys):
    path = str(files / f"{kind}.safetensors")
    other = str(files / "keys.safetensors")
    assert main([command, path, *([other] if command == "diff" else [])]) == 0
    shown("".join(capsys.readouterr()))


@every_kind
def test_a_drawing_holds_no_element_of_its_names(kind, files):
    model = loaded(files, kind)
    for form in ("svg", "html", "dot", "mmd", "png", "pdf"):
        model.draw(f"model.{form}")
    svg = ElementTree.parse("model.svg")
    tags = {element.tag.rpartition("}")[2] for element in svg.iter()}
    assert tags <= {"svg", "g", "title", "polygon", "path", "text", "ellipse", "polyline"}
    assert {a for e in svg.iter() for a in e.attrib if a.startswith("on") or "href" in a} == set()
    page = Path("model.html").read_text()
    assert len(re.findall("<script", page, re.I)) == len(re.findall("</script", page, re.I)) == 2
    assert "<img" not in page
    for name in ("model.dot", "model.mmd", "model.svg"):
        shown(Path(name).read_text())
    statement = r'(flowchart TD|subgraph \w+\["[^"]*"\]|end|\w+ (-->|==>|-\.->) \w+|(style|classDef|linkStyle) .*|\w+[\[(]+"[^"]*"[\])]+(:::\w+)?)'
    for line in Path("model.mmd").read_text().splitlines():
        assert re.fullmatch(rf" *{statement}", line), line


# --- a file that lies ---


RECORD = ["spec", "observation_space", "action_space", "seed", "dtype", "modules", "versions"]
RECORD += ["tied", "blocks", "format", "format_version"]


@pytest.mark.parametrize("field", RECORD)
@pytest.mark.parametrize("lie", [lambda text: text, lambda text: [text], lambda text: {text: text}])
def test_what_a_file_says_of_itself_is_shown_or_refused(field, lie, files, capsys):
    path = files / "keys.safetensors"
    with safe_open(path, "pt") as file:
        header = {key: text for key, text in file.metadata().items() if "digest" not in key}
    text = f"\x1b[2J\u202e{RUN}" + "\x00" * 5_000
    save_file(load_file(path), "lie.safetensors", {**header, field: json.dumps(lie(text))})
    for command in ("check", "show", "diff"):
        main([command, "lie.safetensors", *([str(path)] if command == "diff" else [])])
    shown("".join(capsys.readouterr()))


# --- what is refused ---

ESCAPES = "\x1b]0;x\x07\x1b[31m\u202e\u2066\x00\x7f" + "a" * 10_000
WRONG = {
    "keys": {ESCAPES: 1},
    "values": {"version": ESCAPES, "environment": ESCAPES, "params": ESCAPES, "policy": ESCAPES},
    "params": {"params": {ESCAPES: "${params." + ESCAPES + "}"}, "policy": {"template": {}}},
    "nodes": {"graph": {ESCAPES: {"block": "dense", "in": ESCAPES}}, "heads": {"in": ESCAPES}},
    "blocks": {"graph": {"a": {"block": ESCAPES, "in": "observation"}}, "heads": {"in": "a"}},
    "paths": {"_target_": f"os.{ESCAPES}", ESCAPES: ESCAPES},
    "settings": {
        "graph": {"a": {"block": "dense", "in": "observation", ESCAPES: 1, "activation": ESCAPES}},
        "heads": {ESCAPES: {"in": "a"}},
    },
    "networks": {"networks": {ESCAPES: {"template": {ESCAPES: ESCAPES}}}},
    "template": {"template": {"trunk": {"block": ESCAPES}, ESCAPES: {}}, "wrap": [ESCAPES]},
    "masks": {"template": {}, "action_mask": {ESCAPES: ESCAPES}, "observations": [ESCAPES]},
    "distributions": {"distributions": [{"action": ESCAPES, "distribution": ESCAPES}]},
    "normalize": {"normalize": [ESCAPES], "ignore": [ESCAPES], "texts": {ESCAPES: {ESCAPES: 1}}},
    "extends": {"extends": ESCAPES},
    "numbers": {"graph": {"a": {"block": "dense", "in": "observation", "hidden_units": ESCAPES}}},
}  # fmt: skip
TOP = {"version", "params", "distributions", "normalize", "ignore", "texts", "extends", "policy"}


def spec_of(wrong):
    at_top = TOP & wrong.keys() or ESCAPES in wrong
    whole = {**wrong} if at_top and "_target_" not in wrong else {"policy": wrong}
    whole = {"version": 1, "environment": "CartPole-v1", "policy": {"template": {}}, **whole}
    return json.dumps(whole)  # which is YAML, escapes included


def run(capsys, *arguments):
    """The exit status of the command, whose output may be shown."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = end.code
    text = "".join(capsys.readouterr())
    shown(text)
    assert max(map(len, text.split("\n"))) < 3_000
    return status, text


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_spec_is_shown_without_controls(wrong, capsys):
    Path("agent.yaml").write_text(spec_of(wrong))
    for command in (
        ["check"], ["show"], ["draw", "-o", "a.svg"], ["export", "-o", "a.pt2"],
        ["train", "--steps", "8", "-o", "run"],
    ):  # fmt: skip
        status, text = run(capsys, command[0], "agent.yaml", *command[1:])
        assert (status, bool(text)) == (1, True)
    run(capsys, "diff", "agent.yaml", "agent.yaml")
    run(capsys, "init", "--from", "agent.yaml")


@pytest.mark.parametrize("text", [ESCAPES[:40], ESCAPES[:-20:-1] + "\x1b[31m"])
def test_names_on_the_command_line_are_shown_without_controls(text, capsys):
    Path("good.yaml").write_text("{version: 1, environment: CartPole-v1, policy: {template: {}}}")
    name = text.replace("\0", "")
    Path(f"{name}.yaml").write_text("version: 2")
    for arguments in (
        ["check", f"{name}.yaml"], ["check", f"{name}.safetensors"], ["diff", f"{name}.yaml", name],
        ["check", "good.yaml", "--env", text], ["check", "good.yaml", "--allow", text],
        ["check", "good.yaml", "--set", text], ["check", "good.yaml", "--set", f"{text}={text}"],
        ["draw", "good.yaml", "-o", f"{name}/a.svg"], ["draw", "good.yaml", "-o", f"a.{name}"],
        ["export", "good.yaml", "-o", f"{name}/a.pt2"], ["export", "good.yaml", "-o", name],
        ["export", "good.yaml", "-o", "a.pt2", "--actor", text], ["train", "--resume", name],
        ["train", "good.yaml", "--steps", "8", "-o", "run", "--algorithm", text],
        ["train", "good.yaml", "--steps", "8", "-o", "run", "--trainer", text],
        ["train", "good.yaml", "--steps", "8", "-o", "run", "--set-algorithm", f"{text}={text}"],
        ["blocks", text], ["init", text], ["init", "CartPole-v1", "--allow", text],
    ):  # fmt: skip
        status, shown_text = run(capsys, *arguments)
        assert (status, bool(shown_text)) == (1, True), arguments


def dense(**settings):
    return {"block": "dense", "in": "observation", **settings}


NAMES = [f"name{number}" for number in range(4_000)]
LATENT = {"latent": dense(hidden_units=4)}
MANY = {
    "keys": {"template": {}, **dict.fromkeys(NAMES, 1)},
    "settings": {"graph": {"latent": dense(**dict.fromkeys(NAMES, 1))}, "heads": {"in": "latent"}},
    "blocks": {
        "graph": {n: dense(block=f"{n}s") for n in NAMES} | LATENT,
        "heads": {"in": "latent"},
    },
    "inputs": {
        "graph": {n: {"block": "flatten", "in": f"{n}s"} for n in NAMES},
        "heads": {"in": "name0"},
    },
    "same_as": {
        "graph": {n: {"same_as": f"{n}s", "in": "observation"} for n in NAMES} | LATENT,
        "heads": {"in": "latent"},
    },
    "heads": {"graph": LATENT, "heads": {n: {"in": "latent"} for n in NAMES}},
    "shares": {"graph": LATENT, "heads": {"in": "latent"}, "shares": NAMES},
    "wrappers": {"template": {}, "wrap": NAMES},
    "params": None,
}


@pytest.mark.parametrize("policy", MANY.values(), ids=MANY)
def test_of_many_problems_the_first_are_shown_in_linear_time(policy):
    spec = {"version": 1, "policy": policy}
    if policy is None:
        spec |= {"params": dict.fromkeys(NAMES, 1), "policy": {"template": {}}}
    begun = time.perf_counter()
    with pytest.raises(SpecError) as error:
        composer.compose(spec, env="CartPole-v1", device="meta")
    assert (
        time.perf_counter() - begun < 30
    )  # a second, and on a busy machine ten; squared it is minutes
    count = len(error.value.problems)
    assert count >= 4_000
    text = str(error.value)
    lines = text.split("\n")
    assert lines[-1] == f"... and {count - len(lines) + 1:,} more"
    assert 30 < len(lines) <= 101  # 100 problems, or as many as have 18,000 characters
    assert len(text) < 18_100


PATHS = [f"policy/{name}" for name in NAMES]
PARTS = {
    "read": {
        "previous": NAMES, "freeze": PATHS, "learning_rate_scale": {f"{path}/x": 1 for path in PATHS}
    },
    "built": {"freeze": PATHS, "weights": dict.fromkeys(PATHS, "a.pt")},
    "deep": {"freeze": ["policy" + "/x" * 200_000]},
}  # fmt: skip


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_many_and_long_paths_are_looked_up_in_linear_time(parts):
    begun = time.perf_counter()
    with pytest.raises(SpecError) as error:
        composer.compose(
            {"version": 1, "policy": {"template": {}}, **parts}, env="CartPole-v1", device="meta"
        )
    assert time.perf_counter() - begun < 30
    assert len(error.value.problems) == (1 if len(parts) == 1 else 8_000)


def test_a_message_has_at_most_2000_characters():
    problem = Problem("x" * 5_000 + "; do this", ("y" * 5_000, "z"), None)
    assert len(problem.message) == 2_000
    assert problem.message.endswith("; do this")
    assert len(str(problem)) < 2_300
    assert len(str(CheckpointError("x" * 5_000))) == 2_000
