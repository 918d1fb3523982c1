"""Diagrams: the same text for the same model, what repeats drawn once, and no arrow across a label."""

import json
import os
import re
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import pytest
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import composer
from composer.diagram import render as diagram_graphviz
from composer.diagram.dot import to_dot
from composer.diagram.drawing import DrawError
from composer.diagram.mermaid import to_mermaid
from composer.diagram.render import render
from composer.diagram.sketch import sketch
from composer.diagram.trunks import trunks_of
from composer.summary import summarize
from perception_blocks import Graph, InferenceBlock
from perception_blocks.words import printable
from tests.helpers.example_models import (
    CARTPOLE,
    EXAMPLES,
    Plain,
    branches,
    chain,
    complex_model,
    custom,
    expect_golden,
    mlp,
    nested,
)

SVG = "{http://www.w3.org/2000/svg}"


def titles(net) -> list[str]:
    return [box.title for box in sketch(net).boxes.values()]


def box_named(net, title):
    return next(box for box in sketch(net).boxes.values() if box.title == title)


def arrows(net) -> set[tuple[str, str]]:
    picture = sketch(net)
    return {(picture.boxes[a].title, picture.boxes[b].title) for a, b in picture.arrows()}


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("ending", ["dot", "mermaid"])
def test_the_text_is_the_same_bytes(name, ending, tmp_path):
    path = composer.draw(EXAMPLES[name](), tmp_path / f"model.{ending}")
    expect_golden(f"{name}.{ending}", path.read_text(encoding="utf-8"))


odd_keys = st.text(min_size=1, max_size=60)


@given(st.lists(odd_keys, min_size=1, max_size=3, unique=True))
@settings(max_examples=25)
@example(['</script><script>alert("x")</script>'])
@example(["<b>&amp;\\N\\", '"];', "]]>", "a\nb"])
@example(["\x00", "'#34;", "x" * 60, " "])
@example(["end", "node", "\ud800"])
def test_names_may_hold_any_text(keys):
    graph = Graph(dict.fromkeys(keys, (4,)))
    graph.add("all", "concat", keys)
    graph.add("out", "linear_output", "all", output_units=2)
    picture = sketch(InferenceBlock(graph, {keys[0]: "out"}))
    svg = ElementTree.fromstring(render(to_dot(picture), "svg"))
    texts = [" ".join((text.text or "").split()) for text in svg.iter(f"{SVG}text")]
    for key in keys:
        shown = printable(key)
        shown = shown if len(shown) <= 40 else f"{shown[:20]}...{shown[-17:]}"
        assert not shown.strip() or " ".join(shown.split()) in texts
    assert all(label.count('"') % 2 == 0 for label in to_mermaid(picture).splitlines())
    assert len(to_mermaid(picture).splitlines()) == len(
        to_mermaid(sketch(_plain_names(len(keys)))).splitlines()
    )


def _plain_names(count):
    graph = Graph({f"k{index}": (4,) for index in range(count)})
    graph.add("all", "concat", list(graph.inputs))
    graph.add("out", "linear_output", "all", output_units=2)
    return InferenceBlock(graph, ["out"])


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_boxes_say_what_a_node_is():
    box = box_named(mlp(), "latent")
    assert box.lines == ("dense", "(4,) -> (64,)", "4,480 parameters, 48.9 %")
    assert box_named(complex_model(), "memory").lines == (
        "lstm",
        "(64,) -> (64,)",
        "33.3 k parameters, 24.8 %",
        "carries h (1, 64), c (1, 64)",
    )


def test_memory_has_a_border_of_its_own():
    picture = sketch(complex_model())
    assert [box.title for box in picture.boxes.values() if box.remembers] == ["memory"]
    assert to_dot(picture).count("peripheries=2") == 1
    assert "double border: carries memory" in picture.legend()


