"""Every example in configs/ composes, acts in its environment, trains, and is the same after save and load."""

import copy
import shutil
import sys

import gymnasium
import numpy as np
import pytest
import torch

import composer
from composer.cli.commands import main
from composer.source.load import load_source
from tests.helpers.paths import CONFIGS, POLICIES

PATHS = POLICIES
SEVERAL_ACTORS = {"knights_archers", "pick_place"}  # played in test_structured_configs
MODULES = ["environments", "networks"]
STEPS = 50

every_config = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
every_config_of_one_space = pytest.mark.parametrize(
    "path", [p for p in PATHS if p.stem not in SEVERAL_ACTORS], ids=lambda path: path.stem
)


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)


def compose(path, **keywords):
    return composer.compose(path, allow=MODULES, seed=0, **keywords)


def config(name):
    return CONFIGS / f"{name}.yaml"


def make_env(path):
    spec = load_source(path).data
    return composer.with_previous(gymnasium.make(spec["environment"]), spec.get("previous", ()))


def play(model, env, steps):
    """Act for ``steps`` steps, episode after episode; every action must be legal."""
    observation, _ = env.reset(seed=0)
    first, state = True, model.policy.initial_state()
    for _ in range(steps):
        if model.policy.has_memory:
            action, state = model.policy.act(observation, state, first)
        else:
            action = model.policy.act(observation)
        assert env.action_space.contains(action)
        observation, _, terminated, truncated, _ = env.step(action)
        first = terminated or truncated
        if first:
            observation, _ = env.reset()


def samples(space, steps):
    space.seed(0)
    return stacked([space.sample() for _ in range(steps)])


def stacked(values):
    """Values of a space as one batch of one sequence, of as many steps: arrays (1, T, ...).

    What varies in size, sets and graphs, is in tuples instead.
    """
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    return (tuple(values),) if isinstance(values[0], tuple) else np.stack(values)[None]


def batch_of(values):
    """The only sequence of `stacked` values, as a batch."""
    if isinstance(values, dict):
        return {key: batch_of(value) for key, value in values.items()}
    return values[0]


def step_of(values, t):
    if isinstance(values, dict):
        return {key: step_of(value, t) for key, value in values.items()}
    return tuple(row[t] for row in values) if isinstance(values, tuple) else values[:, t]


def loss_of(model, observations, actions, steps):
    """What an actor-critic minimises, over a batch of one sequence."""
    state, policy_state = model.initial_state(1), model.policy.initial_state(1)
    total = torch.zeros(())
    for t in range(steps):
        seen = step_of(observations, t)
        action = own_action(model, step_of(actions, t))
        taken = {"action": action} if model.critic.takes_action else {}
        if model.has_memory:
            _, values, state = model(seen, state, **taken)
        else:
            _, values = model(seen, **taken)
        if model.policy.has_memory:
            distribution, policy_state = model.policy.distribution(seen, policy_state)
        else:
            distribution = model.policy.distribution(seen)
        total = total - distribution.log_prob(action).sum() - 0.01 * distribution.entropy().sum()
        total = total + sum((value - 1.0).pow(2).sum() for value in values.values())
    return total


def own_action(model, action):
    """The environment's action as the distribution's: tensors by name, or the only one."""
    tensors = model.policy.action_tree.to_tensors(action, dtype=torch.float32)
    return tensors["action"] if model.policy.action_tree.is_single else tensors


@every_config
def test_a_config_begins_with_a_comment_that_explains_it(path):
    assert path.read_text().startswith("# ")


@every_config_of_one_space
def test_a_config_acts_legally_in_its_environment(path):
    model, env = compose(path), make_env(path)
    play(model, env, STEPS)
    env.close()


@every_config_of_one_space
def test_one_step_of_training_reaches_every_parameter(path):
    model = compose(path)
    observations, actions = (samples(s, 8) for s in (model.observation_space, model.action_space))
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = loss_of(model, observations, actions, 8)
    loss.backward()
    optimizer.step()
    untouched = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or torch.equal(p, before[n]))
    ]
    assert untouched == []
    assert all(p.requires_grad for n, p in model.named_parameters() if ".target." not in n)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@every_config_of_one_space
def test_a_config_is_the_same_after_save_and_load(path, tmp_path):
    model = compose(path)
    observation = model.observation_space.sample()
    model.update_normalizers(samples(model.observation_space, 3))
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors", allow=MODULES)
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    for results in zip(outputs(model, observation), outputs(loaded, observation), strict=True):
        assert torch.equal(*results)


