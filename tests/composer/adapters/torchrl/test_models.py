"""Models in TorchRL: one set of weights, memory that is carried, losses that train it."""

import copy
import pickle
import re
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torchrl.envs import InitTracker, SerialEnv, TransformedEnv
from torchrl.envs.libs.gym import GymEnv, GymWrapper
from torchrl.modules import (
    ActorValueOperator,
    ProbabilisticActor,
    ValueOperator,
    set_recurrent_mode,
)
from torchrl.modules.utils import get_primers_from_module
from torchrl.objectives import (
    A2CLoss,
    ClipPPOLoss,
    DiscreteSACLoss,
    DQNLoss,
    HardUpdate,
    SACLoss,
    SoftUpdate,
)
from torchrl.objectives.value import GAE

import composer
from composer.adapters.torchrl.models import primers, to_torchrl
from tests.helpers.torchrl_models import (
    ACTION_VALUES,
    DENSE,
    MASKED,
    TEMPLATES,
    VALUES,
    Playground,
    compose,
    refusal,
    remembering,
    rollout,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # torchrl's own


def losses(loss, data):
    """All losses of ``data`` added up, differentiated."""
    found = loss(data.clone())
    total = sum(value for name, value in found.items() if name.startswith("loss"))
    total.backward()
    return found


def trained(module):
    return all(p.grad is not None for p in module.parameters() if p.requires_grad)


# --- modules and keys ---


def test_modules_give_what_the_model_gives():
    model = compose({"environment": "CartPole-v1", "policy": DENSE, "critic": VALUES})
    modules = to_torchrl(model)
    observations = torch.randn(5, 4)
    for actor in (modules.actor_training, modules.actor_inference):
        assert isinstance(actor, ProbabilisticActor)
        assert actor.in_keys == ["observation"]
        assert actor.out_keys == ["logits", "action", "action_log_prob"]
        td = actor(TensorDict(observation=observations, batch_size=[5]))
        assert torch.equal(td["logits"], model.policy(observations)["action"])
        expected = model.policy.distribution(observations).log_prob(td["action"])
        assert torch.equal(td["action_log_prob"], expected)
    for critic in (modules.critic_training, modules.critic_inference):
        assert isinstance(critic, ValueOperator)
        assert torch.equal(critic(td)["state_value"], model.critic(observations)["value"])


def test_hooks_on_policy_and_critic_run_in_their_modules():
    model = compose({"environment": "CartPole-v1", "policy": DENSE, "critic": VALUES})
    modules = to_torchrl(model)
    model.policy.register_forward_hook(lambda *_: {"action": torch.ones(5, 2)})
    model.critic.register_forward_hook(lambda *_: {"value": torch.full((5, 1), 3.0)})
    td = modules.actor_training(TensorDict(observation=torch.randn(5, 4), batch_size=[5]))
    assert (td["logits"] == 1).all()
    assert (modules.critic_training(td)["state_value"] == 3).all()


def test_all_modules_share_the_weights_of_the_model():
    model = compose({"environment": "CartPole-v1", "policy": DENSE, "critic": VALUES})
    modules = to_torchrl(model)
    ids = {id(p) for p in model.policy.parameters()}
    for actor in (modules.actor_training, modules.actor_inference):
        assert {id(p) for p in actor.parameters()} == ids
    ids = {id(p) for p in model.critic.parameters()}
    for critic in (modules.critic_training, modules.critic_inference):
        assert {id(p) for p in critic.parameters()} == ids


def test_actions_are_drawn_unless_something_else_is_asked_for():
    from torchrl.envs import ExplorationType, set_exploration_type

    model = compose({"environment": "CartPole-v1", "policy": DENSE})
    actor = to_torchrl(model).actor_inference
    td = TensorDict(observation=torch.zeros(200, 4), batch_size=[200])
    assert actor(td.clone())["action"].unique().tolist() == [0, 1]
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = model.policy.act(torch.zeros(200, 4), deterministic=True)
        assert torch.equal(actor(td)["action"], expected)


def test_shared_values_make_an_actor_value_operator():
    spec = {
        "environment": "CartPole-v1",
        "policy": {**DENSE, "shares": ["latent"]},
        "critic": {
            "graph": {"value": {"block": "linear_output", "in": "latent", "output_units": 1}}
        },
    }
    model = compose(spec)
    modules = to_torchrl(model)
    assert isinstance(modules.actor_critic, ActorValueOperator)
    observations = torch.randn(5, 4)
    logits, values = model(observations)
    for module in (modules.actor_critic, modules.critic_training):
        td = module(TensorDict(observation=observations, batch_size=[5]))
        assert torch.equal(td["logits"], logits["action"])
        assert torch.equal(td["state_value"], values["value"])
    policy = modules.actor_critic.get_policy_operator()
    found = losses(
        ClipPPOLoss(policy, modules.actor_critic.get_value_operator()),
        rollout(GymEnv("CartPole-v1", categorical_action_encoding=True), modules.collecting),
    )
    assert abs(found["kl_approx"]) < 1e-6
    assert trained(model)


@pytest.mark.parametrize("categorical", [True, False])
@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiDiscrete([3, 3]),
        spaces.MultiBinary(3),
        spaces.Box(np.array([-1, -2], np.float32), np.array([1, 3], np.float32)),
        spaces.Box(-1, 1, (2, 2), np.float64),
        spaces.Dict(
            move=spaces.Discrete(4),
            use=spaces.MultiBinary(3),
            deep=spaces.Dict(aim=spaces.Box(-1, 1, (2,))),
            both=spaces.MultiDiscrete([2, 3]),
        ),
    ],
    ids=str,
)
def test_actions_leave_as_the_environment_takes_them(action_space, categorical):
    env = GymWrapper(Playground(action_space), categorical_action_encoding=categorical)
    model = compose(TEMPLATES, env=Playground(action_space))
    modules = to_torchrl(model, env, loss=ClipPPOLoss)
    assert modules.actor_inference.in_keys == ["a", ("b", "c"), ("b", "d")]
    data = rollout(env, modules.collecting, 20)
    found = losses(ClipPPOLoss(modules.actor_training, modules.critic_training), data)
    assert abs(found["kl_approx"]) < 1e-5
    assert found["entropy"].isfinite()
    assert trained(model.policy)