def test_policy_and_critic_stand_in_one_picture_with_what_each_sees():
    picture = sketch(complex_model())
    assert [frame.title for frame in picture.frames.values()] == ["policy", "critic"]
    seen = arrows(complex_model())
    assert ("inventory", "latent_inventory") in seen
    assert ("inventory", "both") in seen
    assert ("secret", "both") in seen
    assert ("screen", "scaled") in seen
    assert [picture.boxes[n].title for pair in picture.shared for n in pair] == [
        "latent_screen",
        "both",
    ]
    assert [picture.boxes[n].title for pair in picture.masks for n in pair] == ["legal", "move"]


def test_heads_name_their_distribution():
    lines = [box.lines for box in sketch(complex_model()).boxes.values() if box.kind == "output"]
    assert lines == [
        ("(4,)", "categorical, masked by 'legal'"),
        ("(16,)", "bernoulli"),
        ("(1,)",),
    ]


def test_policy_and_critic_alone():
    model = complex_model()
    assert "latent_screen" in titles(model.critic)
    assert box_named(model.critic, "latent_screen").lines == ("(32,)", "from the policy")
    shared = [box for box in sketch(model.policy).boxes.values() if box.kind == "output"]
    assert shared[-1].lines == ("(32,)", "shared with the critic")


def critic_of_a_stack(key):
    """One policy for two actors, and a critic that reads ``key`` of both on one axis."""
    spaces = {"a_0": Dict(x=Box(-1, 1, (4,))), "a_1": Dict(x=Box(-1, 1, (4,)))}
    policy = {
        "graph": {"latent": {"block": "dense", "in": "x", "hidden_units": 8}},
        "heads": {"in": "latent"},
        "shares": ["latent"] if key == "latent" else [],
    }
    graph = {"flat": {"block": "flatten", "in": key}}
    critic = {"kind": "shared_state", "stack": True, "graph": graph}
    return composer.compose(
        {"version": 1, "policy": policy, "critic": critic},
        observation_space=spaces,
        action_space=dict.fromkeys(spaces, Discrete(2)),
        seed=0,
    )


@pytest.mark.parametrize(
    ("key", "read", "arrow"),
    [
        ("x", ("x", "(2, 4)", "of 2 actors"), ("x", "flat")),
        ("latent", ("stack", "latent of 2 actors"), ("stack", "flat")),
    ],
)
def test_a_stack_is_another_tensor_than_the_value_of_one_actor(key, read, arrow):
    model = critic_of_a_stack(key)
    cells = re.findall(r"n\d+ \[label=<<table.*?</table>>", to_dot(sketch(model)))
    shown = [tuple(re.findall(r">([^<>]+)</(?:b|font)>", cell)) for cell in cells]
    assert ("x", "(4,)") in shown
    assert read in shown
    assert {pair for pair in arrows(model) if pair[1] == "flat"} == {arrow}


def test_a_nested_graph_is_a_frame_and_a_shared_module_says_so():
    picture = sketch(nested())
    assert [frame.title for frame in picture.frames.values()] == ["encoder"]
    assert box_named(nested(), "b").lines[-1] == "same module as 'a'"
    assert ("left", "first") in arrows(nested())
    assert ("second", "all") in arrows(nested())


def test_the_more_parameters_the_darker():
    shares = {box.title: box.share for box in sketch(complex_model()).boxes.values()}
    assert shares["latent_screen"] > shares["memory"] > shares["latent"] > shares["scaled"] == 0


def test_a_click_tells_more():
    details = box_named(mlp(), "latent").details
    assert details == {
        "path": "policy/latent",
        "block": "dense",
        "setting hidden_units": "[64, 64]",
        "setting activation": "tanh",
        "input": "(4,)",
        "output": "(64,)",
        "parameters": "4,480 (48.9 % of all)",
        "FLOPs": "8,704",
        "spec": "<spec>:5:13",
    }


# --- custom classes ---------------------------------------------------------------------------------------------------


