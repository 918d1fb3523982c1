"""Exported files give what the model gives, name what they take, and do not exist where they would not."""

import json
import re
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence, Tuple
from torch.nn.utils import prune

import composer
from composer.cli.commands import main
from composer.export.exporting import METADATA, ExportError
from composer.spaces.samples import SpaceSampler
from composer.spaces.tree import flatten_space
from tests.helpers.paths import CONFIGS, POLICIES

PATHS = POLICIES
MODULES = ["environments", "networks"]

MLP = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16], activation: tanh}
  heads: {in: latent}
critic:
  graph:
    value: {block: linear_output, in: observation, output_units: 1}
"""
MEMORY = """
version: 1
normalize: [speed]
policy:
  action_mask: {go: legal}
  graph:
    both: {block: concat, in: [speed, place]}
    memory: {block: lstm, in: both, hidden_units: 8, num_layers: 2}
  heads: {in: memory}
  shares: [memory]
critic:
  graph:
    memory_of_values: {block: gru, in: [memory], hidden_units: 4}
"""
MEMORY_SPACES = {
    "observation_space": Dict(
        speed=Box(-1, 1, (3,), np.float64),
        place=Box(-np.inf, np.inf, (2,)),
        legal=MultiBinary(5),
    ),
    "action_space": Dict(
        go=Discrete(5, start=3),
        turn=Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32)),
        gears=MultiDiscrete([2, 3]),
    ),
}


def mlp(**keywords):
    spaces = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)}
    return composer.compose(keywords.pop("spec", MLP), **{**spaces, **keywords}, seed=0)


def remembering():
    model = composer.compose(MEMORY, **MEMORY_SPACES, seed=0)
    model.update_normalizers({"speed": np.random.default_rng(0).normal(3, 2, (64, 3))})
    return model


class OnnxFile:
    """A file in ONNX Runtime, by name."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(str(path))
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        found = self.session.get_modelmeta().custom_metadata_map[METADATA]
        self.metadata = json.loads(found)

    def __call__(self, inputs):
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        return dict(zip(self.outputs, self.session.run(None, arrays), strict=True))


class ProgramFile:
    """A file in torch.export."""

    def __init__(self, path):
        extra = {METADATA: ""}
        self.module = torch.export.load(path, extra_files=extra).module()
        self.metadata = json.loads(extra[METADATA])
        self.inputs, self.outputs = list(self.metadata["inputs"]), list(self.metadata["outputs"])

    def __call__(self, inputs):
        outputs = self.module({name: torch.as_tensor(value) for name, value in inputs.items()})
        return {name: value.detach().numpy() for name, value in outputs.items()}


READERS = {".onnx": OnnxFile, ".pt2": ProgramFile}
every_kind = pytest.mark.parametrize("suffix", READERS)


def exported(model, folder, suffix, **keywords):
    path = folder / f"model{suffix}"
    model.export(path, **keywords)
    assert [found.name for found in folder.iterdir()] == [path.name]
    return READERS[suffix](path)


def message(model, path, **keywords):
    with pytest.raises(ExportError) as error:
        model.export(path, **keywords)
    assert not Path(path).exists()
    return str(error.value)


# --- what is in a file ---


@every_kind
def test_a_policy_gives_logits_and_the_action_it_would_take(suffix, tmp_path):
    model = mlp()
    file = exported(model, tmp_path, suffix)
    assert (file.inputs, file.outputs) == (["observation"], ["logits", "action"])
    for batch in (1, 5, 64):
        observation = np.random.default_rng(0).normal(size=(batch, 4)).astype(np.float32)
        outputs = file({"observation": observation})
        expected = model.policy(observation)["action"].detach().numpy()
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
        acts = model.policy.act(observation, deterministic=True)
        np.testing.assert_array_equal(outputs["action"], acts)
        assert outputs["action"].dtype == acts.dtype


