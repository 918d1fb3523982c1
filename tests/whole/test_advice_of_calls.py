"""What a call advises instead of itself is called here; and every advice in the source is compared in some test."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from tests.helpers.paths import ROOT
from tests.whole.test_advice import ADVICE

SEEN = spaces.Box(-1, 1, (3,))
POLICY = {
    "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": 4}},
    "heads": {"in": "latent"},
}
GRU = {"block": "gru", "hidden_units": 4}
SHARING = {"graph": {"value": {"block": "linear_output", "in": "latent", "output_units": 1}}}
OBSERVATIONS = np.zeros((2, 3), np.float32)


def composed(policy, critic=None, action=spaces.Discrete(2)):  # noqa: B008 - never changed
    spec = {"version": 1, "policy": policy, "critic": critic}
    return composer.compose(spec, observation_space=SEEN, action_space=action, seed=0)


def advised(call, *arguments):
    """How the message of the ValueError that ``call`` raises says it is called instead."""
    with pytest.raises(ValueError, match="; call ") as caught:
        call(*arguments)
    return re.search(r"; call (\w+(?:\.\w+)?)\((.*?)\)", str(caught.value)).groups()


@pytest.mark.parametrize("memory", ["none", "policy", "critic"])
@pytest.mark.parametrize("kind", ["state", "state_action"])
def test_a_critic_is_called_as_it_says(memory, kind):
    """``critic.value`` is called as the critic is; what is said is said once, with all that it takes."""
    policy = {"graph": dict(POLICY["graph"]), "heads": {"in": "latent"}, "shares": ["latent"]}
    if memory == "policy":
        policy["graph"] = {"latent": {**GRU, "in": "observation"}}
    graph, reads = {}, ["latent"]
    if memory == "critic":
        graph["kept"], reads = {**GRU, "in": "latent"}, ["kept"]
    if kind == "state_action":
        reads.append("action/action")
    graph["both"] = {"block": "concat", "in": reads}
    graph["value"] = {"block": "linear_output", "in": "both", "output_units": 1}
    model = composed(policy, {"kind": kind, "graph": graph}, spaces.Box(-1, 1, (1,)))
    state = model.policy.initial_state(2)
    logits = (
        model.policy(OBSERVATIONS, state)[0] if memory == "policy" else model.policy(OBSERVATIONS)
    )
    given = {
        "observations": OBSERVATIONS, "action": torch.zeros(2, 1), "logits": logits,
        "state": model.critic.initial_state(2), "resets": torch.zeros(2, dtype=torch.bool),
    }  # fmt: skip
    for call in (model.critic, model.critic.value):
        name, arguments = advised(call, OBSERVATIONS)
        assert name == ("critic" if call is model.critic else "critic.value")
        words = [word for word in arguments.split(", ") if "=" not in word]
        keywords = dict(word.split("=") for word in arguments.split(", ") if "=" in word)
        call(
            *(given[word] for word in words), **{key: given[word] for key, word in keywords.items()}
        )


def test_a_policy_and_a_model_with_memory_are_called_as_they_say():
    policy = {"graph": {"latent": {**GRU, "in": "observation"}}, "heads": {"in": "latent"}}
    model = composed(policy, {"template": {}})
    given = {"observations": OBSERVATIONS, "resets": None}
    for call, owner in ((model, model), (model.policy, model.policy)):
        _, arguments = advised(call, OBSERVATIONS)
        values = {**given, "state": owner.initial_state(2)}
        call(*(values[word] for word in arguments.split(", ")))


def test_a_distribution_without_gradients_through_its_action_says_what_to_use():
    distribution = composed(POLICY).policy.distribution(OBSERVATIONS)
    with pytest.raises(ValueError, match=r"has no reparametrised sample; use sample\(\)"):
        distribution.rsample()
    distribution.sample()


def test_a_model_without_weights_says_how_to_get_them():
    spec = {"version": 1, "policy": POLICY}
    model = composer.compose(
        spec, observation_space=SEEN, action_space=spaces.Discrete(2), device="meta"
    )
    with pytest.raises(ValueError, match=r"call model.materialize\(device\) first"):
        model.policy(OBSERVATIONS)
    model.materialize("cpu")
    model.policy(OBSERVATIONS)


# --- every advice is somewhere ---

# Where each of these is said, and that it can be done, is shown by no test.
IN_NO_TEST = {
    "a node with 'same_as' has the settings of", "a checkpoint brings its own configuration", "'same_as' names",
    "names that too", "two inputs are called", "is what the value before is called here", "is a mapping by actor, but",
    "GiB of weights do not fit", "pads all choices of", "has choices of several sizes in", "is a ready module; name its class",
    "defines act() itself", "was not made of the critic_copies", "from Python, give the class itself",
    "this policy has several actions", "an entry of the list is expected here",
    "this '\\' escape is unknown", "If a package brings it",

}  # fmt: skip


def literals(path):
    """The texts in a module, each as its parts between what is filled in; docstrings are none."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    inner |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield [node.value]
        elif isinstance(node, ast.JoinedStr):
            yield [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]


def test_every_advice_is_compared_in_some_test():
    here = Path(__file__)
    files = [p for p in (ROOT / "tests").rglob("*") if p.suffix in (".py", ".txt") and p != here]
    files += [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "composer").rglob("*.py"),
        *(ROOT / "perception_blocks").rglob("*.py"),
    ]
    said = "\n".join(p.read_text() for p in files if "tests" in p.parts or "docs" in p.parts)
    said += here.read_text().partition("# --- every advice")[0]
    said = re.sub(r'"\s*\n\s*f?r?"', "", said)
    said = re.sub(
        r"\s+", " ", re.sub(r"\\(.)", r"\1", said)
    ).lower()  # a sentence begins with a capital
    missing = []
    for path in files:
        for parts in literals(path) if path.suffix == ".py" and "tests" not in path.parts else ():
            text = "".join(parts)
            if ADVICE.search(text):
                pieces = [
                    re.sub(r"\s+", " ", p).strip()
                    for p in re.split(r"\0|\{\d*\}", text)
                    if len(p) > 3
                ]
                if not all(piece.lower() in said for piece in pieces):
                    missing.append(text)
    assert [text for text in missing if not any(known in text for known in IN_NO_TEST)] == []
