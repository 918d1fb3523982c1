"""What a stranger asks for is refused in words before it is made; only the caller raises a limit."""

import inspect
import re
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, OneOf, Tuple
from torch import nn

import composer
from composer.build.budget import Budget, LimitReached
from composer.build.construction import SeededConstruction
from composer.checkpoint.container import CheckpointError
from composer.cli.commands import main
from composer.limits import Limits, limits_from
from perception_blocks import BLOCKS, Graph, GraphError, InferenceBlock
from perception_blocks.settings import describe, settings_of
from tests.whole.test_block_contract import SAMPLES

SPEC = """\
version: 1
policy:
  graph:
    a: {block: dense, in: observation, hidden_units: 8}
  heads: {in: a}
"""
CRITIC = "critic:\n  {}\n  graph: {{v: {{block: dense, in: observation, hidden_units: 8}}}}\n"
ENSEMBLE = "{{block: ensemble, in: observation, copies: {}, graph: {{{}: {}}}}}"
DENSE = "{block: dense, in: observation, hidden_units: 8}"


def spec_with(block):
    return SPEC.replace("block: dense, in: observation, hidden_units: 8", block)


def compose(spec, shape=(4,), **keywords):
    keywords = {"device": "meta", "seed": 0, **keywords}
    return composer.compose(
        spec, observation_space=Box(-1, 1, shape), action_space=Discrete(2), **keywords
    )


def refusal(spec, **keywords):
    start = time.process_time()
    with pytest.raises(composer.SpecError) as caught:
        compose(spec, **keywords)
    assert time.process_time() - start < 10  # 5 on a machine that has nothing else to do
    return str(caught.value)


def of_layers(key):
    return f"{key!r} is 1000000, but the limit of layers is 1,000; {allow('layers', 1_000_000)}"


def allow(name, number):
    return f"if it is meant, allow it: limits={{'{name}': {number}}} or --limit {name}={number}"