def test_a_class_without_blocks_is_one_opaque_box():
    box = box_named(custom(), "tests.helpers.example_models.Plain")
    assert (box.kind, box.lines[0]) == ("opaque", "plain PyTorch")
    assert ("observation", "tests.helpers.example_models.Plain") in arrows(custom())
    assert ("latent", "tests.helpers.example_models.BlocksInside") in arrows(custom())
    assert ("tests.helpers.example_models.BlocksInside", "action") in arrows(custom())


def test_plain_pytorch_has_no_picture(tmp_path):
    message = (
        "tests.helpers.example_models.Plain is plain PyTorch: there is no graph to draw; "
        "build it with InferenceBlock to see it"
    )
    critic = custom().critic
    assert critic is not None
    for net in (critic, Plain({})):
        with pytest.raises(ValueError, match=re.escape(message)):
            composer.draw(net, tmp_path / "critic.png")
    assert list(tmp_path.iterdir()) == []


class Memory(nn.Module):
    """Blocks before and after a cell of torch's own."""

    state_shapes: ClassVar = {"h": (8,)}

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        before = Graph(obs_shapes)
        before.add("latent", "dense", "observation", hidden_units=[8])
        after = Graph({"h": (8,)})
        after.add("action", "linear_output", "h", output_units=action_logits_shapes["action"][0])
        self.before = InferenceBlock(before, ["latent"])
        self.cell = nn.GRUCell(8, 8)
        self.after = InferenceBlock(after, ["action"])

    def forward(self, inputs, state, resets):
        h = self.cell(self.before(inputs)["latent"], state["h"])
        return self.after({"h": h}), {"h": h}


def test_what_a_class_does_between_its_blocks_is_a_box():
    spec = {"version": 1, "policy": {"_target_": Memory}}
    model = composer.compose(spec, **CARTPOLE)
    label = f"{Memory.__module__}.Memory"
    assert arrows(model) == {
        ("observation", "latent"),
        ("latent", label),
        (label, "action"),
        ("action", "action"),
    }
    assert box_named(model, label).lines == (
        "what the class does around its blocks",
        "432 parameters, 88.2 %",
        "carries h (8,)",
    )


def test_blocks_inside_any_module_are_drawn():
    net = nn.Sequential(chain(2), nn.Identity())
    assert titles(net) == ["observation", "layer_0", "layer_1", "layer_1"]


# --- folding ----------------------------------------------------------------------------------------------------------


def test_a_chain_is_folded():
    assert titles(chain()) == ["observation", "layer_0", "layer_1 ... layer_99", "layer_99"]
    box = box_named(chain(), "layer_1 ... layer_99")
    assert box.lines[:2] == ("99 x dense in a row", "(64,) -> (64,)")
    assert arrows(chain()) == {
        ("observation", "layer_0"),
        ("layer_0", "layer_1 ... layer_99"),
        ("layer_1 ... layer_99", "layer_99"),
    }


def test_branches_are_folded():
    assert titles(branches()) == [
        "sensor_0 ... sensor_63",
        "branch_0 ... branch_63",
        "all",
        "all",
    ]
    assert box_named(branches(), "branch_0 ... branch_63").lines == (
        "64 x dense side by side",
        "(16,) -> (8,)",
        "8,704 parameters, 100.0 %",
    )
    assert box_named(branches(), "sensor_0 ... sensor_63").lines == ("64 x (16,) side by side",)


def test_few_branches_are_drawn_each():
    assert len(titles(branches(4))) == 4 + 4 + 2


