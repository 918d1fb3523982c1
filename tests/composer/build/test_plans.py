"""What is known of a network before it is built: asking for it changes nothing."""

import copy
import itertools
from dataclasses import FrozenInstanceError, fields

import pytest
from gymnasium import spaces

from composer.build.budget import Budget
from composer.build.context import BuildContext, BuildNotes
from composer.build.plans import plan_groups
from composer.errors import Problems
from composer.limits import limits_from
from composer.source.load import load_source
from composer.spec.model_spec import NetworkSpec
from composer.spec.read import read_spec

BOX = spaces.Box(-1, 1, (3,))
SPACES = (spaces.Dict(place=BOX, wind=BOX, smell=BOX), spaces.Discrete(2))
SPEC = {"version": 1, "ignore": ["smell"], "policy": {"template": {}}}
ALONE = "says which of several actors a network acts for, and here it acts for one; leave it out"
ALL, SOME, WRONG = (NetworkSpec((), observations=seen) for seen in (None, ("place",), ("plcae",)))


def build_context():
    source = load_source(SPEC)
    return BuildContext(source, Problems(source), (), 0, False, Budget(limits_from(None)))


def plan_of_policy():
    context = build_context()
    spec = read_spec(context.source)
    return plan_groups(spec, context, BuildNotes(), SPACES, None)[0].plans[0]


@pytest.mark.parametrize("order", [*itertools.permutations([ALL, SOME, WRONG])])
def test_what_a_network_may_see_does_not_depend_on_what_was_asked_before(order):
    plan = plan_of_policy()
    ignored = {**plan.unasked, "smell": "is left out by 'ignore'", "actor": ALONE}
    before = copy.deepcopy(plan.notes)
    seen = {id(spec): plan.visible_ports(spec, ()) for spec in order}
    for everything in (seen[id(ALL)], seen[id(WRONG)]):
        assert (everything.ports, everything.hidden) == (plan.ports, ignored)
    assert list(seen[id(SOME)].ports) == ["place"]
    unseen = "is not among the 'observations' that this network may see"
    assert seen[id(SOME)].hidden == {**ignored, "wind": unseen}
    assert plan.notes.read == before.read == set()
    assert not plan.context.problems


@pytest.mark.parametrize("name", [field.name for field in fields(BuildContext)])
def test_what_is_given_to_all_networks_cannot_be_replaced(name):
    with pytest.raises(FrozenInstanceError):
        setattr(build_context(), name, None)


def test_each_plan_has_notes_of_its_own_but_templates_are_those_of_the_model():
    notes = BuildNotes(read={"place"}, shared={}, origins={"latent": frozenset()})
    other = notes.of_another()
    assert (other.read, other.origins) == (set(), {})
    assert other.expanded is notes.expanded
    assert other.effects is notes.effects