REFUSED = {
    "ensemble": (
        SPEC + CRITIC.format("ensemble: 1000000000"),
        f"<spec>:7:13: 'ensemble' is 1000000000, but the limit of copies is 1,000; {allow('copies', 10**9)}",
    ),
    "copies": (
        spec_with("block: ensemble, in: observation, copies: 1001, graph: {e: " + DENSE + "}"),
        f"<spec>:4:51: 'copies' is 1001, but the limit of copies is 1,000; {allow('copies', 1001)}",
    ),
    "layers of torch": (
        spec_with("block: torch.nn.LSTM, in: observation, num_layers: 1000000"),
        f"<spec>:4:60: {of_layers('num_layers')}",
    ),
    "layers of a class": (
        spec_with("block: torch.nn.Transformer, in: observation, num_encoder_layers: 1000000"),
        f"<spec>:4:75: {of_layers('num_encoder_layers')}",
    ),
    "ensembles of ensembles": (
        SPEC
        + "critic:\n  graph:\n    v: "
        + ENSEMBLE.format(1000, "e", ENSEMBLE.format(1000, "f", "{block: flatten, in: observation}")),
        f"<spec>:8:128: 'critic/f' brings the model above the limit of 20,000 nodes; {allow('nodes', 40_000)}",
    ),
    "many layers": (
        SPEC.replace("8}", f"[{'2,' * 100_000}]}}"),
        f"<spec>:4:8: 'policy/a' brings the model above the limit of 50,000 tensors; {allow('tensors', 100_000)}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_asks_for_too_much_is_refused_at_its_place(what):
    spec, message = REFUSED[what]
    assert refusal(spec) == message


def test_transformers_have_no_more_layers_than_other_blocks():
    spec = spec_with("block: transformer, in: observation, family: gpt2, n_layer: 1000000")
    with pytest.raises(composer.SpecError) as caught:
        composer.compose(spec, observation_space=MultiDiscrete([5, 5, 5]), action_space=Discrete(2))
    assert "'n_layer' must be an integer between 1 and 1000, got 1000000" in str(caught.value)


def test_the_caller_raises_a_limit(tmp_path):
    spec = SPEC + CRITIC.format("ensemble: 3")
    assert "the limit of copies is 2;" in refusal(spec, limits={"copies": 2})
    model = compose(spec, limits=Limits(copies=3), device="cpu")
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(composer.SpecError, match="the limit of copies is 2;"):
        composer.load(tmp_path / "model.safetensors", limits={"copies": 2})
    composer.load(tmp_path / "model.safetensors", limits={"copies": 3})


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"nodes": 1}, f"'policy/heads/action' brings the model above the limit of 1 nodes; {allow('nodes', 2)}"),
        ({"tensors": 3}, f"'policy/heads/action' brings the model above the limit of 3 tensors; {allow('tensors', 6)}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nodes_and_tensors_are_counted_everywhere(limits, message, device):
    assert refusal(SPEC, limits=limits, device=device) == f"<spec>:5:10: {message}"


def test_limits_that_are_none_are_refused():
    for given, message in {
        "copies": "limits is a mapping such as {'copies': 5000}, got 'copies'",
        ("node",): "limits is a mapping such as {'copies': 5000}, got ('node',)",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            limits_from(given)
    for given, message in [
        ({"node": 3}, "there is no limit 'node'; did you mean 'nodes'?"),
        ({"x": 3}, "there is no limit 'x'; there is 'copies', 'layers', 'nodes', 'tensors', 'actors', 'parts', 'numbers', 'choices', 'memory'"),
        ({"nodes": 0}, "the limit 'nodes' is a whole number of at least 1, got 0"),
        ({"nodes": True}, "the limit 'nodes' is a whole number of at least 1, got True"),
        ({"nodes": 1.5}, "the limit 'nodes' is a whole number of at least 1, got 1.5"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            compose(SPEC, limits=given)


def test_the_command_line_raises_limits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("agent.yaml").write_text(SPEC + CRITIC.format("ensemble: 1001"))
    command = ["check", "agent.yaml", "--env", "CartPole-v1"]
    assert main(command) == 1
    assert capsys.readouterr().err.endswith(f"{allow('copies', 1001)}\n")
    assert main([*command, "--limit", "copies=1001"]) == 0
    assert main(["check", "agent.yaml"]) == 1  # the structure alone
    for given, message in {
        "copies": "write NAME=NUMBER, got 'copies'",
        "copies=x": "write NAME=NUMBER, got 'copies=x'",
        "copy=3": "there is no limit 'copy'",
    }.items():
        with pytest.raises(SystemExit):
            main([*command, "--limit", given])
        assert f"argument --limit: {message}" in capsys.readouterr().err


# --- memory ---


@pytest.mark.parametrize(
    "block",
    [
        "block: dense, in: observation, hidden_units: 1000000000000",
        "block: torch.nn.Linear, in: observation, in_features: 4, out_features: 1000000000000",
    ],
)
def test_a_node_beyond_the_machine_is_named(block):
    message = refusal(spec_with(block), device="cpu")
    assert message.startswith("<spec>:4:8: 'policy/a' needs ")
    assert re.search(r"needs (16|20),000\.0 GB of memory for its weights", message)
    assert re.search(r", and there are [\d.,]+ GB; choose smaller sizes$", message)
    compose(spec_with(block))  # without weights it needs no memory


def test_what_does_not_fit_together_names_the_largest_node():
    spec = SPEC + CRITIC.format("kind: state")
    message = (
        "<spec>:4:8: 'policy/a' needs 160 bytes of memory for its weights (all nodes 428 bytes), and there are "
        "200 bytes; choose smaller sizes"
    )
    assert refusal(spec, device="cpu", limits={"memory": 200}) == message
    model = compose(spec, limits={"memory": 200})
    with pytest.raises(composer.SpecError, match=re.escape(message)):
        model.materialize()
    # 40 and 18 in the policy, 40 and 9 in the critic: in another type they fit, or no longer do.
    compose(spec, device="cpu", limits={"memory": 4 * 107})
    refusal(spec, device="cpu", limits={"memory": 4 * 107 - 1})
    compose(spec, device="cpu", limits={"memory": 2 * 107}, dtype=torch.float16)
    refusal(spec, device="cpu", limits={"memory": 4 * 107}, dtype=torch.float64)


def test_memory_that_is_not_free_is_said(monkeypatch):
    def full(*arguments, **keywords):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory")

    monkeypatch.setattr("composer.build.construction.allocate", full)
    message = "<spec>:4:8: 'policy/a' needs 160 bytes of memory for its weights, which are not free"
    assert refusal(SPEC, device="cpu") == message


def test_numbers_that_no_computer_holds_are_refused_when_they_are_read():
    for number in (10**5000, -(10**5000)):
        spec = {"version": 1, "policy": {"graph": {"a": {"hidden_units": number}}}}
        assert refusal(spec) == "policy.graph.a.hidden_units: a number of 16610 bits is too long"
    digits = "1" + "0" * 5000
    text = SPEC.replace("units: 8", f"units: {digits}")
    assert "a number of 5001 characters is too long" in refusal(text)
    assert "a number of 5001 characters is too long" in refusal(text.replace("units: ", "units:"))
    overrides = [f"policy.graph.a.hidden_units={digits}"]
    assert "a number of 5001 characters is too long" in refusal(SPEC, overrides=overrides)


def test_a_text_that_params_make_long_is_refused_before_it_is_made():
    param = "x" * 900_000
    text = f"params: {{a: {param}}}\n" + SPEC.replace("dense", '"' + "${params.a}" * 5_000 + '"')
    tracemalloc.start()
    message = refusal(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "the text grows to 4500000000 characters; the limit is 10000" in message
    assert peak < 2**26


# --- spaces ---

MOVE = Discrete(2)
SEEN = Box(-1, 1, (4,))
IGNORING = "version: 1\nignore: [{}]\npolicy:\n  graph: {{a: {{block: dense, in: few, hidden_units: 8}}}}\n  heads: {{in: a}}\n"
BESIDE = {"few": SEEN, "huge": MultiDiscrete([2**31 + 1])}
ABOVE = {  # spaces, and the limit that they are above with the number that the message names
    "numbers": (Dict({"few": SEEN, "huge": Box(0, 1, (1, 2**25), np.int8)}), MOVE, "huge", 2**25 + 4),
    "choices": (Dict(BESIDE), MOVE, "huge", 2**31 + 1),
    "parts": (Dict({"few": SEEN, "huge": Tuple([MOVE] * 10_001)}), MOVE, "huge", 20_000),
    "actors": (dict.fromkeys(range(10_001), Dict(few=SEEN)), dict.fromkeys(range(10_001), MOVE), "", 10_001),
}  # fmt: skip


@pytest.mark.parametrize("name", ABOVE)
def test_what_a_space_is_above_the_caller_raises(name, tmp_path):
    """What the message advises is done: by `compose`, `load` and on the command line."""
    observations, actions, ignored, number = ABOVE[name]
    spaces = {"observation_space": observations, "action_space": actions}
    spec = IGNORING.format(ignored)
    with pytest.raises(ValueError, match=re.escape(allow(name, number))):
        composer.compose(spec, **spaces, device="meta")
    path = str(tmp_path / "model.safetensors")
    limits = {name: number}
    composer.compose(spec, **spaces, limits=limits).save(path)
    with pytest.raises(CheckpointError, match=re.escape(allow(name, number))):
        composer.load(path)
    composer.load(path, limits=limits)
    for command in (["check", path], ["draw", path, "-o", str(tmp_path / "model.mmd")]):
        assert main(command) == 1
        assert main([*command, "--limit", f"{name}={number}"]) == 0


MANY = {
    "actions": {"action_space": Tuple([Discrete(2)] * 3_000)},
    "alternatives": {"observation_space": OneOf([Box(-1, 1, (4,))] * 2_000)},
    "axes": {"observation_space": Box(-1, 1, (1,) * 32)},
}


@pytest.mark.parametrize("spaces", MANY.values(), ids=MANY)
def test_a_space_of_many_parts_takes_time_by_their_number(spaces):
    known = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)} | spaces
    start = time.process_time()
    spec = "version: 1\npolicy: {template: {}}\n"
    model = composer.compose(spec, **known, device="meta", seed=0)
    assert model.policy is not None
    assert time.process_time() - start < 5


# --- every integer of every block ---

HUGE = (10**5, 10**9, 10**12, 2**62)
GIGABYTE = 2**30


class TooSlow(BaseException):
    """No exception that a module could take for its own."""


class Guarded:
    """5 seconds for each block within, and 1 GiB more than there is now for all of them."""

    def __enter__(self):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize()
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, self.before[1]))
        self.handler = signal.signal(signal.SIGALRM, self.alarm)
        return self

    def alarm(self, *_):
        raise TooSlow

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.handler)
        resource.setrlimit(resource.RLIMIT_AS, self.before)

    def run(self, build, refusals):
        signal.setitimer(signal.ITIMER_REAL, 30)  # of a machine that may be busy
        start = time.process_time()
        try:
            build()
        except refusals:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert time.process_time() - start < 5


