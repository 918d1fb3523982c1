"""The central critic of actions: one Q value of what all actors observe and do."""

import copy
import re
from typing import Any

import pytest
import torch
from gymnasium import spaces

import composer
from composer import SpecError
from composer.diagram.sketch import sketch
from composer.export.network import ExportedNetwork
from composer.export.parity import random_inputs
from tests.composer.export.test_exporting import every_kind, exported
from tests.helpers.actor_critics import (
    ACTIONS,
    ARM,
    GOAL,
    OBSERVATIONS,
    compose,
    linear,
    network,
    observe,
    summed,
)

DONE = ["pick/action/action", "place/0/action/action", "place/1/action/action"]
EVERYTHING = {"kind": "shared_state_action", **linear("pick/view", "place/1/goal", *DONE)}
TEMPLATE = {"kind": "shared_state_action", "template": {}}
ALIKE = ["left", "right"]
STACKED = {
    "kind": "shared_state_action",
    "stack": True,
    "graph": {
        "each_actor": {"block": "concat", "in": ["observation", "action/action"]},
        "flat": {"block": "flatten", "in": "each_actor"},
        "sum": {"block": "linear_output", "in": "flat", "output_units": 1},
    },
}


def act(batch=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    place = lambda: torch.randn(batch, 2, generator=generator)  # noqa: E731
    picks = torch.randint(3, (batch,), generator=generator)
    return {"pick": picks, ("place", 0): place(), ("place", 1): place()}


def alike(critic, first=GOAL, second=GOAL):
    return composer.compose(
        {"version": 1, "policy": {"template": {}, "separate": True}, "critic": critic},
        observation_space=dict.fromkeys(ALIKE, ARM),
        action_space=dict(zip(ALIKE, (first, second), strict=True)),
        seed=0,
    )


def read_by_hand(seen, done):
    codes = torch.nn.functional.one_hot(done["pick"], 3).float()
    return [seen["pick"]["view"], seen["place", 1]["goal"], codes, *(done["place", i] for i in (0, 1))]  # fmt: skip


# --- one value of what all observe and do ---


def test_the_value_is_made_of_all_actions_choices_one_hot_and_numbers_as_they_are():
    critic = compose(EVERYTHING).critic
    seen, done = observe(), act()
    expected = summed(critic, *read_by_hand(seen, done))
    torch.testing.assert_close(critic(seen, done)["q_value"], expected)
    torch.testing.assert_close(critic.value(seen, done), expected.squeeze(-1))
    shuffled = dict(reversed(done.items()))
    torch.testing.assert_close(critic.value(seen, shuffled), expected.squeeze(-1))
    one = {key: {name: value[0] for name, value in of.items()} for key, of in seen.items()}
    alone = critic.value(one, {key: action[0] for key, action in done.items()})
    torch.testing.assert_close(alone, expected[0, 0])


def test_stacked_actions_have_the_actors_first():
    critic = alike(STACKED).critic
    assert critic.network.in_ports["action/action"].shape == (2, 2)
    seen = {name: torch.rand(5, 3) for name in ALIKE}
    done = {name: torch.rand(5, 2) for name in ALIKE}
    rows = [torch.cat([seen[name], done[name]], dim=-1) for name in ALIKE]
    torch.testing.assert_close(critic(seen, done)["q_value"], summed(critic, *rows))


@pytest.mark.parametrize("more", [{}, {"observations": ["pick"]}], ids=str)
def test_a_template_reads_every_action(more):
    model: Any = compose({**TEMPLATE, **more})
    assert [name for name in model.critic.network.in_ports if "action" in name] == DONE


def test_a_group_of_an_actor_has_its_action():
    model = compose({"kind": "shared_state_action", **linear("pick", "place")})
    read = [
        f"{actor}/{key}" for key in ("view", "goal") for actor in ("pick", "place/0", "place/1")
    ]
    assert list(model.critic.network.in_ports) == read + DONE


def test_of_one_space_it_is_a_critic_of_its_action():
    model = composer.compose(
        {"version": 1, "policy": {"template": {}}, "critic": TEMPLATE},
        observation_space=ARM, action_space=GOAL, seed=0,
    )  # fmt: skip
    values = model.critic(torch.rand(4, 3), torch.rand(4, 2))
    assert values["q_value"].shape == (4, 1)
    assert type(model.critic) is composer.critic.StateActionCritic


def test_gradients_flow_through_each_action_into_its_policy_alone():
    model = compose({**EVERYTHING, "ensemble": 2})
    seen, done = observe(), act()
    drawn = model.policy.distribution(seen)["place", 0].rsample()
    values = model.critic.value(seen, {**done, ("place", 0): drawn})
    assert values.shape == (5, 2)
    drawn.retain_grad()
    values[:, 0].sum().backward()
    weight = next(p for n, p in model.critic.named_parameters() if n.endswith("weight"))[0, 0]
    torch.testing.assert_close(drawn.grad, weight[9:11].expand(5, 2))  # after 4, 2 and 3 others
    assert all(p.grad is None for p in model.policy["pick"].parameters())


# --- targets, copies and files ---


@pytest.mark.parametrize("more", [{}, {"ensemble": 2}, {"normalize_value": True}], ids=str)
def test_its_target_follows_and_is_saved(more, tmp_path):
    model = compose({**EVERYTHING, **more})
    critic, seen, done = model.critic, observe(), act()
    with torch.no_grad():
        before = critic.value(seen, done)
        torch.testing.assert_close(critic.target.value(seen, done), before)
        for parameter in critic.online.parameters():
            parameter.add_(1)
        moved = critic.value(seen, done)
        torch.testing.assert_close(critic.target.value(seen, done), before)
        critic.update_targets(0.5)
        between = critic.target.value(seen, done)
    torch.testing.assert_close(between, (before + moved) / 2)
    assert not any(p.requires_grad for p in critic.target.parameters())
    model.save(tmp_path / "model.safetensors")
    for again in (composer.load(tmp_path / "model.safetensors"), copy.deepcopy(model)):
        assert torch.equal(again.critic.value(seen, done), moved)
        assert torch.equal(again.critic.target.value(seen, done), between)


def test_memory_is_carried_and_unrolled():
    reads = ["pick/view", *DONE]
    graph = {
        "all": {"block": "concat", "in": reads},
        "memory": {"block": "gru", "in": "all", "hidden_units": 4},
    }
    critic = compose({"kind": "shared_state_action", "graph": graph}).critic
    seen, done = observe(), act()
    steps, state = [], critic.initial_state(())
    for t in range(5):
        now = {key: {name: value[t] for name, value in of.items()} for key, of in seen.items()}
        values, state = critic(now, {key: action[t] for key, action in done.items()}, state)
        steps.append(values["q_value"])
    unrolled, after = critic.unroll(seen, done, critic.initial_state(()))
    torch.testing.assert_close(unrolled["q_value"], torch.stack(steps))
    torch.testing.assert_close(after, state)
    with pytest.raises(ValueError, match=re.escape("critic(observations, action, state, resets)")):
        critic(seen)


def test_the_model_hands_it_shared_values_and_the_action():
    critic = {"kind": "shared_state_action", **linear("pick/latent", *DONE)}
    model = compose(critic, shares=["latent"])
    seen, done = observe(), act()
    logits, values = model(seen, action=done)
    read = [logits["pick"]["latent"], *read_by_hand(seen, done)[2:]]
    torch.testing.assert_close(values["q_value"], summed(model.critic, *read))


@every_kind
def test_its_file_takes_the_action_of_every_actor(suffix, tmp_path):
    model = compose({**EVERYTHING, "ensemble": 2})
    file = exported(model, tmp_path, suffix, part="critic")
    read = ["pick/view", "place/1/goal", *(name.replace("action/action", "taken") for name in DONE)]
    assert sorted(file.inputs) == sorted(read)
    network = ExportedNetwork(model.policy, model.critic, "critic", None)
    inputs = next(random_inputs(network, 3, 1, seed=5))
    seen = observe(3)
    seen["pick"]["view"], seen["place", 1]["goal"] = inputs["pick/view"], inputs["place/1/goal"]
    taken = {key: inputs[f"{'/'.join(map(str, key)) if key != 'pick' else key}/taken"] for key in ACTIONS}  # fmt: skip
    expected = model.critic(seen, model.policy.from_environment(taken))["q_value"]
    torch.testing.assert_close(torch.as_tensor(file(inputs)["q_value"]), expected.detach())


def test_summary_and_picture_say_what_it_sees():
    model = compose(EVERYTHING)
    said = "for all actors at once; it sees the observations and actions of 'pick', 'place/0'"
    assert f"critic is {said}, 'place/1'" in model.summary()
    picture = sketch(model)
    (frame,) = [frame for frame in picture.frames.values() if frame.title == "critic"]
    assert frame.remark == f"14 parameters {said} and 1 more, with target"
    assert {box.title for box in picture.boxes.values()} >= set(DONE)


def test_compiled_it_gives_the_same():
    critic = compose(EVERYTHING).critic
    seen, done = observe(), act()
    compiled = torch.compile(critic, backend="eager")
    torch.testing.assert_close(compiled(seen, done), critic(seen, done))


# --- where actors may be absent ---


def test_of_absent_actors_the_network_gets_zeros_and_is_told():
    reads = ["pick/view", "place/1/goal", *DONE, "present"]
    critic = compose({"kind": "shared_state_action", **linear(*reads)}).critic
    seen, done = observe(), act()
    by_hand = read_by_hand(seen, done)
    there = torch.ones(5, 3)
    torch.testing.assert_close(critic(seen, done)["q_value"], summed(critic, *by_hand, there))
    by_hand[1], by_hand[4] = torch.zeros(5, 2), torch.zeros(5, 2)
    expected = summed(critic, *by_hand, torch.tensor([1.0, 1, 0]).expand(5, 3))
    mask = {("place", 1): torch.zeros(5, dtype=torch.bool)}
    torch.testing.assert_close(critic(seen, done, present=mask)["q_value"], expected)
    del seen["place", 1]
    torch.testing.assert_close(critic(seen, done)["q_value"], expected)
    del done["place", 1]
    torch.testing.assert_close(critic(seen, done)["q_value"], expected)


def test_a_call_says_what_is_missing():
    critic = compose(EVERYTHING).critic
    seen, done = observe(), act()
    without = {key: action for key, action in done.items() if key != "pick"}
    gone = {key: of for key, of in seen.items() if key != ("place", 1)}
    way_out = "call critic(observations, action), or the model itself with action=action"
    for call, message in [
        (lambda: critic(seen), f"this critic reads the actions of all actors; {way_out}"),
        (lambda: critic.value(seen), "this critic reads the actions of all actors; call critic.value(observations, action)"),
        (lambda: critic(seen, without), "for 'pick': this actor is observed, but its action is missing"),
        (lambda: critic(seen, {**done, "pikc": 0}), "actions of unknown actors: 'pikc'; did you mean 'pick'?"),
        (lambda: critic(gone, done),
         "this critic reads the observations and actions of all actors; missing: 'place/1'. If actors may be absent, let its "
         "network read 'present', which is 0 for them; their observations and actions are then zeros"),
        (lambda: critic(seen, {**done, "pick": done["pick"][:3]}), "the action of 'pick' has the leading (batch) axes (3,), its observations (5,)"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


# --- what cannot be ---

CODES = spaces.Discrete(2)
UNLIKE = (
    "critic.stack: 'stack' needs values of one form, but 'action/action' of 'left' and 'right' "
)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: compose({"kind": "shared_state_action", **linear("pick/view", *DONE[1:])}),
         "critic: the critic does not read 'pick/action/action'; a Q value must depend on the whole actions of all actors"),
        (lambda: compose({**TEMPLATE, "separate": True}),
         "critic.separate: 'separate' gives each agent a critic of its own, for kind: state and kind: state_action"),
        (lambda: compose({"kind": "shared_state_action", "networks": {"pick": {"template": {}}}}),
         "critic.networks: one network reads the observations and actions of all actors; write it directly, without 'networks'"),
        (lambda: alike({**STACKED}, spaces.Box(-1, 1, (3,))),
         UNLIKE + "has the shapes (3,) and (2,); leave 'stack' out"),
        (lambda: alike({**STACKED}, CODES),
         UNLIKE + "has the shapes () and (2,); leave 'stack' out"),
        (lambda: alike({**STACKED}, CODES, spaces.Discrete(3)),
         UNLIKE + "differs in its kind of numbers, its bounds or its mask; leave 'stack' out"),
        (lambda: compose({**TEMPLATE, "observations": ["pick/action/action"]}),
         "critic.observations.0: 'pick/action/action' is not an observation"),
        (lambda: compose({"kind": "shared_state_action", **linear("pick/action", *DONE[1:], "pick/veiw")}),
         "reads 'pick/veiw', which is neither an input nor a node's output; did you mean 'pick/view'?"),
        (lambda: compose(TEMPLATE, observations={
            **OBSERVATIONS, "pick": spaces.Dict({"view": ARM, "goal": GOAL, "action/action": GOAL})}),
         "critic: the observation 'action/action' of 'pick' is called as the action is that the critic reads; rename it, or "
         "name it under 'ignore'"),
        (lambda: compose(TEMPLATE, observations={"pick": ARM, ("place", None): ARM},
                         actions={"pick": CODES, ("place", None): GOAL},
                         policy={"networks": {"pick": {"template": {}}, "place": {"template": {}}}}),
         "critic: a critic of the observations and actions of all actors needs a known number of agents; it is not known for 'place'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(build, message):
    with pytest.raises(SpecError) as caught:
        build()
    assert message in str(caught.value)


def test_what_is_advised_of_names_can_be_done():
    named = {"view": ARM, "goal": GOAL, "action/action": GOAL}
    model = compose(
        TEMPLATE, observations={**OBSERVATIONS, "pick": spaces.Dict(named)},
        ignore=["pick/action/action"],
    )  # fmt: skip
    assert set(DONE) <= set(model.critic.network.in_ports)
    shared = network("view", "goal", node="latent", heads={"in": "latent"})
    assert compose(TEMPLATE, policy={"networks": {"pick": shared, "place": shared}}).critic.takes_action  # fmt: skip
