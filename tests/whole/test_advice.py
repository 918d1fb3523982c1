"""Every advice that the answer to a bad spec gives is followed, and then it is not given any more.

What is misspelt is corrected, what is to be put before a block is put there. Any other advice needs an entry in
FOLLOWED: texts of the spec and what they become. So whoever writes a new advice shows that it can be followed.
"""

import difflib
import re
from pathlib import Path

import pytest

from tests.whole.test_bad_specs import FOLDER, SPECS, outcome

VERBS = "add(?! needs)|put|use|write|give|leave|name|choose|keep|share|take|change|say|quote|rename|remove|drop|lower|apply|check"
ADVICE = re.compile(
    rf"(?:[;.:,] |[,;] or |[,;] and )(?:{VERBS})\b|[Dd]id you mean|is '\w+' a misspelling of it|instead\b",
    re.IGNORECASE,
)
MEANT = re.compile(r"; did you mean '([^']+)'\?$")
WRITTEN = re.compile(r"; (?:use '(\w+)'|write (null|true|false|\d+|\[.*\])(?: without quotes)?)$")
BEFORE = re.compile(r"\. Put a (\w+)(?: or \w+)? block before it\.$")
# The name of a bad spec -> what in it becomes what, one after the other.
FOLLOWED: dict[str, list[tuple[str, str]]] = {
    "parallel_wrong": [
        ("  dat: 2\n", ""), ("atuo", "auto"), ("bf17", "bf16"), (", redcue: fp32", ""), ('"yes"', "true"),
    ],
    "action_is_an_observation": [("version: 1\n", "version: 1\nignore: [action/move]\n")],
    "action_mask_group": [("action: policy", "action: policy/joints")],
    "action_shared": [("[latent, both]", "[latent]"), ("block: concat, in: [latent, both]", "block: dense, in: latent, hidden_units: [8]")],
    "space_empty_actions": [("spaces: empty_actions", "spaces: vector")],
    "allow_missing_module": [("# allow: no_such_nets", "# allow: broken_nets")],  # whose folder is in PYTHONPATH
    "allow_names_class": [("# allow: broken_nets.Policy", "# allow: broken_nets")],
    "brackets_forgotten": [("64, 64, 32", "[64, 64, 32]")],
    "bracket_closed_too_early": [("[64], 64, 32", "[64, 64, 32]")],
    "set_param_to_nothing": [("params.width=", "params.width=3")],
    "set_param_without_params": [("# set: width", "# set: params.width")],
    "template_empty": [("template:", "template: {}")],
    "activation_dotted_outside_torch_nn": [("os.system", "torch.nn.ReLU")],
    "activations_of_others": [("swish", "silu"), ("ReLU", "relu"), ("glorot", "xavier_uniform")],
    "alias_unknown": [("params: {units: &units [64, 64]}\n", ""), ("*unit}", "&units 64}")],
    "allow_names_file": [("# allow: nets/my_nets.py", "# allow: broken_nets"), ("nets.my_nets.Policy", "broken_nets.Policy")],
    "block_without_space": [("block:dense", "block: dense")],
    "block_without_space_at_end": [("block:dense", "block: dense")],
    "block_without_space_in_brackets": [("block:dense", "block: dense")],
    "concat_integers_and_numbers": [("    both:", "    hot: {block: one_hot, in: colours}\n    flat: {block: flatten, in: hot}\n    both:"), ("[speed, colours]", "[speed, flat]")],
    "concat_other_sizes": [("    both:", "    a: {block: flatten, in: near}\n    b: {block: flatten, in: far}\n    both:"), ("[near, far]", "[a, b]")],
    "concat_scalar_integer": [("    both:", "    a: {block: one_hot, in: kind}\n    b: {block: one_hot, in: colours}\n    c: {block: flatten, in: b}\n    both:"), ("[kind, colours]", "[a, c]"), ("block: one_hot, in: both", "block: flatten, in: both")],
    "concat_vector_and_image": [("    both:", "    flat: {block: flatten, in: screen}\n    both:"), ("[inventory, screen]", "[inventory, flat]")],
    "copies_of_a_graph": [("block: graph", "block: ensemble")],
    "critic_ends_in_image": [("    conv:", "    flat: {block: flatten, in: conv}\n    conv:")],
    "critic_ensemble": [("observatoin", "observation"), ("output_units: 3", "output_units: 1")],
    "critic_q_value_of_choices": [("[observation, action/action]", "[observation]"), ("q_value:", "action_q_values:")],
    "critic_q_values_of_other_width": [(", output_units: 3", ""), ("    q_value: {in: body}\n", "")],
    "critic_node_named_target": [("    target:", "    other:")],
    "critic_reads_policy_value": [("  heads:", "  shares: [latent]\n  heads:")],
    "critic_two_ends": [("    b: {block: dense, in: observation, hidden_units: 8}", "    b: {block: add, in: [observation, observation]}\n    c: {block: concat, in: [a, b]}\n  heads: {in: c}")],
    "decoder_checkpoint_missing": [(", width: 32, norm: rms", "")],
    "decoder_family_wrong": [("family: lama", "family: llama"), ("norm: layer, ", ""), (", out_bias: false", ""), (", sliding_window: 8", ""), (", num_kv_heads: 2", ""), ("num_heads: 4", "num_heads: 5"), ("lama3, factor: 8", "linear, factor: 8")],
    "decoder_settings_wrong": [("num_head: 2", "num_heads: 2"), ("width: 10, num_heads: 4", "width: 10, num_heads: 4, head_dim: 2"), (", sliding_window: 16", ""), (", rope_theta: 500", ""), (", vocab_size: 4", "")],
    "dense_two_inputs": [("    latent:", "    flat: {block: flatten, in: screen}\n    both: {block: concat, in: [inventory, flat]}\n    latent:"), ("in: [inventory, screen]", "in: both")],
    "distribution_optional": [("optinal", "optional"), ('"true"', "true")],
    "distribution_space_not_there": [("space: box, ", "space: box, optional: true, ")],
    "distribution_missing": [("distributoin", "distribution")],
    "distribution_setting_misspelt": [("log_sdt", "log_std")],
    "gsde_settings_wrong": [("learn_feature:", "learn_features:")],
    "each_leaves_scalar": [(", each: 1", "")],
    "encoder_settings": [
        ("size: 16, crop", "size: 32, crop"), (", shortest_edge: 32, mean: [0.5, 0.5]", ""), ("[0.5, 0.5]", "0.5"),
        ("vitt", "vit"), ("in: image}", "in: image, family: resnet, hidden_sizes: [8], depths: [1]}"),
        ("num_channels: 3, hiden_size: 12", "num_hidden_layers: 1, hidden_size: 12"),
    ],
    "encoder_images": [
        ("    raw:", "    image: {block: scale_image, in: observation}\n    raw:"),
        ("vision_model, in: observation", "vision_model, in: image"),
        ("size: [16, 24]", "size: 16"), ("size: 8}\n", "size: 32}\n"),
    ],
    "environment_unknown": [("CartPoel-v1", "CartPole-v1")],
    "environment_unknown_given": [("CartPoel-v1", "CartPole-v1")],
    "everything_wrong_at_once": [("gaussian", "categorical"), ("legal_usse", "legal_uses"), ("[sate]", "[state]"), ("hidden_units: 0", "hidden_units: 8"), ("rleu", "relu"), ("    conv: {block: vgg_conv, in: state, hidden_channels: [8]}", "    conv: {block: dense, in: state, hidden_units: 8}"), ("gaol", "state"), ("moev", "move"), (", output_units: 3", ""), ("orthogonl", "orthogonal"), ("hiden_units", "hidden_units"), ("  action_mask: {move: legal_uses}\n", ""), ("[legal_uses]", "[legal_uses, legal_moves]"), ("    two: {block: dense, in: body", "    two: {block: dense, in: one")],
    "states_of_nothing": [
        ("policy/memory/x: a, ", ""),
        ("h: observation", "h: hidden"),
        ("c: resets", "c: cell"),
    ],
    "states_have_names": [
        ("c: state", "c: cell"),
        (', memory/h: other, policy/x: "two words", critic/memory/h: z', ""),
    ],
    "extends_mistake_in_base": [("parts/broken.yaml", "parts/base.yaml")],
    "extends_missing_file": [("parts/bsae.yaml", "parts/base.yaml")],
    "extends_new_block_old_settings_gone": [("block: lstm,", "block: lstm, in: observation,")],
    "flatten_too_many_dims": [(", num_dims: 3", "")],
    "flatten_two_inputs": [("    flat:", "    a: {block: flatten, in: screen}\n    b: {block: concat, in: [a, inventory]}\n    flat:"), ("in: [screen, inventory]", "in: b")],
    "graph_beside_networks": [("  graph:\n    latent: {block: dense, in: observation, hidden_units: [64]}\n  heads: {in: latent}\n", "")],
    "graph_beside_other_block": [("block: dense, in: observation, graph", "block: graph, in: {x: observation}, graph")],
    "graph_conv_bias_of_other_length": [("[true]", "[true, false]")],
    "graph_conv_self_weight_without_normalize": [(", self_weight: 2", "")],
    "point_net_batch_norm_with_mask": [("norm: batch", "norm: layer")],
    "channels_first_gets_vector": [("    x: {block: channels_first, in: observation}\n", ""), ("in: x,", "in: observation,")],
    "permute_axis_twice": [("[0, 0]", "[1, 0]")],
    "strided_conv_channels_last_too_small": [("hidden_kernels: 8", "hidden_kernels: 4")],
    "actor_of_one_space": [(", actor]", "]"), ("    who: {block: one_hot, in: actor}\n", ""), (", who]", "]")],
    "actor_in_central_critic": [(", actor]", "]"), ("    who: {block: one_hot, in: actor}\n", ""), (", who]", "]")],
    "actor_alone": [("    who:", "    seen: {block: concat, in: [observation, who]}\n    who:"), ("heads: {in: who}", "heads: {in: seen}")],
    "actor_as_number": [("    both:", "    who: {block: one_hot, in: actor}\n    both:"), (", actor]", ", who]")],
    "actor_unknown_number": [("    who: {block: one_hot, in: actor}\n", ""), (", who]", "]")],
    "group_by_argument": [("{input: policy}", "{input: policy/joints}"), ("[robot]", "[robot, policy/speeds]")],
    "group_of_mixed_shapes": [("    seen:", "    flat: {block: flatten, in: robot/camera}\n    seen:"), ("in: robot}", "in: [flat, robot/pose]}")],
    "head_beside_default": [("    in: latent\n", "    use: {in: latent}\n")],
    "head_without_in": [("block: dense, hidden", "block: dense, in: latent, hidden")],
    "heads_inside_graph": [("    heads:", "  heads:")],
    "observations_inside_graph": [("    observations:", "  observations:")],
    "input_unread_observation": [("policy:", "ignore: [screen]\npolicy:")],
    "inputs_for_in": [("inputs", "in")],
    "linear_output_bias_off": [("bias: false, ", "")],
    "keys_of_other_sections": [(", texts: {}", ""), ("    normalize: [observation]\n", ""), ("    kind: state\n", "  kind: state\n"), ("version: 1\n", "version: 1\nnormalize: [observation]\ntexts: {}\n")],
    "lstm_bidirectional_step": [(", bidirectional: true", "")],
    "many_problems": [("envronment", "environment"), ("vgg_con,", "vgg_conv,"), ("wdth", "width"), ("    latent: {block: dense, inputs: screen}\n", ""), ("{move: latent}", "{move: {in: latent}}"), ("kind: values", "kind: state"), ("_target_: os.system", "template: {}")],
    "masked_global_pooling_gets_vector": [("in: observation}", "in: observation, dims: [-1]}")],
    "merge_key": [("<<: *base, in: base", "block: dense, hidden_units: [64], in: base")],
    "message_passing_settings_wrong": [("GATCov", "GATConv"), ("GCNConv", "GATv2Conv"), ("{head: 2}", "{heads: 2}")],
    "multi_head_attention_heads_do_not_divide": [("num_heads: 4", "num_heads: 3")],
    "multi_index_slice_outside": [("[0, 6]", "[0, 5]")],
    "nested_wrong_shape": [("        inner: {block: dense, in: screen", "        flat: {block: flatten, in: screen}\n        inner: {block: dense, in: flat")],
    "nature_cnn_dense_image_too_small": [("spaces: tiny", "spaces: frames")],
    "nature_cnn_image_too_small": [("nature_cnn, in: observation", "strided_conv, in: observation, hidden_channels: [4], hidden_kernels: 3, strides: 1")],
    "nested_two_ends": [("      in: [observation]\n", "      in: [observation]\n      out: [one, two]\n"), ("{in: latent}", "{in: both}"), ("  heads", "    both: {block: add, in: [one, two]}\n  heads")],
    "no_in": [("block: dense,", "block: dense, in: observation,")],
    "no_version": [("# check: structure\n", "# check: structure\nversion: 1\n")],
    "node_named_distributions": [("distributions", "other"), ("in: distributions", "in: other")],
    "node_named_heads": [("    heads:", "    other:"), ("in: heads", "in: other")],
    "node_named_like_observation": [("    observation:", "    other:"), ("latent: {block: dense, in: observation", "latent: {block: dense, in: other")],
    "node_named_training": [("training", "other"), ("    _:", "    more:")],
    "normalize_block_gets_integer": [("normalize, in", "one_hot, in")],
    "normalize_image_of_bytes": [("normalize: [observation]\n", "")],
    "number_as_key": [("    0:", "    '0':"), ("    1:", "    '1':")],
    "one_hot_count_too_small": [(", num_embeddings: 3", "")],
    "one_hot_other_count": [("[3, 4, 5]", "4"), ("    latent: {block: dense, in: code", "    latent: {block: flatten_dense, in: code")],
    "output_named_like_node": [("out: [latent]", "out: [other]"), ("block: dense, in: observation", "block: dense, in: other")],
    "output_named_twice": [("b: {block: lstm, in: observation, out: [features]", "b: {block: lstm, in: observation, out: [more]"), ("in: [features]", "in: [features, more]")],
    "param_unclosed": [("${params.version", "$${params.version"), ("params: {version: v1}\n", "")],
    "param_unknown": [("params.widht", "params.width"), (", depth: 2", "")],
    "param_unused": [("params: {width: 64}\n", "")],
    "param_unused_hides_no_settings": [(", depth: 2", ""), ("rulu", "relu")],
    "previous_action_called_reward": [("[action, reward]", "[action]")],
    "previous_beside_model": [("previous: [action]\n", "")],
    "previous_not_listed": [("previous: [action]", "previous: [action, reward]"), ("in: [observation, previous/action]", "in: [observation, previous/action, previous/reward]")],
    "previous_taken": [("previous: [reward]\n", "")],
    "previous_without_the_key": [("policy:", "previous: [action]\npolicy:")],
    "reads_itself": [("    latent:", "    other:"), ("in: latent}", "in: other}"), ("[observation, latent]", "[observation]")],
    "same_as_chain": [("same_as: b", "same_as: a")],
    "scale_image_channels_unclear": [("in: observation}", "in: observation, channels: last}")],
    "keys_are_texts": [("freez: [policy]\nfreeze: policy/latent", "freeze: [policy/latent]")],
    "paths_are_wrong": [("polcy/latent, policy/", "policy/latent, policy/heads"), ("{policy/latent: 0.1, policy: 0, ", "{")],
    "scale_image_gets_integer": [("scale_image, in", "one_hot, in")],
    "scale_image_no_bounds": [("in: observation}", "in: observation, low: 0, high: 1}")],
    "scale_image_several_images": [("in: observation}", "in: observation, each: 1}")],
    "set_unknown_path": [("# set: polcy", "# set: policy")],
    "set_unused_param": [("# set: params.width=3\n", "")],
    "set_without_equals": [("policy.separate", "policy.separate=true")],
    "settings_many_wrong": [("rleu", "relu"), (", activatoin: tanh", ""), ("hidden_units: wide", "hidden_units: 8"), (", norm: group, dropout: 2, bias: 1", "")],
    "shares_named_like_action": [("    action:", "    other:"), ("[action]", "[other]")],
    "shares_then_named_by_critic": [("critic:\n  graph:\n    latent: {block: dense, in: observation", "critic:\n  graph:\n    other: {block: dense, in: latent")],
    "slice_outside": [("index: 10", "index: 9")],
    "space_unsupported": [("policy:", "ignore: [name]\npolicy:")],
    "space_unsupported_and_ignored_misspelt": [("[nmae]", "[name]")],
    "strided_conv_kernel_too_large": [("[5, 5]", "[3, 3]")],
    "strided_conv_reflects_too_far": [("padding: 9, padding_mode: reflect", "padding: 9, padding_mode: zeros")],
    "syntax_at_sign": [("@", "'@"), ("-v1", "-v1'")],
    "syntax_indentation": [("   heads:", "  heads:")],
    "syntax_list_entry_beside_key": [(" - mission", "\n  - mission")],
    "syntax_percent": [("\n%a", "\n  - '%a'")],
    "texts_and_ignore": [("texts: {name: {max_length: 4}}\n", "")],
    "syntax_tab_indentation": [("\tgraph: {}", "  template: {}")],
    "syntax_unknown_escape": [("\\q", "\\\\q")],
    "tag_of_text": [("!env CartPole-v1", "'!env CartPole-v1'")],
    "tag_python_object": [("!!python/object/apply:os.system ['echo broken']", "'!!python/object/apply'")],
    "target_critic_no_value": [("_target_: broken_nets.ReturnsMisspeltValue", "template: {}")],
    "target_has_child_distributions": [("broken_nets.TakenName", "broken_nets.Policy")],
    "target_is_layer": [("{_target_: torch.nn.Linear, in_features: 4, out_features: 2}", "{graph: {x: {block: torch.nn.Linear, in: observation, in_features: 4, out_features: 2}}, heads: {in: x}}")],
    "target_returns_misspelt_head": [("ReturnsMisspelt", "Policy")],
    "text_unread": [("policy:", "ignore: [name]\npolicy:"), ("texts: {name: {max_length: 64}}\n", "")],
    "texts_and_ignore_misspelt": [("[nmae]", "[name]"), ("texts: {name: {max_length: 64}, state: {max_length: 4}}\n", "")],
    "texts_unknown_observation": [("nmae", "name"), ("policy:", "ignore: [name]\npolicy:"), ("texts: {name: {max_length: 64}}\n", "")],
    "transformer_encoder_heads_do_not_divide": [("num_heads: 4", "num_heads: 3")],
    "transformer_settings_wrong": [("n_layers: 2", "n_layer: 2"), ("n_embd: 32, hidden_size: 32", "n_embd: 36"), ("sillu", "silu"), (" vocab_size: 4,", ""), ("gpt3", "gpt2")],
    "two_ways": [("  _target_: torch.nn.Linear\n", "")],
    "vgg_conv_dense_image_too_small": [("[8, 8, 8, 8]", "[8, 8]")],
    "vgg_conv_gap_too_small": [("[8, 8, 8, 8]", "[8, 8]")],
    "vgg_conv_image_too_small": [("[8, 8, 8, 8]", "[8, 8]")],
    "wrap_does_not_fit": [("argmax_sample", "deterministic_sample"), ("{thta: 1.0}", "{sigma: 1.0}")],
}  # fmt: skip
# What no change of the spec does.
NOT_IN_A_SPEC = {
    "functional_other_shapes": "says what it needs",
    "space_keys_collide": "the space is the environment's",
}