@pytest.mark.parametrize("name", ["gaussian", "squashed_gaussian", "beta"])
def test_log_probabilities_are_of_the_action_that_leaves(name):
    space = spaces.Box(np.array([-1, -2], np.float32), np.array([1, 3], np.float32))
    observed = spaces.Box(-1, 1, (3,), np.float64)
    rule = {"action": "action", "distribution": name}
    spec = {**TEMPLATES, "normalize": ["observation"], "distributions": [rule]}
    model = compose(spec, env=Playground(space, observed))
    actor = to_torchrl(model).actor_inference
    td = actor(TensorDict(observation=torch.randn(50, 3), batch_size=[50]))
    action = td["action"].detach()
    assert all(space.contains(row.numpy()) for row in action)
    again = actor.get_dist(td.select("observation")).log_prob(action)
    assert torch.allclose(again, td["action_log_prob"], atol=1e-4)
    entropy = model.policy.distribution(td["observation"]).entropy()
    assert torch.equal(actor.get_dist(td.select("observation")).entropy(), entropy)


def test_choices_that_count_from_another_number():
    space = spaces.Discrete(3, start=2)
    env = GymWrapper(Playground(space), categorical_action_encoding=True)
    model = compose(TEMPLATES, env=Playground(space))
    data = rollout(env, to_torchrl(model, env).actor_inference, 20)
    assert data["action"].unique().tolist() == [2, 3, 4]


def test_observations_under_other_keys():
    model = compose({"environment": "CartPole-v1", "policy": DENSE})
    actor = to_torchrl(model, keys={"observation": ("agent", "seen")}).actor_inference
    assert actor.in_keys == [("agent", "seen")]
    td = TensorDict({"agent": {"seen": torch.randn(2, 4)}}, batch_size=[2])
    assert actor(td)["action"].shape == (2,)


# --- masks ---


