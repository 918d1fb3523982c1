"""adopt_weights: the tensors of another library in a model, by pairs of names; and the files that they are read from."""

import os
import re
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from safetensors.torch import save_file
from torch import nn

import composer
from composer.checkpoint.container import CheckpointError
from composer.importing.checkpoints import read_checkpoint

SEEN, ACTION = 6, 3
VECTOR = {"observation_space": Box(-9, 9, (SEEN,)), "action_space": Discrete(ACTION)}
IMAGE = {"observation_space": Box(0, 1, (2, 12, 12)), "action_space": Discrete(ACTION)}


def policy(last="latent", **graph):
    return {"version": 1, "policy": {"graph": graph, "heads": {"in": last}}}


def node(block, read="observation", **settings):
    return {"block": block, "in": read, **settings}


class Recurrent(nn.Module):
    """A recurrent layer of torch over one step, and a linear one."""

    def __init__(self, kind, layers):
        super().__init__()
        self.rnn = kind(SEEN, 5, num_layers=layers)
        self.out = nn.Linear(5, ACTION)

    def forward(self, x):
        return self.out(self.rnn(x[None])[0][0])


class D2rl(nn.Module):
    """Each layer but the first reads the observation, too."""

    def __init__(self):
        super().__init__()
        sizes = [(SEEN, 8), (8 + SEEN, 7), (7 + SEEN, 5)]
        self.linears = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.out = nn.Linear(5, ACTION)

    def forward(self, x):
        y = torch.tanh(self.linears[0](x))
        for linear in self.linears[1:]:
            y = torch.tanh(linear(torch.cat([y, x], -1)))
        return self.out(y)


