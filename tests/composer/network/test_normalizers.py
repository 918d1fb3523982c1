"""Running statistics: exact over batches, models and processes; saved; what would spoil them is refused."""

import re

import gymnasium
import numpy as np
import pytest
import torch
import torch.distributed as dist
from gymnasium import spaces
from torch import multiprocessing as mp

import composer
from perception_blocks.blocks.scale import NormalizeBlock, merged, moments_of

SPACE = spaces.Dict(
    speed=spaces.Box(-np.inf, np.inf, (3,)),
    around=spaces.Sequence(spaces.Box(-1, 1, (2,)), stack=True),
    plain=spaces.Box(-1, 1, (1,)),
)
SPEC = "version: 1\nnormalize: [speed, around]\npolicy:\n  template: {}\ncritic:\n  template: {}\n"


def compose(spec=SPEC, space=SPACE):
    return composer.compose(spec, observation_space=space, action_space=spaces.Discrete(2), seed=0)


def speeds(count, seed):
    generator = np.random.default_rng(seed)
    return generator.normal([5.0, -1e4, 0.0], [1e-2, 3.0, 1e3], (count, 3)).astype(np.float32)


def batch(count, seed):
    """Observations with one to three elements around, and how they look one below the other."""
    generator = np.random.default_rng(seed)
    around = [
        generator.uniform(-1, 1, (n, 2)).astype(np.float32) for n in generator.integers(1, 4, count)
    ]
    plain = np.zeros((count, 1), np.float32)
    return {"speed": speeds(count, seed), "around": tuple(around), "plain": plain}


def normalizers(model):
    return dict(zip(model.spec.normalize, model.policy.observer.normalizers.values(), strict=True))


def check(model, batches):
    """The statistics are those of numpy over everything at once."""
    rows = {
        "speed": np.concatenate([b["speed"] for b in batches]),
        "around": np.concatenate([element for b in batches for element in b["around"]]),
    }
    for key, block in normalizers(model).items():
        _, mean, var = block.moments()
        assert int(block.count) == len(rows[key])
        np.testing.assert_allclose(
            mean, rows[key].mean(0, dtype=np.float64), rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(var, rows[key].var(0, dtype=np.float64), rtol=1e-8)


def test_statistics_over_batches_are_those_of_numpy_over_all():
    model, batches = compose(), [batch(n, seed) for seed, n in enumerate((1, 7, 100, 2, 31))]
    for observations in batches:
        model.update_normalizers(observations)
    check(model, batches)


def test_two_models_merge_offline():
    first, second, batches = compose(), compose(), [batch(9, 0), batch(40, 1), batch(3, 2)]
    first.update_normalizers(batches[0])
    second.update_normalizers(batches[1])
    second.update_normalizers(batches[2])
    before = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    first.merge_normalizers(second)
    check(first, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in second.state_dict().items())
    first.merge_normalizers(compose())  # which saw nothing
    check(first, batches)


def test_statistics_are_saved_to_the_last_bit(tmp_path):
    model, batches = compose(), [batch(50, 0), batch(60, 1)]
    model.update_normalizers(batches[0])
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    for one, other in zip(normalizers(model).values(), normalizers(loaded).values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.moments(), other.moments(), strict=True))
    loaded.update_normalizers(batches[1])
    check(loaded, batches)
    observation = {**batch(1, 5), "around": batch(1, 5)["around"][0]}
    observation = {
        key: value if key == "around" else value[0] for key, value in observation.items()
    }
    assert not torch.equal(
        model.policy(observation)["action"], loaded.policy(observation)["action"]
    )


def test_a_batch_counts_however_many_came_before_it():
    """In float32 a mean over 2**30 values would not move by what 64 more add to it."""
    block = NormalizeBlock([(1,)])
    block.update(torch.tensor([[999.0], [1001.0]]))
    block.count.fill_(2**30)
    for _ in range(200):
        block.update(torch.full((64, 1), 1002.0))
    added = 200 * 64
    share = added / (2**30 + added)
    count, mean, var = block.moments()
    assert int(count) == 2**30 + added
    assert mean.item() == pytest.approx(1000 + 2 * share, abs=1e-9)
    assert var.item() == pytest.approx(1 * (1 - share) + 4 * share * (1 - share), rel=1e-9)


