"""Kinds of critics answer through their registry: one of a user's own goes wherever those that are built in go."""

import itertools
import re
import subprocess
import sys

import pytest
import torch
from gymnasium import spaces

import composer
from composer import SpecError
from composer.adapters.needs import AlgorithmNeeds, problems
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import read_record
from composer.cli import main
from composer.critic import CRITICS, Critic
from composer.critic.delta_state import DeltaStateCritic
from composer.critic.shared_state import SharedStateCritic
from composer.critic.shared_state_action import SharedStateActionCritic
from composer.critic.state_action import StateActionCritic
from composer.critic.structured import StructuredCritic
from composer.diagram.sketch import sketch
from composer.network.module import InputSource, OutputMeaning
from perception_blocks.words import describe, listing
from tests.helpers.paths import ROOT

BOX = spaces.Box(-1, 1, (4,))
ALONE = {"observation_space": BOX, "action_space": spaces.Discrete(3)}
SEVERAL = {
    "observation_space": {"pick": BOX, "place": BOX},
    "action_space": {"pick": spaces.Discrete(3), "place": spaces.Discrete(3)},
}
BY_STEP = {"networks": {"pick": {"template": {}}, "place": {"template": {}}}}
FORMS = {
    "of one network": {"template": {}},
    "of networks by step": BY_STEP,
    "of separate networks": {"template": {}, "separate": True},
    "of an ensemble": {"template": {}, "ensemble": 2},
}


class BoundedCritic(Critic):
    """The value of a state, between -1 and 1."""

    refused = {**Critic.refused, "normalize_value": "values are between -1 and 1; leave it out"}

    def values_of(self, outputs):
        values = super().values_of(outputs)
        return values | {"value": values["value"].tanh()}


class OneSpaceCritic(Critic):
    @classmethod
    def structured(cls):
        return None


class TeamCritic(SharedStateCritic):
    serves_space = False


class CentralQ(SharedStateActionCritic):
    """A kind that is derived from that of actions, with no class for one space."""


class CentralCritic(SharedStateCritic):
    """Overrides something that a `Critic` would not have."""


class StepsCritic(DeltaStateCritic):
    """Overrides something that a `Critic` would not have."""


class MemberlessCritic(StructuredCritic):
    """Says nothing of the critic of each network."""


class RegularCritic(Critic):
    """The way out of `MemberlessCritic`."""

    @classmethod
    def structured(cls):
        return MemberlessCritic


class UnbuiltCritic(Critic):
    @classmethod
    def build(cls, network, setup):
        return None


class UnbuiltTogether(RegularCritic):
    @classmethod
    def structured(cls):
        return NoneOfSeveral


class NoneOfSeveral(StructuredCritic):
    @classmethod
    def build(cls, actors, groups, setups):
        return None


class ValuelessCritic(Critic):
    def values_of(self, outputs):
        return {"worth": super().values_of(outputs)["value"]}


class ValuelessCentralCritic(SharedStateCritic):
    def values_of(self, outputs):
        return None


class UndemandingCritic(Critic):
    @classmethod
    def requirements(cls, actions):
        return None


class UndemandingCentralCritic(SharedStateCritic):
    @classmethod
    def requirements(cls, actions):
        return {"value": (1,)}


class RenamedCritic(ValuelessCritic):
    """The way out: the number is another of the values."""

    def number_of(self, values):
        return values["worth"].squeeze(-1)


class FailingCritic(Critic):
    def __init__(self, *arguments, **keywords):
        raise RuntimeError("no luck")


class FailingTogether(RegularCritic):
    @classmethod
    def structured(cls):
        return FailingOfSeveral


class FailingOfSeveral(StructuredCritic):
    def __init__(self, *arguments):
        raise RuntimeError("no luck")


class FailingCentralCritic(SharedStateCritic):
    @classmethod
    def requirements(cls, actions):
        raise RuntimeError("no luck")