def test_steps_that_repeat_together_are_framed():
    picture = sketch(EXAMPLES["repeats"]())
    assert [(frame.title, frame.remark) for frame in picture.frames.values()] == [
        ("dense_0 ... norm_9", "10 in a row"),
        ("residual_0 ... residual_5", "6 in a row"),
    ]
    assert sum(box.share for box in picture.boxes.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", EXAMPLES)
def test_folded_or_not_all_parameters_are_there(name):
    shares = [box.share for box in sketch(EXAMPLES[name]()).boxes.values()]
    assert sum(shares) == pytest.approx(1)


def test_branches_that_cross_are_not_folded():
    """Each reads two neighbours: drawn as one, the ring would be lost."""
    graph = Graph({f"x{index}": (4,) for index in range(6)})
    for index in range(6):
        graph.add(f"pair_{index}", "concat", [f"x{index}", f"x{(index + 1) % 6}"])
    graph.add("all", "concat", [f"pair_{index}" for index in range(6)])
    assert len(titles(InferenceBlock(graph, ["all"]))) == 6 + 6 + 2


def test_a_chain_that_is_read_on_the_way_is_cut_there():
    graph = Graph({"x": (8,)})
    last = "x"
    for index in range(10):
        last = graph.add(f"d{index}", "dense", last, hidden_units=[8])
    net = InferenceBlock(graph, [last, "d4"])
    assert titles(net)[:3] == ["x", "d0 ... d4", "d5 ... d9"]


# --- a value that many read -------------------------------------------------------------------------------------------


def steps_that_read(count, kinds=("add", "multiply")):
    """A row of steps, each of which also reads the first value; and a branch for each, of another size."""
    graph = Graph({"observation": (8,)})
    last = first = graph.add("first", "dense", "observation", hidden_units=8)
    for index in range(count):
        last = graph.add(f"n{index}", kinds[index % 2], [last, first])
    return InferenceBlock(graph, [last])


def sums_of_branches(count):
    """Each branch reads the observation, and is needed later than the one before it."""
    graph = Graph({"observation": (8,)})
    names = [
        graph.add(f"n{index}", "dense", "observation", hidden_units=[8 + index])
        for index in range(count)
    ]
    last = names[0]
    for name in names[1:]:
        last = graph.add(f"with_{name}", "concat", [last, name])
    return InferenceBlock(graph, [last])


@pytest.mark.parametrize("make", [steps_that_read, sums_of_branches])
def test_arrows_of_a_value_that_many_read_are_a_line_that_branches(make):
    net = make(12)
    picture = sketch(net)
    (line,) = trunks_of(picture)
    readers = [tail for head, tail in picture.arrows() if head == line.writer]
    assert set(line.readers()) == set(readers)
    dot = to_dot(picture)
    edges = re.findall(r"^ *(\w+) -> (\w+)(.*)$", dot, re.MULTILINE)
    reached, heads = {line.writer}, set()
    for tail, head, look in edges:
        if tail in reached and (tail == line.writer or tail in line.points):
            reached.add(head)
            heads |= {head} if "arrowhead=none" not in look else set()
    assert heads == set(readers)
    assert dot.count("shape=point") == len(line.points)
    assert "dot on a line: it branches" in dot
    assert to_mermaid(picture).count(f"  {line.writer} --> ") == len(readers)


def test_few_arrows_stay_arrows():
    assert trunks_of(sketch(steps_that_read(6))) == []
    assert "shape=point" not in to_dot(sketch(steps_that_read(6)))


@pytest.mark.parametrize("make", [steps_that_read, sums_of_branches])
def test_many_nodes_that_read_one_value_are_laid_out_at_once(make):
    dot = to_dot(sketch(make(200 if make is steps_that_read else 100)))
    assert b"<svg" in render(dot, "svg", seconds=10)  # without lines 7 to 50 s


NESTED_READERS = {
    f"n{index}": {
        "block": "graph",
        "in": {"a": f"d{index - 1}" if index else "first", "b": "first"},
        "graph": {
            "m": {"block": "multiply" if index % 2 else "add", "in": ["a", "b"]},
            f"d{index}": {"block": "dense", "in": "m", "hidden_units": 8},
        },
        "out": f"d{index}",
    }
    for index in range(10)
}
CRITIC_READERS = {
    f"k{index}": {
        "block": "multiply" if index % 2 else "add",
        "in": [f"k{index - 1}" if index else "first", "first"],
    }
    for index in range(10)
}


def test_each_network_has_its_line_in_the_look_of_its_arrows():
    graph = {"first": {"block": "dense", "in": "observation", "hidden_units": 8}} | NESTED_READERS
    model = composer.compose(
        {
            "version": 1,
            "policy": {"graph": graph, "heads": {"in": "d9"}, "shares": ["first"]},
            "critic": {"graph": CRITIC_READERS, "heads": {"in": "k9"}},
        },
        **CARTPOLE,
        device="meta",
        seed=0,
    )
    picture = sketch(model)
    lines = trunks_of(picture)
    assert [picture.frames[line.frame].title for line in lines if line.frame] == [
        "policy",
        "critic",
    ]
    dot = to_dot(picture)
    segments = len(lines[1].points) + 1
    assert dot.count("#b4532a") == 2 * len(lines[1].points) + segments + 9
    layout = json.loads(render(dot, "json"))
    place = {
        thing["name"]: float(thing["pos"].split(",")[1])
        for thing in layout["objects"]
        if "pos" in thing
    }
    for name, frame in picture.frames.items():
        assert all(place[box] < place[name] for box in picture.inside(name)), frame.title


# --- paths and colors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_box_has_a_path_of_its_own(name):
    boxes = sketch(EXAMPLES[name]()).boxes.values()
    paths = [box.path for box in boxes]
    assert "" not in paths
    assert len(set(paths)) == len(paths)
    assert all(box.path in box.stands_for for box in boxes)


def test_paths_stay_when_the_spec_is_edited():
    spec = {"version": 1, "policy": {"graph": {}, "heads": {"in": "latent"}}}
    latent = {"latent": {"block": "dense", "in": "observation", "hidden_units": 8}}

    def paths(graph):
        spec["policy"]["graph"] = graph
        boxes = sketch(composer.compose(spec, **CARTPOLE, device="meta", seed=0)).boxes
        return {box.path: name for name, box in boxes.items()}

    before = paths(latent)
    more = {"first": latent["latent"], "latent": latent["latent"] | {"in": "first"}}
    after = paths(more)
    assert list(before) == [
        "inputs/observation",
        "policy/latent",
        "policy/heads/action",
        "outputs/policy/action",
    ]
    assert after.keys() - before.keys() == {"policy/first"}
    assert before.keys() <= after.keys()
    assert before["policy/latent"] != after["policy/latent"]


def test_a_folded_box_stands_for_all_its_nodes():
    assert box_named(chain(), "layer_1 ... layer_99").stands_for == tuple(
        f"layer_{index}" for index in range(1, 100)
    )
    box = box_named(branches(), "branch_0 ... branch_63")
    assert box.stands_for == tuple(f"branch_{index}" for index in range(64))
    framed = [box.stands_for for box in sketch(EXAMPLES["repeats"]()).boxes.values()]
    assert sorted(len(paths) for paths in framed if len(paths) > 1) == [6, 6, 6, 10, 10]


def test_colors_say_what_they_are_given():
    net = chain()
    picture = sketch(net).colored({"layer_0": 0.25, "layer_7": 1.0, "layer_8": 0.5}, "dormant")
    heat = {box.title: box.heat for box in picture.boxes.values()}
    assert heat["layer_0"] == 0.25
    assert heat["layer_1 ... layer_99"] == 1.0
    assert "deeper color: dormant" in picture.legend()
    assert "darker: larger share of the parameters" not in picture.legend()
    dot = to_dot(picture)
    assert 'fillcolor="#f5ded5"' in dot
    assert 'fillcolor="#f08a5d"' in dot
    assert "classDef heat6 fill:#f08a5d" in to_mermaid(picture)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_colors_are_of_values_from_0_to_1(value):
    message = f"the value of 'layer_0' must be from 0 to 1, got {value}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sketch(chain(2)).colored({"layer_0": value}, "dormant")


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_arrow_crosses_a_label(name):
    assert_no_arrow_crosses_a_label(EXAMPLES[name]())


@pytest.mark.parametrize("make", [steps_that_read, sums_of_branches])
def test_no_line_that_branches_crosses_a_label(make):
    assert_no_arrow_crosses_a_label(make(12))


def assert_no_arrow_crosses_a_label(net):
    layout = json.loads(render(to_dot(sketch(net)), "json"))
    things = [thing for thing in layout["objects"] if "pos" in thing]
    for edge in layout["edges"]:
        if edge.get("style") == "invis":
            continue
        points = list(_points(edge["pos"]))
        for thing in things:
            if thing["_gvid"] not in (edge["tail"], edge["head"]):
                assert not any(_covers(thing, x, y) for x, y in points), (edge, thing["name"])


SPEC_OF_EACH = """
version: 1
policy:
  graph:
    seen: {block: vgg_conv_dense, in: observation, hidden_channels: [4], hidden_units: 8, each: 1}
    flat: {block: flatten, in: seen}
  heads: {in: flat}
critic: {graph: {flat: {block: flatten, in: observation}}}
"""


def test_a_box_says_for_how_many_inputs_its_block_runs():
    spaces = {"observation_space": Box(0, 1, (4, 3, 16, 16)), "action_space": Discrete(2)}
    model = composer.compose(SPEC_OF_EACH, **spaces, device="meta", seed=0)
    (box,) = [box for box in sketch(model).boxes.values() if box.title == "seen"]
    assert box.lines[-1] == box.details["each"] == "for each of 4"
    assert summarize(model).row("policy", "seen").notes == "for each of 4"


@pytest.mark.parametrize(
    "name", ["complex", "complex_class", "graph_observation", "pick_place", "knights_archers"]
)
def test_policies_stand_left_of_critics(name, monkeypatch):
    configs = Path(__file__).parents[3] / "configs"
    modules = ["environments", "networks"]
    monkeypatch.syspath_prepend(configs)
    model = composer.compose(configs / f"{name}.yaml", allow=modules, device="meta", seed=0)
    picture = sketch(model)
    layout = json.loads(render(to_dot(picture), "json"))
    place = {
        thing["name"]: float(thing["pos"].split(",")[0])
        for thing in layout["objects"]
        if "pos" in thing
    }
    sides: dict[bool, list[float]] = {True: [], False: []}
    for name, frame in picture.frames.items():
        if frame.network:
            sides[frame.title.startswith("critic")].append(place[name])
    assert max(sides[False]) < min(sides[True])


def _points(position):
    """Points along the Bezier curves of an edge, end point and arrow head included."""
    pairs = [pair.split(",") for pair in position.split()]
    ends = [(float(p[1]), float(p[2])) for p in pairs if p[0] in ("e", "s")]
    knots = [(float(p[0]), float(p[1])) for p in pairs if p[0] not in ("e", "s")]
    yield from ends
    for start in range(0, len(knots) - 3, 3):
        a, b, c, d = knots[start : start + 4]
        for step in range(21):
            t = step / 20
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            yield tuple(sum(w * p[i] for w, p in zip(weights, (a, b, c, d))) for i in (0, 1))


def _covers(thing, x, y):
    left, bottom = map(float, thing["pos"].split(","))
    width, height = float(thing["width"]) * 72, float(thing["height"]) * 72
    return abs(x - left) < width / 2 - 1 and abs(y - bottom) < height / 2 - 1


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG\r\n"), ("pdf", b"%PDF-"), ("svg", b"<?xml")]
)
def test_pictures_are_what_they_are_called(ending, start, tmp_path):
    path = composer.draw(mlp(), str(tmp_path / f"model.{ending.upper()}"))
    assert path.read_bytes().startswith(start)


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.elements = []
        self.scripts = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts.append(data)