@pytest.mark.parametrize("named", [False, True])
def test_inference_is_masked_and_training_is_when_asked(named):
    policy = {"template": {}, **({"action_mask": {"action": "action_mask"}} if named else {})}
    spec = {"policy": policy, **({} if named else {"ignore": ["action_mask"]})}
    model = compose(spec, env=Playground(spaces.Discrete(3), MASKED))
    modules = to_torchrl(model)
    near, mask = torch.zeros(300, 2), torch.tensor([1, 0, 1]).expand(300, 3)
    td = TensorDict(near=near, action_mask=mask, batch_size=[300])
    assert modules.actor_inference(td.clone())["action"].unique().tolist() == [0, 2]
    assert modules.actor_training(td.clone())["action"].unique().tolist() == [0, 1, 2]
    masked = to_torchrl(model, mask_training=True).actor_training
    assert masked(td.clone())["action"].unique().tolist() == [0, 2]


def test_a_mask_that_leaves_nothing_is_refused():
    spec = {"policy": {"template": {}}, "critic": {"kind": "state_action", "template": {}}}
    spec["ignore"] = ["action_mask"]
    modules = to_torchrl(compose(spec, env=Playground(spaces.Discrete(3), MASKED)))
    td = TensorDict(near=torch.zeros(1, 2), action_mask=torch.zeros(1, 3), batch_size=[1])
    message = (
        "the mask of action 'action' (observation 'action_mask') leaves no legal choice at index (0,); "
        "each row needs a nonzero element"
    )
    for module in (modules.actor_inference, modules.q_actor):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            module(td.clone())


def test_a_mask_of_one_of_several_actions_that_leaves_nothing_is_refused():
    actions = spaces.Dict(move=spaces.Discrete(3), jump=spaces.Discrete(2))
    spec = {"policy": {"template": {}, "action_mask": {"move": "action_mask"}}}
    actor = to_torchrl(compose(spec, env=Playground(actions, MASKED))).actor_inference
    td = TensorDict(near=torch.zeros(1, 2), action_mask=torch.zeros(1, 3), batch_size=[1])
    message = "the mask of action 'move' (observation 'action_mask') leaves no legal choice"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        actor(td)


# --- memory ---


def test_states_have_keys_and_primers():
    model = compose(remembering())
    actor = to_torchrl(model).actor_inference
    states = ["recurrent_state_actor_h", "recurrent_state_actor_c"]
    assert actor.in_keys == ["observation", *states, "is_init"]
    assert actor.out_keys[1:3] == [("next", state) for state in states]
    env = TransformedEnv(GymEnv("CartPole-v1"), primers(model))
    carried = {key for key in env.observation_spec if key.startswith("recurrent")}
    assert carried == {*states, "recurrent_state_critic"}
    assert env.reset()["is_init"].all()


def test_several_memories_are_told_apart_by_their_names():
    spec = remembering()
    graph = spec["policy"]["graph"]
    graph["slow"] = {"block": "gru", "in": "memory", "hidden_units": 4}
    spec["policy"]["heads"] = {"in": "slow"}
    assert to_torchrl(compose(spec)).actor_inference.in_keys == [
        "observation",
        "recurrent_state_actor_memory_h",
        "recurrent_state_actor_memory_c",
        "recurrent_state_actor_slow_h",
        "is_init",
    ]


@pytest.mark.parametrize("block", ["lstm", "gru"])
def test_a_rollout_step_by_step_is_one_recurrent_call(block):
    model = compose(remembering(block))
    env = TransformedEnv(SerialEnv(2, lambda: GymEnv("CartPole-v1")), primers(model))
    modules = to_torchrl(model, env)
    data = rollout(env, modules.collecting)
    assert data.batch_size == (2, 30)
    assert data["is_init"].sum() > 2  # an episode begins in the middle
    whole = modules.actor_training(data.clone())
    assert torch.allclose(whole["logits"], data["logits"], atol=1e-6)
    with set_recurrent_mode(True):
        assert torch.equal(modules.actor_inference(data.clone())["logits"], whole["logits"])
    with set_recurrent_mode(False):
        steps = modules.actor_training(data.clone())
    for key in modules.actor_training.in_keys[1:-1]:
        assert torch.allclose(steps["next", key], data["next", key], atol=1e-6)
        assert torch.allclose(whole["next", key][:, -1], data["next", key][:, -1], atol=1e-6)
    by_model, _ = model.policy.unroll(
        data["observation"], model.policy.initial_state(2), data["is_init"].squeeze(-1)
    )
    assert torch.allclose(by_model["action"], whole["logits"], atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"shifted": True}, {"deactivate_vmap": True}])
