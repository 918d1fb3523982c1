"""Critics of the actions of several actors: Q values of each, weights shared or separate, and targets of all."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from gymnasium import spaces

import composer
from composer import SpecError

EYE, ARM = spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (3,))
GRIP = spaces.Dict(where=spaces.Box(-1, 1, (2,)), hold=spaces.Discrete(2, start=1))
OBSERVATIONS = {"pick": EYE, ("place", 0): ARM, ("place", 1): ARM}
ACTIONS = {"pick": spaces.Discrete(3, start=5), ("place", 0): GRIP, ("place", 1): GRIP}
PLACES = [("place", 0), ("place", 1)]


def linear(*reads):
    """A value that is a plain sum of ``reads``."""
    both = {"block": "concat", "in": list(reads)}
    value = {"block": "linear_output", "in": "all", "output_units": 1}
    return {"graph": {"all": both, "sum": value}}


PICK = {"graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": 8}}}
PLACE = linear("observation", "action/where", "action/hold")
BY_STEP = {"kind": "state_action", "networks": {"pick": PICK, "place": PLACE}}
SEPARATE = {**BY_STEP, "networks": {"pick": PICK, "place": {**PLACE, "separate": True}}}
TWINS = {**BY_STEP, "ensemble": 2}
SEPARATE_TWINS = {**SEPARATE, "ensemble": 2}
ANYONE = pytest.mark.parametrize("critic", [BY_STEP, SEPARATE, TWINS, SEPARATE_TWINS])


def compose(critic, observations=OBSERVATIONS, actions=ACTIONS, policy=None, **keywords):
    networks = {"pick": {"template": {}}, "place": {"template": {}}}
    spec = {"version": 1, "policy": policy or {"networks": networks}, "critic": critic}
    keywords = {"seed": 0, **keywords}
    return composer.compose(spec, observation_space=observations, action_space=actions, **keywords)


def alike(critic, number=3) -> Any:
    """A critic of agents of one kind, whom one network may serve."""
    names = [f"agent_{index}" for index in range(number)]
    return compose(
        critic, dict.fromkeys(names, ARM), dict.fromkeys(names, spaces.Box(-1, 1, (2,))),
        policy={"template": {}},
    ).critic  # fmt: skip


def batch(size=5, seed=0):
    """(observations, actions) by actor, as distributions have them."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(size, *shape, generator=generator)  # noqa: E731
    choose = lambda n: torch.randint(n, (size,), generator=generator)  # noqa: E731
    seen = {"pick": draw(4), **{key: draw(3) for key in PLACES}}
    done = {key: {"where": draw(2), "hold": choose(2)} for key in PLACES}
    return seen, {"pick": choose(3), **done}


def read(seen, done, key):
    """What the network of a placing agent reads."""
    hold = torch.nn.functional.one_hot(done[key]["hold"], 2).float()
    return torch.cat([seen[key], done[key]["where"], hold], dim=-1)


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def flat(values):
    return torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(values)])


# --- values ---


def test_everyone_gets_the_value_of_its_own_action_in_its_own_form():
    critic = compose(BY_STEP).critic
    seen, done = batch()
    values = critic(seen, done)
    assert list(values) == list(OBSERVATIONS)
    picks = values["pick"]["action_q_values"]
    assert picks.shape == (5, 3)
    chosen = picks.gather(-1, done["pick"][:, None])
    torch.testing.assert_close(values["pick"]["q_value"], chosen)
    layer = critic.get_submodule("place.sum").linear
    for key in PLACES:
        expected = read(seen, done, key) @ layer.weight.T + layer.bias
        torch.testing.assert_close(values[key]["q_value"], expected)
        torch.testing.assert_close(critic.value(seen, done)[key], expected.squeeze(-1))


def test_who_chooses_needs_no_action_and_who_is_absent_gets_no_value():
    critic = compose(BY_STEP).critic
    seen, done = batch()
    best = critic.value({"pick": seen["pick"]})["pick"]
    values = critic({"pick": seen["pick"]})["pick"]["action_q_values"]
    torch.testing.assert_close(best, values.amax(-1))
    alone = critic.value({"place/1": seen["place", 1]}, done)
    torch.testing.assert_close(alone, {"place/1": critic.value(seen, done)["place", 1]})