def advised(message):
    """The lines of a message that have a way out."""
    return [line for line in message.splitlines() if ADVICE.search(line)]


def message(line):
    """One line of an answer without its place."""
    return re.sub(r"^[^ :]+:\d+:\d+: ", "", line)


def place(line):
    """Line and column, counted from 0, of one line of a message."""
    found = re.match(r"[^:]*:(\d+):(\d+): ", line)
    assert found, f"no place: {line}"
    return int(found[1]) - 1, int(found[2]) - 1


def corrected(text, line):
    """``text`` with what is misspelt at the place of ``line`` written as is meant."""
    row, column = place(line)
    meant = MEANT.search(line)
    lines = text.split("\n")
    words = re.findall(r"'([^']+)'", line[: meant.start()])
    there = [word for word in words if word != meant[1] and word in lines[row][column:]]
    assert there, f"what is misspelt is not there: {line}"
    word = max(there, key=lambda each: difflib.SequenceMatcher(None, each, meant[1]).ratio())
    start = lines[row].index(word, column)
    lines[row] = lines[row][:start] + meant[1] + lines[row][start + len(word) :]
    return "\n".join(lines)


def rewritten(text, line):
    """``text`` with the value that ``line`` tells to write or to use."""
    row, column = place(line)
    found = WRITTEN.search(line)
    lines = text.split("\n")
    old = re.match(r"'[^']*'|\([^)]*\)|\"[^\"]*\"|[^,}\]\s]+", lines[row][column:])[0]
    lines[row] = lines[row][:column] + (found[1] or found[2]) + lines[row][column + len(old) :]
    return "\n".join(lines)