def counts_of(sample):
    """The settings that may be an integer, or a list of them."""
    known, _ = settings_of(BLOCKS.get(sample.block))
    words = {name: describe(setting.annotation) for name, setting in known.items()}
    for name, text in words.items():
        given = sample.settings.get(name)
        if re.search("integer|number", text) or isinstance(given, (int, list, tuple)):
            yield name, "list" in text


def build_sample(sample, settings):
    names = [f"in{index}" for index in range(len(sample.ports))]
    graph = Graph(dict(zip(names, sample.ports)))
    graph.add("node", sample.block, names, **settings)
    construction = SeededConstruction(
        "policy", 0, meta=True, where=str, place=lambda path: (), budget=Budget(Limits())
    )
    InferenceBlock(graph, ["node"], construction=construction)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.block != "functional"], ids=str)
def test_no_number_makes_a_block_hang_or_fill_the_memory(sample):
    with Guarded() as guarded:
        for name, is_list in counts_of(sample):
            values = [v for n in HUGE for v in ((n, [n], [n, n]) if is_list else (n,))]
            for value in values:
                settings = {**sample.settings, name: value}
                guarded.run(lambda s=settings: build_sample(sample, s), (GraphError, LimitReached))


CLASSES = sorted(
    name for name, cls in vars(nn).items() if isinstance(cls, type) and issubclass(cls, nn.Module)
)