@every_kind
def test_a_file_with_memory_plays_fifty_steps_like_the_model(suffix, tmp_path):
    model = remembering()
    file = exported(model, tmp_path, suffix)
    states = ["memory/h", "memory/c"]
    assert file.inputs == ["speed", "place", "legal", *states, "resets"]
    assert file.metadata["state"] == {name: f"next/{name}" for name in states}
    sampler = SpaceSampler(model.policy.observer.tree, 1)
    ours = model.policy.initial_state(3)
    theirs = {name: value.numpy() for name, value in ours.items()}
    resets = torch.rand(50, 3) < 0.2
    for t in range(50):
        observation = sampler.draw((3,), model.policy.observer.tree.leaves)
        observation["legal"][:, 2] = 1
        numpy = {name: value.numpy() for name, value in observation.items()}
        outputs = file({**numpy, **theirs, "resets": resets[t].numpy()})
        action, ours = model.policy.act(numpy, ours, resets[t], deterministic=True)
        for name, value in action.items():
            np.testing.assert_allclose(outputs[f"action/{name}"], value, atol=1e-5)
            assert outputs[f"action/{name}"].dtype == value.dtype
        theirs = {name: outputs[f"next/{name}"] for name in theirs}


DECODER = """
version: 1
policy:
  graph:
    latent: {block: decoder, in: observation, width: 8, num_heads: 2, num_kv_heads: 1, max_length: 12}
  heads: {in: latent}
"""


@every_kind
@pytest.mark.parametrize("unroll", [None, 5])
def test_a_decoder_plays_fifty_steps_in_episodes_that_its_cache_has_room_for(
    suffix, unroll, tmp_path
):
    space = Discrete(5)
    model = composer.compose(DECODER, observation_space=space, action_space=space, seed=0)
    file = exported(model, tmp_path, suffix, unroll=unroll)
    states = ["latent/keys", "latent/values", "latent/length"]
    assert file.inputs == ["observation", *states, "resets"]
    if unroll is not None:
        return
    token, ours = np.array([1, 4]), model.policy.initial_state(2)
    theirs = {name: value.numpy() for name, value in ours.items()}
    for step in range(13):
        outputs = file({"observation": token, **theirs, "resets": np.zeros(2, bool)})
        theirs = {name: outputs[f"next/{name}"] for name in theirs}
        if step == 12:  # a file does not look for what a policy refuses
            assert np.isnan(outputs["logits"]).all()
            break
        logits, ours = model.policy(torch.as_tensor(token), ours)
        np.testing.assert_allclose(outputs["logits"], logits["action"].detach(), atol=1e-5)


def test_an_unrolled_file_is_as_many_steps_of_the_model(tmp_path):
    model = remembering().eval()
    file = exported(model, tmp_path, ".pt2", unroll=4, part="model")
    sampler = SpaceSampler(model.policy.observer.tree, 2)
    observation = sampler.draw((3, 4), model.policy.observer.tree.leaves)
    observation["legal"][:] = 1
    state, resets = model.initial_state(3), torch.rand(3, 4) < 0.3
    outputs = file({**observation, **state, "resets": resets})
    for t in range(4):
        step = {name: value[:, t] for name, value in observation.items()}
        logits, values, state = model(step, state, resets[:, t])
        for name in model.policy.logits_shapes:
            torch.testing.assert_close(
                torch.as_tensor(outputs[f"logits/{name}"][:, t]), logits[name], atol=1e-5, rtol=1e-5
            )
        np.testing.assert_allclose(outputs["value"][:, t], values["value"].detach(), atol=1e-5)
    for name, value in state.items():
        np.testing.assert_allclose(outputs[f"next/{name}"], value.detach(), atol=1e-5)


def test_a_critic_that_reads_the_policy_has_it_inside(tmp_path):
    file = exported(remembering(), tmp_path, ".pt2", part="critic")
    assert "value" in file.outputs
    assert not any(name.startswith(("logits", "action")) for name in file.outputs)
    assert "policy/memory/h" in file.inputs


def test_a_critic_of_actions_is_asked_about_one(tmp_path):
    model = composer.compose(CONFIGS / "twin_q.yaml", seed=0)
    file = exported(model, tmp_path, ".pt2", part="model")
    assert file.inputs == ["observation", "taken"]
    assert file.outputs == ["logits", "action", "q_value"]
    observation, action = np.ones((3, 3), np.float32), np.float32([[-2.0], [0.5], [1.5]])
    expected = model.critic(observation, model.policy.from_environment(action))["q_value"]
    outputs = file({"observation": observation, "taken": action})
    np.testing.assert_allclose(outputs["q_value"], expected.detach(), atol=1e-5)


