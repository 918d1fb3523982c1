"""A language model of 70 billion parameters as a spec, and what it must count to: by hand, in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

__all__ = ["LENGTH", "WORDS", "flops", "parameters", "spec"]

LAYERS, WIDTH, HEADS, UNITS = 80, 8192, 64, 36864
WORDS, LENGTH = 32000, 2048

START = """version: 1
policy:
  graph:
    words: {block: embedding, in: observation, num_embeddings: WORDS, embedding_dim: WIDTH}
"""
LAYER = """    NAME:
      block: graph
      in: {x: BEFORE}
      graph:
        attention_norm: {block: torch.nn.LayerNorm, in: x, normalized_shape: WIDTH}
        attention: {block: self_attention_seq, in: attention_norm, num_heads: HEADS, causal: true, bias: false}
        attended: {block: add, in: [x, attention]}
        norm: {block: torch.nn.LayerNorm, in: attended, normalized_shape: WIDTH}
        units:
          block: dense
          in: norm
          each: 1
          hidden_units: [UNITS, WIDTH]
          activation: silu
          last_activation: identity
          bias: false
        y: {block: add, in: [attended, units]}
      out: {NAME: y}
"""
END = """    last: {block: slice, in: BEFORE, dim: 0, index: -1}
  heads: {in: last}
"""


def spec() -> str:
    """YAML: each layer a graph of its own, from the numbers of words to the logits of the next one."""
    sizes = {"WIDTH": WIDTH, "HEADS": HEADS, "UNITS": UNITS, "WORDS": WORDS}
    names = ["words", *(f"layer_{index}" for index in range(LAYERS))]
    parts = [filled(START, sizes)]
    for before, name in itertools.pairwise(names):
        parts.append(filled(LAYER, {**sizes, "BEFORE": before, "NAME": name}))
    return "".join([*parts, filled(END, {"BEFORE": names[-1]})])


def filled(text: str, values: Mapping[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def parameters() -> int:
    norms = 2 * (WIDTH + WIDTH)
    attention = 4 * WIDTH * WIDTH
    units = WIDTH * UNITS + UNITS * WIDTH
    head = WIDTH * WORDS + WORDS
    return WORDS * WIDTH + LAYERS * (norms + attention + units) + head


def flops() -> int:
    """Of one sequence: two for each multiply-add of the matrix products, those between positions included."""
    attention = LENGTH * 4 * WIDTH * WIDTH + 2 * LENGTH * LENGTH * WIDTH
    units = LENGTH * 2 * WIDTH * UNITS
    return 2 * (LAYERS * (attention + units) + WIDTH * WORDS)