D2RL = policy(
    "layer_2",
    layer_0=node("dense", hidden_units=8, activation="tanh"),
    with_1=node("concat", ["layer_0", "observation"]),
    layer_1=node("dense", "with_1", hidden_units=7, activation="tanh"),
    with_2=node("concat", ["layer_1", "observation"]),
    layer_2=node("dense", "with_2", hidden_units=5, activation="tanh"),
)
MLP = policy(latent=node("dense", hidden_units=[8, 5], activation="elu"))
CNN = policy(
    "features",
    conv=node("strided_conv", hidden_channels=[4, 8], hidden_kernels=[4, 3], strides=[2, 1]),
    features=node("flatten", "conv"),
)
HEAD = "policy.heads.action.linear"
CASES = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(SEEN, 8), nn.ELU(), nn.Linear(8, 5), nn.ELU(), nn.Linear(5, ACTION)
        ),
        MLP,
        [("policy.latent.linears.0", "0"), ("policy.latent.linears.1", "2"), (HEAD, "4")],
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(72, ACTION),
        ),
        CNN,
        [("policy.conv.convs.0", "0"), ("policy.conv.convs.1", "2"), (HEAD, "5")],
    ),
    "lstm": (
        lambda: Recurrent(nn.LSTM, 2),
        policy("memory", memory=node("lstm", hidden_units=5, num_layers=2)),
        [("policy.memory.layers.0", "rnn#0"), ("policy.memory.layers.1", "rnn#1"), (HEAD, "out")],
    ),
    "gru": (
        lambda: Recurrent(nn.GRU, 1),
        policy("memory", memory=node("gru", hidden_units=5)),
        [("policy.memory.layers.0", "rnn"), (HEAD, "out")],
    ),
    "d2rl": (
        D2rl,
        D2RL,
        [*((f"policy.layer_{i}.linears.0", f"linears.{i}") for i in range(3)), (HEAD, "out")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_outputs_are_those_of_the_other_network(name):
    make, spec, pairs = CASES[name]
    torch.manual_seed(1)
    theirs, spaces = make(), IMAGE if name == "cnn" else VECTOR
    model = composer.compose(spec, **spaces, seed=0)
    report = composer.adopt_weights(model, theirs.state_dict(), pairs, strict=True)
    assert report.skipped == []
    assert set(report.loaded) == {*model.state_dict()}
    x = torch.rand(7, *spaces["observation_space"].shape)
    ours = model.policy(x, model.policy.initial_state(7)) if model.has_memory else model.policy(x)
    logits = ours[0]["action"] if model.has_memory else ours["action"]
    torch.testing.assert_close(logits, theirs(x), rtol=1e-5, atol=1e-5)


LINEAR = {"version": 1, "policy": {"graph": {"x": node("flatten")}, "heads": {"in": "x"}}}


def test_what_may_happen_to_a_tensor_on_the_way():
    model = composer.compose(LINEAR, **VECTOR)
    kernel, rest = torch.randn(SEEN, ACTION), torch.randn(5)
    pairs = [(f"{HEAD}.weight", "transposed(kernel)"), (f"{HEAD}.bias", "log(std)+rest[3:]")]
    tensors = {"kernel": kernel, "std": torch.ones(1), "rest": rest, "step": torch.zeros(())}
    report = composer.adopt_weights(model, tensors, pairs, strict=True)
    head = model.policy.get_submodule("heads.action.linear")
    assert torch.equal(head.weight, kernel.T)
    assert torch.equal(head.bias, torch.cat([torch.zeros(1), rest[3:]]))
    assert str(report) == "2 tensors loaded, 1 difference\n  not used: 'step'"


def test_heads_with_numbers_are_one_below_the_other():
    model = composer.compose(LINEAR, **VECTOR)
    heads = nn.ModuleList([nn.Linear(SEEN, 1), nn.Linear(SEEN, 2)])
    theirs = nn.ModuleDict({"logits": heads}).state_dict()
    composer.adopt_weights(model, theirs, [(HEAD, "logits.*")], strict=True)
    x = torch.randn(2, SEEN)
    torch.testing.assert_close(
        model.policy(x)["action"], torch.cat([head(x) for head in heads], -1)
    )


def refusal(tensors, pairs, **keywords):
    model = composer.compose(MLP, **VECTOR)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        composer.adopt_weights(model, tensors, pairs, **keywords)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    return str(caught.value)


def test_every_tensor_that_is_not_met_is_named():
    tensors = nn.Sequential(nn.Linear(SEEN, 8), nn.Linear(9, 5)).state_dict() | {
        "extra": torch.zeros(2)
    }
    pairs = [*CASES["mlp"][2][:1], ("policy.latent.linears.1", "1"), (HEAD, "mu")]
    assert refusal(tensors, pairs, strict=True) == (
        "the weights do not fit this model; strict=False takes over what fits\n"
        "  policy.latent.linears.1.weight is (5, 9) in the file, as '1.weight', the model needs (5, 8)\n"
        "  policy.heads.action.linear.weight (3, 5) is not in the file, as 'mu.weight'\n"
        "  policy.heads.action.linear.bias (3,) is not in the file, as 'mu.bias'"
    )
    report = composer.adopt_weights(composer.compose(MLP, **VECTOR), tensors, pairs)
    assert report.loaded == ["policy.latent.linears.0.weight", "policy.latent.linears.0.bias"]
    assert report.skipped[-2:] == [
        "policy.latent.linears.1.bias (5,) fits, but not all of 'policy.latent.linears.1' does",
        "not used: 'extra'",
    ]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            ("policy.laten", "0"),
            "the model has no tensor or module 'policy.laten'; did you mean 'policy.latent'?",
        ),
        (
            (HEAD, "exp(0"),
            "'exp(0' is no name of a tensor; others are 'rnn#1', 'log(std)', 'transposed(kernel)', 'qkv[0:64]' and, one "
            "below the other, 'mu+sigma'",
        ),
        (
            (HEAD, "0+1"),
            "'0+1' cannot be one below the other for 'policy.heads.action.linear.weight': (8, 6), (5, 8)",
        ),
    ],
)
def test_a_pair_that_cannot_be(pair, message):
    tensors = nn.Sequential(nn.Linear(SEEN, 8), nn.Linear(8, 5)).state_dict()
    assert refusal(tensors, [pair]) == message


