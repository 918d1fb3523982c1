"""A reward for texts that sound good: the probability that a local classifier gives to its last label."""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from composer.dataflow import INTERFACES, Interface


@INTERFACES.register("sentiment")
class Sentiment(Interface):
    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def __init__(self, path: str):
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.classifier = AutoModelForSequenceClassification.from_pretrained(
            path, local_files_only=True, use_safetensors=True
        ).eval()

    @torch.no_grad()
    def inference(self, model, sample, context):
        ids = [tokens.tolist() for tokens in sample.sequences("ids")]
        texts = context.tokenizer.batch_decode(ids, skip_special_tokens=True)
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        logits = self.classifier(**tokens, return_dict=True).logits
        return {"rewards": logits.softmax(-1)[:, -1]}