def test_denormalize_is_the_way_back():
    block = NormalizeBlock([(2,)], clip=None)
    x = torch.randn(100, 2) * torch.tensor([3.0, 0.1]) + torch.tensor([100.0, -5.0])
    block.update(x)
    torch.testing.assert_close(block.denormalize(block(x)), x)
    y = torch.zeros(2, requires_grad=True)
    block.denormalize(y).sum().backward()
    torch.testing.assert_close(y.grad, torch.sqrt(block.var + block.epsilon))
    assert block.denormalize(torch.zeros(5, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_moments_of_nothing_change_nothing():
    some = moments_of(torch.tensor([[1.0], [3.0]]))
    nothing = moments_of(torch.zeros(0, 1))
    for result in (merged(some, nothing), merged(nothing, some)):
        assert [m.tolist() for m in result] == [2.0, [2.0], [1.0]]


TEAM = {
    "x_0": spaces.Box(-1, 1, (2,)),
    "x_1": spaces.Box(-1, 1, (2,)),
    "y": spaces.Box(-1, 1, (1,)),
}


def compose_team():
    return composer.compose(
        "version: 1\nnormalize: [observation]\npolicy:\n  networks: {x: {template: {}}, y: {template: {}}}\n",
        observation_space=TEAM,
        action_space=dict.fromkeys(TEAM, spaces.Discrete(2)),
        seed=0,
    )


def statistics(model, actor):
    (block,) = model.policy[actor].observer.normalizers.values()
    return int(block.count), block.mean.tolist()


def worker(rank, path, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    model = compose()
    for step in range(3):  # of different sizes on each process, once of none
        model.update_normalizers(
            batch([5, 0, 9][step] if rank else [2, 8, 1][step], 10 * step + rank)
        )
    alone = compose()
    if rank:
        alone.update_normalizers(batch(4, 0), group=False)
    team = compose_team()  # with others present in each process
    team.update_normalizers({"y": [4.0]} if rank else {"x_0": [0.0, 2.0], "x_1": [[2.0, 4.0]] * 3})
    team.save(f"{folder}/team{rank}.safetensors")
    model.save(f"{folder}/model{rank}.safetensors")
    alone.save(f"{folder}/alone{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_have_the_statistics_of_all_of_them(tmp_path):
    arguments = (tmp_path / "store", tmp_path)
    mp.spawn(worker, arguments, nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    batches = [
        batch([[2, 8, 1], [5, 0, 9]][rank][step], 10 * step + rank)
        for step in range(3)
        for rank in (0, 1)
    ]
    models = [composer.load(tmp_path / f"model{rank}.safetensors") for rank in (0, 1)]
    for model in models:
        check(model, [b for b in batches if len(b["speed"])])
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
    alone = [composer.load(tmp_path / f"alone{rank}.safetensors") for rank in (0, 1)]
    assert [int(normalizers(model)["speed"].count) for model in alone] == [0, 4]
    for rank in (0, 1):
        team = composer.load(tmp_path / f"team{rank}.safetensors")
        assert statistics(team, "x") == (4, [1.5, 3.5])
        assert statistics(team, "y") == (1, [4.0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_would_spoil_the_statistics_is_refused_and_changes_nothing(wrong):
    model = compose()
    model.update_normalizers(batch(3, 0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    observations = batch(3, 1)
    observations["around"][2][0, 1] = wrong
    message = (
        "the observation 'around' contains NaN or an infinite number, which the statistics cannot count; "
        "leave out that row"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.update_normalizers(observations)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_is_wrong_with_one_actor_counts_nobody():
    team = compose_team()
    message = (
        "for 'y': the observation 'observation' contains NaN or an infinite number, which the "
        "statistics cannot count; leave out that row"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        team.update_normalizers({"x_0": [1.0, 1.0], "y": [np.nan]})
    assert statistics(team, "x") == (0, [0.0, 0.0])


def test_models_that_normalize_other_things_do_not_merge():
    model = compose()
    other = compose("version: 1\nnormalize: [speed]\npolicy:\n  template: {}\n")
    message = "this model normalizes 'speed', 'around', the other one 'speed'"
    with pytest.raises(ValueError, match=f"^{message}$"):
        model.merge_normalizers(other)
    wider = spaces.Dict({**SPACE.spaces, "speed": spaces.Box(-1, 1, (4,))})
    message = "'speed' is (3,) here and (4,) in the other model"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.merge_normalizers(compose(space=wider))


def test_models_of_one_actor_and_of_several_do_not_merge():
    one, team = compose(), compose_team()
    message = "these are policies of other actors, whose statistics are not merged"
    for model, other in ((one, team), (team, one)):
        with pytest.raises(ValueError, match=f"^{message}$"):
            model.merge_normalizers(other)


def test_a_policy_that_normalizes_sees_standard_numbers_in_a_real_environment():
    envs = gymnasium.make_vec("Pendulum-v1", num_envs=4, vectorization_mode="sync")
    spec = "version: 1\nnormalize: [observation]\npolicy:\n  template: {}\n"
    model = composer.compose(spec, env=envs, seed=0)
    observations, _ = envs.reset(seed=0)
    rows = []
    for _ in range(100):
        model.update_normalizers(observations)
        rows.append(observations)
        observations, *_ = envs.step(model.policy.act(observations))
    (block,) = model.policy.observer.normalizers.values()
    seen = block(torch.from_numpy(np.concatenate(rows)))
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    envs.close()