def test_gae_gives_a_remembering_critic_the_right_next_values(settings):
    model = compose(remembering(critic="lstm"))
    env = TransformedEnv(GymEnv("CartPole-v1"), primers(model))
    modules = to_torchrl(model, env)
    data = rollout(env, modules.collecting)
    values = modules.critic_training(data.clone())["state_value"].detach()
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=modules.critic_training, **settings)
    done = data["next", "done"][:-1]
    assert done.any()
    gae(data)
    assert torch.allclose(data["state_value"], values, atol=1e-6)
    next_values = data["next", "state_value"][:-1]
    assert torch.allclose(next_values[~done], values[1:][~done], atol=1e-6)


def test_a_rollout_without_the_primer_is_refused():
    model = compose(remembering())
    env = GymEnv("CartPole-v1")
    policy = to_torchrl(model, env).actor_inference
    assert refusal(rollout, env, policy) == (
        "the TensorDict lacks 'recurrent_state_actor_h', 'recurrent_state_actor_c', 'is_init': the actor has memory, "
        "which the environment must carry from step to step; use TransformedEnv(env, primers(model)), with primers of "
        "composer.adapters.torchrl"
    )


def test_a_critic_whose_memory_nobody_carried_is_refused():
    model = compose(remembering())
    env = TransformedEnv(GymEnv("CartPole-v1"), primers(model))
    modules = to_torchrl(model, env)
    data = rollout(env, modules.actor_inference)
    assert refusal(modules.critic_training, data[2:5]) == (
        "'recurrent_state_critic' is zero at every step of data that begin within an episode: the critic's "
        "memory was not carried; collect with to_torchrl(model).collecting"
    )


def test_recurrent_mode_needs_an_axis_of_time():
    model = compose(remembering())
    env = TransformedEnv(GymEnv("CartPole-v1"), primers(model))
    with pytest.raises(ValueError, match="the last axis of the batch is time; this TensorDict has"):
        to_torchrl(model, env).actor_training(env.reset())


# --- losses and collectors ---


@pytest.mark.parametrize("loss", [ClipPPOLoss, A2CLoss])
@pytest.mark.parametrize("spec", ["plain", "memory"])
def test_collectors_and_losses_of_state_values(loss, spec):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchrl's own, when it is imported
        from torchrl.collectors import Collector
    plain = {"environment": "CartPole-v1", "policy": DENSE, "critic": VALUES}
    model = compose(plain if spec == "plain" else remembering())
    env = TransformedEnv(GymEnv("CartPole-v1"), primers(model))
    modules = to_torchrl(model, env, loss=loss)
    collector = Collector(env, modules.collecting, frames_per_batch=40, total_frames=80)
    objective = loss(modules.actor_training, modules.critic_training)
    for data in collector:
        found = losses(objective, data)
        if loss is ClipPPOLoss:
            assert abs(found["kl_approx"]) < 1e-5
    collector.shutdown()
    assert trained(model)


NOT_OF_COPIES = (
    "this loss was not created from the critic_copies of this model; give it "
    "qvalue_network=list(modules.critic_copies) and as many num_qvalue_nets"
)
WIDE_VALUES = {
    "both": {"block": "concat", "in": ["observation", "action/action"]},
    "latent": {"block": "dense", "in": "both", "hidden_units": [33]},
}


def sac(model, modules):
    critic = list(modules.critic_copies) or modules.critic_training
    loss = SACLoss(modules.actor_training, critic)
    loss.make_value_estimator(gamma=0.9)
    return loss