def test_a_critic_of_choices_values_all_of_them(tmp_path):
    model = composer.compose(CONFIGS / "double_dqn.yaml", seed=0)
    file = exported(model, tmp_path, ".pt2", part="critic")
    assert (file.inputs, file.outputs) == (["observation"], ["action_q_values"])


def test_names_that_are_taken_by_observations_are_told_apart(tmp_path):
    spaces = {"observation_space": Dict(action=Box(-1, 1, (2,)), value=Box(-1, 1, (2,)))}
    spec = """
    version: 1
    policy:
      graph: {latent: {block: dense, in: action, hidden_units: 8}}
      heads: {in: latent}
    critic:
      graph: {latent: {block: dense, in: value, hidden_units: 8}}
    """
    file = exported(mlp(spec=spec, **spaces), tmp_path, ".onnx", part="model")
    assert file.inputs == ["action", "value"]
    assert file.outputs == ["logits", "output/action", "output/value"]


def test_names_that_torch_gives_to_what_it_generates_are_free_for_observations(tmp_path):
    """Among them those of operations, symbols and weights."""
    keys = ["relu", "linear", "s77", "axis_0", "val_0", "None", "0", "flat_args", "joint pos"]
    keys += ["weights/policy/latent/linears/0.weight", "input_1", "a.b:c-d"]
    model = composer.compose(
        {"version": 1, "policy": {"template": {}}},
        observation_space=Dict({key: Box(-1, 1, (2,)) for key in keys}),
        action_space=Dict(linear=Discrete(2), addmm=Discrete(3)),
        seed=0,
    )
    for suffix in READERS:
        (folder := tmp_path / suffix).mkdir()
        file = exported(model, folder, suffix)
        assert sorted(file.inputs) == sorted(keys)
        assert file.outputs == ["logits/linear", "logits/addmm", "action/linear", "action/addmm"]


def test_a_name_that_is_no_plain_one_is_a_number_and_the_report_tells_its_key(tmp_path):
    model = mlp(
        spec={"version": 1, "policy": {"template": {}}},
        observation_space=Dict({'a"b': Box(-1, 1, (2,)), "plain": Box(-1, 1, (2,))}),
        action_space=Dict({"a\nb": Discrete(2), "plain": Discrete(2)}),
    )
    report = model.export(tmp_path / "model.pt2")
    assert str(report).splitlines()[:8] == [
        "inputs",
        "  input_0 (batch, 2) float32, the observation 'a\"b'",
        "  plain (batch, 2) float32",
        "outputs",
        "  output_0 (batch, 2) float32, the logits 'a\\nb'",
        "  logits/plain (batch, 2) float32",
        "  output_2 (batch,) int64, the action 'a\\nb'",
        "  action/plain (batch,) int64",
    ]


def test_onnx_axes_are_called_as_in_the_report(tmp_path):
    file = exported(remembering(), tmp_path, ".onnx")
    for value in (*file.session.get_inputs(), *file.session.get_outputs()):
        told = {**file.metadata["inputs"], **file.metadata["outputs"]}[value.name]
        assert value.shape == told["shape"]
        assert value.shape[0] == "batch"


def test_a_users_tensor_that_exporters_would_write_into_code_is_refused(tmp_path):
    model = mlp()
    model.policy.latent.register_buffer('a"b', torch.zeros(1))
    assert message(model, str(tmp_path / "model.pt2")).partition("exported: ")[2] == (
        "'policy.latent' (DenseBlock) calls a tensor 'a\"b'; exporters generate code with that name, so leave quotes, backslashes "
        "and control characters out of it"
    )


def test_a_head_that_hands_its_input_through_has_a_name_of_its_own(tmp_path):
    spaces = {"observation_space": Box(-1, 1, (2,)), "action_space": Box(-np.inf, np.inf, (1,))}
    spec = """
    version: 1
    policy:
      graph: {same: {block: flatten, in: observation}}
      heads: {action: {in: same, block: flatten}}
    """
    file = exported(mlp(spec=spec, **spaces), tmp_path, ".onnx")
    assert (file.inputs, file.outputs) == (["observation"], ["logits", "action"])