def test_weights_that_are_nan_or_of_another_network_are_refused():
    tensors = {"0.weight": torch.full((8, SEEN), float("nan")), "0.bias": torch.zeros(8)}
    pairs = [("policy.latent.linears.0", "0")]
    assert refusal(tensors, pairs) == (
        "the weights are NaN at '0.weight': their training has failed; take those of an earlier step"
    )
    assert refusal({"a": torch.zeros(1)}, []).startswith(
        "nothing of the weights fits: they are of another network\n  policy.latent.linears.0.weight (8, 6) is not"
    )
    assert refusal({"a": torch.zeros(1).to_sparse()}, []) == (
        "the weights hold what is no dense tensor of the CPU at 'a'; leave it out"
    )


# --- running statistics ---

NORMALIZED = {**MLP, "normalize": ["observation"]}
MEAN, VAR = torch.linspace(-3, 3, SEEN).double() / 3, torch.linspace(0.1, 2, SEEN).double()
STATISTICS = {
    "rl_games": (
        {"running_mean": MEAN, "running_var": VAR, "count": torch.tensor(9.0)},
        lambda x: (x - MEAN) / (VAR + 1e-5).sqrt(),
    ),
    "skrl": (
        {
            "running_mean": MEAN,
            "running_variance": VAR,
            "current_count": torch.tensor(9.0),
        },
        lambda x: (x - MEAN) / (VAR.sqrt() + 1e-8),
    ),
    "rsl_rl": (
        {
            "_mean": MEAN[None],
            "_var": VAR[None],
            "_std": VAR.sqrt()[None],
            "count": torch.tensor(9),
        },
        lambda x: (x - MEAN) / (VAR.sqrt() + 1e-2),
    ),
}


@pytest.mark.parametrize("library", STATISTICS)
def test_running_statistics_are_taken_over(library):
    tensors, expected = STATISTICS[library]
    model = composer.compose(NORMALIZED, **VECTOR)
    pairs = [("policy.normalizers.observation", "stats")]
    named = {f"stats.{name}": tensor for name, tensor in tensors.items()}
    report = composer.adopt_weights(model, named, pairs)
    assert "policy.normalizers.observation.var_rest" in report.loaded
    assert not any("not used" in line for line in report.skipped)
    block = model.policy.observer.normalizers["observation"]
    x = MEAN.float() + torch.linspace(-2, 2, 5)[:, None]  # none is clipped
    torch.testing.assert_close(block(x), expected(x).float(), rtol=1e-5, atol=1e-5)
    assert block.count.item() == 9
    torch.testing.assert_close(block.moments().mean, MEAN, rtol=1e-12, atol=1e-12)


def test_statistics_that_are_missing_or_of_another_shape_are_named():
    model = composer.compose(NORMALIZED, **VECTOR)
    pairs = [("policy.normalizers.observation", "stats"), ("policy.latent.linears.0", "0")]
    tensors = nn.Sequential(nn.Linear(SEEN, 8)).state_dict()
    report = composer.adopt_weights(model, tensors, pairs)
    line = "policy.normalizers.observation.mean (6,) is not in the file, as 'stats'"
    assert line in report.skipped
    wrong = {"stats.running_mean": MEAN[:2], "stats.running_var": VAR[:2]}
    report = composer.adopt_weights(model, {**tensors, **wrong}, pairs)
    line = (
        "policy.normalizers.observation.mean is (2,) in the file, as 'stats', the model needs (6,)"
    )
    assert line in report.skipped


@pytest.mark.parametrize(
    "wrong",
    [
        {"running_mean": MEAN.to(torch.complex64)},
        {"count": torch.zeros(2)},
        {"count": torch.tensor(torch.nan)},
    ],
)
def test_what_is_no_running_statistics_is_refused(wrong):
    model = composer.compose(NORMALIZED, **VECTOR)
    statistics = {"running_mean": MEAN, "running_var": VAR, "count": torch.tensor(9.0), **wrong}
    tensors = {f"stats.{name}": tensor for name, tensor in statistics.items()}
    with pytest.raises(CheckpointError) as caught:
        composer.adopt_weights(model, tensors, [("policy.normalizers.observation", "stats")])
    message = "'stats' holds no running statistics: real numbers, and how many they are of"
    assert str(caught.value) == message


# --- files ---


def same_below(width, levels):
    """Mappings, each of which holds the same one many times: few bytes, and very many names."""
    below: object = torch.zeros(1)
    for _ in range(levels):
        below = {str(number): below for number in range(width)}
    return below


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile_was_here",))


