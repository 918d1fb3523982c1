"""Action models for tests: the tiny one of configs/, and others that count places in ways that have gone wrong.

Importing it needs the folder of the configs on the path, as `networks.tiny_vla` lies there.
"""

import torch
from networks.tiny_vla import (  # pyright: ignore[reportMissingImports]  (of configs/)
    WORDS,
    TinyProcessor,
    TinyVla,
    TinyVlaConfig,
)
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.feature_extraction_utils import BatchFeature

from composer.language import register_hf

STATISTICS = {
    "bridge": {"q01": [-1.0, -2.0, 0.0], "q99": [1.0, 2.0, 1.0], "mask": [True, True, False]}
}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG = {"vocab_size": 40, "n_action_bins": 8, "norm_stats": STATISTICS, **SIZES}
MODEL = {"model_type": "tiny_vla", "config": CONFIG, "value_head": {"hidden_units": [16]}}
PROMPTS = ["pick up the red cup", "put down", "point at the blue square now please", "pick"]


def spec(**changes):
    """The spec of a tiny model; of a key that is None nothing is said."""
    model = {key: value for key, value in {**MODEL, **changes}.items() if value is not None}
    return {"version": 1, "model": model}


def observations(count=4):
    images = torch.randint(0, 256, (count, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    return {"main_images": images.numpy().astype("uint8"), "task_descriptions": PROMPTS[:count]}


class MiddleConfig(LlamaConfig):
    model_type = "middle_vla"
    n_action_bins: int = 8
    norm_stats: dict | None = None


class MiddleVla(LlamaForCausalLM):
    """The image is in front of the padding, and no places are passed on: padding in the middle counts as places."""

    config_class = MiddleConfig

    def __init__(self, config):
        super().__init__(config)
        self.projector = nn.Linear(3 * 16, config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, **more):
        if pixel_values is not None:
            embedded = self.get_input_embeddings()(input_ids)
            cut = pixel_values.unfold(2, 4, 4).unfold(3, 4, 4)
            patches = self.projector(cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
            more["inputs_embeds"] = torch.cat([patches, embedded[:, 4:]], 1)
            input_ids = None
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)


class MiddleProcessor(TinyProcessor):
    def __call__(self, images=None, text=None, **settings):
        tokens = self.tokenizer(text, **settings)
        rows = len(text)
        front = torch.ones(rows, 4, dtype=torch.long)
        return BatchFeature(
            {
                "input_ids": torch.cat([front, tokens["input_ids"]], 1),
                "attention_mask": torch.cat([front, tokens["attention_mask"]], 1),
                **self.image_processor(images),
            }
        )


class LearnedConfig(GPT2Config):
    model_type = "learned_vla"
    n_action_bins: int = 8
    norm_stats: dict | None = None


class LearnedVla(GPT2LMHeadModel):
    """It sees no image, and its places are learned: shifted ones give other features."""

    config_class = LearnedConfig


class TextProcessor(TinyProcessor):
    def __call__(self, text=None, **settings):
        return self.tokenizer(text, **settings)


class ForgetfulConfig(TinyVlaConfig):
    model_type = "forgetful_vla"


class ForgetfulVla(TinyVla):
    """It looks at the image only where there is a cache."""

    config_class = ForgetfulConfig

    def forward(self, input_ids=None, pixel_values=None, use_cache=None, **more):
        if pixel_values is not None and not use_cache:
            pixel_values = pixel_values * 0
        return super().forward(input_ids, pixel_values=pixel_values, use_cache=use_cache, **more)


class PackedConfig(TinyVlaConfig):
    model_type = "packed_vla"


class PackedVla(TinyVla):
    """The planes of all images lie in one axis."""

    config_class = PackedConfig

    def forward(self, input_ids=None, pixel_values=None, **more):
        if pixel_values is not None:
            pixel_values = pixel_values.unflatten(0, (-1, 3))
        return super().forward(input_ids, pixel_values=pixel_values, **more)


class PackedProcessor(TinyProcessor):
    def __call__(self, images=None, text=None, **settings):
        features = super().__call__(images, text, **settings)
        features["pixel_values"] = features["pixel_values"].flatten(0, 1)
        return features


assert len(WORDS) < 32
for config, model, processor in (
    (MiddleConfig, MiddleVla, MiddleProcessor),
    (LearnedConfig, LearnedVla, TextProcessor),
    (ForgetfulConfig, ForgetfulVla, TinyProcessor),
    (PackedConfig, PackedVla, PackedProcessor),
):
    register_hf(config.model_type, config=config, model=model, processor=processor)

KINDS = {
    "tiny_vla": spec(),
    "middle_vla": spec(model_type="middle_vla"),
    "learned_vla": spec(
        model_type="learned_vla",
        config={"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "norm_stats": STATISTICS},
        inputs={"text": "task_descriptions"},
    ),
}  # fmt: skip