def test_a_set_of_any_size_goes_in_padded_with_its_mask(tmp_path):
    spaces = {
        "observation_space": Dict(things=Sequence(Box(-1, 1, (2,)), stack=True)),
        "action_space": Discrete(3),
    }
    spec = """
    version: 1
    normalize: [things]
    policy:
      graph: {all: {block: deep_set, in: things, hidden_units: 8}}
      heads: {in: all}
    """
    model = mlp(spec=spec, **spaces)
    file = exported(model, tmp_path, ".onnx")
    assert file.inputs == ["things", "things:mask"]
    assert file.metadata["inputs"]["things"]["shape"] == ["batch", "things_mask", 2]
    for batch, size in ((1, 1), (4, 9)):
        things = np.random.default_rng(0).normal(size=(batch, size, 2)).astype(np.float32)
        inputs = {"things": things, "things:mask": np.arange(size) < np.full((batch, 1), size - 1)}
        expected = model.policy({k: torch.as_tensor(v) for k, v in inputs.items()})["action"]
        np.testing.assert_allclose(file(inputs)["logits"], expected.detach(), atol=1e-5)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_sets_whose_names_differ_in_signs_alone_have_lengths_of_their_own(tmp_path, ending):
    things = Sequence(Box(-1, 1, (2,), np.int8), stack=True)
    spaces = {"observation_space": Dict({"a": Dict(b=things), "a_b": things, "a.b": things})}
    spec = """
    version: 1
    policy:
      graph:
        slashed: {block: deep_set, in: a/b, hidden_units: 8}
        plain: {block: deep_set, in: a_b, hidden_units: 8}
        dotted: {block: deep_set, in: a.b, hidden_units: 8}
        all: {block: concat, in: [slashed, plain, dotted]}
      heads: {in: all}
    """
    model = mlp(spec=spec, **spaces)
    file = exported(model, tmp_path, ending)
    form = file.metadata["inputs"]
    shapes = [form[name]["shape"][1] for name in ("a.b", "a/b", "a_b")]
    assert sorted(shapes) == ["a_b_mask", "a_b_mask_2", "a_b_mask_3"]
    assert form["a/b:mask"]["shape"] == form["a/b"]["shape"][:2]
    assert form["a/b"]["dtype"] == "float32"
    inputs = {}
    for name, size in (("a/b", 3), ("a_b", 5), ("a.b", 2)):
        inputs[name] = np.ones((4, size, 2), np.float32)
        inputs[f"{name}:mask"] = np.ones((4, size), bool)
    expected = model.policy({k: torch.as_tensor(v) for k, v in inputs.items()})["action"]
    np.testing.assert_allclose(file(inputs)["logits"], expected.detach(), atol=1e-5)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_sets_of_bytes_and_in_tuples_are_exported(tmp_path, ending):
    space = Tuple([Sequence(Box(0, 255, (3,), np.uint8)), Box(-1, 1, (2,))])
    spec = "version: 1\npolicy: {template: {}}"
    file = exported(mlp(spec=spec, observation_space=space), tmp_path, ending)
    assert file.metadata["inputs"]["0"]["shape"] == ["batch", "_0_mask", 3]
    assert file.metadata["inputs"]["0"]["dtype"] == "uint8"


def test_a_file_says_what_it_is(tmp_path):
    file = exported(mlp(), tmp_path, ".onnx")
    assert file.metadata["part"] == "policy"
    assert file.metadata["inputs"]["observation"] == {
        "kind": "observation",
        "key": "observation",
        "shape": ["batch", 4],
        "dtype": "float32",
    }
    assert file.metadata["action_space"]["n"] == 2
    assert composer.compose(file.metadata["spec"], **mlp_spaces()).policy.logits_shapes


def mlp_spaces():
    return {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)}


def test_exporting_changes_nothing_in_the_model(tmp_path):
    model = mlp().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    model.export(tmp_path / "model.pt2")
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_kind
def test_a_pruned_layer_is_exported(suffix, tmp_path):
    model = mlp()
    layer = model.policy.get_submodule("latent").linears[0]
    prune.l1_unstructured(layer, "weight", amount=0.5)
    file = exported(model, tmp_path, suffix)
    observation = np.ones((2, 4), np.float32)
    logits = model.policy(observation)["action"].detach()
    np.testing.assert_allclose(file({"observation": observation})["logits"], logits, atol=1e-5)