def test_a_page_holds_everything_and_nothing_of_a_key_runs(tmp_path):
    key = '</script><script>alert("x")</script><img src=x>'
    graph = Graph({key: (4,)})
    graph.add("out", "linear_output", key, output_units=2)
    path = composer.draw(InferenceBlock(graph, ["out"]), tmp_path / "net.html")
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "img" not in [tag for tag, _ in page.elements]
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.elements)
    details = json.loads(page.scripts[0])
    assert details["n0"]["title"] == key
    assert ["setting output_units", "2"] in details["n1"]["lines"]
    boxes = {a["id"] for tag, a in page.elements if tag == "g" and a.get("class") == "node"}
    assert details.keys() <= boxes


def test_an_existing_file_is_overwritten(tmp_path):
    path = tmp_path / "model.dot"
    path.write_text("old" * 10_000)
    composer.draw(mlp(), path)
    assert path.read_text() == to_dot(sketch(mlp()))


def test_a_drawing_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.dot"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DrawError, match="disk full"):
        composer.draw(mlp(), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.dot"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.pgn", "'pgn' is not a format of diagrams; did you mean 'png'?"),
        (
            "m.docx",
            "'docx' is not a format of diagrams; there is dot, html, mermaid, pdf, png, svg",
        ),
        (
            "m",
            "'m' has no ending that says what to draw; there is dot, html, mermaid, pdf, png, svg",
        ),
    ],
)
def test_an_unknown_ending(name, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        composer.draw(mlp(), tmp_path / name)


def test_format_decides_over_the_ending(tmp_path):
    path = composer.draw(mlp(), tmp_path / "model.txt", format="mmd")
    assert path.read_text().startswith("flowchart TD\n")


def test_a_folder_that_is_not_there(tmp_path):
    folder = tmp_path / "missing"
    with pytest.raises(
        ValueError,
        match=re.escape(f"model.png' cannot be written: there is no folder {str(folder)!r}"),
    ):
        composer.draw(mlp(), folder / "model.png")


@pytest.fixture
def without_fonts(tmp_path, monkeypatch):
    config = tmp_path / "fonts.conf"
    config.write_text(
        f"<fontconfig><dir>{tmp_path}/none</dir><cachedir>{tmp_path}/cache</cachedir></fontconfig>"
    )
    monkeypatch.setenv("FONTCONFIG_FILE", str(config))
    diagram_graphviz._has_fonts.cache_clear()
    yield
    diagram_graphviz._has_fonts.cache_clear()


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_without_a_font_it_says_so(without_fonts, tmp_path, ending):
    message = (
        f"this machine has no font, so every letter of a {ending} would be an empty box; install one (such as the "
        "package fonts-dejavu-core), or draw .svg or .html, which use the fonts of the viewer"
    )
    with pytest.raises(DrawError, match=f"^{re.escape(message)}$"):
        composer.draw(mlp(), tmp_path / f"model.{ending}")


def test_text_and_svg_need_no_font(without_fonts, tmp_path):
    for ending in ("svg", "html", "dot", "mermaid"):
        assert "latent" in composer.draw(mlp(), tmp_path / f"model.{ending}").read_text()


def test_without_graphviz_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(diagram_graphviz, "_commands", lambda form, longest: [])
    message = (
        "drawing needs Graphviz: pip install 'pygraphviz>=2', or put the program dot on the PATH (the package graphviz "
        "of an operating system has it, the one of PyPI does not); .dot and .mermaid need neither"
    )
    with pytest.raises(DrawError, match=f"^{re.escape(message)}$"):
        composer.draw(mlp(), tmp_path / "model.svg")


@pytest.fixture
def only_a_dot(tmp_path, monkeypatch):
    """Writes the shell script that is ``dot``, in place of pygraphviz."""

    def write(script: str) -> None:
        dot = tmp_path / "bin" / "dot"
        dot.parent.mkdir(exist_ok=True)
        dot.write_text(f"#!/bin/sh\n{script}\n")
        dot.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(diagram_graphviz, "_PROGRAM", "import no_such_module")
    return write


def test_a_dot_on_the_path_stands_in_for_pygraphviz(only_a_dot, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    only_a_dot('echo "<svg>$1 $PYTHONPATH"; cat')
    text = to_dot(sketch(mlp()))
    assert render(text, "svg").decode() == f"<svg>-Tsvg \n{text}"


def test_a_dot_that_fails_says_why(only_a_dot):
    only_a_dot("echo 'dot: cannot load its libraries' >&2; exit 3")
    with pytest.raises(DrawError, match=r"^Graphviz failed: dot: cannot load its libraries$"):
        render("digraph {}", "svg")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"seconds": 0.5},
            "Graphviz took more than 0.5 seconds; draw .dot and lay it out elsewhere",
        ),
        ({"given_up": lambda: True}, "the drawing was given up"),
    ],
)
def test_a_dot_that_hangs_is_ended(only_a_dot, tmp_path, limits, message):
    only_a_dot(f"echo $$ > {tmp_path}/number; exec sleep 60")
    with pytest.raises(DrawError, match=f"^{re.escape(message)}$"):
        render("digraph {}", "svg", **limits)
    number = tmp_path / "number"
    assert not number.exists() or not Path("/proc", number.read_text().strip()).exists()


