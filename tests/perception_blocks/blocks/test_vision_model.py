"""Vision models of transformers as a block: what they return, where their weights come from, what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gymnasium.spaces import Box, Discrete

import composer
from perception_blocks import VisionModelBlock
from perception_blocks.blocks.vision_config import FAMILIES as KINDS
from perception_blocks.port import Port

TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
LAYERS = {**TOKENS, "intermediate_size": 12}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
FAMILIES = {
    "resnet": {"embedding_size": 8, "layer_type": "basic", **STAGES},
    "regnet": {"embedding_size": 8, "groups_width": 4, **STAGES},
    "convnext": {"num_stages": 2, **STAGES},
    "convnextv2": {"num_stages": 2, **STAGES},
    "vit": LAYERS,
    "deit": LAYERS,
    "dinov2": TOKENS,
    "dinov2_with_registers": TOKENS,
    "clip_vision_model": LAYERS,
    "siglip_vision_model": LAYERS,
}
IMAGE = (3, 32, 32)
every_family = pytest.mark.parametrize("family", FAMILIES)


def block_of(family, shape=IMAGE, **settings):
    block = VisionModelBlock([shape], family=family, **{**FAMILIES[family], **settings}).eval()
    block.reset_parameters(torch.Generator().manual_seed(0))
    return block


def from_folder(path, shape=IMAGE, **settings):
    return VisionModelBlock([shape], checkpoint=str(path), **settings).eval()


def library_model(family, head="Model", **settings):
    """A model of the library with weights that no initialisation draws."""
    kind = KINDS[family].classes
    config = getattr(transformers, f"{kind}Config")(image_size=32, **FAMILIES[family], **settings)
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 0.3, generator=generator)
    return model


def test_every_family_is_tested():
    assert FAMILIES.keys() == KINDS.keys()


@every_family
def test_a_folder_computes_what_the_library_computes(family, tmp_path):
    model = library_model(family)
    model.save_pretrained(tmp_path)
    image = torch.rand(5, *IMAGE)
    with torch.no_grad():
        result = model(image)
        pooled, tokens, grid = (from_folder(tmp_path, read=r) for r in ("pooled", "tokens", "map"))
        if family in ("vit", "deit"):  # whose pooler is no part of the body
            torch.testing.assert_close(pooled(image), result.last_hidden_state[:, 0])
        else:
            torch.testing.assert_close(pooled(image), result.pooler_output.flatten(1))
        last = result.last_hidden_state
        if KINDS[family].prefix is None:
            torch.testing.assert_close(grid(image), last)
            torch.testing.assert_close(tokens(image)[:, 1], last[..., 0, 1])
        else:
            torch.testing.assert_close(tokens(image), last[:, -16:])
            torch.testing.assert_close(grid(image)[..., 1, 2], last[:, -16 + 6])


@pytest.mark.parametrize("family", ["resnet", "vit", "dinov2"])
def test_a_checkpoint_with_a_head_gives_its_body(family, tmp_path):
    model = library_model(family, head="ForImageClassification")
    model.save_pretrained(tmp_path)
    image = torch.rand(2, *IMAGE)
    with torch.no_grad():
        got = from_folder(tmp_path, read="map")(image)
        expected = getattr(model, model.base_model_prefix)(image).last_hidden_state
    if family != "resnet":
        expected = expected[:, 1:].transpose(1, 2).unflatten(-1, (4, 4))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_a_model_of_images_and_texts_gives_its_vision_model(name, tmp_path):
    text = {**LAYERS, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    del text["patch_size"]
    parts = {"text_config": text, "vision_config": {**LAYERS, "image_size": 32}}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**parts))
    model.eval().save_pretrained(tmp_path)
    image = torch.rand(2, *IMAGE)
    with torch.no_grad():
        expected = model.vision_model(image).pooler_output
        torch.testing.assert_close(from_folder(tmp_path)(image), expected)


@every_family
def test_weights_depend_on_the_seed_and_the_name_alone(family):
    first, second = block_of(family), block_of(family)
    deeper = {"depths": [1, 2]} if KINDS[family].prefix is None else {"num_hidden_layers": 3}
    more = block_of(family, **deeper).state_dict()
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
        if family != "clip_vision_model":  # which scales weights by the number of layers
            assert torch.equal(weight, more[name]), name


def test_batch_norm_learns_in_training_alone():
    block = block_of("resnet")
    image = torch.rand(4, *IMAGE)
    means = {n: b.clone() for n, b in block.named_buffers() if n.endswith("running_mean")}
    assert means
    block(image)
    block.train()(image[:0])  # no image, nothing to learn
    assert all(torch.equal(block.get_buffer(name), mean) for name, mean in means.items())
    block(image)
    assert not any(torch.equal(block.get_buffer(name), mean) for name, mean in means.items())
    block.reset_parameters()
    assert all(torch.equal(block.get_buffer(name), mean) for name, mean in means.items())


@pytest.mark.parametrize("family", ["vit", "clip_vision_model", "siglip_vision_model", "dinov2"])
def test_images_of_another_size_need_interpolated_positions(family, tmp_path):
    library_model(family).save_pretrained(tmp_path)
    message = (
        "this vision_model is for images of 32 x 32, got (3, 48, 32); put a preprocess_image block with "
        "size: [32, 32] before it, or set interpolate_pos_encoding: true"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_folder(tmp_path, (3, 48, 32))
    block = from_folder(tmp_path, (3, 48, 32), read="map", interpolate_pos_encoding=True)
    assert block(torch.rand(2, 3, 48, 32)).shape == (2, 16, 6, 4)


def test_constants_survive_a_move_and_weights_do_too():
    block = block_of("clip_vision_model")
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    block.double().float()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert block.body.embeddings.position_ids.tolist() == [[*range(17)]]


def test_lora_and_freeze_work_in_its_body():
    lora = {"rank": 2, "targets": ["q_proj"]}
    block = block_of("vit", lora=lora)
    trained = {name for name, p in block.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all("lora" in name for name in trained)
    frozen = block_of("resnet", freeze=["embedder"])
    assert not any(p.requires_grad for p in frozen.body.embedder.parameters())
    assert all(p.requires_grad for p in frozen.body.encoder.parameters())


SPEC = """
version: 1
policy:
  graph:
    image: {block: preprocess_image, in: observation, size: 32}
    latent: {block: vision_model, in: image, checkpoint: FOLDER}
  heads: {in: latent}
