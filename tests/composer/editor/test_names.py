import pytest

from composer.editor.names import PARAMS, Names, Use, Written
from composer.errors import Position
from composer.source.parse import YamlParser
from tests.helpers.paths import ROOT


def names_of(**texts: str) -> Names:
    files = {}
    for file, text in texts.items():
        root = YamlParser(file, []).parse(text)
        assert root is not None
        files[file] = Written(root, text.split("\n"))
    return Names(files)


def use_at(names: Names, file: str, text: str, marked: str) -> Use:
    """The name at the mark '|' in ``marked``, a piece of ``text``."""
    before, _, after = marked.partition("|")
    assert text.count(before + after) == 1
    index = text.index(before + after) + len(before)
    line, column = text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
    use = names.at(file, Position(file, line, column))
    assert use is not None
    return use


def renamed(names: Names, use: Use, new: str, texts: dict[str, str]) -> dict[str, str]:
    """``texts`` with another name in the place of ``use``."""
    lines = {file: text.split("\n") for file, text in texts.items()}
    for each in sorted(names.all_of(use), key=lambda each: each.span.start[1:], reverse=True):
        (_, line, first), (_, _, last) = each.span
        assert line is not None
        assert first is not None
        assert last is not None
        text = lines[each.file][line - 1]
        assert text[first - 1 : last - 1] == use.name
        lines[each.file][line - 1] = text[: first - 1] + new + text[last - 1 :]
    return {file: "\n".join(each) for file, each in lines.items()}


def places(names: Names, use: Use) -> list[tuple[int | None, int | None]]:
    return [each.span.start[1:] for each in names.all_of(use)]


NESTED = """\
version: 1
freeze: [policy/eyes, policy/g/y]
policy:
  graph:
    eyes: {block: dense, in: observation}
    g: {block: graph, in: {x: eyes}, out: [y], graph: {z: {block: dense, in: x}, y: {block: dense, in: z}}}
    m: {block: lstm, in: y, out: [h, "w", _]}
    s: {same_as: eyes, in: [eyes, h]}
    k: {block: graph, in: [s], out: {q: r}, graph: {r: {block: dense, in: s}}}
  heads: {steer: {in: 'w'}, jump: {in: q, same_as: steer}}
"""


def test_a_shared_node_is_renamed_where_the_critic_reads_it():
    text = (ROOT / "configs" / "complex_shared.yaml").read_text()
    names = names_of(a=text)
    use = use_at(names, "a", text, "    latent|_screen: ")
    assert places(names, use) == [(11, 5), (13, 32), (17, 12), (22, 32)]
    assert [each.makes for each in names.all_of(use)] == [True, False, False, False]
    new = renamed(names, use, "eyes", {"a": text})["a"]
    assert new == text.replace("latent_screen", "eyes")


def test_nodes_of_the_same_name_in_policy_and_critic_are_two():
    text = (ROOT / "configs" / "complex.yaml").read_text()
    names = names_of(a=text)
    use = use_at(names, "a", text, "  heads: {in: mem|ory}")
    assert places(names, use) == [(15, 5), (16, 15)]


@pytest.mark.parametrize(
    ("marked", "count"),
    [
        ("    ey|es: {block", 5),  # the node, x, same_as, in, freeze
        ("out: [|y]", 4),  # inside, outside, and in freeze
        ("{x|: eyes}", 2),  # inside alone
        ("[|h, ", 2),
        ('"w|"', 2),
        ("[s|], out", 3),  # in a list an input has its name inside too
        ("{q|: r}", 2),
        ("{|r: {block", 2),
    ],
)
def test_a_name_is_known_in_every_place(marked, count):
    names = names_of(a=NESTED)
    use = use_at(names, "a", NESTED, marked)
    assert len(names.all_of(use)) == count
    assert len(names.definitions_of(use)) >= 1
    assert names.why_not_renamed(use) is None
    new = renamed(names, use, "other", {"a": NESTED})["a"]
    assert len(names_of(a=new).uses) == len(names.uses)


def test_params_are_used_in_texts():
    text = (ROOT / "configs" / "complex.yaml").read_text()
    names = names_of(a=text)
    use = use_at(names, "a", text, "params: {hid|den: 128")
    assert use.scope == PARAMS
    new = renamed(names, use, "width", {"a": text})["a"]
    expected = text.replace("params.hidden", "params.width").replace("{hidden: 128", "{width: 128")
    assert new == expected
    assert names.why_not_called(use, "memory") == "the spec has a param 'memory' already"
    reason = "'a b' is no name of a param: write letters, digits and '_'"
    assert names.why_not_called(use, "a b") == reason
    assert names.why_not_called(use, "16") == "'16' is no name: YAML reads the number 16"
    assert names.why_not_called(use, "1" * 301) == "a number of 301 characters is too long"


