"""What VecNormalize saved becomes `normalize:`; its pickle is read, and nothing in it runs."""

import contextlib
import os
import pickle
import random
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import composer
from composer.cli.commands import main
from composer.errors import SpecError
from composer.importing import import_config, read_checkpoint
from composer.importing.inert_pickle import Array, InertObject, array_of, read_inert
from composer.importing.sb3_statistics import read_vec_normalize
from tests.composer.importing.test_sb3 import CHOICE, PUSH, VECTOR, Env, close, samples

PLACES = Dict({"arm-1": Box(-9, 9, (3,)), "latent": Box(-9, 9, (2, 2)), "mode": Discrete(3)})


def normalized(folder, algorithm, policy, observations, actions, **settings):
    """An agent, trained on what VecNormalize gives, and both files."""
    env = VecNormalize(DummyVecEnv([lambda: Env(observations, actions)]), **settings)
    more = {"n_steps": 64} if algorithm is PPO else {"buffer_size": 10}
    agent = algorithm(policy, env, seed=0, device="cpu", **more)
    env.reset()
    for _ in range(20):
        env.step(np.stack([actions.sample()]))
    env.training = False
    agent.policy.set_training_mode(False)
    agent.save(folder / "agent.zip")
    env.save(folder / "vecnormalize.pkl")
    return agent, env