def test_sac_trains_the_copies_of_an_ensemble_and_the_model_takes_them_back():
    spec = {"environment": "Pendulum-v1", "policy": DENSE}
    model = compose({**spec, "critic": {**ACTION_VALUES, "ensemble": 2}})
    env = GymEnv("Pendulum-v1")
    modules = to_torchrl(model, env, loss=SACLoss)
    data = rollout(env, modules.actor_inference, 10)
    assert data["action"].abs().max() <= 2
    before = model.critic(data["observation"], data["action"])["q_value"].detach()
    for index, single in enumerate(modules.critic_copies):
        own = single(data.clone())["state_action_value"]
        assert torch.allclose(own, before[:, index], atol=1e-6)
    loss = sac(model, modules)
    updater = SoftUpdate(loss, tau=0.5)
    optimizer = torch.optim.Adam(loss.parameters(), 0.01)
    losses(loss, data)
    optimizer.step()
    target = loss.target_qvalue_network_params.clone()
    updater.step()
    pairs = zip(target.values(True, True), loss.target_qvalue_network_params.values(True, True))
    assert any(not torch.equal(old, new) for old, new in pairs)
    modules.adopt(loss)
    after = model.critic(data["observation"], data["action"])["q_value"]
    assert not torch.allclose(before, after, atol=1e-4)
    with loss.qvalue_network_params[1].to_module(loss.qvalue_network):
        own = loss.qvalue_network(data.clone())["state_action_value"]
    assert torch.allclose(own, after[:, 1], atol=1e-6)


def test_the_copies_of_an_ensemble_are_on_the_scale_of_the_returns():
    critic = {**ACTION_VALUES, "ensemble": 2, "normalize_value": True}
    model = compose({"environment": "Pendulum-v1", "policy": DENSE, "critic": critic})
    model.update_normalizers(returns=torch.linspace(10, 30, 50))
    data = TensorDict(observation=torch.randn(5, 3), action=torch.zeros(5, 1), batch_size=[5])
    values = model.critic(data["observation"], data["action"])["q_value"]
    for index, single in enumerate(to_torchrl(model).critic_copies):
        value = single(data.clone())["state_action_value"]
        assert torch.allclose(value, values[:, index], atol=1e-4)


def test_the_copies_of_an_ensemble_value_the_choices_of_each_action():
    actions = spaces.Dict(use=spaces.Discrete(3), move=spaces.Discrete(4))
    critic = {"kind": "state_action", "ensemble": 2, "template": {}}
    spec = {"policy": {"template": {}}, "critic": critic}
    model = compose(spec, env=Playground(actions, spaces.Box(-1, 1, (3,))))
    data = TensorDict(observation=torch.randn(5, 3), batch_size=[5])
    values = model.critic(data["observation"])
    for index, single in enumerate(to_torchrl(model).critic_copies):
        written = single(data.clone())["action_value"]
        for name in actions:
            expected = values[f"{name}_q_values"][:, index]
            assert torch.allclose(written[name], expected, atol=1e-6)


def test_the_copies_of_another_network_are_not_taken():
    spec = {"environment": "Pendulum-v1", "policy": DENSE}
    own, other = (
        compose({**spec, "critic": {"kind": "state_action", "ensemble": 2, "graph": graph}})
        for graph in (ACTION_VALUES["graph"], WIDE_VALUES)
    )
    loss = sac(other, to_torchrl(other))
    before = [weight.clone() for weight in own.critic.parameters()]
    with pytest.raises(ValueError, match=re.escape(NOT_OF_COPIES)):
        to_torchrl(own).adopt(loss)
    assert all(torch.equal(*pair) for pair in zip(before, own.critic.parameters(), strict=True))


def test_sac_with_one_critic_makes_its_own_copies():
    spec = {"environment": "Pendulum-v1", "policy": DENSE, "critic": ACTION_VALUES}
    model = compose(spec)
    env = GymEnv("Pendulum-v1")
    modules = to_torchrl(model, env)
    data = rollout(env, modules.actor_inference, 10)
    assert modules.critic_copies == ()
    assert modules.critic_training(data.clone())["state_action_value"].shape == (10, 1)
    loss = sac(model, modules)
    SoftUpdate(loss, tau=0.5)
    losses(loss, data)
    assert trained(model.policy)
    with pytest.raises(ValueError, match=re.escape(NOT_OF_COPIES)):
        modules.adopt(loss)


