"""A sequence classifier of Hugging Face, in a local folder, as a reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from composer.dataflow.algorithms.interfaces import Interface
from composer.dataflow.algorithms.rewards import RewardError, rewards_from, texts_of
from composer.dataflow.algorithms.timeouts import in_words
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample
from composer.dataflow.data.tokenizers import tokenizer_from
from composer.language.hf import HfFolder, quiet
from composer.language.processors import offline
from perception_blocks.random_states import random_states_kept
from perception_blocks.settings import PositiveInt, SettingProblem, SettingsError
from perception_blocks.words import hint

__all__ = ["Classifier"]


class Classifier(Interface):
    """``classifier``: the logit of a label that a local sequence classifier gives to the texts, prompts included.

    ``path`` is a folder as transformers' ``save_pretrained`` writes it, with safetensors and a tokenizer; nothing is
    downloaded, and no code of it runs. ``label`` is a name or number of its ``id2label``, by default the last. Texts
    are cut where they have more tokens than the classifier takes, and read ``batch_size`` at a time.

    Raises SettingsError for a folder that is no classifier and for an unknown label, MissingExtraError without the
    extra 'llm'.
    """

    needs_model = False
    reads = {"inference": ("ids",)}
    optional = {"inference": ("prompt_mask",)}
    writes = {"inference": ("rewards",)}

    def __init__(
        self,
        path: str,
        label: str | int | None = None,
        batch_size: PositiveInt = 32,
        device: str = "cpu",
    ) -> None:
        self.path = path
        self.batch_size = batch_size
        self.model = _classifier(path).to(device)
        self.label = _label(self.model.config.id2label, label)
        self.tokenizer = tokenizer_from(path)
        self.max_length = _most_tokens(self.tokenizer, self.model.config)

    @torch.no_grad()
    def inference(self, model: object, sample: Sample, context: Context) -> Mapping[str, Tensor]:
        """``rewards`` (S,), a number for each sequence. Raises RewardError."""
        what = f"{context.where()}: the classifier {self.path!r}"
        texts = texts_of(sample, context.tokenizer, what)
        whole = [text.whole for text in texts]
        try:
            numbers = [number for part in self._parts(whole) for number in self._scores(part)]
        except (ValueError, RuntimeError, IndexError) as error:
            first = f", for {len(texts)} texts, the first of which is {texts[0]}"
            raise RewardError(f"{what} raises {in_words(error)}{first}") from error
        return {"rewards": rewards_from(numbers, texts, what)}

    def _parts(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        size = self.batch_size if self.tokenizer.pad_token_id is not None else 1
        return (texts[start : start + size] for start in range(0, len(texts), size))

    def _scores(self, texts: Sequence[str]) -> list[float]:
        inputs = self.tokenizer(
            list(texts),
            padding=self.tokenizer.pad_token_id is not None,
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.model.device)
        logits = self.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return logits[:, self.label].float().tolist()


def _classifier(path: str) -> Any:
    """The model in a folder, on the CPU. Raises SettingsError where it is no whole sequence classifier."""
    folder = HfFolder(path, "path")
    try:
        with offline(), quiet(), random_states_kept(0):
            config = AutoConfig.from_pretrained(
                str(folder.place), local_files_only=True, trust_remote_code=False
            )
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        message = f"'path': {path!r} is no sequence classifier: {reason}"
        raise SettingsError([SettingProblem("path", message)]) from error
    folder.check_whole(model)
    folder.load_into(model)
    return model.eval().requires_grad_(False)


def _label(names: Mapping[int, str], label: str | int | None) -> int:
    """The number of a label. Raises SettingsError for one that the classifier lacks."""
    if label is None:
        return max(names)
    for number, name in names.items():
        if label in (number, name):
            return number
    message = f"'label': the classifier has no {label!r}{hint(label, names.values(), 'it has')}"
    raise SettingsError([SettingProblem("label", message)])


def _most_tokens(tokenizer: Any, config: Any) -> int | None:
    """How many tokens a text may have; None where nothing says so."""
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return min((limit for limit in limits if limit and limit < 10**9), default=None)