CASES = {
    "vector": (PPO, "MlpPolicy", VECTOR, CHOICE, {}),
    "epsilon": (PPO, "MlpPolicy", VECTOR, PUSH, {"epsilon": 0.5, "clip_obs": 9.0}),
    "sac": (SAC, "MlpPolicy", VECTOR, PUSH, {"norm_reward": False}),
    "keys": (PPO, "MultiInputPolicy", PLACES, CHOICE, {"norm_obs_keys": ["arm-1", "latent"]}),
    "one key": (PPO, "MultiInputPolicy", PLACES, PUSH, {"norm_obs_keys": ["latent"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_agent_behind_vec_normalize(name, tmp_path):
    algorithm, policy, observations, actions, settings = CASES[name]
    agent, env = normalized(tmp_path, algorithm, policy, observations, actions, **settings)
    file = tmp_path / "vecnormalize.pkl"
    imported = import_config(tmp_path / "agent.zip", statistics=file)
    is_dict = isinstance(observations, Dict)
    assert imported.spec["normalize"] == (settings["norm_obs_keys"] if is_dict else ["observation"])
    model = composer.compose(
        imported.spec, observation_space=observations, action_space=actions
    ).eval()
    tensors = read_checkpoint(tmp_path / "agent.zip").tensors | read_checkpoint(file).tensors
    report = composer.adopt_weights(model, tensors, imported.weights, strict=True)
    assert report.skipped == []
    seen = samples(observations)
    x, _ = agent.policy.obs_to_tensor(env.normalize_obs(seen))
    with torch.no_grad():
        if algorithm is PPO:
            close(model(seen)[1]["value"], agent.policy.predict_values(x))
        else:
            close(model.policy(seen)["action"][..., :2], agent.actor.get_action_dist_params(x)[0])
    clipped = "clip_obs: clipped at 9 standard deviations there, at 10 here"
    assert (clipped in imported.notes) == (name == "epsilon")


def test_the_command_takes_both_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    import gymnasium

    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    agent = PPO("MlpPolicy", env, n_steps=64, seed=0)
    agent.learn(64)
    agent.save("agent.zip")
    env.save("vecnormalize.pkl")
    arguments = ["import", "agent.zip", "--statistics", "vecnormalize.pkl", "--env", "CartPole-v1"]
    assert main([*arguments, "-o", "cartpole.safetensors"]) == 0
    assert "tensors loaded, 0 differences" in capsys.readouterr().out
    model = composer.load("cartpole.safetensors")
    seen = np.float32([[1, 2, 0.1, -1], [0, 0, 0, 0]])
    normed = torch.as_tensor(env.normalize_obs(seen))
    close(
        model.critic.value(torch.as_tensor(seen)), agent.policy.predict_values(normed).squeeze(-1)
    )


def test_an_entry_of_the_zoo_takes_statistics_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    normalized(tmp_path, PPO, "MultiInputPolicy", PLACES, PUSH, norm_obs_keys=["arm-1"])
    (tmp_path / "ppo.yml").write_text(
        "A: {policy: MultiInputPolicy, n_timesteps: 9, normalize: true}\n"
    )
    imported = import_config("ppo.yml", statistics="vecnormalize.pkl")
    assert imported.spec["normalize"] == ["arm-1"]
    assert not any(note.startswith("normalize:") for note in imported.notes)
    assert ("policy.normalizers.arm-1", "obs_rms.arm-1") in imported.weights


# --- what is refused ---


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile_was_here",))


def said(path="vecnormalize.pkl", file="agent.zip"):
    with pytest.raises(SpecError) as caught:
        import_config(file, statistics=path)
    return str(caught.value)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    normalized(tmp_path, PPO, "MlpPolicy", VECTOR, CHOICE)
    return tmp_path


def test_files_that_are_no_statistics(in_folder):
    good = (in_folder / "vecnormalize.pkl").read_bytes()
    where = "vecnormalize.pkl:1:1: "

    def told(data):
        (in_folder / "vecnormalize.pkl").write_bytes(data)
        return said()

    saved = "it is no file that VecNormalize of Stable-Baselines3 saved"
    assert told(b"") == f"{where}it cannot be read: it is damaged"
    assert told(good[:-200]).startswith(f"{where}it cannot be read: ")
    assert told(pickle.dumps({"mean": 1})) == where + saved
    assert told(pickle.dumps(Hostile())) == where + saved
    assert told(pickle.dumps([1], 0)) == f"{where}it cannot be read: its step PUT is not read"
    assert told(b"\x80\x04\x95" + b"K\x01" * 400_000 + b".").startswith(
        f"{where}it cannot be read: "
    )
    assert (
        told(b"\x80\x04" + b"N0" * 200_000 + b"N.")
        == f"{where}it cannot be read: it has more than 300,000 steps"
    )
    assert told(good.replace(b"RunningMeanStd", b"RunningMeanSte")) == (
        f"{where}the statistics of 'observation' are no arrays of numbers"
    )
    assert said("nothing.pkl") == "there is no file 'nothing.pkl'"
    assert not os.path.exists("hostile_was_here")


def test_statistics_of_rewards_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    normalized(tmp_path, PPO, "MlpPolicy", VECTOR, CHOICE, norm_obs=False)
    assert said() == (
        "vecnormalize.pkl:1:1: it has no statistics of observations: norm_obs is false there; leave it out"
    )


def test_a_network_of_another_library_has_no_such_statistics(in_folder):
    (in_folder / "walker.yaml").write_text("behaviors: {Walker: {trainer_type: ppo}}\n")
    assert said(file="walker.yaml") == (
        "vecnormalize.pkl:1:1: statistics of VecNormalize go with networks of Stable-Baselines3, not of mlagents"
    )


def test_hostile_objects_among_the_statistics_are_inert(in_folder):
    """Whatever stands beside the numbers is only a name."""
    env = VecNormalize(DummyVecEnv([lambda: Env(VECTOR, CHOICE)]))
    env.evil, env.ret_rms = Hostile(), Hostile()
    env.save("vecnormalize.pkl")
    assert b"touch hostile" in (in_folder / "vecnormalize.pkl").read_bytes()
    imported = import_config("agent.zip", statistics="vecnormalize.pkl")
    assert imported.spec["normalize"] == ["observation"]
    assert read_checkpoint("vecnormalize.pkl").tensors["obs_rms.mean"].shape == (5,)
    env.obs_rms = Hostile()
    env.save("vecnormalize.pkl")
    assert (
        said() == "vecnormalize.pkl:1:1: the statistics of 'observation' are no arrays of numbers"
    )
    assert not os.path.exists("hostile_was_here")


NUMBERS = "the statistics of 'observation' are numbers that no observations have"
SIZE = "the statistics of 'observation' are no arrays of numbers"
ODD = {
    "epsilon": ({"epsilon": 10**400}, "'epsilon' in it is no number"),
    "text": ({"epsilon": "1"}, "'epsilon' in it is no number"),
    "clip": ({"clip_obs": float("nan")}, "'clip_obs' in it is no number"),
    "signs": (
        {"epsilon": -1.0, "clip_obs": 0.0},
        "its 'epsilon' is -1 and its 'clip_obs' 0; no observations are normalised so",
    ),
    "count": ({"count": 10**400}, "'count' in it is no number"),
    "negative": ({"count": -4.0}, NUMBERS),
    "mean": ({"mean": np.full(5, np.nan)}, NUMBERS),
    "variance": ({"var": np.full(5, -1.0)}, NUMBERS),
    "infinite": ({"var": np.full(5, np.inf)}, NUMBERS),
    "sizes": ({"mean": np.zeros((0, 2**40)), "var": np.zeros((0, 2**40))}, SIZE),
    "numbers": (
        {"mean": np.zeros(2_000_001, "f4"), "var": np.zeros(2_000_001, "f4")},
        "it has an array of more than 2,000,000 numbers",
    ),
    "names": ({"obs_rms": {10**5000: None}}, "an observation in it has a name that is no text"),
    "keys": (
        {"obs_rms": dict.fromkeys(map(str, range(1001)))},
        "it has statistics of more than 1,000 observations",
    ),
    "a long name": (
        {"obs_rms": {"k" * 9999: None}},
        f"the statistics of '{'k' * 57}...' are no arrays of numbers",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_statistics_are_refused_in_words(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes, message = ODD[name]
    env = VecNormalize(DummyVecEnv([lambda: Env(VECTOR, CHOICE)]))
    for key, value in changes.items():
        setattr(env.obs_rms if key in ("count", "mean", "var") else env, key, value)
    env.save("vecnormalize.pkl")
    with pytest.raises(SpecError) as caught:
        read_checkpoint("vecnormalize.pkl")
    assert str(caught.value) == f"vecnormalize.pkl:1:1: {message}"


def test_many_arrays_in_few_bytes_take_no_memory(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: Env(VECTOR, CHOICE)]))
    env.obs_rms.mean = env.obs_rms.var = np.zeros(150_000)
    env.obs_rms = dict.fromkeys(map(str, range(900)), env.obs_rms)
    env.save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(SpecError, match=r"it has statistics of more than 2,000,000 numbers$"):
        read_checkpoint(tmp_path / "vecnormalize.pkl")


def test_numbers_of_numpy_are_read(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: Env(VECTOR, CHOICE)]))
    env.epsilon, env.clip_obs = np.float64(0.5), np.float32(5)
    env.save(tmp_path / "vecnormalize.pkl")
    saved = read_vec_normalize(tmp_path / "vecnormalize.pkl")
    assert (saved.epsilon, saved.clip) == (0.5, 5.0)


def test_few_bytes_that_would_be_large_take_no_time():
    doubled = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(40))
    deep = b"N" + b"\x85" * 50_000
    for data in (doubled, deep):
        with pytest.raises(ValueError, match="damaged"):  # a name that is no text
            read_inert(b"\x80\x04" + data + b"X\x01\x00\x00\x00x\x93.")
    size = 2**100_000
    dtype = InertObject("numpy.dtype", ("f8",))
    for shape in ((size,) * 100_000, (0, size), (1,) * 1000):
        state = (1, shape, dtype, False, b"")
        assert array_of(InertObject("numpy._core.multiarray._reconstruct", (), state)) is None


def test_a_spec_that_no_file_can_hold_is_not_written(in_folder, capsys):
    env = VecNormalize(DummyVecEnv([lambda: Env(VECTOR, CHOICE)]))
    env.obs_rms = {"k" * 2_000_000: env.obs_rms}
    env.save("vecnormalize.pkl")
    command = ["import", "agent.zip", "--statistics", "vecnormalize.pkl", "-o", "out.yaml"]
    assert main(command) == 1
    assert capsys.readouterr().err == (
        "agent.zip:1:1: the spec would be larger than 1,048,576 bytes, too large for a spec\n"
    )
    assert not os.path.exists("out.yaml")


def test_a_pipe_does_not_block(in_folder, capsys):
    os.mkfifo("pipe")
    for arguments in (
        ["pipe", "-o", "out.safetensors"],
        ["agent.zip", "--statistics", "pipe"],
        ["agent.zip", "--env", "CartPole-v1", "--weights", "pipe", "-o", "out.safetensors"],
    ):
        with contextlib.suppress(SystemExit):
            assert main(["import", *arguments]) == 1
        assert capsys.readouterr().out == ""


def test_damaged_files_are_a_line(in_folder):
    good = (in_folder / "vecnormalize.pkl").read_bytes()
    chosen = random.Random(0)
    for _ in range(100):
        data = bytearray(good)
        for _ in range(chosen.randint(1, 3)):
            data[chosen.randrange(len(data))] = chosen.randrange(256)
        (in_folder / "vecnormalize.pkl").write_bytes(
            data[: chosen.choice([len(data), chosen.randrange(len(data))])]
        )
        with contextlib.suppress(SpecError):
            import_config("agent.zip", statistics="vecnormalize.pkl")
    assert sorted(os.listdir()) == ["agent.zip", "vecnormalize.pkl"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_unpickling_does(protocol):
    value = {
        "a": [1, -2, 2**40, 2**80, 1.5, True, None],
        "b": ("x" * 300, (), (1,), {"y": [[]]}),
        "c": "ä",
    }
    assert read_inert(pickle.dumps(value, protocol)) == value
    if protocol > 2:
        assert read_inert(pickle.dumps([b"bytes", b"x" * 300], protocol)) == [b"bytes", b"x" * 300]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<i8", ">i4"])
def test_arrays_are_read_as_unpickling_does(protocol, dtype):
    for array in (
        np.arange(6).reshape(2, 3),
        np.zeros((0, 2)),
        np.array([-1.5]),
        np.arange(6)[::2],
    ):
        given = array.astype(dtype)
        read = array_of(read_inert(pickle.dumps(given, protocol)))
        assert read == Array(tuple(given.ravel().tolist()), given.shape)


def test_other_arrays_are_none():
    for array in (
        np.array(["text"]),
        np.array([True]),
        np.array([1j]),
        np.asfortranarray(np.ones((2, 3))),
    ):
        assert array_of(read_inert(pickle.dumps(array, 4))) is None
    assert array_of(1) is None
    assert (
        array_of(
            InertObject(
                "numpy._core.multiarray._reconstruct",
                (),
                (1, (2**62,), InertObject("numpy.dtype", ("f8",)), False, b""),
            )
        )
        is None
    )


def test_objects_are_names():
    read = read_inert(pickle.dumps(OrderedDict(a=1), 4))
    assert (read.name, read.arguments) == ("collections.OrderedDict", ())
    evil = read_inert(pickle.dumps(Hostile(), 4))
    assert (evil.name, evil.arguments) == (f"{os.name}.system", ("touch hostile_was_here",))
    for data in (
        b"\x80\x04\x82\x01.",
        b"\x80\x04P1\n.",
        b"\x80\x04Nb.",
        b"\x80\x04h\x05.",
        b"(",
    ):
        with pytest.raises(ValueError, match=r"damaged|not read"):
            read_inert(data)
    with pytest.raises(ValueError, match="damaged"):
        read_inert(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.")