def preceded(text, line):
    """``text`` with the block before its reader that ``line`` asks for."""
    row, column = place(line)
    kind = BEFORE.search(line)[1]
    lines = text.split("\n")
    reads = re.match(r"\[[^]]*\]|[^,}]+", lines[row][column:])[0]
    names = re.findall(r"[\w/]+", reads)
    each = re.search(r"each: (\d)", line)
    more = f", each: {each[1]}" if each else ""
    groups = [names] if kind == "concat" else [[name] for name in names]
    new = [
        f"    before_{row}_{i}: {{block: {kind}, in: [{', '.join(g)}]{more}}}"
        for i, g in enumerate(groups)
    ]
    made = ", ".join(f"before_{row}_{i}" for i in range(len(groups)))
    lines[row] = (
        lines[row][:column]
        + (f"[{made}]" if len(groups) > 1 else made)
        + lines[row][column + len(reads) :]
    )
    above = next(i for i in range(row, -1, -1) if lines[i] == "  graph:") + 1
    return "\n".join([*lines[:above], *new, *lines[above:]])


def followed(name, text, lines):
    """``text`` after all that ``lines`` advise was done."""
    if name in FOLLOWED:
        for old, new in FOLLOWED[name]:
            assert old in text, old
            text = text.replace(old, new, 1)
        return text
    for line in reversed(lines):  # from below, so that places above stay what they are
        if MEANT.search(line):
            text = corrected(text, line)
        elif WRITTEN.search(line):
            text = rewritten(text, line)
        elif BEFORE.search(line):
            text = preceded(text, line)
        else:
            raise AssertionError(f"no entry in FOLLOWED for: {line}")
    return text


ADVISING = [
    name for name in SPECS
    if name not in NOT_IN_A_SPEC and advised(SPECS[name].with_suffix(".txt").read_text())
]  # fmt: skip


@pytest.mark.parametrize("name", ADVISING)
def test_what_is_advised_can_be_done(name, tmp_path, monkeypatch):
    folder = SPECS[name].parent
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(FOLDER)
    lines = advised(Path(f"{name}.txt").read_text())
    spec = folder / f"_followed_{name}.yaml"
    spec.write_text(followed(name, Path(f"{name}.yaml").read_text(), lines))
    try:
        left = str(outcome(Path(spec.name)) or "")
    finally:
        spec.unlink()
    others = {message(line) for line in Path(f"{name}.txt").read_text().splitlines()} - {
        *map(message, lines)
    }
    assert {message(line) for line in left.splitlines()} <= others, left
