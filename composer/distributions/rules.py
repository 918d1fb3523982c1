"""The distribution of each action: by a spec's `distributions:`, or by default."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

from composer.distributions.base import (
    DISTRIBUTIONS,
    ActionDistribution,
    default_distribution,
)
from composer.distributions.joint import ActionDistributions
from composer.spaces.kinds import KINDS
from composer.spaces.tree import SpaceTree
from perception_blocks.settings import check_settings
from perception_blocks.words import describe, did_you_mean, hint, listing, near_name, suggest

__all__ = ["DistributionRuleError", "build_distributions"]

Rule = Mapping[str, object]  # an entry of `distributions:`
RULE_KEYS = ("action", "space", "distribution", "optional")


class RuleProblem(NamedTuple):
    """What is wrong with the ``rule`` of that index: the setting at fault, and whether it is itself misspelt."""

    rule: int
    setting: str | None
    message: str
    misspelt: bool = False


_OPTIONAL = "; write optional: true beside it if it may match nothing"


class DistributionRuleError(ValueError):
    """``distributions:`` is wrong; ``problems`` are (index of the rule, setting or None, message, misspelt)."""

    def __init__(self, problems: Iterable[RuleProblem]) -> None:
        self.problems = list(problems)
        super().__init__(
            "\n".join(f"distributions[{i}]: {text}" for i, _, text, _ in self.problems)
        )

    def __reduce__(self) -> tuple:
        return (type(self), (self.problems,))


def build_distributions(tree: SpaceTree, rules: Sequence[Rule] = ()) -> ActionDistributions:
    """The family of each action of ``tree``: from the first rule that fits it, else the default.

    A rule is ``{action: <flat key>, distribution: <name>}`` or ``{space: <kind>, distribution: <name>}`` with the
    family's settings beside. With ``optional: true`` it may match no action. Raises DistributionRuleError with every
    problem of the rules.
    """
    problems: list[RuleProblem] = []
    chosen: dict[str, int] = {}
    for index, rule in enumerate(rules):
        matched = _matching(tree, rule, index, problems)
        new = [key for key in matched if key not in chosen]
        if matched and not new and rule.get("optional") is not True:
            first = chosen[matched[0]]
            text = (
                f"the rule for {_subject(rule)} is never used: distributions[{first}] comes first"
            )
            problems.append(RuleProblem(index, None, text))
        chosen |= dict.fromkeys(new, index)
    families_of_rules = [_family_of(rule, i, problems) for i, rule in enumerate(rules)]
    families = {}
    for key, leaf in tree.leaves.items():
        index = chosen.get(key)
        if index is None:
            families[key] = DISTRIBUTIONS.get(default_distribution(leaf))(leaf)
            continue
        family = families_of_rules[index]
        try:
            if family is not None:
                families[key] = family(leaf, **_settings(rules[index]))
        except ValueError as error:
            problems.append(RuleProblem(index, "distribution", str(error)))
    if problems:
        raise DistributionRuleError(sorted(problems, key=lambda problem: problem[0]))
    return ActionDistributions(families)


def _matching(tree: SpaceTree, rule: Rule, index: int, problems: list[RuleProblem]) -> list[str]:
    """The keys of the actions that a rule is for."""
    if ("action" in rule) == ("space" in rule):
        got = ", ".join(map(repr, rule)) or "nothing"
        text = f"a rule needs either 'action' (its name) or 'space' (a kind of space), got {got}"
        problems.append(RuleProblem(index, None, text))
        return []
    subject = "action" if "action" in rule else "space"
    name = rule[subject]
    matched, text = [], ""
    if not isinstance(name, str):
        text = f"{subject!r} must be a text, got {name!r}"
    elif subject == "action":
        matched = [name] if name in tree.leaves else []
        near = did_you_mean(name, tree.leaves)
        text = f"no action {name!r} in the action space"
        text += near or f"; it has {listing(tree.leaves)}{_OPTIONAL}"
    elif name not in KINDS:
        text = f"unknown kind of space {name!r}" + hint(name, KINDS, "known are")
    else:
        matched = [key for key, leaf in tree.leaves.items() if leaf.kind == name]
        kinds = listing(dict.fromkeys(leaf.kind for leaf in tree.leaves.values()))
        text = f"no action is a {name!r}; the actions are {kinds}{_OPTIONAL}"
    is_known = isinstance(name, str) and (subject == "action" or name in KINDS)
    if not matched and not (is_known and rule.get("optional") is True):
        problems.append(RuleProblem(index, subject, text))
    return matched


def _family_of(
    rule: Rule, index: int, problems: list[RuleProblem]
) -> Callable[..., ActionDistribution] | None:
    """The class that a rule names, if it exists and takes the rule's settings."""
    name = rule.get("distribution")
    if name is None:
        problems.append(
            RuleProblem(index, None, f"the rule for {_subject(rule)} names no 'distribution'")
        )
        return None
    try:
        family = DISTRIBUTIONS.get(name) if isinstance(name, str) else name
    except ValueError as error:
        problems.append(RuleProblem(index, "distribution", str(error)))
        return None
    if not callable(family):
        text = f"'distribution' must be the name of a distribution, got {name!r}"
        problems.append(RuleProblem(index, "distribution", text))
        return None
    label = f"distribution {name!r}" if isinstance(name, str) else f"{family.__name__}"
    optional = rule.get("optional", False)
    if not isinstance(optional, bool):
        text = f"'optional' must be true or false, got {describe(optional)}"
        problems.append(RuleProblem(index, "optional", text))
    wrong = check_settings(family, _settings(rule), label)
    for problem in wrong:
        misspelt = f"{problem.setting!r} is not a key of a rule" + suggest(
            problem.setting, "optional"
        )
        is_meant = problem.misspelt and near_name(problem.setting or "", ["optional"])
        message = misspelt if is_meant else problem.message
        problems.append(RuleProblem(index, problem.setting, message, problem.misspelt))
    return None if wrong else cast("Callable[..., ActionDistribution]", family)


def _settings(rule: Rule) -> dict[str, object]:
    return {k: v for k, v in rule.items() if k not in RULE_KEYS}


def _subject(rule: Rule) -> str:
    return repr(rule.get("action", rule.get("space")))
