"""What the adapter to TorchRL refuses, word by word."""

import pytest
from gymnasium import spaces
from tensordict import TensorDict
from torchrl.envs.libs.gym import GymEnv, GymWrapper
from torchrl.objectives import A2CLoss, ClipPPOLoss, DQNLoss, SACLoss

from composer.adapters.torchrl.models import primers, to_torchrl
from tests.helpers import fresh
from tests.helpers.paths import ROOT
from tests.helpers.torchrl_models import DENSE, TEMPLATES, VALUES, Playground, compose, refusal

pytestmark = pytest.mark.filterwarnings("ignore")  # torchrl's own


def test_environments_with_other_specs_are_refused():
    model = compose({"environment": "MountainCar-v0", "policy": DENSE})
    assert refusal(to_torchrl, model, GymEnv("CartPole-v1")) == (
        "this environment is not the one that the model was composed for:\n"
        "  the observation 'observation' is Box([-1.2 -0.07], [0.6 0.07], (2,), float32) for the model, "
        "BoundedContinuous (4,) in the environment\n"
        "  the action 'action' is Discrete(3) as one-hot for the model, OneHot (2,) of 2 choices in the environment"
    )
    model = compose({"environment": "CartPole-v1", "policy": DENSE})
    assert refusal(to_torchrl, model, GymEnv("CartPole-v1"), encoding="categorical") == (
        "this environment is not the one that the model was composed for:\n"
        "  the action 'action' is Discrete(2) as an index for the model, OneHot (2,) of 2 choices in the environment"
    )
    two = spaces.Dict(move=spaces.Discrete(2), use=spaces.Discrete(2))
    seen = spaces.Dict(other=spaces.Box(-1, 1, (4,)))
    assert refusal(to_torchrl, model, GymWrapper(Playground(two, seen))) == (
        "this environment is not the one that the model was composed for:\n"
        "  the observation 'observation' is Box([-4.8 -inf -0.41887903 -inf], [4.8 inf 0.41887903 inf], (4,), float32) "
        "for the model; the environment has 'other'\n"
        "  the action 'action' is Discrete(2) as one-hot for the model; the environment has 'move', 'use'\n"
        "  the environment takes the action 'move', which the model does not give\n"
        "  the environment takes the action 'use', which the model does not give"
    )


STATE = "critic: {kind: state, template: {}}"
LOSSES = [
    (
        ClipPPOLoss,
        None,
        f"ClipPPOLoss needs the value of a state; add a critic such as {STATE}",
    ),
    (
        A2CLoss,
        {**VALUES, "kind": "state_action"},
        "A2CLoss needs the value of a state, but the critic is of kind 'state_action'; give it one such as "
        + STATE,
    ),
    (
        ClipPPOLoss,
        {**VALUES, "ensemble": 2},
        "ClipPPOLoss needs the value of a state once, but the critic gives 2; leave out 'ensemble'",
    ),
    (
        DQNLoss,
        VALUES,
        "DQNLoss needs the value of an action, but the critic is of kind 'state'; give it one such as "
        "critic: {kind: state_action, template: {}}",
    ),
    (
        DQNLoss,
        {**VALUES, "kind": "state_action", "ensemble": 2},
        "DQNLoss needs the value of an action once, but the critic gives 2; leave out 'ensemble'",
    ),
    (
        SACLoss,
        VALUES,
        "it needs gradients through one action, which a Box has, got Discrete(2); use ClipPPOLoss",
    ),
    (
        SACLoss,
        {**VALUES, "kind": "state_action"},
        "it needs gradients through one action, which a Box has, got Discrete(2); use DiscreteSACLoss",
    ),
    (
        int,
        VALUES,
        "loss must be a class of torchrl.objectives such as ClipPPOLoss, got <class 'int'>",
    ),
]


@pytest.mark.parametrize(("loss", "critic", "message"), LOSSES)
def test_losses_that_the_critic_cannot_serve_are_refused(loss, critic, message):
    spec = {"environment": "CartPole-v1", "policy": DENSE}
    model = compose(spec if critic is None else {**spec, "critic": critic})
    if loss is not int:
        message = f"{loss.__name__} cannot train this model:\n  {message}"
    assert refusal(to_torchrl, model, loss=loss) == message


def test_several_actions_are_trained_by_ppo_alone():
    space = spaces.Dict(move=spaces.Discrete(2), use=spaces.Discrete(2))
    model = compose(TEMPLATES, env=Playground(space))
    assert refusal(to_torchrl, model, loss=A2CLoss) == (
        "A2CLoss cannot train this model:\n  it learns one action, but there are 'move', 'use'; use ClipPPOLoss"
    )


def test_models_of_several_actors_are_refused():
    box, choice = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)
    model = compose(
        {"policy": DENSE},
        observation_space={"left": box, "right": box},
        action_space={"left": choice, "right": choice},
    )
    message = (
        "to_torchrl takes a model of one space; this one has the actors 'left', 'right', whose observations come at "
        "different times. Compose a model for each of them, or train in a loop of your own with "
        "model.policy.act({actor: observation})"
    )
    assert refusal(to_torchrl, model) == message
    assert refusal(primers, model) == message


def test_wrong_arguments_are_answered_by_name():
    model = compose({"environment": "CartPole-v1", "policy": DENSE})
    assert refusal(to_torchrl, model, keys={"observatoin": "seen"}) == (
        "keys names 'observatoin', which is no observation or action; did you mean 'observation'?"
    )
    assert refusal(to_torchrl, model, encoding="one-hot") == (
        "encoding must be 'categorical' or 'one_hot', got 'one-hot'; did you mean 'one_hot'?"
    )
    assert refusal(to_torchrl(model).actor_inference, TensorDict(batch_size=[2])) == (
        "the TensorDict lacks 'observation', which the actor reads; if an observation has another key there, say so "
        "in to_torchrl(..., keys={name: key})"
    )
    counts = compose(TEMPLATES, env=Playground(spaces.Discrete(3, start=2)))
    assert refusal(to_torchrl, counts, encoding="one_hot") == (
        "'action' counts from 2, which one-hot vectors do not tell; use an environment with "
        "categorical_action_encoding=True"
    )


@pytest.mark.parametrize("what", [to_torchrl, primers])
def test_a_spec_is_no_model(what):
    message = "to_torchrl and primers take a model, as composer.compose makes it, got a dict"
    assert refusal(what, TEMPLATES) == message


def test_observations_that_the_modules_would_overwrite_are_refused():
    observed = spaces.Dict(logits=spaces.Box(-1, 1, (2,)), action=spaces.Discrete(2))
    model = compose({"policy": {"template": {}}}, env=Playground(spaces.Discrete(2), observed))
    assert refusal(to_torchrl, model) == (
        "the modules write 'logits', 'action' themselves, which are observations here; rename them in the environment "
        "with RenameTransform, and say so in to_torchrl(..., keys={name: key})"
    )


def test_without_torchrl_the_extra_is_named():
    code = (
        "import sys; sys.modules['torchrl'] = None\n"
        "try:\n    from composer.adapters.torchrl import to_torchrl\n"
        "except ImportError as error:\n    print(error)"
    )
    done = fresh.run(code, ROOT)
    assert done.stdout.strip() == (
        "composer.adapters.torchrl needs 'torchrl'; install it with: pip install \"perception-composer[torchrl]\""
    )