@every_kind
def test_autocast_around_it_is_not_in_the_file(suffix, tmp_path):
    model = mlp()
    with torch.autocast("cpu", torch.bfloat16):
        file = exported(model, tmp_path, suffix)
    assert file({"observation": np.ones((2, 4), np.float32)})["logits"].dtype == np.float32


def test_narrow_weights_are_exported_as_float32(tmp_path):
    model = mlp(dtype=torch.bfloat16)
    file = exported(model, tmp_path, ".pt2")
    outputs = file({"observation": np.ones((2, 4), np.float32)})
    assert outputs["logits"].dtype == np.float32
    assert model.policy.dtype == torch.bfloat16


def test_samples_of_a_space_are_batches_in_its_own_dtypes():
    space = Dict(a=Discrete(3, start=2), b=Box(0, 255, (2, 2), np.uint8), c=Sequence(Discrete(4)))
    tree = flatten_space(space, "observation")
    drawn = SpaceSampler(tree, 0).draw((2, 3), tree.leaves)
    assert {key: value.dtype for key, value in drawn.items()} == {
        "a": torch.int64,
        "b": torch.uint8,
        "c": torch.int64,
        "c:mask": torch.bool,
    }
    assert drawn["b"].shape == (2, 3, 2, 2)
    assert int(drawn["a"].min()) >= 2
    again = SpaceSampler(tree, 0).draw((2, 3), tree.leaves)
    assert all(torch.equal(value, again[key]) for key, value in drawn.items())


# --- the command line ---


def test_a_checkpoint_is_exported_with_its_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = composer.compose(CONFIGS / "cartpole.yaml", seed=3)
    model.save("agent.safetensors")
    assert main(["export", "agent.safetensors", "-o", "agent.pt2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.fullmatch(
        r"inputs\n  observation \(batch, 4\) float32\n"
        r"outputs\n  logits \(batch, 2\) float32\n  action \(batch,\) int64\n"
        r"50 steps with batches of 1, 2 and 7: at most \S+ from the model\nwrote agent.pt2\n",
        out,
    )
    outputs = ProgramFile("agent.pt2")({"observation": np.ones((1, 4), np.float32)})
    logits = model.policy(np.ones((1, 4), np.float32))["action"].detach().numpy()
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5)


def test_a_spec_is_exported_with_weights_that_are_not_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.yaml").write_text((CONFIGS / "cartpole.yaml").read_text())
    command = ["export", "agent.yaml", "-o", "agent.pt2", "--part", "critic"]
    assert main(command) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "agent.yaml is no checkpoint: its weights are initial ones, not trained"


def test_what_cannot_be_exported_is_answered_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.yaml").write_text((CONFIGS / "cartpole.yaml").read_text())
    assert main(["export", "agent.yaml", "-o", "agent.tflite"]) == 1
    out, err = capsys.readouterr()
    expected = "'agent.tflite' must end in .onnx or .pt2, which says what kind of file it is"
    assert (out, err) == ("", f"composer export: {expected}\n")


# --- every example ---


def config(path, monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    return composer.compose(path, allow=MODULES, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("part", ["policy", "critic", "model"])
@every_kind
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_config_is_exported(path, suffix, part, tmp_path, monkeypatch):
    model = config(path, monkeypatch)
    if part != "policy" and model.critic is None:
        assert "needs a critic, and the spec has none" in message(
            model, tmp_path / "a.pt2", part=part
        )
        return
    exported(model, tmp_path, suffix, part=part)
    if model.has_memory:
        exported(model, tmp_path, suffix, part=part, unroll=3)


def test_a_file_plays_its_environment(tmp_path):
    model = composer.compose(CONFIGS / "continuous.yaml", seed=0)
    file = exported(model, tmp_path, ".pt2")
    env = gymnasium.make("Pendulum-v1")
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        action = file({"observation": observation[None]})["action"][0]
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)
    env.close()