def test_the_process_that_draws_outlives_nobody_for_long():
    """Whoever waits for it may be killed: it is ended by its time limit, whatever it waits for."""
    command, *_ = diagram_graphviz._commands("svg", 0.3)
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(20) == -signal.SIGALRM


def test_the_process_that_draws_does_not_get_the_python_path(tmp_path, monkeypatch):
    (tmp_path / "pygraphviz.py").write_text("raise SystemExit('a file of the current folder ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    assert b"<svg" in render("digraph {}", "svg")


def test_a_dot_that_begins_late_gets_all_of_a_long_text(only_a_dot):
    only_a_dot("sleep 0.3; cat")
    text = f"digraph {{ {'a; ' * 100_000}}}"
    assert render(text, "svg").decode() == text


def test_what_graphviz_says_is_passed_on(monkeypatch):
    monkeypatch.setattr(diagram_graphviz, "_PROGRAM", "raise SystemExit('syntax error in line 1')")
    monkeypatch.setattr(diagram_graphviz.shutil, "which", lambda name: None)
    with pytest.raises(DrawError, match=r"^Graphviz failed: syntax error in line 1$"):
        render("digraph {", "svg")


def test_the_script_of_a_page_is_javascript(tmp_path):
    node = diagram_graphviz.shutil.which("node")
    text = composer.draw(mlp(), tmp_path / "model.html").read_text(encoding="utf-8")
    script = tmp_path / "script.js"
    script.write_text(text.rpartition("<script>")[2].partition("</script>")[0])
    assert '"use strict"' in script.read_text()
    if node:
        assert subprocess.run([node, "--check", script]).returncode == 0


def test_the_page_is_part_of_the_package():
    setup = (Path(composer.__file__).parent.parent / "setup.cfg").read_text()
    assert "diagram/page.html" in setup


def test_no_gradient_flows_back_through_a_dotted_arrow():
    graph = Graph({"observation": (4,)})
    graph.add("encoder", "dense", "observation", hidden_units=8)
    graph.add("fixed", "detach", "encoder")
    graph.add("last", "dense", "fixed", hidden_units=2)
    picture = sketch(InferenceBlock(graph, outputs=["last"]))
    stopped = {(picture.boxes[a].title, picture.boxes[b].title) for a, b in picture.stopped}
    assert stopped == {("fixed", "last")}
    assert "dotted arrow: no gradient flows back" in picture.legend()
    assert to_dot(picture).count("style=dotted") == 1
    assert to_mermaid(picture).count('-.->|"no gradient"|') == 1