def check_class(name):
    """A node of the class ``name``, each of its arguments huge in turn, for four kinds of observations."""
    parameters = list(inspect.signature(getattr(nn, name).__init__).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    required = {p.name: 4 for p in named if p.default is p.empty}
    with Guarded() as guarded:
        for shape in ((4,), (3, 4), (4, 8, 8), (4, 6, 6, 6)):
            for parameter in named:
                for value in HUGE[:3]:
                    settings = {**required, parameter.name: value}
                    nodes = {
                        "a": {"block": f"torch.nn.{name}", "in": "observation", **settings},
                        "b": {"block": "flatten", "in": "a"},
                    }
                    spec = {"version": 1, "policy": {"graph": nodes, "heads": {"in": "b"}}}
                    guarded.run(lambda s=spec, o=shape: compose(s, o), composer.SpecError)


@pytest.mark.parametrize("name", ["Conv2d", "LSTM", "Linear", "Upsample"])
def test_no_number_makes_these_classes_hang_or_fill_the_memory(name):
    check_class(name)


@pytest.mark.full
@pytest.mark.parametrize("name", CLASSES)
def test_no_number_makes_a_class_of_torch_hang_or_fill_the_memory(name):
    check_class(name)


def test_check_of_huge_specs_needs_little_memory(tmp_path):
    """`composer check` in 4 GiB of addresses, of which importing torch takes its share."""
    specs = {name: spec for name, (spec, _) in REFUSED.items() if name != "ensembles of ensembles"}
    specs["wide"] = SPEC.replace("hidden_units: 8", "hidden_units: [100000000, 100000000]")
    paths = []
    for name, spec in specs.items():
        paths.append(str(tmp_path / f"{name}.yaml"))
        Path(paths[-1]).write_text(
            spec.replace("version: 1", "version: 1\nenvironment: CartPole-v1")
        )
    code = (
        "import resource, sys; from composer.cli.commands import main; "
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32)); "
        f"print([main(['check', path]) for path in {paths!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == str([1] * (len(specs) - 1) + [0])