class CentralOrBounded(SharedStateCritic):
    @classmethod
    def member(cls):
        return BoundedCritic


KINDS = {
    "bounded": BoundedCritic,
    "one_space": OneSpaceCritic,
    "team": TeamCritic,
    "central": CentralCritic,
    "central_q": CentralQ,
    "steps": StepsCritic,
    "memberless": MemberlessCritic,
    "regular": RegularCritic,
    "unbuilt": UnbuiltCritic,
    "unbuilt_together": UnbuiltTogether,
    "valueless": ValuelessCritic,
    "valueless_central": ValuelessCentralCritic,
    "undemanding": UndemandingCritic,
    "undemanding_central": UndemandingCentralCritic,
    "renamed": RenamedCritic,
    "failing": FailingCritic,
    "failing_together": FailingTogether,
    "failing_central": FailingCentralCritic,
    "central_or_bounded": CentralOrBounded,
    "no_critic": dict,
    "later": f"{__name__}:BoundedCritic",
    "elsewhere": f"{__name__}_elsewhere:BoundedCritic",
}


@pytest.fixture(autouse=True)
def kinds():
    """`KINDS`, registered while a test runs."""
    before = dict(CRITICS._entries)
    for name, entry in KINDS.items():
        CRITICS.register(name, entry, extra="graph" if name == "elsewhere" else None)
    yield
    CRITICS._entries = before


def compose(critic, several=False, policy=None):
    spec = {"version": 1, "policy": policy or {"template": {}}, "critic": critic}
    return composer.compose(spec, **(SEVERAL if several else ALONE), seed=0)


def observe(several, scale=20.0):
    torch.manual_seed(1)
    seen = {name: scale * torch.randn(8, 4) for name in ("pick", "place")}
    return seen if several else seen["pick"]


# --- a kind of a user's own ---


def test_a_kind_of_a_users_own_is_composed_valued_shown_and_drawn(tmp_path):
    model = compose({"kind": "bounded", "template": {}})
    plain = compose({"kind": "state", "template": {}})
    seen = observe(False)
    assert type(model.critic) is BoundedCritic
    torch.testing.assert_close(model.critic.value(seen), plain.critic.value(seen).tanh())
    torch.testing.assert_close(model(seen)[1]["value"], model.critic(seen)["value"])
    assert model.summary() == plain.summary()
    drawn = [each.draw(tmp_path / f"{i}.dot").read_text() for i, each in enumerate((model, plain))]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_several_actors_have_it_in_every_form(form, tmp_path):
    seen = observe(True)
    model = compose({"kind": "bounded", **form}, several=True)
    values, plain = (
        each.critic.value(seen)
        for each in (model, compose({"kind": "state", **form}, several=True))
    )
    for actor in seen:
        torch.testing.assert_close(values[actor], plain[actor].tanh())
        assert type(model.critic[actor]) is BoundedCritic
    model.summary()
    model.draw(tmp_path / "model.dot")
    model.save(tmp_path / "model.safetensors")
    again = composer.load(tmp_path / "model.safetensors").critic.value(seen)
    assert all(torch.equal(again[actor], values[actor]) for actor in seen)


@pytest.mark.parametrize(
    ("kind", "several"),
    [
        *itertools.product(["state", "state_action"], [False, True]),
        ("shared_state", True), ("shared_state_action", True), ("delta_state", True),
    ],
)  # fmt: skip
def test_a_class_derived_from_that_of_a_kind_has_the_same_way(kind, several, tmp_path):
    derived = type(CRITICS.get(kind))("Derived", (CRITICS.get(kind),), {"__module__": __name__})
    CRITICS.register("derived", derived)
    form = BY_STEP if several and not kind.startswith("shared_state") else {"template": {}}
    model, plain = (compose({"kind": name, **form}, several) for name in ("derived", kind))
    seen = observe(several)
    given = (
        (seen, {actor: torch.zeros(8, dtype=torch.int64) for actor in seen})
        if kind == "shared_state_action"
        else (seen,)
    )
    values, expected = (each.critic.value(*given) for each in (model, plain))
    torch.testing.assert_close(values, expected)
    assert isinstance(model.critic, type(plain.critic))
    assert hasattr(model.critic, "target") == kind.endswith("state_action")
    assert model.summary() == plain.summary()
    model.save(tmp_path / "model.safetensors")
    torch.testing.assert_close(
        composer.load(tmp_path / "model.safetensors").critic.value(*given), expected
    )