"""
CAMERA = {"observation_space": Box(0, 255, (40, 36, 3), np.uint8), "action_space": Discrete(3)}


def test_a_saved_model_needs_the_folder_no_more(tmp_path):
    folder = tmp_path / "encoder"
    library_model("dinov2", num_channels=3).save_pretrained(folder)
    spec = SPEC.replace("FOLDER", str(folder))
    model = composer.compose(spec, **CAMERA, allow=[f"{folder}/"], seed=0).eval()
    shutil.rmtree(folder)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors").eval()
    images = torch.randint(0, 256, (2, 40, 36, 3), dtype=torch.uint8)
    assert torch.equal(loaded.policy(images)["action"], model.policy(images)["action"])
    assert loaded.load_report.skipped == []


@pytest.mark.full
@pytest.mark.parametrize("family", ["resnet", "convnext", "vit", "dinov2", "siglip_vision_model"])
def test_it_is_lowered_compiled_and_exported(family, tmp_path):
    library_model(family).save_pretrained(tmp_path / "encoder")
    spec = SPEC.replace("FOLDER", str(tmp_path / "encoder"))
    model = composer.compose(spec, **CAMERA, allow=[f"{tmp_path}/"], seed=0).eval()
    images = torch.randint(0, 256, (4, 40, 36, 3), dtype=torch.uint8)
    expected = model.policy(images)
    torch.testing.assert_close(model.policy.lower()(images), expected)
    compiled = torch.compile(model.policy, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), expected)
    for kind in ("onnx", "pt2"):
        assert model.export(tmp_path / f"policy.{kind}").difference < 1e-4


@pytest.mark.parametrize("family", ["resnet", "vit", "dinov2", "siglip_vision_model"])
def test_weights_of_the_librarys_file_are_mapped_by_their_names(family, tmp_path):
    head = "Model" if family == "siglip_vision_model" else "ForImageClassification"
    library_model(family, head=head).save_pretrained(tmp_path / "encoder")  # names of all versions
    settings = ", ".join(f"{key}: {value}" for key, value in FAMILIES[family].items())
    node = f"{{block: vision_model, in: image, family: {family}, {settings}}}"
    spec = SPEC.replace("{block: vision_model, in: image, checkpoint: FOLDER}", node)
    spec += f"weights: {{policy/latent: {tmp_path}/encoder/model.safetensors}}"
    model = composer.compose(spec, **CAMERA, allow=[f"{tmp_path}/"], seed=0)
    assert model.first_weights[0].by == "name"
    expected = from_folder(tmp_path / "encoder").state_dict()
    block = model.policy.get_submodule("latent")
    assert block.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in block.state_dict().items())


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(message, shape=IMAGE, **settings):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VisionModelBlock([shape], **settings)


def test_settings_that_no_body_can_have_are_refused():
    names = ", ".join(map(repr, KINDS))
    refused(f"block 'vision_model' needs 'family' (one of {names}) or 'checkpoint'")
    refused("'num_channels' cannot be set: it follows from the input", family="vit", num_channels=3)
    message = "'hiden_sizes' is not a setting of block 'vision_model' of the family 'resnet'; did you mean 'hidden_sizes'?"
    refused(message, family="resnet", hiden_sizes=[8])
    refused(
        "'image_size' cannot be set: it does not change the result", family="convnext", image_size=9
    )
    with pytest.raises(ValueError, match="family 'resnet' cannot be built with layer_type='wide'"):
        VisionModelBlock([IMAGE], family="resnet", layer_type="wide")


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([10**9], "'depths' must be a list of integers between 1 and 1000, got [1000000000]"),
        ([-1], "'depths' must be a list of integers between 1 and 1000, got [-1]"),
        ([600, 600], "'depths' must be at most 1,000 layers in all, got 1,200"),
    ],
)
def test_layers_beyond_all_measure_are_refused_before_the_library_counts_them(
    depths, message, tmp_path
):
    settings = {"hidden_sizes": [8] * len(depths), "num_stages": len(depths), "depths": depths}
    refused(message, family="convnext", **settings)
    library_model("convnext").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    what = message.removeprefix("'depths' ")
    refused(
        f"'checkpoint': '{tmp_path}/config.json' has 'depths', which {what}",
        checkpoint=str(tmp_path),
    )


def test_images_that_no_body_reads_are_refused():
    vit = {"family": "vit", **LAYERS}
    refused(
        "vision_model takes (channels, height, width), got (9,); a vector goes into a dense block",
        (9,),
        **vit,
    )
    advice = "put a preprocess_image block with a size before it"
    refused(
        f"vision_model needs to know how large an image is, got (3, ?, 32); {advice}",
        (3, None, 32),
        **vit,
    )
    message = (
        "vision_model of the family 'vit' needs images of one patch, 8 x 8, or more, got (3, 6, 32)"
    )
    refused(f"{message}; {advice}, or lower patch_size", (3, 6, 32), **vit)
    message = "vision_model of the family 'dinov2' takes square images, got (3, 24, 32)"
    refused(
        f"{message}; {advice}, or give image_size and interpolate_pos_encoding: true",
        (3, 24, 32),
        family="dinov2",
        **TOKENS,
    )
    message = "'image_size' must be one number where positions are interpolated, got (24, 32)"
    refused(message, image_size=[24, 32], interpolate_pos_encoding=True, **vit)
    message = f"vision_model of the family 'convnext' cannot read an image this small, got (3, 4, 4); {advice}"
    block = VisionModelBlock([(3, 4, 4)], family="convnext", **FAMILIES["convnext"])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        block.out_shapes  # noqa: B018


def test_channels_in_another_place_or_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match=re.escape("put a preprocess_image block before it")):
        VisionModelBlock.check_ports([Port((32, 32, 3), channels="last")])
    library_model("resnet").save_pretrained(tmp_path)
    message = "the checkpoint of this vision_model reads 3 channels, got (1, 32, 32); put a preprocess_image block with rgb: true before it"
    refused(message, (1, 32, 32), checkpoint=str(tmp_path))
    message = "the checkpoint of this vision_model reads 3 channels, got (4, 32, 32)"
    refused(message, (4, 32, 32), checkpoint=str(tmp_path))


def test_folders_that_hold_code_or_no_body_are_refused(tmp_path):
    folder = str(tmp_path)
    refused(
        "'checkpoint': there is no folder 'facebook/dinov2'; nothing is downloaded",
        checkpoint="facebook/dinov2",
    )
    library_model("resnet").save_pretrained(folder)
    config = Path(folder, "config.json")
    values = json.loads(config.read_text())
    refused(
        "a checkpoint brings its own configuration; leave out 'depths'",
        checkpoint=folder,
        depths=[1],
    )
    refused(
        f"'checkpoint': {folder!r} is of the family 'resnet', not 'vit'",
        checkpoint=folder,
        family="vit",
    )
    config.write_text(json.dumps({**values, "model_type": ["resnet"]}))
    names = ", ".join(map(repr, KINDS))
    refused(
        f"'checkpoint': {folder!r} is of the family ['resnet']; there is {names}", checkpoint=folder
    )
    config.write_text(json.dumps({**values, "auto_map": {"AutoModel": "modeling.Net"}}))
    advice = "which names code of its own; register the classes in a module that you allow, and remove it"
    refused(f"'checkpoint': '{folder}/config.json' has 'auto_map', {advice}", checkpoint=folder)
    config.write_text(json.dumps({**values, "depths": [1, 2]}))
    with pytest.raises(
        ValueError, match=r"does not hold its body: encoder\.stages\.1\.layers\.1\..+ is missing"
    ):
        VisionModelBlock([IMAGE], checkpoint=folder)
    config.write_text(json.dumps(values))
    Path(folder, "model.safetensors").rename(Path(folder, "pytorch_model.bin"))
    message = (
        f"'checkpoint': the folder {folder!r} has no *.safetensors file; other formats can run code"
    )
    refused(message, checkpoint=folder)


def test_a_folder_must_be_allowed(tmp_path):
    library_model("resnet").save_pretrained(tmp_path)
    with pytest.raises(composer.SpecError, match="allow"):
        composer.compose(SPEC.replace("FOLDER", str(tmp_path)), **CAMERA)


def test_nodes_that_read_one_folder_are_saved_each_with_its_own_settings(tmp_path):
    folder = tmp_path / "encoder"
    library_model("vit").save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5, 0.5]}
    processor |= {"image_std": [0.5, 0.5, 0.5], "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    seen = {"block": "vision_model", "in": "prepared", "checkpoint": str(folder)}
    lora = {"rank": 2, "targets": ["q_proj"]}
    graph = {
        "prepared": {"block": "preprocess_image", "in": "observation", "checkpoint": str(folder)},
        "adapted": {**seen, "lora": lora, "block": "perception_blocks.VisionModelBlock"},
        "plain": seen,
        "latent": {"block": "concat", "in": ["adapted", "plain"]},
    }
    spec = {"version": 1, "policy": {"graph": graph, "heads": {"in": "latent"}}}
    spaces = {"observation_space": Box(0, 255, (40, 40, 3), np.uint8), "action_space": Discrete(2)}
    allow = [f"{tmp_path}/", "perception_blocks"]
    model = composer.compose(spec, **spaces, allow=allow, seed=0).eval()
    file = tmp_path / "model.safetensors"
    model.save(file)
    shutil.rmtree(folder)
    again = composer.load(file, allow=["perception_blocks"]).eval()
    nodes = again.source.data["policy"]["graph"]
    assert not any("checkpoint" in node for node in nodes.values())
    assert nodes["adapted"]["lora"] == lora
    assert "lora" not in nodes["plain"]
    picture = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8)
    actions = torch.tensor([0, 1])
    expected, got = (each.policy.distribution(picture).log_prob(actions) for each in (model, again))
    assert torch.equal(expected, got)
