"""BERT WordPiece: sentences to token ids, the ids that transformers' BERT tokenizers give, and batches of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.engine.readers.text import read_lines

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(folder):
    """The tokenizer of a BERT folder, from its `vocab.txt` (a token per line, its line is its id).

    Lower-cases and strips accents unless a `tokenizer_config.json` beside it sets do_lower_case to false.
    """
    path = Path(folder) / "vocab.txt"
    hint = "fetch it from https://huggingface.co/google-bert/bert-base-uncased, or point to another BERT folder"
    tokens = read_lines(path, hint)
    return Tokenizer(_index(tokens, path), lowercase=_is_uncased(path.parent))


def _index(tokens, path):
    """Token -> id, of a vocabulary that has each token once, the five special ones, and [PAD] at 0."""
    index = {}
    for row, token in enumerate(tokens):
        if index.setdefault(token, row) != row:
            raise DataError(f"{path}:{row + 1}: the token {token!r} stands on line {index[token] + 1} already")
    for token in SPECIAL_TOKENS:
        if token not in index:
            raise DataError(f"{path}: the token {token} is missing; is this a BERT vocabulary?")
    if index["[PAD]"] != 0:
        raise DataError(f"{path}:{index['[PAD]'] + 1}: [PAD] must be the first token, because 0 is padding everywhere")
    return index


def _is_uncased(folder):
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return True
    try:
        return bool(parse_json(path.read_bytes()).get("do_lower_case", True))
    except (ValueError, AttributeError):
        raise DataError(f"{path} is not a JSON object") from None


class Tokenizer:
    """WordPiece over an index of tokens. `digest` names the vocabulary and the rules, for caches of its output."""

    def __init__(self, index, lowercase=True):
        self.vocab_size = len(index)
        self.mask_id = index["[MASK]"]
        self.digest = hashlib.sha256(json.dumps(["wordpiece 1", lowercase, list(index)]).encode()).hexdigest()
        self._tokenizer = _wordpiece(index, lowercase)

    def encode(self, sentences, max_length=20):
        """A list of ids, `[CLS] ... [SEP]`, for each sentence; at most `max_length`, [SEP] included."""
        if max_length < 2:
            raise UserError(f"sentences of at most {max_length} tokens have no room for [CLS] and [SEP]; use 2 or more")
        self._tokenizer.enable_truncation(max_length)
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(sentences)]

    def decode(self, ids):
        """The words of one sequence of ids, without special tokens."""
        return self._tokenizer.decode([int(i) for i in ids])


def _wordpiece(index, lowercase):
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    pipeline = Pipeline(models.WordPiece(index, unk_token="[UNK]", max_input_chars_per_word=100))
    pipeline.add_special_tokens(list(SPECIAL_TOKENS))
    pipeline.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.post_processor = processors.BertProcessing(("[SEP]", index["[SEP]"]), ("[CLS]", index["[CLS]"]))
    pipeline.decoder = decoders.WordPiece()
    return pipeline


def pad_tokens(sequences):
    """Token sequences of several lengths as one batch.

    sequences: B one-dimensional integer arrays or lists
    returns:   dict of input_ids (B, L) int64, padded with 0, and attention_mask (B, L) int64, 1 keep, 0 padding;
               L is the longest sequence
    """
    input_ids = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for ids, mask, sequence in zip(input_ids, attention_mask, sequences):
        ids[: len(sequence)] = sequence
        mask[: len(sequence)] = 1
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
