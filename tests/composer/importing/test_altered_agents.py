"""Agents of Stable-Baselines3 that somebody has altered: each is a line in a moment, and nothing of it runs."""

import io
import json
import zipfile

import gymnasium
import pytest
import torch
from gymnasium.spaces import Discrete
from sb3_contrib import QRDQN, TQC, CrossQ

import composer
from composer.importing import read_checkpoint
from composer.importing.sb3_spaces import observations_of
from tests.composer.importing.test_sb3 import PUSH, VECTOR, Env


def altered(folder, algorithm, change, *, use_sde=False):
    """An agent whose JSON and tensors ``change`` has altered; the result, or the message of what is refused."""
    actions = Discrete(3) if algorithm is QRDQN else PUSH
    more = {"use_sde": True} if use_sde else {}
    agent = algorithm("MlpPolicy", Env(VECTOR, actions), policy_kwargs={"net_arch": [4]}, **more)
    agent.save(folder / "saved.zip")
    with zipfile.ZipFile(folder / "saved.zip") as archive:
        data = json.loads(archive.read("data"))
        state = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    change(data, state)
    written = io.BytesIO()
    torch.save(state, written)
    with zipfile.ZipFile(folder / "agent.zip", "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", written.getvalue())
    try:
        result = composer.import_config(folder / "agent.zip")
        model = composer.compose(
            result.spec, observation_space=VECTOR, action_space=actions, device="cpu"
        )
        tensors = read_checkpoint(folder / "agent.zip").tensors
        return str(composer.adopt_weights(model, tensors, result.weights))
    except ValueError as error:
        return str(error).replace(f"{folder}/", "")


def shorter(end):
    """Leaves out the last number of what is called so."""
    return lambda data, state: state.update(
        {name: tensor[:-1] for name, tensor in state.items() if name.endswith(end)}
    )


UNREAD = "observation_space: the text of the space cannot be read"
DICT = {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}


@pytest.mark.parametrize(
    ("algorithm", "change", "message"),
    [
        (TQC, shorter("bias"), "(3,) in the file"),
        (CrossQ, shorter("ra_mean"), "policy.norm_0.running_mean is (4,) in the file"),
        (CrossQ, shorter("ra_var"), "policy.norm_0.running_var is (4,) in the file"),
        (CrossQ, shorter("scale"), "policy.norm_0.weight is (4,) in the file"),
        (
            QRDQN,
            lambda d, s: s.update({f"quantile_net.quantile_net.{'9' * 5000}.weight": torch.ones(2)}),
            "not used: 'quantile_net.quantile_net.999",
        ),
        (QRDQN, lambda d, s: s.update({n: t.to(torch.complex64) for n, t in s.items()}), "complex64"),
        (QRDQN, lambda d, s: d.update(n_quantiles=7), "policy.heads.action.linear.weight (3, 4) is not in the file"),
        (
            TQC,
            lambda d, s: d["action_space"].update(low="[0. 0.]", high="[0. 0.]"),
            "the bounds of the actions, which its Q functions scale, are equal or infinite",
        ),
        (TQC, lambda d, s: d["action_space"].update(_shape=[10**4000] * 900), "cannot be read"),
        (TQC, lambda d, s: d["observation_space"].update(_shape=[-1]), UNREAD),
        (TQC, lambda d, s: d["observation_space"].update({":type:": "<class '" + "a" * 900_000}), UNREAD),
        (TQC, lambda d, s: d["observation_space"].update(DICT, spaces="'\\" * 400_000), UNREAD),
        (TQC, lambda d, s: d["observation_space"].update(DICT, spaces="{}"), UNREAD),
        (
            TQC,
            lambda d, s: d["observation_space"].update(DICT, spaces=f"{{'a': Discrete({'9' * 5000})}}"),
            "reads 'a', which is neither an input nor a node's output",
        ),
        (
            TQC,
            lambda d, s: d["observation_space"].update(DICT, spaces=f"{{'a': MultiBinary({'9 ' * 400_000})}}"),
            "reads 'a', which is neither an input nor a node's output",
        ),
        (
            CrossQ,
            lambda d, s: d["policy_kwargs"].update(batch_norm_eps=-1),
            "batch_norm_eps: must be a number of at least 0 and at most 1, got the number -1",
        ),
        (
            TQC,
            lambda d, s: d["policy_kwargs"].update(net_arch=[2**31]),
            "net_arch: must be a list of sizes, or {pi: [...], qf: [...]}, got a list",
        ),
    ],
)  # fmt: skip
def test_an_altered_agent_is_a_line(algorithm, change, message, tmp_path):
    assert message in altered(tmp_path, algorithm, change)


def test_noise_of_an_agent_cannot_fill_the_memory(tmp_path):
    def change(data, state):
        state["actor.log_std"] = torch.zeros(10**6, 0)

    message = "agent.zip:1:1: its 'actor.log_std' is of more than 10,000 features"
    assert altered(tmp_path, TQC, change, use_sde=True) == message


def test_deviations_are_within_the_range_of_ours(tmp_path):
    said = altered(
        tmp_path, TQC, lambda d, s: d["policy_kwargs"].update(log_std_init=3), use_sde=True
    )
    assert said == (
        "agent.zip: policy_kwargs.log_std_init: must be a number of at least -20 and at most 2, got the number 3"
    )


@pytest.mark.parametrize("key", ["it's", 'a"b', 'it\'s a "b"', "a\\b", "line\nbreak", "${x}", "é"])
def test_observations_are_called_as_python_writes_them(key):
    space = gymnasium.spaces.Dict({key: VECTOR, "arm": gymnasium.spaces.Discrete(3)})
    text = {":type:": "<class 'gymnasium.spaces.dict.Dict'>", "spaces": str(space.spaces)}
    assert [seen.key for seen in observations_of(text) or []] == [*space]


@pytest.mark.parametrize("key", [r"'\ud800'", r"'\x'", "'\0'"])
def test_an_observation_that_nobody_can_name_is_not_read(key):
    text = {":type:": "<class 'gymnasium.spaces.dict.Dict'>", "spaces": f"{{{key}: Discrete(3)}}"}
    assert observations_of(text) is None
