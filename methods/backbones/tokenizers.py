"""Tokenizers that need no files of their own: a hashing one for random models, and a cut of CLIP's vocabulary."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from petlbench.methods.backbones.base import Tokens

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer


class HashingTokenizer:
    """Splits at white space and maps each lower-cased word to ``crc32(word)``, folded into the vocabulary.

    Ids: 0 pads, ``vocab_size - 2`` starts and ``vocab_size - 1`` ends a caption, so that the end token is the highest
    id, as CLIP's pooling expects. Needs no vocabulary file and is the same in every process.
    """

    def __init__(self, vocab_size: int = 512, context_length: int = 16):
        self.vocab_size = vocab_size
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """(len(texts), context_length) tokens; captions that are too long are cut, keeping the end token."""
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, text in enumerate(texts):
            words = [1 + zlib.crc32(w.encode()) % (self.vocab_size - 3) for w in text.lower().split()]
            line = [self.vocab_size - 2, *words[: self.context_length - 2], self.vocab_size - 1]
            ids[row, : len(line)] = torch.tensor(line)
            mask[row, : len(line)] = True
        return Tokens(ids, mask)


def end_padded(ids: torch.Tensor, end: int | None = None) -> Tokens:
    """Tokens whose mask runs up to the end token: the highest id of each row, or the first ``end``.

    Args:
        ids: (B, L) int64 token ids.
        end: Id of the end token, where it is not the highest.
    """
    last = ids.argmax(1, keepdim=True) if end is None else (ids == end).int().argmax(1, keepdim=True)
    return Tokens(ids, torch.arange(ids.shape[1], device=ids.device)[None] <= last)


def cut_clip_tokenizer(vocab_size: int, context_length: int) -> SimpleTokenizer:
    """CLIP's byte-pair encoder with only its first merges, so that a small model gets a small vocabulary.

    Merges are learned one after the other, each on top of the earlier ones, so any prefix of their list is itself a
    complete encoder. The vocabulary is the one inside the open_clip package: 512 byte symbols, ``vocab_size - 514``
    merges, start and end tokens; the end token keeps the highest id.
    """
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=context_length)
    merges = list(tokenizer.bpe_ranks)[: vocab_size - 514]
    symbols = [tokenizer.decoder[i] for i in range(512)]
    vocabulary = [*symbols, *("".join(merge) for merge in merges), "<start_of_text>", "<end_of_text>"]
    tokenizer.encoder = {token: i for i, token in enumerate(vocabulary)}
    tokenizer.decoder = dict(enumerate(vocabulary))
    tokenizer.bpe_ranks = {merge: i for i, merge in enumerate(merges)}
    tokenizer.vocab_size = len(vocabulary)
    tokenizer.sot_token_id, tokenizer.eot_token_id = vocab_size - 2, vocab_size - 1
    tokenizer.all_special_ids = [vocab_size - 2, vocab_size - 1]
    return tokenizer