def test_an_environments_actions_are_counted_from_zero_first():
    model = compose(BY_STEP)
    seen, done = batch()
    taken = {
        "pick": done["pick"] + 5,
        **{key: {**done[key], "hold": done[key]["hold"] + 1} for key in PLACES},
    }
    values = model.critic.value(seen, model.policy.from_environment(taken))
    torch.testing.assert_close(values, model.critic.value(seen, done))


def test_gradients_reach_every_policy_through_its_action():
    model = compose(BY_STEP)
    seen, _ = batch()
    places = {key: seen[key] for key in PLACES}
    drawn = model.policy.distribution(places)
    actions = {
        key: {
            "where": one.parts["where"].rsample(),
            "hold": one.parts["hold"].sample(),
        }
        for key, one in drawn.items()
    }
    sum(model.critic.value(places, actions).values()).sum().backward()
    policy = model.policy["place"]
    assert policy.get_submodule("latent").linears[0].weight.grad.any()


def test_separate_agents_have_weights_of_their_own_in_one_call():
    critic = compose(SEPARATE).critic
    module = critic.groups[1].module
    assert module.ensemble is not None
    seen, done = batch()
    same = ({**seen, ("place", 1): seen["place", 0]}, {**done, ("place", 1): done["place", 0]})
    values = critic.value(*same)
    assert not torch.isclose(values["place", 0], values["place", 1]).any()
    for index, key in enumerate(PLACES):
        own = module.member_of(index)
        expected = own.value(seen["place", 0], done["place", 0])
        torch.testing.assert_close(values[key], expected)


@pytest.mark.parametrize("separate", [False, True])
def test_twins_of_several_actors_differ(separate):
    critic = compose(SEPARATE_TWINS if separate else TWINS).critic
    values = critic(*batch())
    assert values["pick"]["action_q_values"].shape == (5, 2, 3)
    for key in PLACES:
        q_value = values[key]["q_value"]
        assert q_value.shape == (5, 2, 1)
        assert not torch.isclose(q_value[:, 0], q_value[:, 1]).any()
    assert critic.value(*batch())["pick"].shape == (5, 2)


def test_a_critic_reads_what_each_actors_policy_shares():
    policy = {
        "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": 4}},
        "heads": {"in": "latent"},
        "shares": ["latent"],
    }
    critic = {"kind": "state_action", **linear("latent", "action/action")}
    names = ["a", "b"]
    model = compose(
        critic, dict.fromkeys(names, ARM), dict.fromkeys(names, spaces.Box(-1, 1, (2,))), policy
    )
    seen = {key: torch.randn(5, 3) for key in names}
    done = {key: torch.randn(5, 2) for key in names}
    logits, values = model(seen, action=done)
    layer = model.critic.get_submodule("sum").linear
    for key in names:
        both = torch.cat([logits[key]["latent"], done[key]], dim=-1)
        torch.testing.assert_close(values[key]["q_value"], both @ layer.weight.T + layer.bias)
    torch.testing.assert_close(model.critic.target(seen, done, shared=logits), values)


@pytest.mark.parametrize("separate", [False, True])
def test_quantiles_of_several_actors_are_values(separate):
    head = {"block": "quantile_value", "in": "both", "num_quantiles": 7}
    both = {"block": "concat", "in": ["observation", "action/action"]}
    critic = {"kind": "state_action", "separate": separate, "graph": {"both": both}, "heads": head}
    net = alike(critic)
    seen = {key: torch.randn(5, 3) for key in net.actors.names}
    done = {key: torch.randn(5, 2) for key in net.actors.names}
    for own in net(seen, done).values():
        assert own["q_value_quantiles"].shape == (5, 7)
        torch.testing.assert_close(own["q_value"], own["q_value_quantiles"].mean(-1, True))


# --- scale ---