def checkpoint_of_rl_games():
    return {
        "model": {"a2c_network.mu.weight": torch.ones(2, 3)},
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
        "last_mean_rewards": np.float64(3.5),
        "env_state": np.arange(3),
    }


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_checkpoint_with_numbers_of_numpy_is_read(is_zip, tmp_path):
    path = tmp_path / "last.pth"
    torch.save(checkpoint_of_rl_games(), path, _use_new_zipfile_serialization=is_zip)
    weights = read_checkpoint(path)
    assert {name: tuple(t.shape) for name, t in weights.tensors.items()} == {
        "model.a2c_network.mu.weight": (2, 3)
    }
    assert weights.others == ["epoch", "optimizer", "last_mean_rewards", "env_state"]


@pytest.mark.parametrize("is_zip", [True, False])
def test_nothing_of_a_checkpoint_is_executed(is_zip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {**checkpoint_of_rl_games(), "env_state": Hostile()}
    torch.save(content, "last.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("last.pth")
    assert str(caught.value) == (
        "'last.pth' cannot be read: it holds more than tensors, and reading that could run code; save its weights "
        "alone: torch.save(module.state_dict(), path)"
    )
    assert os.listdir() == ["last.pth"]


def test_values_of_numpy_take_no_memory(tmp_path):
    """``scalar(dtype('V100000000000'), ...)`` would ask for 100 GB."""

    class Huge:
        def __reduce__(self):
            return np._core.multiarray.scalar, (np.dtype("V64"), b"x" * 64)

    torch.save({"a": torch.zeros(1), "b": Huge()}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "last.pth", "w") as archive:
        for name, part in parts.items():
            archive.writestr(
                name, re.sub(rb"X\x03\x00\x00\x00V64", b"X\x0d\x00\x00\x00V100000000000", part)
            )
    assert read_checkpoint(tmp_path / "last.pth").others == ["b"]


def test_the_names_of_a_compiled_module_are_those_of_the_module(tmp_path):
    inner = nn.Sequential(nn.Linear(2, 1)).state_dict()
    compiled = {f"a._orig_mod.{name}": tensor for name, tensor in inner.items()}
    torch.save({"model": compiled}, tmp_path / "last.pth")
    assert [*read_checkpoint(tmp_path / "last.pth").tensors] == [
        "model.a.0.weight",
        "model.a.0.bias",
    ]


def test_a_safetensors_file_is_read_as_well(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert [*read_checkpoint(tmp_path / "a.safetensors").tensors] == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1}, "'last.pth' holds no tensors"),
        (b"PK\x03\x04 and no zip", "'last.pth' cannot be read: it is damaged, or no state_dict"),
        (None, "there is no file 'last.pth'"),
        (
            {"model": {"a": torch.zeros(1).expand(10**6, 10**6)}},
            "the tensor 'model.a' has fewer numbers than its shape says",
        ),
        (same_below(100, 7), "it holds more than 100,000 values, too many for a checkpoint"),
    ],
)
def test_files_that_hold_no_weights(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "last.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, "last.pth")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("last.pth")
    assert str(caught.value) == message


@pytest.mark.parametrize("key", ["a.b", "type", "keys", "x/y"])
def test_statistics_go_to_an_observation_that_no_module_can_be_called_like(key):
    graph = {"latent": {"block": "dense", "in": key, "hidden_units": 4}}
    spec = {"version": 1, "normalize": [key], "policy": {"graph": graph, "heads": {"in": "latent"}}}
    spaces = {
        "observation_space": gymnasium.spaces.Dict({key: gymnasium.spaces.Box(-1, 1, (2,))}),
        "action_space": gymnasium.spaces.Discrete(2),
    }
    model = composer.compose(spec, **spaces)
    theirs = {
        "rms.mean": torch.tensor([1.0, 2.0]),
        "rms.var": torch.ones(2),
        "rms.count": torch.tensor(5),
    }
    composer.adopt_weights(model, theirs, [(f"policy.normalizers.{key}", "rms")])
    (name,) = [name for name in model.state_dict() if name.endswith(".mean")]
    assert model.state_dict()[name].tolist() == [1.0, 2.0]
