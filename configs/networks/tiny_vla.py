"""A vision-language-action model as small as it can be: Llama, patches of an image as tokens, actions as tokens.

It is written as a user of transformers would write one, and registered as a model type, so a spec can name it under
`model`. It needs the extra [llm].
"""

# pyright: reportIncompatibleMethodOverride=false, reportOptionalIterable=false

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from composer.language import register_hf

PATCH = 4
WORDS = ["<pad>", "<image>", "<unk>", "point", "at", "the", "red", "green", "blue", "square"]
WORDS += ["pick", "up", "put", "down", "cup"]


class TinyVlaConfig(LlamaConfig):
    model_type = "tiny_vla"
    n_action_bins: int = 8
    image_size: int = 8
    norm_stats: dict | None = None


class TinyVla(LlamaForCausalLM):
    config_class = TinyVlaConfig

    def __init__(self, config):
        super().__init__(config)
        self.projector = nn.Linear(3 * PATCH * PATCH, config.hidden_size)
        self.places = nn.Embedding((config.image_size // PATCH) ** 2, config.hidden_size)
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, pixel_values=None, **more
    ):
        """The tokens ``<image>`` of a prompt stand for the patches of its image."""
        if pixel_values is not None:
            embedded = self.get_input_embeddings()(input_ids)
            cut = pixel_values.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
            patches = self.projector(cut.permute(0, 2, 3, 1, 4, 5).flatten(3)).flatten(1, 2)
            patches = patches + self.places.weight
            is_image = (input_ids == WORDS.index("<image>")).unsqueeze(-1)
            more["inputs_embeds"] = embedded.masked_scatter(is_image, patches.to(embedded.dtype))
            input_ids = None
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **more
        )


class TinyImageProcessor(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def preprocess(self, images, **_):
        rows = [torch.as_tensor(np.asarray(image)).permute(2, 0, 1) / 255 for image in images]
        return BatchFeature({"pixel_values": torch.stack(rows).float()})


class TinyProcessor(ProcessorMixin):
    def __init__(self, image_processor=None, tokenizer=None, **more):
        super().__init__(image_processor, tokenizer, **more)

    @classmethod
    def from_config(cls, config):
        """The processor of a model that is not loaded from a folder."""
        words = {word: index for index, word in enumerate(WORDS)}
        splitter = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=splitter, pad_token="<pad>", unk_token="<unk>", padding_side="left"
        )
        return cls(image_processor=TinyImageProcessor(), tokenizer=tokenizer)

    def __call__(self, images=None, text=None, **settings):
        pixels = self.image_processor(images)
        height, width = pixels["pixel_values"].shape[-2:]
        patches = "<image> " * (height // PATCH * (width // PATCH))
        tokens = self.tokenizer([patches + task for task in text], **settings)
        return BatchFeature(
            {name: tokens[name] for name in ("input_ids", "attention_mask")} | dict(pixels)
        )


register_hf(
    "tiny_vla",
    config=TinyVlaConfig,
    model=TinyVla,
    image_processor=TinyImageProcessor,
    processor=TinyProcessor,
)
