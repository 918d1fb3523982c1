"""The data of a spec -> a typed ModelSpec, or every mistake in its structure.

Needs no torch and no environment.
"""

from __future__ import annotations

from collections.abc import Iterable

from composer.errors import Path, Problem, Problems
from composer.limits import GivenLimits, Limits, limits_from
from composer.source.load import Source
from composer.spec.action_model import ActionModelSpec, read_action_model
from composer.spec.fields import Fields
from composer.spec.keys import (
    BESIDE_MODEL,
    CRITIC_KEYS,
    KINDS,
    NETWORK_KEYS,
    ONE_OF_SEVERAL,
    PARTS,
    PLACES,
    POLICY_KEYS,
    POLICY_NETWORK_KEYS,
    TOP_KEYS,
)
from composer.spec.model_spec import (
    CRITICS,
    CriticSpec,
    DistributionRule,
    HeadsSpec,
    ModelSpec,
    NetworkSpec,
    NodeSpec,
    PolicySpec,
)
from composer.spec.nodes import ALLOW_MODULE, NodeParser, is_misplaced
from composer.spec.parallel import ParallelSpec, read_parallel
from composer.spec.references import check_graph, check_shares, sinks
from composer.spec.template import read_template, shared_stages
from composer.spec.top_level import (
    VERSION,
    check_version,
    is_network,
    params_meant,
    read_extensions,
    read_paths,
    read_previous,
    without_other_files,
)
from composer.spec.wrapper_names import ONLY_PYTHON, WRAPPERS
from composer.trust import check_environment, check_trusted
from perception_blocks.words import describe, did_you_mean, listing, near_name, sparing

__all__ = ["VERSION", "SpecParser", "may_hide_faults", "read_spec", "read_structure"]

TEXT_KEYS = ("max_length", "charset")
HEAD_BLOCK = "linear_output"
WITHOUT_ACTIONS = (
    "'network' is a network without actions, which composer.compose_network builds; a model has a 'policy' and "
    "perhaps a 'critic'"
)


@sparing
def read_spec(
    source: Source,
    allow: Iterable[str] = (),
    *,
    makes_environment: bool = True,
    limits: GivenLimits = None,
) -> ModelSpec:
    """The typed spec. ``allow`` names the modules whose dotted paths the caller trusts, ``limits`` how much it may ask.

    ``makes_environment``: the environment that the spec names will be made, so it must be allowed too.

    Raises SpecError with every mistake in the structure: keys, types, names, references, params and paths.
    """
    spec, problems = read_structure(
        source, allow, makes_environment=makes_environment, limits=limits
    )
    problems.raise_if_any()
    assert spec is not None
    return spec


@sparing
def read_structure(
    source: Source,
    allow: Iterable[str] = (),
    *,
    makes_environment: bool = True,
    limits: GivenLimits = None,
) -> tuple[ModelSpec | None, Problems]:
    """What could be read of a spec, and every mistake in its structure; arguments are as for `read_spec`.

    Of a value with a mistake the spec has a default, or nothing; it is None where there is no model at all.
    """
    problems = Problems(source, source.problems)
    parser = SpecParser(source, problems, tuple(allow), makes_environment, limits_from(limits))
    return parser.model(), problems


def may_hide_faults(spec: ModelSpec | None, structure: Iterable[Problem]) -> bool:
    """Whether some nodes of a ``spec`` with problems in its ``structure`` can be built all the same.

    Then `composer.build.untouched` tells what is wrong with their settings, which the structure does not show.
    """
    if spec is None or spec.model is not None:
        return False
    return all(problem.path != ("environment",) for problem in structure)