def test_each_networks_values_are_on_the_scale_of_its_own_returns_and_its_targets_too():
    model = compose({**SEPARATE, "normalize_value": True})
    before = model.critic(*batch())
    model.update_normalizers(returns={"pick": [10.0, 20.0], ("place", 1): [30.0, 40.0]})
    for net in (model.critic, model.critic.target):
        values = net(*batch())
        for key, mean in (("pick", 15.0), (("place", 1), 35.0)):
            expected = before[key]["q_value"] * 5 + mean
            torch.testing.assert_close(values[key]["q_value"], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values["place", 0]["q_value"], before["place", 0]["q_value"])
    assert not any("target" in n and "value_normalizer" in n for n in model.state_dict())
    model.critic.update_targets(0.5)


# --- one actor's critic ---

ONE_NETWORK = {
    "kind": "state_action",
    **PLACE,
    "graph": linear("observation", "action/action")["graph"],
}
OF_AGENTS = {
    "one network": ONE_NETWORK,
    "separate": {**ONE_NETWORK, "separate": True},
    "scaled": {**ONE_NETWORK, "normalize_value": True},
    "values of states": {"template": {}},
    "values of states, separate": {"template": {}, "separate": True},
}
OF_ANY_AGENTS = pytest.mark.parametrize("form", OF_AGENTS.values(), ids=OF_AGENTS)


@OF_ANY_AGENTS
def test_the_critic_of_one_actor_has_no_target(form):
    critic = alike(form)
    names = list(critic.state_dict())
    singles = [critic["agent_0"]]
    if form.get("kind") == "state_action":
        singles.append(critic.target["agent_0"])
    for single in singles:
        assert not hasattr(single, "target")
        assert not any(name.startswith("target") for name in single.state_dict())
    assert list(critic.state_dict()) == names


def test_a_target_of_one_actors_critic_leaves_that_of_all():
    critic = alike(ONE_NETWORK)
    target, single = critic.target, critic["agent_0"]
    single.make_target()
    assert single.has_target
    assert critic.target is target
    assert not critic["agent_0"].has_target


@OF_ANY_AGENTS
def test_the_critic_of_one_actor_may_have_a_target_of_its_own(form):
    """Also where its weights are slices of those of all actors."""
    if form.get("kind") != "state_action":
        return
    critic = alike(form)
    single = critic["agent_0"]
    single.make_target()
    before, now = single.target.state_dict(), single.online.state_dict()
    assert list(before) == list(now)
    assert all(torch.equal(before[name], now[name]) for name in now)
    assert not any(parameter.requires_grad for parameter in single.target.parameters())
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(1)
    assert not any(torch.equal(before[name], now[name]) for name in now)
    single.update_targets(1.0)
    torch.testing.assert_close(single.target.state_dict(), single.online.state_dict())


@OF_ANY_AGENTS
def test_the_critic_of_one_actor_is_in_the_mode_of_all(form):
    critic = alike(form)
    for mode in (False, True):
        critic.train(mode)
        assert critic["agent_0"].training is mode
        if form.get("kind") == "state_action":
            assert not critic.target["agent_0"].training
    if form.get("kind") == "state_action":
        critic["agent_0"].train()
        assert not any(module.training for module in critic.target.modules())


# --- targets ---


@ANYONE
def test_a_target_begins_as_a_copy_and_is_never_trained(critic):
    net = compose({**critic, "normalize_value": True}).critic.train()
    seen, done = batch()
    torch.testing.assert_close(net.target(seen, done), net(seen, done), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in net.target.parameters())
    assert not any(module.training for module in net.target.modules())
    assert net.training
    assert not hasattr(net.target, "target")


@ANYONE
@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_targets_of_all_actors_move_by_tau(critic, tau):
    net = compose(critic).critic
    before = tensors(net.target)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    torch.testing.assert_close(tensors(net.target), before, rtol=0, atol=0)
    net.update_targets(tau)
    for name, tensor in net.target.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + tau)


