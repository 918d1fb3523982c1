"""Text, files and mappings become plain data that knows where each value was written."""

import contextlib
import math
import os
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from composer.errors import Position, Problem, Problems, SpecError
from composer.source.dump import dump_yaml
from composer.source.load import load_source
from perception_blocks.registry import Registry


def message_of(spec, overrides=()) -> str:
    with pytest.raises(SpecError) as caught:
        load_source(spec, overrides)
    return str(caught.value)


def write(folder: Path, **texts: str) -> Path:
    """Files ``name.yaml``; returns the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(texts))}.yaml"


# --- scalars and positions ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.", 1.0),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("-3", -3),
        ("+.5", 0.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ("0b1", "0b1"),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    read = load_source(f"a: {text}\n").data["a"]
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_a_float():
    assert math.isnan(load_source("a: .NaN\n").data["a"])


def test_every_value_and_key_has_its_position():
    source = load_source("a: 1\nb:\n  - x\n  - {c: ü, d: 2}\n'e f': [3]\n")
    at = {
        path: str(source.position(path)) for path in [("a",), ("b", 0), ("b", 1, "d"), ("e f", 0)]
    }
    assert at == {
        ("a",): "<spec>:1:4",
        ("b", 0): "<spec>:3:5",
        ("b", 1, "d"): "<spec>:4:15",
        ("e f", 0): "<spec>:5:9",
    }
    assert str(source.position(("b", 1, "d"), key=True)) == "<spec>:4:12"
    assert str(source.position(("e f",), key=True)) == "<spec>:5:1"


def test_what_is_not_there_has_the_position_of_its_nearest_ancestor():
    source = load_source("a:\n  b: [1]\n")
    assert source.position(("a", "b", 7, "c")) == source.position(("a", "b"))
    assert source.position(("x",), key=True) == source.position(())
    assert load_source({"a": 1}).position(("a",)) is None


def test_aliases_stand_for_the_value_they_name():
    source = load_source("a: &units [64, 64]\nb: {hidden: *units}\n")
    assert source.data == {"a": [64, 64], "b": {"hidden": [64, 64]}}
    assert str(source.position(("b", "hidden"), key=True)) == "<spec>:2:5"


def test_data_is_fresh_at_each_place_an_alias_stands():
    data = load_source("a: &units [64]\nb: *units\n").data
    data["a"].append(1)
    assert data["b"] == [64]


# --- files ---


def test_a_file_may_start_with_a_byte_order_mark_and_have_windows_lines(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    source = load_source(path)
    assert source.data == {"a": 1, "b": 2}
    assert source.position(("b",)) == Position(str(path), 2, 4)


def test_unreadable_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, agent="a: 1\n")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("text.png").write_bytes(b"a: 1\n\x89PNG\r\n")
    Path("sixteen.yaml").write_bytes("a: 1\n".encode("utf-16"))
    Path("nul.yaml").write_bytes(b"a: 1\nb: x\0y\n")
    Path("huge.yaml").write_bytes(b"a: 1\n" * 300_000)
    assert message_of("agnet.yaml") == "there is no file 'agnet.yaml'; did you mean 'agent.yaml'?"
    assert message_of("folder") == "'folder' is a folder, not a file"
    assert message_of("pipe") == "'pipe' is not a regular file"
    assert (
        message_of("text.png") == "text.png:2:1: the byte 0x89 is not UTF-8; is this a text file?"
    )
    assert message_of("sixteen.yaml") == (
        "sixteen.yaml:1:1: the byte 0xff is not UTF-8; is this a text file?"
    )
    assert message_of("nul.yaml") == (
        "nul.yaml:2:5: the character U+0000 has no place in YAML; is this a text file?"
    )
    assert message_of("huge.yaml") == (
        "huge.yaml:1:1: the file is larger than 1048576 bytes, too large for a spec"
    )
    assert message_of("a\0b") == "'a\\x00b' cannot be read: embedded null byte"
    assert "surrogates not allowed" in message_of("\ud800")
    assert message_of("") == "there is no file ''"
    assert "cannot be read: File name too long" in message_of("x" * 5000)


def test_other_things_than_specs_are_named():
    assert message_of(3) == "a spec is a path, YAML text or a mapping, got the number 3"
    assert message_of({1: 2}) == "the key 1 must be a text, got the number 1"
    itself: dict = {}
    itself["a"] = itself
    assert message_of(itself) == "a.a.a: nested more than 50 deep; does a container hold itself?"
    assert message_of("a: 1\n" * 300_000) == (
        "<spec>:1:1: the spec is longer than 1048576 characters, too long for a spec"
    )


# --- extends ---


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path):
    child = write(
        tmp_path,
        child="extends: base.yaml\na: {y: 3, z: 4}\nlist: [9]\ngone: null\n",
        base="a: {x: 1, y: 2}\nlist: [1, 2]\ngone: 5\nkept: 6\n",
    )
    source = load_source(child)
    assert source.data == {"a": {"x": 1, "y": 3, "z": 4}, "list": [9], "kept": 6}
    assert source.files == (str(child), str(tmp_path / "base.yaml"))
    assert source.position(("a", "x")) == Position(str(tmp_path / "base.yaml"), 1, 8)
    assert source.position(("a", "y")) == Position(str(child), 2, 8)


def test_the_later_of_several_bases_wins_and_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", second="extends: ../third.yaml\na: 2\n")
    child = write(
        tmp_path,
        child="extends: [first.yaml, deep/second.yaml]\n",
        first="a: 1\nb: 1\n",
        third="c: 3\n",
    )
    assert load_source(child).data == {"a": 2, "b": 1, "c": 3}


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ("{block: dense, size: 1}", "{size: 2}", {"block": "dense", "size": 2}),
        (
            "{block: dense, size: 1}",
            "{block: dense, in: x}",
            {"block": "dense", "size": 1, "in": "x"},
        ),
        ("{block: dense, size: 1}", "{block: lstm}", {"block": "lstm"}),
        ("{_target_: a.B, size: 1}", "{_target_: a.C}", {"_target_": "a.C"}),
        ("{graph: {a: {x: 1}}}", "{graph: {a: {y: 2}}}", {"graph": {"a": {"x": 1, "y": 2}}}),
        ("{graph: {a: {x: 1}}, heads: 1}", "{template: {}}", {"template": {}}),
        ("{graph: {a: {x: 1}}}", "{graph: null, _target_: a.B}", {"_target_": "a.B"}),
        (
            "{graph: {block: {block: dense}}}",
            "{graph: {graph: {block: lstm}}}",
            {"graph": {"block": {"block": "dense"}, "graph": {"block": "lstm"}}},
        ),
    ],
)
def test_what_becomes_another_thing_is_replaced_wholly(tmp_path, base, over, merged):
    child = write(tmp_path, child=f"extends: base.yaml\nn: {over}\n", base=f"n: {base}\n")
    assert load_source(child).data == {"n": merged}


def test_a_base_may_offer_params_that_the_child_sets_or_leaves_unused(tmp_path):
    child = write(
        tmp_path,
        child="extends: base.yaml\nparams: {width: 128}\n",
        base='params: {width: 64, depth: 2}\na: "${params.width}"\n',
    )
    source = load_source(child)
    assert source.data == {"a": 128}
    assert source.problems == ()
    assert source.position(("a",)) == Position(str(tmp_path / "base.yaml"), 2, 4)


def test_extends_needs_a_file():
    expected = (
        "'extends' is relative to a file, and this spec is {}; merge it yourself or use a file"
    )
    assert message_of({"extends": "a.yaml"}) == "extends: " + expected.format("a mapping")
    assert message_of("extends: a.yaml\n") == "<spec>:1:10: " + expected.format("a text")


def test_a_long_chain_of_files_is_refused_and_a_diamond_is_read_once(tmp_path):
    for i in range(30):
        write(tmp_path, **{f"f{i}": f"extends: [f{i + 1}.yaml, f{i + 1}.yaml]\n"})
    assert "more than 20 files extend one another" in message_of(tmp_path / "f0.yaml")
    write(tmp_path, f15="a: 1\n")
    source = load_source(tmp_path / "f0.yaml")
    assert source.data == {"a": 1}
    assert len(source.files) == 16


# --- params ---


def test_a_whole_reference_keeps_the_type_and_a_part_becomes_text():
    source = load_source(
        "params: {width: 64, sizes: [1, 2], name: net, both: '${params.name}_${params.width}', off: false}\n"
        "a: '${params.width}'\nb: '${ params.sizes }'\nc: 'x${params.both}-${params.off}'\nd: '$${params.width}'\n"
        "e: ['${params.off}']\n"
    )
    assert source.data == {
        "a": 64,
        "b": [1, 2],
        "c": "xnet_64-false",
        "d": "${params.width}",
        "e": [False],
    }
    assert source.params["both"] == "net_64"
    assert source.problems == ()
    assert str(source.position(("a",))) == "<spec>:2:4"
    assert str(source.position(("params", "width"))) == "<spec>:1:17"


def test_params_are_filled_into_mappings_from_python_too():
    source = load_source({"params": {"w": 3}, "a": {"b": ("${params.w}", 1)}})
    assert source.data == {"a": {"b": [3, 1]}}


def test_many_params_that_refer_to_one_another_are_no_trouble():
    chain = "".join(f"  p{i}: '${{params.p{i + 1}}}'\n" for i in range(3000))
    source = load_source(f"params:\n{chain}  p3000: 7\na: '${{params.p0}}'\n")
    assert source.data == {"a": 7}


# --- overrides ---


def test_overrides_are_read_as_yaml_and_shown_as_their_place():
    source = load_source(
        "params: {width: 64}\na: '${params.width}'\nb: {c: [1, 2], d: 1}\n",
        ["params.width=128", "b.c.1=5e-1", "b.e={f: [x, no]}", ("b.d", None), (("g",), (1, "x"))],
    )
    assert source.data == {"a": 128, "b": {"c": [1, 0.5], "e": {"f": ["x", "no"]}}, "g": [1, "x"]}
    assert str(source.position(("b", "e", "f", 0))) == "--set b.e={f: [x, no]}"
    assert str(source.position(("b", "e"), key=True)) == "--set b.e={f: [x, no]}"
    assert str(source.position(("g",))) == "--set g"


def test_an_empty_value_removes_a_key_and_a_text_may_hold_equal_signs():
    assert load_source("a: 1\nb: 2\n", ["a=", "b=x=y"]).data == {"b": "x=y"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=3", "--set =3: needs the path of a key before the '=', such as params.width=64"),
        ("a..b=3", "--set a..b=3: needs the path of a key before the '=', such as params.width=64"),
        ("extends=x", "--set extends=x: 'extends' cannot be set from outside; it is read before overrides are"),
        ("l.x=1", "--set l.x=1: there is no entry 'x' in 'l', which has 2 entries, counted from 0"),
        ("l.9.y=1", "--set l.9.y=1: there is no entry '9' in 'l', which has 2 entries, counted from 0"),
        ("m.y.z=1", "--set m.y.z=1: there is no 'y' in 'm'; its keys are 'word'; set a new one whole: m.y={z: ...}"),
        ("n.z=1", "--set n.z=1: there is no 'n' in the spec; its keys are 'l', 'm'; set a new one whole: n={z: ...}"),
        ("n.y.z=1", "--set n.y.z=1: there is no 'n' in the spec; its keys are 'l', 'm'"),
        ("m.wrod.z=1", "--set m.wrod.z=1: there is no 'wrod' in 'm'; did you mean 'word'?"),
        ("m.word.z=1", "--set m.word.z=1: 'm.word' is the text 'x'; nothing can be set inside it"),
        ("m=&x [*x]", "--set m=&x [*x]: the value is not valid YAML: the value of '&x' holds itself"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_a_problem_like_any_other(override, message):
    source = load_source("l: [1, 2]\nm: {word: x}\n", [override])
    assert [str(problem) for problem in source.problems] == [message]


# --- mappings and OmegaConf ---


@pytest.mark.parametrize("overrides", ["a=3", {"a": 3}])
def test_overrides_are_a_list(overrides):
    with pytest.raises(
        SpecError, match=r"^overrides is a list such as \['params.width=64'\], got "
    ):
        load_source({"a": 1}, overrides)


def test_python_objects_pass_through_untouched():
    class Net: ...

    net = Net()
    data = load_source({"a": {"block": Net, "x": [net], "f": len, "s": {1, 2}}}).data
    assert data == {"a": {"block": Net, "x": [net], "f": len, "s": {1, 2}}}


def test_the_callers_mapping_is_left_alone():
    spec = {"params": {"w": 1}, "a": ["${params.w}"]}
    load_source(spec, ["params.w=2"]).data["a"].append(3)
    assert spec == {"params": {"w": 1}, "a": ["${params.w}"]}


def test_an_omegaconf_config_is_resolved_after_overrides_of_params():
    config = OmegaConf.create(
        {"params": {"w": 1}, "a": "${params.w}", "b": "${size}", "size": 5, "l": ["${b}"]}
    )
    assert load_source(config, ["params.w=2"]).data == {"a": 2, "b": 5, "size": 5, "l": [5]}
    assert load_source({"n": OmegaConf.create([1, 2])}).data == {"n": [1, 2]}


def test_what_omegaconf_cannot_resolve_is_a_spec_error():
    assert message_of(OmegaConf.create({"a": "${nowhere}"})).startswith(
        "OmegaConf cannot resolve the spec: Interpolation key 'nowhere' not found"
    )
    assert "Missing mandatory value: a" in message_of(OmegaConf.create({"a": "???"}))


# --- writing ---

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False)
DATA = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(TEXTS.filter(lambda key: key not in ("params", "extends")), DATA, min_size=1)
)
@example(
    {"no": "no", "1": "1e-3", "<<": "=", "~": "", "null": "0o17", "a": "${params.x}", "$${": "$${"}
)
@example({"\x00\x85\u2028\ufeff\x7f": "\x00\n\x85 \u2028\ufeff\x7f\ud7ff\ue000\U0001f600"})
@example({"a": "x\n" * 3, "b": " x ", "c": "---", "d": "# x", "k" * 2000: 1e300, "e": [[], {}]})
def test_written_yaml_reads_back_as_the_same(data):
    source = load_source(dump_yaml(data) + "\n")
    assert source.problems == ()
    assert source.data == data
    assert load_source(source.to_yaml() + "\n").data == data


def test_written_yaml_is_as_a_person_would_write_it():
    data = {
        "version": 1,
        "policy": {"graph": {"latent": {"block": "dense", "bias": "no", "sizes": [64]}}},
    }
    assert dump_yaml(data) == (
        "version: 1\npolicy:\n  graph:\n    latent:\n      block: dense\n      bias: 'no'\n      sizes: [64]\n"
    )


def test_what_yaml_cannot_hold_is_named_by_its_path():
    with pytest.raises(
        ValueError, match=re.escape("'a.0' is the class 'int', which YAML cannot hold")
    ):
        dump_yaml({"a": [int]})


# --- errors ---


def test_problems_are_sorted_by_position_and_told_once():
    source = load_source("a: 1\nb: 2\n")
    problems = Problems(source)
    problems.raise_if_any()
    for path, message in [(("b",), "second"), (("a",), "first\nsecond line"), (("b",), "second")]:
        problems.add(path, message)
    with pytest.raises(SpecError) as caught:
        problems.raise_if_any()
    assert str(caught.value) == "<spec>:1:4: first\n  second line\n<spec>:2:4: second"
    assert caught.value.problems[0].path == ("a",)


def test_a_spec_error_travels_between_processes():
    error = SpecError([Problem("wrong", ("a", 0), Position("f.yaml", 1, 2))])
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, str(again)) == (error.problems, "f.yaml:1:2: wrong")


# --- anything at all ---


@given(st.binary(max_size=200))
def test_any_bytes_are_data_or_a_spec_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with contextlib.suppress(SpecError):
        assert isinstance(load_source(path).data, dict)


@given(st.text("{}[]:,-&*!|>'\"%@`#? \n\tab1.$", max_size=60))
def test_any_yaml_like_text_is_data_or_a_spec_error(text):
    with contextlib.suppress(SpecError):
        assert isinstance(load_source(text + "\n").data, dict)


# --- registered specs ----------------------------------------------------------------------------


def registered(name):
    known = Registry("experiment", hyphens=True)
    known.register("base-run", lambda: {"version": 1, "a": {"b": 1, "c": 2}})
    known.register("over", lambda: "extends: base-run\na: {c: 3}\n")
    known.register("circle", lambda: "extends: circle\na: 1\n")
    known.register("odd", lambda: 3)
    return known.get(name)()


@pytest.mark.parametrize("spec", ["over", {"extends": "over"}, "extends: over\na: {}\n"])
def test_a_registered_spec_is_extended_by_its_name(spec):
    source = load_source(spec, ["a.b=5"], named=registered)
    assert source.data == {"version": 1, "a": {"b": 5, "c": 3}}


def test_a_file_extends_a_registered_spec_and_keeps_its_places(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: [over, other.yaml]\na: {b: 7}\n")
    (tmp_path / "other.yaml").write_text("d: 4\n")
    source = load_source(tmp_path / "mine.yaml", named=registered)
    assert source.data == {"version": 1, "a": {"b": 7, "c": 3}, "d": 4}
    assert str(source.position(("a", "b"))).endswith("mine.yaml:2:8")
    assert str(source.position(("a", "c"))) == "<over>:2:8"


@pytest.mark.parametrize("spec", ["spec", "mine.yaml"])
def test_what_a_registered_spec_names_is_beside_it_and_what_overrides_name_is_not(
    tmp_path, monkeypatch, spec
):
    beside, here = tmp_path / "beside", tmp_path / "here"
    texts = {
        "spec.yaml": "a: a.txt\nlike: word\nin: [sub/b.txt, sub/]\n",
        "mine.yaml": "extends: spec\n",
    }
    names = ["a.txt", "b.txt", "word", "sub/b.txt"]
    for folder in (beside, here):
        for name in (*names, *texts):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(texts.get(name, ""))
    monkeypatch.chdir(here)

    def place(source, name):
        return str(Path(source.find_file(name)).relative_to(tmp_path))

    source = load_source(
        spec if spec == "spec" else Path(spec), named=lambda _: beside / "spec.yaml"
    )
    places = [place(source, name) for name in ("a.txt", "sub/b.txt", "sub/", "b.txt")]
    assert places == ["beside/a.txt", "beside/sub/b.txt", "beside/sub", "here/b.txt"]
    assert source.data["a"] == "a.txt"
    assert load_source(source.to_yaml()).data["a"] == str(beside / "a.txt")

    for override in ("a=b.txt", "a=a.txt", ("in", ["a.txt"])):  # what both write is the caller's
        other = source.overridden([override])
        assert place(other, "b.txt" if override == "a=b.txt" else "a.txt").startswith("here/")
        assert place(other, "sub/b.txt").startswith("here/" if override[0] == "in" else "beside/")
    missing = source.overridden(["a=c.txt"])
    (beside / "c.txt").write_text("")
    assert place(missing, "c.txt") == "here/c.txt"


def test_a_file_that_is_missing_is_never_taken_for_the_one_that_extends_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, agent="extends: agnt.yaml\n")
    assert message_of("agent.yaml") == "agent.yaml:1:10: there is no file 'agnt.yaml'"
    write(tmp_path, agent2="a: 1\n")
    expected = "agent.yaml:1:10: there is no file 'agnt.yaml'; did you mean 'agent2.yaml'?"
    assert message_of("agent.yaml") == expected
    (tmp_path / "agent2.yaml").rename("agnet.yaml")
    assert message_of("agent.yaml").endswith("; did you mean 'agnet.yaml'?")
    write(tmp_path, agent="extends: agnt\n")
    with pytest.raises(SpecError) as caught:
        load_source("agent.yaml", named=registered)
    assert "agent.yaml'?" not in str(caught.value)


def test_a_file_without_suffix_is_read_where_no_spec_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "plain").write_text("a: 1\n")
    (tmp_path / "mine.yaml").write_text("extends: plain\n")
    monkeypatch.chdir(tmp_path)
    assert load_source("plain", named=registered).data == {"a": 1}
    assert load_source(tmp_path / "mine.yaml", named=registered).data == {"a": 1}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ovr", "there is no file 'ovr'; unknown experiment 'ovr'; did you mean 'over'?"),
        (
            "a: 1\nextends: base_run\n",
            "<spec>:2:10: there is no file 'base_run'; unknown experiment 'base_run'; did you mean 'base-run'?",
        ),
        ("circle", "<circle>:1:10: files extend each other in a circle: 'circle (registered)' -> "
         "'circle (registered)'"),
        ("odd", "'odd' is registered as the number 3, not as a file, YAML text or a mapping"),
        (
            {"extends": "./over"},
            "extends: 'extends' is relative to a file, and this spec is a mapping; merge it yourself or use a file",
        ),
        ({"extends": [3]}, "extends: 'extends' is relative to a file, and this spec is a mapping; merge it yourself "
         "or use a file"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_registered(spec, message):
    def unknown(name):
        registry = Registry("experiment", hyphens=True)
        for known in ("base-run", "over", "circle", "odd"):
            registry.register(known, lambda: 0)
        registry.require(name)
        return registered(name)

    with pytest.raises(SpecError) as error:
        load_source(spec, named=unknown)
    assert str(error.value) == message