def test_an_escaped_reference_is_none():
    text = 'version: 1\nparams: {w: 1}\npolicy: {graph: {a: {in: x, note: "$${params.w} ${params.w}"}}}\n'
    names = names_of(a=text)
    assert places(names, use_at(names, "a", text, "params: {|w: 1}")) == [(2, 10), (3, 58)]


def test_a_name_is_renamed_in_the_files_that_the_spec_extends():
    base = (
        "version: 1\npolicy:\n  graph:\n    a: {block: dense, in: x, out: [b]}\n  heads: {in: b}\n"
    )
    over = "extends: base.yaml\nfreeze: [policy/a]\npolicy: {graph: {a: {hidden_units: 5}}}\n"
    names = names_of(over=over, base=base)
    use = use_at(names, "over", over, "graph: {|a: ")
    assert [(each.file, each.makes) for each in names.all_of(use)] == [
        ("over", True), ("base", True), ("over", False),
    ]  # fmt: skip
    new = renamed(names, use, "eyes", {"over": over, "base": base})
    assert new["base"] == base.replace(" a:", " eyes:")
    assert new["over"] == over.replace("/a", "/eyes").replace("{a:", "{eyes:")
    assert len(names.all_of(use_at(names, "base", base, "heads: {in: |b}"))) == 2


def test_what_cannot_be_renamed_says_why():
    names = names_of(a=NESTED)
    use = use_at(names, "a", NESTED, "in: |observation}")
    assert names.why_not_renamed(use) == (
        "'observation' is no node of the spec: it is an observation, which the environment names"
    )
    use = use_at(names, "a", NESTED, "same_as: |steer")
    assert names.why_not_renamed(use) == (
        "'steer' is an action of the environment, which gives it its name"
    )
    text = 'version: 1\npolicy: {graph: {a: {in: x, units: "${params.w}"}}}\n'
    names = names_of(a=text)
    use = use_at(names, "a", text, "params.|w")
    assert names.why_not_renamed(use) == "the spec has no param 'w'"


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ("eyes", None),
        ("ears", None),
        ("m", "'m' is taken: the graph has a node or an output of this name already"),
        ("q", "'q' is taken: the graph has a node or an output of this name already"),
        ("observation", "'observation' is taken: an observation has this name"),
        ("screen", "'screen' is taken: an observation has this name"),
        (
            "e-yes",
            "the node name 'e-yes' must start with a letter or '_' and hold letters, digits and '_' only",
        ),
        (
            "training",
            "'training' is no name for a node: torch keeps a module's mode under this name; choose another name",
        ),
        ("null", "'null' is no name: YAML reads nothing (null)"),
        ("True", "'True' is no name: YAML reads true"),
    ],
)
def test_a_new_name_is_free_and_a_name(new, reason):
    names = names_of(a=NESTED)
    use = use_at(names, "a", NESTED, "    ey|es: {block")
    assert names.why_not_called(use, new, ["screen"]) == reason


def test_a_new_name_is_free_in_the_critic_too():
    text = (ROOT / "configs" / "complex_shared.yaml").read_text()
    text = text.replace("    memory: {block: lstm, in: latent, hidden_units: 64}\n", "", 1)
    names = names_of(a=text)
    use = use_at(names, "a", text, "    latent|_screen: ")
    assert names.why_not_called(use, "memory") == (
        "'memory' is taken: the graph has a node or an output of this name already"
    )


def test_a_node_cannot_read_what_depends_on_it():
    text = (ROOT / "configs" / "complex.yaml").read_text()
    scope = ("policy", "graph")
    names = names_of(a=text)
    assert names.dependents(scope, "both") == {"both", "latent", "memory"}
    assert {*names.values_of(scope)} - names.dependents(scope, "both") == {
        "scaled", "latent_screen", "latent_inventory",
    }  # fmt: skip
    nested = names_of(a=NESTED)
    assert nested.dependents(scope, "m") == {"m", "h", "w", "s", "k", "q"}
    assert nested.values_of((*scope, "g", "graph")) == ["x", "z", "y"]