def test_agents_with_one_network_or_one_each_have_targets_without_networks_by_name():
    for separate in (False, True):
        critic = {"kind": "state_action", "separate": separate, "template": {}}
        net = alike(critic)
        names = net.state_dict().keys()
        own = {name for name in names if not name.startswith("target.")}
        assert {f"target.{name}" for name in own} == names - own
        with torch.no_grad():
            for parameter in net.online.parameters():
                parameter.zero_()
        net.update_targets(1.0)
        assert not any(tensor.any() for tensor in net.target.state_dict().values())
        seen = {key: torch.randn(5, 3) for key in net.actors.names}
        done = {key: torch.randn(5, 2) for key in net.actors.names}
        assert not flat(net(seen, done)).any()


# --- as a module ---


@ANYONE
def test_a_critic_comes_back_from_a_file_and_from_the_meta_device(critic, tmp_path):
    critic = {**critic, "normalize_value": True}
    model = compose(critic)
    with torch.no_grad():
        for parameter in model.critic.target.parameters():
            parameter.mul_(3.0)
    model.update_normalizers(returns={"pick": [1.0, 2.0]})
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(tensors(loaded), tensors(model), rtol=0, atol=0)
    for net, other in ((model.critic, loaded.critic), (model.critic.target, loaded.critic.target)):
        torch.testing.assert_close(other(*batch()), net(*batch()), rtol=0, atol=0)
    direct, later = compose(critic), compose(critic, device="meta").materialize()
    torch.testing.assert_close(tensors(later), tensors(direct), rtol=0, atol=0)
    torch.testing.assert_close(later.critic.target(*batch()), direct.critic(*batch()))


@ANYONE
def test_a_copy_of_a_critic_is_a_critic_of_its_own(critic):
    model = compose({**critic, "normalize_value": True})
    expected = flat(model.critic.target(*batch()))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(flat(other.critic.target(*batch())), expected)
        with torch.no_grad():
            for parameter in other.critic.online.parameters():
                parameter.add_(1.0)
        other.critic.update_targets(1.0)
        torch.testing.assert_close(other.critic.target(*batch()), other.critic(*batch()))
        other.update_normalizers(returns={"place/0": [5.0, 6.0]})
        values = other.critic.target(*batch())["place", 0]
        assert not torch.equal(values["q_value"], values["normalized_q_value"])
    assert torch.equal(flat(model.critic.target(*batch())), expected)


@ANYONE
def test_a_critic_in_another_dtype_takes_its_target_along(critic):
    net = compose(critic).to(torch.float64).critic
    values = net.target.value(*batch())
    assert all(value.dtype == torch.float64 for value in values.values())
    net.update_targets(0.5)


@ANYONE
def test_a_table_and_a_picture_show_it(critic, tmp_path):
    model = compose(critic)
    (line,) = [line for line in model.summary().splitlines() if "target copy" in line]
    count = sum(parameter.numel() for parameter in model.critic.target.parameters())
    assert line == (
        f"the critic has a target copy of as many parameters ({count:,}); update_targets(tau) moves it"
    )
    drawn = model.draw(tmp_path / "model.mmd").read_text()
    assert ", with target" in drawn
    assert "the action" in drawn


def test_empty_batches_and_single_samples_have_values():
    critic = compose(SEPARATE).critic
    for leading in ((), (0,), (2, 3)):
        seen = {key: torch.zeros(*leading, *space.shape) for key, space in OBSERVATIONS.items()}
        grip = {"where": torch.zeros(*leading, 2), "hold": torch.zeros(leading, dtype=torch.int64)}
        done = {"pick": torch.zeros(leading, dtype=torch.int64), **dict.fromkeys(PLACES, grip)}
        values = critic.value(seen, done)
        assert {value.shape for value in values.values()} == {leading}