class SpecParser:
    """Parses from the top down; each method parses one value and notes its mistakes."""

    def __init__(
        self,
        source: Source,
        problems: Problems,
        allow: tuple[str, ...],
        makes_environment: bool,
        limits: Limits,
    ) -> None:
        self._source = source
        self._makes_environment = makes_environment
        self._problems = problems
        self._allow = allow
        self._limits = limits
        self._nodes = NodeParser(problems, allow, limits)

    def model(self) -> ModelSpec | None:
        top = Fields(
            without_other_files(self._source, TOP_KEYS, self._problems), (), self._problems
        )
        if not top.values and self._source.data:
            return None
        if is_network(top.values):
            top.note("network", WITHOUT_ACTIONS, on_key=True)
            return None
        params = params_meant(self._source, TOP_KEYS)
        meant = top.unknown(TOP_KEYS, "a spec", elsewhere=params, places=PLACES)
        check_version(top, "version" in meant)
        environment = self._environment(top)
        distributions = self._distributions(top)
        ignore, normalize = top.texts("ignore"), top.texts("normalize")
        texts = self._texts(top)
        previous = read_previous(top)
        parallel = read_parallel(top)
        extensions = read_extensions(top, self._allow)
        if top.values.get("model") is not None:
            return self._with_model(top, environment, parallel, extensions)
        if "policy" not in top and "policy" not in meant:
            self._problems.add((), "the spec has no 'policy'")
        policy = self._policy(top)
        critic = self._critic(top, policy)
        if policy is None:
            return None
        return ModelSpec(
            version=VERSION,
            environment=environment,
            params=self._source.params,
            distributions=distributions,
            ignore=ignore,
            normalize=normalize,
            texts=texts,
            policy=policy,
            critic=critic,
            source=self._source,
            parallel=parallel,
            extensions=extensions,
            **read_paths(top),
            previous=previous,
        )

    def _with_model(
        self,
        top: Fields,
        environment: str | None,
        parallel: ParallelSpec | None,
        extensions: tuple[str, ...],
    ) -> ModelSpec | None:
        """A spec whose `model` stands in the place of policy and critic."""
        for key in top.values:
            if key in TOP_KEYS and key not in BESIDE_MODEL and top.values[key] is not None:
                message = f"{key!r} has no place beside 'model'; leave it out"
                if key in PARTS:
                    message = f"'model' stands in the place of {key!r}; keep one of them"
                top.note(key, message, on_key=True)
        model = self._model(top)
        if model is None:
            return None
        return ModelSpec(
            version=VERSION,
            environment=environment,
            params=self._source.params,
            distributions=(),
            ignore=(),
            normalize=(),
            texts={},
            policy=PolicySpec(("model",), {}),
            critic=None,
            source=self._source,
            parallel=parallel,
            model=model,
            extensions=extensions,
        )

    def _model(self, top: Fields) -> ActionModelSpec | None:
        value = top.values["model"]
        if not isinstance(value, dict):
            top.wrong("model", "a mapping with a 'model_type'")
            return None
        return read_action_model(Fields(value, ("model",), self._problems))

    def _environment(self, top: Fields) -> str | None:
        if top.values.get("environment") is None:
            return None
        environment = top.text("environment")
        if environment is not None and self._makes_environment:
            problem = check_environment(environment, self._allow)
            if problem:
                top.note("environment", problem)
        return environment

    def _distributions(self, top: Fields) -> tuple[DistributionRule, ...]:
        entries = top.values.get("distributions", [])
        if not isinstance(entries, list):
            top.wrong(
                "distributions", "a list of entries such as {action: steer, distribution: beta}"
            )
            return ()
        rules = []
        for index, entry in enumerate(entries):
            path = ("distributions", index)
            if not isinstance(entry, dict):
                message = "an entry of 'distributions' must be a mapping such as {action: steer, distribution: beta}"
                self._problems.add(path, f"{message}, got {describe(entry)}")
            elif "distribution" not in entry:
                near = near_name("distribution", entry)
                hint = f"; is {near!r} a misspelling of it?" if near else ""
                self._problems.add(path, f"an entry of 'distributions' lacks 'distribution'{hint}")
            else:
                rules.append(DistributionRule(path, entry))
        return tuple(rules)

    def _texts(self, top: Fields) -> dict[str, dict[str, int | str]]:
        """The declared length and charset of each text, by observation."""
        declared: dict[str, dict[str, int | str]] = {}
        expected = "a mapping such as {mission: {max_length: 64}}"
        for name, value in top.mapping("texts", expected).items():
            path = ("texts", name)
            if not isinstance(value, dict):
                message = f"the text {name!r} must be a mapping such as {{max_length: 64}}"
                self._problems.add(path, f"{message}, got {describe(value)}")
                continue
            fields = Fields(value, path, self._problems)
            meant = fields.unknown(TEXT_KEYS, "a text")
            if "max_length" not in {*value, *meant}:
                message = f"the text {name!r} lacks 'max_length', its longest length in characters"
                self._problems.add(path, message, key=True)
            length, charset = fields.count("max_length", 1), fields.text("charset")
            declared[name] = {"max_length": length} | ({"charset": charset} if charset else {})
        return declared

    # --- policy and critic ---

    def _policy(self, top: Fields) -> PolicySpec | None:
        if "policy" not in top:
            return None
        value = top.values["policy"]
        if not isinstance(value, dict):
            top.wrong("policy", "a mapping with a 'graph', a '_target_' or a 'template'")
            return None
        fields = Fields(value, ("policy",), self._problems)
        return PolicySpec(
            fields.path,
            self._networks(fields, POLICY_NETWORK_KEYS, POLICY_KEYS, "policy"),
            action_mask=fields.text_mapping(
                "action_mask", "a mapping from actions to observations"
            ),
            wrap=self._wrap(fields),
            separate=fields.boolean("separate"),
        )

    def _critic(self, top: Fields, policy: PolicySpec | None) -> CriticSpec | None:
        value = top.values.get("critic")
        if value is None:
            return None
        if not isinstance(value, dict):
            expected = "a mapping with a 'graph', a '_target_' or a 'template'"
            top.wrong("critic", expected, lambda other: other is None)
            return None
        fields = Fields(value, ("critic",), self._problems)
        return CriticSpec(
            fields.path,
            self._networks(fields, NETWORK_KEYS, CRITIC_KEYS, "critic"),
            kind=self._critic_kind(fields),
            stack=fields.boolean("stack"),
            ensemble=fields.copies("ensemble", self._limits),
            normalize_value=fields.boolean("normalize_value"),
            separate=fields.boolean("separate"),
            shared=policy.shares if policy else (),
        )

    def _critic_kind(self, fields: Fields) -> str:
        kind = fields.values.get("kind", "state")
        if isinstance(kind, str) and kind in CRITICS:
            return kind
        way_out = ""
        if isinstance(kind, str):
            way_out = did_you_mean(kind, CRITICS, CRITICS.kind) or ALLOW_MODULE
        got = describe(kind)
        fields.note("kind", f"'kind' must be one of {listing(CRITICS)}, got {got}" + way_out)
        return "state"

    def _wrap(self, fields: Fields) -> tuple[str | dict[str, object], ...]:
        wrap = fields.values.get("wrap", [])
        if not isinstance(wrap, list):
            fields.wrong("wrap", "a list of wrappers")
            return ()
        for index, entry in enumerate(wrap):
            path = (*fields.at("wrap"), index)
            if isinstance(entry, str):
                self._wrapper(entry, path)
            elif isinstance(entry, dict) and len(entry) == 1:
                ((name, settings),) = entry.items()
                self._wrapper(name, path, key=name)
                if not isinstance(settings, dict):
                    message = (
                        f"the settings of {name!r} must be a mapping, got {describe(settings)}"
                    )
                    self._problems.add((*path, name), message)
            else:
                got = f"{len(entry)} names" if isinstance(entry, dict) else describe(entry)
                message = (
                    f"an entry of 'wrap' must be a name, or a name with its settings, got {got}"
                )
                self._problems.add(path, message)
        return tuple(wrap)

    def _wrapper(self, name: str, path: Path, key: str | None = None) -> None:
        """Note a wrong name of a wrapper, which is the value at ``path`` or a ``key`` there."""
        where = path if key is None else (*path, key)
        if name in ONLY_PYTHON:
            message = f"the wrapper {name!r} is for Python only: {ONLY_PYTHON[name]}"
            self._problems.add(where, message, key=key is not None)
        elif name not in WRAPPERS:
            hint = WRAPPERS.hint(name)
            self._problems.add(where, f"unknown wrapper {name!r}" + hint, key=key is not None)

    # --- networks ---

    def _networks(
        self, fields: Fields, keys: tuple[str, ...], owner_keys: tuple[str, ...], owner: str
    ) -> dict[str | None, NetworkSpec]:
        """The networks of ``owner`` (policy or critic), which has ``owner_keys`` beside the ``keys`` of a network."""
        if "networks" not in fields:
            inner = {key: value for key, value in fields.values.items() if key not in owner_keys}
            network = Fields(inner, fields.path, self._problems)
            return {None: self.network(network, keys, (*keys, *owner_keys), owner, owner)}
        for key in keys:
            if key in fields:
                message = f"{key!r} has no place beside 'networks'; write it in each of them"
                fields.note(key, message, on_key=True)
        fields.unknown((*keys, *owner_keys), f"a {owner}", places=PLACES)
        value = fields.values["networks"]
        if not isinstance(value, list | dict) or not value:
            fields.wrong("networks", "a list or a mapping of networks")
            return {}
        items = value.items() if isinstance(value, dict) else enumerate(value)
        keys = (*keys, *ONE_OF_SEVERAL)
        networks: dict[str | None, NetworkSpec] = {}
        for key, item in items:
            path = (*fields.path, "networks", key)
            if isinstance(item, dict):
                inner = Fields(item, path, self._problems)
                networks[str(key)] = self.network(inner, keys, keys, "network", owner)
            else:
                message = f"the network {str(key)!r} must be a mapping, got {describe(item)}"
                self._problems.add(path, message)
        return networks

    def network(
        self, fields: Fields, keys: tuple[str, ...], known: tuple[str, ...], what: str, owner: str
    ) -> NetworkSpec:
        given = [kind for kind in KINDS if kind in fields]
        arguments: dict[str, object] = {}
        meant: set[str] = set()
        if "_target_" in given:
            arguments = {key: value for key, value in fields.values.items() if key not in keys}
        else:
            meant = fields.unknown(known, f"a {what}", governing="_target_", places=PLACES)
        if len(given) > 1:
            names = " and ".join(repr(kind) for kind in given)
            fields.note(given[1], f"{names} exclude one another; keep one of them", on_key=True)
        elif not given and not meant & set(KINDS):
            self._problems.add(fields.path, f"a {what} needs one of {listing(KINDS)}")
        graph = self._nodes.graph(fields) if "graph" in given else None
        shares = fields.texts("shares") if "shares" in keys else ()
        network = NetworkSpec(
            fields.path,
            graph=graph,
            target=self._target(fields),
            arguments=arguments,
            template=read_template(fields, self._nodes) if "template" in given else None,
            heads=self._heads(fields, graph, owner, "heads" in meant or _holds_heads(fields)),
            observations=fields.texts("observations") if "observations" in fields else None,
            init=fields.values.get("init"),
            shares=shared_stages(shares) if "template" in given else shares,
            separate=fields.boolean("separate") if "separate" in keys else False,
        )
        if graph:
            check_graph(graph, fields.at("graph"), self._problems)
            check_shares(network, self._problems)
        return network

    def _target(self, fields: Fields) -> object:
        target = fields.values.get("_target_")
        if isinstance(target, str):
            problem = check_trusted(target, self._allow)
            if problem:
                fields.note("_target_", problem)
        elif "_target_" in fields and not callable(target):
            fields.wrong("_target_", "the dotted path of a class, such as my_nets.Policy")
        return target

    # --- heads ---

    def _heads(
        self, fields: Fields, graph: dict[str, NodeSpec] | None, owner: str, misspelt: bool
    ) -> HeadsSpec | None:
        if "heads" not in fields:
            if owner == "policy" and graph and not misspelt:
                ends = sinks(graph)
                example = ends[0] if len(ends) == 1 else "latent"
                message = (
                    f"a policy's graph needs 'heads' beside it, such as heads: {{in: {example}}}"
                )
                fields.note("graph", message, on_key=True)
            return None
        if [kind for kind in KINDS if kind in fields] == ["_target_"]:
            message = "'heads' has no place beside '_target_': the class gives the logits itself"
            fields.note("heads", message, on_key=True)
            return None
        value = fields.values["heads"]
        path = fields.at("heads")
        if not isinstance(value, dict) or not value:
            fields.wrong("heads", "a mapping, {in: latent} or one node for each action")
            return None
        if "in" in value and not isinstance(value["in"], dict):
            return self._default_head(value, path)
        actions = {}
        for name, node in value.items():
            if isinstance(node, dict):
                actions[name] = self._nodes.node(name, node, (*path, name), HEAD_BLOCK)
            else:
                message = f"the head of {name!r} must be a mapping such as {{in: latent}}, got {describe(node)}"
                self._problems.add((*path, name), message)
        return HeadsSpec(path, None, actions)

    def _default_head(self, value: dict[str, object], path: Path) -> HeadsSpec:
        """The head of all actions, written ``{in: latent}``; settings that look like one action's head are noted."""
        for name, setting in value.items():
            if isinstance(setting, dict) and "in" in setting:
                message = (
                    f"{name!r} looks like the head of one action, but 'in' makes one head for all; "
                    "give a head for every action, or only 'in'"
                )
                self._problems.add((*path, name), message, key=True)
        return HeadsSpec(path, self._nodes.node("", value, path, HEAD_BLOCK))


def _holds_heads(fields: Fields) -> bool:
    """Whether ``heads`` is written inside of the graph, which `NodeParser.graph` notes."""
    graph = fields.values.get("graph")
    return isinstance(graph, dict) and "heads" in graph and is_misplaced("heads", graph["heads"])