def outputs(model, observation):
    given = (
        {"action": model.policy.distribution(observation).mode()}
        if model.critic.takes_action
        else {}
    )
    state = [model.initial_state()] if model.has_memory else []
    result = model(observation, *state, **given)
    return [tensor for part in result for tensor in part.values()]


@every_config
def test_a_config_composes_alike_on_the_meta_device(path):
    model, later = compose(path), compose(path, device="meta").materialize("cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, later.state_dict()[name]), name


@every_config
@pytest.mark.parametrize("folder", [".", ".."])
def test_the_command_line_finds_what_lies_beside_a_config(
    path, folder, tmp_path, monkeypatch, capsys
):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.chdir(tmp_path / "configs" / folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # --allow adds to it
    allowed = [word for name in MODULES for word in ("--allow", name)]
    file = path.name if folder == "." else f"configs/{path.name}"
    assert main(["check", file, *allowed]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith(f"{file}: good; ")


def test_a_config_that_names_code_is_refused_without_permission():
    with pytest.raises(composer.SpecError) as error:
        composer.compose(config("cartpole_torch_class"))
    messages = [problem.message for problem in error.value.problems]
    assert messages == [
        f"'networks.cartpole_nets.Torch{name}' is outside the allowed modules (none); "
        "pass allow=['networks'] or --allow networks if you trust it"
        for name in ("Policy", "Critic")
    ]


# --- what each of them is an example of ---


def test_classes_of_blocks_are_what_the_graph_is():
    graph, classes = compose(config("complex")), compose(config("complex_class"))
    sizes = [sorted(p.shape for p in model.parameters()) for model in (graph, classes)]
    assert sizes[0] == sizes[1]
    assert {s[-2:] for s in graph.policy.state_shapes.values()} == {(1, 64)}
    assert classes.policy.state_shapes == graph.policy.state_shapes


def test_only_the_screen_is_shared_and_both_losses_train_it():
    model = compose(config("complex_shared"))
    assert model.critic is not None
    assert not any("screen" in name for name, _ in model.critic.named_parameters())
    observation = model.observation_space.sample()
    _, values, _ = model(observation, model.initial_state())
    values["value"].sum().backward()
    trained = {
        name.split(".")[0] for name, p in model.policy.named_parameters() if p.grad is not None
    }
    assert trained == {"latent_screen"}


def test_the_template_gives_the_same_shape_of_policy_as_the_graph():
    template, graph = compose(config("complex_template")), compose(config("complex"))
    sizes = [sorted(p.shape for p in model.policy.parameters()) for model in (template, graph)]
    assert sizes[0] == sizes[1]


def test_the_window_has_no_memory_and_its_last_step_counts():
    model = compose(config("complex_window"))
    assert not model.has_memory
    observation = model.observation_space.sample()
    before = model.policy(observation)["move"]
    observation["inventory"][-1] += 1
    assert not torch.allclose(before, model.policy(observation)["move"])


def test_the_pixel_agent_plays_atari_too():
    env = gymnasium.make("ale_py:ALE/Pong-v5")
    model = compose(config("pixels"), env=env)
    play(model, env, 5)
    env.close()


def test_a_mixed_agent_hardly_uses_anything_at_first():
    model = compose(config("mixed_lstm"))
    observation = model.observation_space.sample()
    logits, _ = model.policy(observation, model.policy.initial_state())
    assert torch.sigmoid(logits["use"]).mean() < 0.3
    assert logits["move"].abs().max() < 1.0


def test_a_torque_stays_within_its_bounds():
    model = compose(config("continuous"))
    actions = [model.policy.act(np.zeros(3, np.float32)) for _ in range(50)]
    assert max(abs(float(action[0])) for action in actions) <= 2.0


varying = pytest.mark.parametrize("name", ["entities", "graph_observation"])


@varying
def test_observations_of_varying_size_are_read_alone_in_batches_and_from_vector_environments(name):
    model = compose(config(name)).eval()
    space = model.observation_space
    space.seed(0)
    alone = [space.sample() for _ in range(4)]
    together = batch_of(stacked(alone))
    logits = model.policy(together)["action"]
    for row, observation in zip(logits, alone, strict=True):
        torch.testing.assert_close(row, model.policy(observation)["action"], atol=1e-5, rtol=1e-4)
    path = config(name)
    envs = gymnasium.vector.SyncVectorEnv([lambda: make_env(path)] * 3)
    observations, _ = envs.reset(seed=0)
    for _ in range(20):
        actions = model.policy.act(observations)
        assert envs.action_space.contains(actions)
        observations, *_ = envs.step(actions)
    envs.close()


@varying
def test_observations_of_varying_size_are_drawn(name, tmp_path):
    model = compose(config(name))
    assert model.draw(tmp_path / "model.png").stat().st_size > 10_000
    masks = {"entities": "intruders:mask", "graph_observation": "observation/nodes:mask"}
    assert masks[name] in model.draw(tmp_path / "model.dot").read_text()


# --- the environments of the examples are real tasks ---


def test_a_sentry_that_lights_up_the_nearest_is_not_reached():
    env = gymnasium.make("environments.entities_env:Sentry-v0")
    counts, total, over, truncated = set(), 0.0, False, False
    observation, _ = env.reset(seed=0)
    while not over:
        moving = [i["at"] for i in observation["intruders"] if i["kind"] != 2]
        counts.add(len(observation["intruders"]))
        nearest = min(moving, key=np.linalg.norm, default=None)
        action = 0 if nearest is None else 1 + sector_of(nearest)
        observation, reward, over, truncated, _ = env.step(action)
        total, over = total + float(reward), over or truncated
    assert len(counts) > 3
    assert truncated
    assert total > 10
    env.close()


def sector_of(place):
    return int(np.arctan2(place[1], place[0]) / (2 * np.pi) % 1.0 * 8) % 8


def test_a_courier_that_keeps_trying_ways_delivers():
    env = gymnasium.make("environments.graph_env:Courier-v0")
    sizes, delivered = set(), 0
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        sizes.add(len(observation.nodes))
        generator, over = np.random.default_rng(seed), False
        while not over:
            observation, reward, over, truncated, _ = env.step(generator.integers(4))
            delivered += over and reward > 0
            over = over or truncated
    assert len(sizes) > 3
    assert delivered >= 10
    env.close()


def test_an_agent_that_remembers_the_sign_opens_the_right_door():
    env = gymnasium.make("environments.recall_env:Recall-v0")
    generator = np.random.default_rng(0)
    for seed in range(30):
        observation, _ = env.reset(seed=seed)
        treasure, total = 1 + observation["sign"], 0.0
        over = truncated = False
        while not over:
            assert observation["legal"][0]
            walks = bool(observation["legal"][1])
            assert walks == (not observation["place"][1])
            at_door = treasure if observation["legal"][treasure] else None
            assert (at_door is None) == walks
            action = 1 if walks else at_door
            if generator.random() < 0.1:
                action = 0
            observation, reward, over, truncated, _ = env.step(action)
            assert observation["sign"] == 0
            total, over = total + float(reward), over or truncated
        assert total > 0.85 or truncated
    env.close()


def test_an_agent_that_gathers_and_uses_is_paid_for_everything():
    env = gymnasium.make("environments.complex_env:Complex-v0")
    observation, _ = env.reset(seed=1)
    total, over, steps = 0.0, False, 0
    while not over:
        observation, reward, terminated, over, _ = env.step(
            {
                "move": towards_a_thing(observation["screen"]),
                "use": (observation["inventory"] > 0).astype(np.int8),
            }
        )
        total, over, steps = total + float(reward), over or terminated, steps + 1
    assert total == 6.0
    assert steps < 100
    env.close()


def towards_a_thing(screen):
    """The move that leads from the white field to the nearest coloured one."""
    fields = screen[::8, ::8].astype(int)
    (agent,) = np.argwhere(fields.sum(-1) == 765)
    things = np.argwhere((fields.sum(-1) > 0) & (fields.sum(-1) < 765))
    if not len(things):
        return 0
    down, right = min(things - agent, key=lambda way: abs(way).sum())
    return (2 if down > 0 else 0) if down else (1 if right > 0 else 3)


def test_a_paddle_that_follows_the_ball_catches_it():
    env = gymnasium.make("environments.pixels_env:Catch-v0")
    observation, _ = env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        ball = np.argwhere(observation[-1] == 255)[:, 1].mean()
        paddle = np.argwhere(observation[-1] == 160)[:, 1].mean()
        move = 0 if abs(ball - paddle) < 2 else 1 if ball < paddle else 2
        observation, reward, over, _, _ = env.step(move)
        total += float(reward)
    assert total >= 3
    env.close()
