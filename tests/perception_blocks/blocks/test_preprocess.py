"""Images prepared inside the model: the same numbers as the library's image processors, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from gymnasium.spaces import Box, Discrete

import composer
from perception_blocks import PreprocessImageBlock

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
PROCESSORS = {
    "square": ("ViTImageProcessorPil", {"size": {"height": 24, "width": 20}}),
    "larger": ("ViTImageProcessorPil", {"size": {"height": 90, "width": 70}}),
    "nearest": ("ViTImageProcessorPil", {"size": {"height": 24, "width": 32}, "resample": 0}),
    "bicubic and crop": (
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 31}},
    ),
    "share": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}),
    "plain": ("ViTImageProcessorPil", {"do_resize": False, "do_normalize": False}),
    "other factor": ("ViTImageProcessorPil", {"do_resize": False, "rescale_factor": 1 / 127.5}),
    "no factor": ("ViTImageProcessorPil", {"do_resize": False, "do_rescale": False}),
}


def noise(*shape):
    """A smooth image with noise, whose numbers reach both ends."""
    generator = np.random.default_rng(0)
    slope = np.linspace(0, 200, shape[1])[:, None] + np.zeros(shape)
    return np.clip(slope + generator.normal(0, 40, shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(60, 45, 3), (41, 64, 3)])
def test_a_folder_prepares_as_the_library_does_but_for_pillows_rounding(name, shape, tmp_path):
    cls, settings = PROCESSORS[name]
    processor = getattr(transformers, cls)(image_mean=MEAN, image_std=STD, **settings)
    processor.save_pretrained(tmp_path)
    image = noise(*shape)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    block = PreprocessImageBlock([shape], low=0, high=255, checkpoint=str(tmp_path))
    got = block(torch.from_numpy(image).float())
    assert got.shape == block.out_shapes[0] == expected.shape
    # Pillow rounds to whole numbers after each axis: one of 256 levels, as the standard deviation stretches it.
    level = (
        1 / 255 / min(STD) if name in ("square", "larger", "bicubic and crop", "share") else 1e-5
    )
    scale = max(float(expected.abs().max()), 1.0) if "factor" in name else 1.0
    assert (got - expected).abs().max() < 1.01 * level * scale
    assert (got - expected).abs().mean() < 0.4 * level * scale


def test_each_image_of_a_batch_is_prepared_by_itself():
    block = PreprocessImageBlock(
        [(30, 40, 3)], low=0, high=255, shortest_edge=16, crop=12, mean=0.5, std=[1, 2, 4]
    )
    images = torch.randint(0, 256, (2, 5, 30, 40, 3)).float()
    assert block.out_shapes == [(3, 12, 12)]
    together = block(images)
    assert together.shape == (2, 5, 3, 12, 12)
    torch.testing.assert_close(together[1, 3], block(images[1, 3]))
    resized = PreprocessImageBlock([(30, 40, 3)], low=0, high=255, size=(16, 21))(images)
    expected = (resized[..., 2:14, 4:16] - 0.5) / torch.tensor([1.0, 2, 4])[:, None, None]
    torch.testing.assert_close(together, expected)


def test_grey_images_get_three_channels():
    block = PreprocessImageBlock([(8, 8)], low=0, high=255, rgb=True, mean=[0, 0.5, 1])
    image = torch.full((2, 8, 8), 255.0)
    assert block(image)[:, :, 0, 0].tolist() == [[1.0, 0.5, 0.0]] * 2


def test_bicubic_stays_within_the_bounds():
    image = torch.zeros(1, 9, 9)
    image[:, 4:] = 1.0
    block = PreprocessImageBlock([(1, 9, 9)], low=0, high=1, size=36, interpolation="bicubic")
    assert block(image).min() == 0.0
    assert block(image).max() == 1.0


def test_half_precision_is_close():
    block = PreprocessImageBlock([(3, 20, 20)], low=0, high=255, size=7, std=0.5).bfloat16()
    image = torch.randint(0, 256, (3, 20, 20)).bfloat16()
    exact = PreprocessImageBlock([(3, 20, 20)], low=0, high=255, size=7, std=0.5)(image.float())
    torch.testing.assert_close(block(image).float(), exact, atol=0.03, rtol=0.02)


def test_a_saved_model_needs_the_folder_no_more(tmp_path):
    folder = tmp_path / "encoder"
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=18).save_pretrained(
        folder
    )
    spec = f"""
        version: 1
        policy:
          graph:
            image: {{block: preprocess_image, in: observation, checkpoint: {folder}}}
            latent: {{block: flatten_dense, in: image, hidden_units: 4}}
          heads: {{in: latent}}"""
    spaces = {"observation_space": Box(0, 255, (30, 40, 3), np.uint8), "action_space": Discrete(3)}
    model = composer.compose(spec, **spaces, allow=[f"{folder}/"], seed=0)
    shutil.rmtree(folder)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    image = spaces["observation_space"].sample()
    assert torch.equal(loaded.policy(image)["action"], model.policy(image)["action"])


def refused(message, shape=(3, 20, 20), **settings):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PreprocessImageBlock([shape], low=0, high=255, **settings)


def test_settings_that_do_not_fit_are_refused():
    refused("give one of 'size' and 'shortest_edge'", size=3, shortest_edge=3)
    refused("'crop' is 30 x 30, the image is 20 x 20; set 'size' or 'shortest_edge'", crop=30)
    refused("'mean' must be one number or 3, one for each channel, got 2", mean=[0.5, 0.5])
    refused("'std' must be positive, got 0.0", std=0.0)
    refused("preprocess_image with rgb takes a grey image, got (3, 20, 20)", rgb=True)
    refused("preprocess_image takes an image, got (3,)", (3,))
    rule = "preprocess_image needs to know how large an image is to crop it or to keep its ratio"
    refused(f"{rule}, got (3, ?, 20); give it a size", (3, None, 20), shortest_edge=8)
    refused(
        "preprocess_image takes one image at a time, got (2, 3, 20, 20); apply it to each image (each: 1)",
        (2, 3, 20, 20),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"auto_map": {"AutoImageProcessor": "a.B"}},
            " has 'auto_map', which names code of its own; remove it",
        ),
        ({"do_pad": True}, " has 'do_pad', which preprocess_image does not do"),
        (
            {"size": {"longest_edge": 9}},
            " has 'size': {'longest_edge': 9}; preprocess_image has no such size",
        ),
        (
            {"size": {"shortest_edge": "a"}},
            " has 'size': {'shortest_edge': 'a'}; preprocess_image has no such size",
        ),
        (
            {"size": 9, "resample": 1},
            " has 'resample': 1; it must be 0 (nearest), 2 (bilinear) or 3 (bicubic)",
        ),
        (
            {"image_mean": ["a"], "image_std": 1},
            " must give numbers as rescale_factor, image_mean and image_std",
        ),
        ([], " must hold a mapping"),
    ],
)
def test_files_that_say_something_else_are_refused(values, message, tmp_path):
    folder = str(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    refused(f"'checkpoint': preprocessor_config.json in {folder!r}{message}", checkpoint=folder)


def test_folders_without_the_file_and_settings_beside_it_are_refused(tmp_path):
    folder = str(tmp_path)
    refused(
        f"'checkpoint': there is no preprocessor_config.json in {folder!r}; nothing is downloaded",
        checkpoint=folder,
    )
    refused(
        "a checkpoint brings its own preprocessing; leave out 'size'", checkpoint=folder, size=3
    )
