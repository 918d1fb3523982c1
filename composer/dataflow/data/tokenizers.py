"""Tokenizers of transformers: from a file with one token a line, or from a local folder. Nothing is downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from composer.adapters.tokens.vocabulary import UnknownTokenError, text_of_tokens
from composer.errors import Position, Problem, RefusedError, SpecError
from composer.source.files import display_name
from perception_blocks.reading import file_at
from perception_blocks.registry import missing_extra
from perception_blocks.words import describe, did_you_mean, hint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["Splitting", "UnknownTokenError", "encoded", "tokenizer_from", "vocabulary_tokenizer"]

Splitting: TypeAlias = Literal["words", "characters", "longest"]
# The special tokens and how a file may spell them; the first two are added where it has none.
SPECIAL = {
    "pad_token": ("<pad>", "[PAD]"),
    "eos_token": ("<eos>", "</s>", "[EOS]", "<|endoftext|>"),
    "bos_token": ("<bos>", "<s>", "[BOS]"),
    "unk_token": ("<unk>", "[UNK]"),
}


def tokenizer_from(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a file (`vocabulary_tokenizer`), or of a folder as transformers' ``save_pretrained`` writes it.

    No code of a folder runs, and nothing is downloaded. Raises ValueError where it cannot be made, MissingExtraError
    without the extra 'llm'.
    """
    try:
        place = Path(file_at(path))
    except ValueError as error:
        raise RefusedError(str(error)) from error
    if not os.path.isdir(place):  # Path.is_dir raises OSError for a name that is too long
        return vocabulary_tokenizer(path)
    try:
        from composer.language.processors import tokenizer_of_folder
    except ImportError as error:
        raise missing_extra("a tokenizer", error, "llm") from error
    return tokenizer_of_folder(path, place)


def vocabulary_tokenizer(
    path: str | os.PathLike[str], split: Splitting | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the lines of a file, in UTF-8; the number of a token is its line, from 0.

    ``split`` says what a token is: ``words`` between spaces; ``characters``; or the ``longest`` token of the file that
    the rest of a text begins with. Unless it is given, it is ``characters`` for a file of single characters,
    ``longest`` where a token has a space, else ``words``. A file that has no ``<pad>`` or ``<eos>`` gets them as last
    tokens; of ``<bos>`` and ``<unk>`` it has what it needs.

    Raises SpecError with every line that is empty or there twice.
    """
    name = display_name(os.fspath(path))
    if split is not None and split not in get_args(Splitting):
        raise ValueError(f"unknown split {split!r}{hint(str(split), get_args(Splitting))}")
    tokens = _tokens_in(name, text_of_tokens(file_at(os.fspath(path)), name))
    special = {
        kind: next((token for token in spelled if token in tokens), None)
        for kind, spelled in SPECIAL.items()
    }
    ordinary = [token for token in tokens if token not in special.values()]
    if not ordinary:
        raise SpecError([Problem("there is no token; write one a line", (), Position(name, 1, 1))])
    for kind in ("pad_token", "eos_token"):
        special[kind] = special[kind] or SPECIAL[kind][0]
    numbers = {
        token: number
        for number, token in enumerate(dict.fromkeys([*tokens, *filter(None, special.values())]))
    }
    return _made(numbers, ordinary, split or _splitting(ordinary), special)


def _tokens_in(name: str, text: str) -> dict[str, int]:
    """The tokens of a file and their lines."""
    lines: dict[str, int] = {}
    problems = []
    for line, token in enumerate(re.split(r"\r?\n", text.removesuffix("\n")), 1):
        place = Position(name, line, 1)
        if not token:
            problems.append(Problem("an empty line is no token", (), place))
        elif token in lines:
            message = f"the token {token!r} is that of line {lines[token]} too"
            problems.append(Problem(message, (), place))
        lines.setdefault(token, line)
    if problems:
        raise SpecError(problems)
    return lines


def _splitting(ordinary: Sequence[str]) -> Splitting:
    if all(len(token) == 1 for token in ordinary):
        return "characters"
    return "longest" if any(re.search(r"\s", token) for token in ordinary) else "words"


def _made(
    numbers: dict[str, int],
    ordinary: Sequence[str],
    split: Splitting,
    special: dict[str, str | None],
) -> PreTrainedTokenizerFast:
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise missing_extra("a vocabulary", error, "llm") from error
    unknown = special["unk_token"]
    model = models.WordLevel(numbers, unk_token=unknown) if unknown else models.WordLevel(numbers)
    tokenizer = tokenizers.Tokenizer(model)
    if split == "words":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        longest = sorted(ordinary, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest)) if split == "longest" else r"(?m)."
        tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        tokenizer.decoder = decoders.Fuse()
    given = {kind: token for kind, token in special.items() if token is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **given
    )


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int] | UnknownTokenError]:
    """The tokens of each text; in place of those of a text that cannot be tokenized the error."""
    try:
        return tokenizer(list(texts), return_attention_mask=False)["input_ids"] if texts else []
    except Exception as error:
        if len(texts) == 1:
            return [_unknown(tokenizer, texts[0], error)]
    return [encoded(tokenizer, [text])[0] for text in texts]


def _unknown(tokenizer: Any, text: str, error: Exception) -> UnknownTokenError:
    """Which part of ``text`` is no token, where the tokenizer itself does not say so."""
    split = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    if split is None:
        return UnknownTokenError(f"{describe(text)} cannot be tokenized: {error}")
    known = tokenizer.get_vocab()
    part = next((part for part, _ in split.pre_tokenize_str(text) if part not in known), text)
    near = did_you_mean(part, known)
    return UnknownTokenError(f"{part!r} is no token of the vocabulary, which has no '<unk>'{near}")