@pytest.mark.parametrize("categorical", [True, False])
def test_dqn_and_discrete_sac_train_a_value_for_each_choice(categorical):
    critic = {**VALUES, "kind": "state_action"}
    model = compose({"environment": "CartPole-v1", "policy": DENSE, "critic": critic})
    env = GymEnv("CartPole-v1", categorical_action_encoding=categorical)
    modules = to_torchrl(model, env, loss=DQNLoss)
    data = rollout(env, modules.q_actor, 10)
    expected = model.critic(data["observation"])["action_q_values"]
    assert torch.allclose(data["action_value"], expected, atol=1e-6)
    loss = DQNLoss(modules.q_actor, double_dqn=True, delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    HardUpdate(loss, value_network_update_interval=1)
    losses(loss, data)
    assert trained(model.critic._modules["latent"])
    soft = DiscreteSACLoss(
        modules.actor_training,
        modules.critic_training,
        action_space=env.action_spec,
        num_actions=2,
    )
    soft.make_value_estimator(gamma=0.9)
    SoftUpdate(soft, tau=0.5)
    losses(soft, data)
    assert trained(model.policy)


def test_weights_of_an_ensemble_can_be_swapped_for_a_call():
    critic = {**ACTION_VALUES, "ensemble": 3}
    model = compose({"environment": "Pendulum-v1", "policy": DENSE, "critic": critic})
    module = to_torchrl(model).critic_training
    td = TensorDict(observation=torch.randn(4, 3), action=torch.zeros(4, 1), batch_size=[4])
    before = module(td.clone())["state_action_value"]
    zeros = TensorDict.from_module(module).data.apply(torch.zeros_like)
    with zeros.to_module(module, preserve_module_state=False):
        assert not module(td.clone())["state_action_value"].any()
    assert torch.equal(module(td)["state_action_value"], before)


def test_modules_copy_pickle_and_follow_the_mode_of_training():
    model = compose(remembering())
    modules = to_torchrl(model)
    td = TransformedEnv(GymEnv("CartPole-v1"), primers(model)).reset()
    expected = modules.actor_inference(td.clone())["logits"]
    for other in (
        copy.deepcopy(modules.actor_inference),
        pickle.loads(pickle.dumps(modules.actor_inference)),
    ):
        assert torch.equal(other(td.clone())["logits"], expected)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    modules.actor_inference.eval()
    assert not model.policy.training
    modules.actor_inference.train()
    assert model.policy.training


def test_only_what_is_masked_needs_the_mask():
    """An actor for training draws from all choices: it reads no mask."""
    space = spaces.Dict(x=spaces.Box(-1, 1, (3,)), legal=spaces.MultiBinary(2))
    policy = {
        "graph": {"l": {"block": "dense", "in": "x", "hidden_units": 4}},
        "heads": {"in": "l"},
    }
    spec = {"version": 1, "policy": {**policy, "action_mask": {"action": "legal"}}}
    model = composer.compose(spec, observation_space=space, action_space=spaces.Discrete(2), seed=0)
    modules, masked = to_torchrl(model), to_torchrl(model, mask_training=True)
    assert modules.actor_training.in_keys == ["x"]
    assert modules.actor_inference.in_keys == masked.actor_training.in_keys == ["x", "legal"]
    data = TensorDict({"x": torch.zeros(5, 3)}, [5])
    assert modules.actor_training(data)["action"].shape == (5,)
    with pytest.raises(ValueError, match="lacks 'legal', which the actor reads"):
        masked.actor_training(TensorDict({"x": torch.zeros(5, 3)}, [5]))


@pytest.mark.parametrize("shares", [[], ["memory"]])
def test_torchrl_finds_the_primers_of_modules_with_memory(shares):
    memory = {"template": {"memory": {"block": "gru", "hidden_units": 4}}}
    spec = {"version": 1, "policy": {**memory, "shares": shares}, "critic": memory}
    model = composer.compose(spec, env="CartPole-v1", seed=0)
    modules = to_torchrl(model)
    for name, keys in [
        ("actor_inference", {"recurrent_state_actor"}),
        ("collecting", {"recurrent_state_actor", "recurrent_state_critic"}),
    ]:
        module = getattr(modules, name)
        env = TransformedEnv(GymWrapper(gymnasium.make("CartPole-v1")), InitTracker())
        env = env.append_transform(get_primers_from_module(module))
        data = env.rollout(5, module)
        assert {key for key in sorted(data["next"].keys()) if key.startswith("recurrent")} == keys
    plain = composer.compose({"version": 1, "policy": {"template": {}}}, env="CartPole-v1")
    assert get_primers_from_module(to_torchrl(plain).actor_inference, warn=False) is None