def test_a_name_that_stands_for_a_class_not_yet_imported_is_one_as_well():
    assert type(compose({"kind": "later", "template": {}}).critic) is BoundedCritic


def test_algorithms_train_what_is_derived_from_the_critic_that_they_need():
    needs = {"PPO": AlgorithmNeeds(lambda model: (), "state", "any")}
    assert problems(compose({"kind": "bounded", "template": {}}), "PPO", needs) == []
    (text,) = problems(compose({"kind": "shared_state", "template": {}}), "PPO", needs)
    assert "but the critic is of kind 'shared_state'; give it one such as critic: {kind" in text


# --- checkpoints ---


def test_a_checkpoint_says_whose_kind_it_needs(tmp_path):
    path = tmp_path / "model.safetensors"
    compose({"kind": "bounded", "template": {}}).save(path)
    assert read_record(path).critics == {"bounded": __name__}
    del CRITICS._entries["bounded"]
    with pytest.raises(CheckpointError) as error:
        composer.load(path)
    assert str(error.value) == (
        f"the checkpoint was saved with critic kinds that are not known here: 'bounded' of the module {__name__!r}; "
        f"install the package that registers them, or import the module: allow=[{__name__!r}] or --allow {__name__}"
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_checkpoint_names_the_modules_of_classes_of_several_actors(form, tmp_path):
    compose({"kind": "bounded", **form}, several=True).save(tmp_path / "model.safetensors")
    assert read_record(tmp_path / "model.safetensors").modules == [__name__]


def test_the_kinds_that_are_built_in_are_not_recorded(tmp_path):
    compose({"kind": "state_action", "template": {}}).save(tmp_path / "model.safetensors")
    assert read_record(tmp_path / "model.safetensors").critics == {}


# --- refusals ---

KNOWN = listing(
    ["state", "shared_state", "delta_state", "state_action", "shared_state_action", *KINDS]
)
ONE_ACTOR = "; write kind: state, or let its member() return a class of yours that is derived from composer.critic.Critic"
ALLOW_MODULE = (
    "; one that a module of yours registers needs allow=['that_module'] or --allow that_module"
)
MEMBERLESS = (
    "critic.kind: the critic kind 'memberless' is the class 'MemberlessCritic', which does not define member(), the "
    "class of the critic of each network; register a class that is derived from composer.critic.Critic and returns "
    "this one from structured()"
)


@pytest.mark.parametrize(
    ("critic", "several", "message"),
    [
        ({"kind": "bounde"}, False, f"critic.kind: 'kind' must be one of {KNOWN}, got the text 'bounde'; did you mean 'bounded'?"),
        ({"kind": "twin"}, False, f"critic.kind: 'kind' must be one of {KNOWN}, got the text 'twin'{ALLOW_MODULE}"),
        ({"kind": ["state"]}, False, f"critic.kind: 'kind' must be one of {KNOWN}, got a list"),
        ({"kind": "bounded", "normalize_value": True}, False,
         "critic.normalize_value: values are between -1 and 1; leave it out"),
        ({"kind": "bounded", "normalize_value": True}, True,
         "critic.normalize_value: values are between -1 and 1; leave it out"),
        ({"kind": "bounded", "stack": True}, True,
         "critic.stack: 'stack' puts the observations of all actors together, for kind: shared_state"),
        ({"kind": "bounded", "separate": True}, False,
         "critic.separate: 'separate' gives each agent a critic of its own, but this environment has no agents; leave it out"),
        ({"kind": "one_space"}, True,
         "critic.kind: a critic of kind 'one_space' is for one space; this environment has steps or agents"),
        ({"kind": "team"}, False,
         "critic.kind: a critic of kind 'team' is for several actors; this environment has one space only"),
        ({"kind": "central"}, False,
         f"critic.kind: a critic of kind 'central' is for several actors; this environment has one space only{ONE_ACTOR}"),
        ({"kind": "steps"}, False,
         f"critic.kind: a critic of kind 'steps' is for several actors; this environment has one space only{ONE_ACTOR}"),
        ({"kind": "central_q"}, False,
         "critic.kind: a critic of kind 'central_q' is for several actors; this environment has one space only; write "
         "kind: state_action, or let its member() return a class of yours that is derived from "
         "composer.critic.StateActionCritic"),
        ({"kind": "memberless"}, False, MEMBERLESS),
        ({"kind": "memberless"}, True, MEMBERLESS),
        *(({"kind": "unbuilt", **form}, several,
           f"critic.kind: {__name__}.UnbuiltCritic.build returned nothing (null); it must return the critic")
          for several, form in [(False, {}), (True, {}), (True, {"separate": True})]),
        *(({"kind": "undemanding"}, several,
           f"critic.kind: {__name__}.UndemandingCritic.requirements returned nothing (null); it must return ValueRequirements, as super().requirements() does")
          for several in (False, True)),
        ({"kind": "undemanding_central"}, True,
         f"critic.kind: {__name__}.UndemandingCentralCritic.requirements returned a mapping; it must return ValueRequirements, as super().requirements() does"),
        ({"kind": "unbuilt_together"}, True,
         f"critic.kind: {__name__}.NoneOfSeveral.build returned nothing (null); it must return the critic"),
        *(({"kind": "valueless", **form}, several,
           f"critic.kind: {__name__}.ValuelessCritic.values_of returned 'worth', but no 'value', which critic.value reads")
          for several, form in [(False, {}), (False, {"ensemble": 2}), (True, {}), (True, {"separate": True})]),
        ({"kind": "valueless_central"}, True,
         f"critic.kind: {__name__}.ValuelessCentralCritic.values_of returned nothing (null); it must return a dict of values"),
        ({"kind": "no_critic"}, False,
         f"critic.kind: the critic kind 'no_critic' is {describe(dict)}, which is no critic; derive it from composer.critic.Critic"),
        ({"kind": "elsewhere"}, False,
         f"critic.kind: critic kind 'elsewhere' needs '{__name__.partition('.')[0]}'; install it with: pip install \"perception-composer[graph]\""),
    ],
)  # fmt: skip
def test_where_a_kind_cannot_be_used_a_message_says_why(critic, several, message):
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        compose({"template": {}, **critic}, several)


def test_steps_of_one_actor_have_no_kind_for_several():
    spaces_of_one = {name: {"pick": space["pick"]} for name, space in SEVERAL.items()}
    spec = {"version": 1, "policy": {"template": {}}, "critic": {"kind": "steps", "template": {}}}
    message = f"critic.kind: a critic of kind 'steps' is for several actors; this environment has one actor only{ONE_ACTOR}"
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        composer.compose(spec, **spaces_of_one)


def test_the_ways_out_of_these_messages_work():
    critic = compose({"kind": "regular", "template": {}}, several=True).critic
    assert type(critic) is MemberlessCritic
    assert type(critic["pick"]) is RegularCritic
    assert type(compose({"kind": "central_or_bounded", "template": {}}).critic) is BoundedCritic
    renamed = compose({"kind": "renamed", "template": {}, "normalize_value": True}).critic
    assert renamed.value(observe(False)).shape == (8,)


@pytest.mark.parametrize(
    ("kind", "several", "cls"),
    [
        ("failing", False, FailingCritic),
        ("failing", True, FailingCritic),
        ("failing_together", True, FailingOfSeveral),
        ("failing_central", True, FailingCentralCritic),
    ],
)
def test_an_exception_in_a_kind_says_where_the_spec_names_it(kind, several, cls):
    with pytest.raises(RuntimeError, match=r"^no luck\n") as caught:
        compose({"kind": kind, "template": {}}, several)
    (note,) = caught.value.__notes__
    place = f"critic ({__name__}.{cls.__name__}), raised at {__file__}:"
    assert note.startswith(f"in {place}")


def test_the_command_line_tells_an_exception_in_a_kind_in_a_line(tmp_path, capsys):
    file = tmp_path / "agent.yaml"
    file.write_text(
        "version: 1\nenvironment: CartPole-v1\npolicy: {template: {}}\n"
        "critic: {kind: failing, template: {}}\n"
    )
    assert main(["check", str(file)]) == 1
    line = FailingCritic.__init__.__code__.co_firstlineno + 1
    assert capsys.readouterr().err == (
        f"{file}:4:16: critic ({__name__}.FailingCritic), raised at {__file__}:{line}: RuntimeError: no luck "
        "(--traceback shows all of it)\n"
    )


def test_kinds_are_read_without_torch_or_the_class():
    code = (
        "import sys; from composer.spec.model_spec import CRITICS; CRITICS.register('mine', 'nowhere:Mine')\n"
        "from composer.source.load import load_source; from composer.spec.read import read_spec\n"
        "text = 'version: 1\\npolicy: {template: {}}\\ncritic: {kind: mine, template: {}}'\n"
        "assert read_spec(load_source(text)).critic.kind == 'mine'; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_kind_that_is_built_in_has_a_class():
    kinds = {"state": Critic, "state_action": StateActionCritic, "shared_state": SharedStateCritic}
    kinds |= {"shared_state_action": SharedStateActionCritic}
    for kind, cls in {**kinds, "delta_state": DeltaStateCritic}.items():
        assert CRITICS.get(kind) is cls


# --- what is shown of it and exported ---


class StrangeCritic(Critic):
    """Says of its inputs, its output and itself what no critic that is built in says."""

    def input_sources(self):
        (port,) = self.network.in_ports.values()
        return {"observation": InputSource("presence", "observation", port, ("one", "two"))}

    def output_meanings(self):
        (port,) = self.network.out_ports.values()
        return {"value": OutputMeaning(port, note="drawn by lot")}

    def export_problems(self):
        yield "it draws lots"


def test_diagram_table_and_export_say_what_a_kind_says_of_itself(tmp_path):
    CRITICS.register("strange", StrangeCritic)
    model = compose({"kind": "strange", "template": {}})
    text = composer.draw(model.critic, tmp_path / "critic.mmd").read_text()
    assert '(["<b>observation</b><br/>(4,)<br/>who is there"])' in text
    assert '(["<b>value</b><br/>(1,)<br/>drawn by lot"])' in text
    assert "value   (1,)   drawn by lot" in str(model.summary())
    with pytest.raises(ValueError, match=r"cannot be exported: it draws lots$"):
        model.export(tmp_path / "model.onnx", part="critic")


def test_what_is_handed_to_a_critic_is_drawn_from_the_network_that_makes_it():
    """Of the value ``key`` of the part that makes it, whatever the critic calls it."""

    class Handed(Critic):
        def input_sources(self):
            (port,) = self.network.in_ports.values()
            return {"observation": InputSource("shared", "logits", port)}

    CRITICS.register("handed", Handed)
    model = compose({"kind": "handed", "template": {}})
    boxes = [(box.title, box.lines) for box in sketch(model.critic).boxes.values()]
    assert ("observation", ("(4,)", "from the policy")) in boxes