# --- memory ---


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("ensemble", [1, 2])
def test_memory_steps_as_it_unrolls_and_so_does_that_of_the_target(separate, ensemble):
    graph = {
        "all": {"block": "concat", "in": ["observation", "action/action"]},
        "memory": {"block": "gru", "in": "all", "hidden_units": 4},
    }
    critic = {"kind": "state_action", "separate": separate, "ensemble": ensemble, "graph": graph}
    online = alike(critic, number=2).eval()
    names = online.actors.names
    seen = {key: torch.randn(2, 4, 3) for key in names}
    done = {key: torch.randn(2, 4, 2) for key in names}
    resets = torch.tensor([[True, False, True, False], [False, False, False, True]])
    start = {name: torch.randn_like(value) for name, value in online.initial_state(2).items()}
    for net in (online, online.target):
        expected, end = net.unroll(seen, done, start, resets)
        state = start
        for t in range(4):
            now = ({key: values[:, t] for key, values in own.items()} for own in (seen, done))
            values, state = net.value(*now, state, resets[:, t])
            for key, value in values.items():
                whole = expected[key]["q_value"][:, t].squeeze(-1)
                torch.testing.assert_close(value, whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state, end, atol=1e-5, rtol=1e-5)
    message = (
        "this critic has memory; call critic(observations, action, state, resets), "
        "beginning with initial_state(batch_size)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        online({key: values[:, 0] for key, values in seen.items()}, done)


# --- what cannot be ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda done: {"pick": done["pick"]},
         "for 'place/0': this critic reads the action; call critic(observations, action), or the model itself with action=action"),
        (lambda done: {**done, ("place", 1): {**done["place", 1], "where": torch.zeros(5, 3)}},
         "for 'place/1': action 'where' has shape (5, 3), expected (..., 2)"),
        (lambda done: {**done, "pick": torch.zeros(4, dtype=torch.int64)},
         "for 'pick': the action 'action' has the leading (batch) axes (4,), the observations (5,)"),
        (lambda done: {**done, "pick": done["pick"] + 5},
         "for 'pick': 'action' is "),
        (lambda done: {**done, "plaec/0": done["place", 0]},
         "actions of unknown actors: 'plaec/0'; did you mean 'place/0'?"),
        (lambda done: done["pick"],
         "actions come as a dict by actor ('pick', 'place/0', 'place/1'), got a Tensor"),
    ],
)  # fmt: skip
def test_actions_that_do_not_fit_are_refused(change, message):
    seen, done = batch()
    with pytest.raises(ValueError, match=re.escape(message)):
        compose(BY_STEP).critic(seen, change(done))


def test_actors_of_other_actions_need_networks_of_their_own():
    names = ["a", "b"]
    actions = {"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (3,))}
    networks = {name: {"template": {}} for name in names}
    critic = {"kind": "state_action", "template": {}}
    message = (
        "critic: one network values them, but 'action/action' of 'a' and 'b' has the shapes (2,) and (3,); "
        "give them networks of their own under 'networks', or write separate: true"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        compose(critic, dict.fromkeys(names, ARM), actions, {"networks": networks})
    model = compose(
        {**critic, "separate": True}, dict.fromkeys(names, ARM), actions, {"networks": networks}
    )
    assert "they run one by one: 'action/action' of 'a' and 'b' has the shapes" in model.summary()
    values = model.critic.value(
        {name: torch.zeros(3) for name in names}, {"a": torch.zeros(2), "b": torch.zeros(3)}
    )
    assert [value.shape for value in values.values()] == [(), ()]


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        ({**BY_STEP, "networks": {"pick": PICK, "place": linear("observation", "action/where")}},
         "critic.networks.place: the critic does not read 'action/hold'; a Q value must depend on the whole action"),
        ({**BY_STEP, "networks": {"pick": linear("observation", "action/action"), "place": PLACE}},
         "critic.networks.pick.graph.all.in: 'all' reads 'action/action', which is no input here: the critic returns a Q value for each choice"),
        ({**BY_STEP, "stack": True},
         "critic.stack: 'stack' puts the observations of all actors together, for kind: shared_state"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(critic, message):
    with pytest.raises(SpecError) as caught:
        compose(critic)
    assert message in str(caught.value)


def test_an_actor_called_like_a_part_of_the_critic_is_refused():
    names = ["target", "other"]
    networks = {name: {"template": {}} for name in names}
    message = "critic.networks.target: 'target' is the name of a part of the critic itself; rename the step or agent"
    with pytest.raises(SpecError, match=re.escape(message)):
        compose(
            {"kind": "state_action", "networks": networks},
            dict.fromkeys(names, ARM), dict.fromkeys(names, spaces.Discrete(2)), {"networks": networks},
        )  # fmt: skip
