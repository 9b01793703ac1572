"""Texts or pairs of texts as token ids, encoded once, and batches of them padded to their longest."""

import numpy as np
import torch


class EncodedTexts:
    """Token ids and segments of N texts, with what is to be predicted of each.

    ids, segments: lists of N int32 arrays;  labels: (N,) array, or None
    """

    def __init__(self, ids, segments, labels=None):
        self.ids, self.segments, self.labels = ids, segments, labels

    def __len__(self):
        return len(self.ids)

    def batch(self, rows, device):
        """input_ids, attention_mask, segment_ids int64 (B, L), labels (B,) where there are some, and the rows."""
        length = max(len(self.ids[row]) for row in rows)
        fields = {
            name: np.zeros((len(rows), length), np.int64) for name in ("input_ids", "attention_mask", "segment_ids")
        }
        for place, row in enumerate(rows):
            n = len(self.ids[row])
            fields["input_ids"][place, :n], fields["segment_ids"][place, :n] = self.ids[row], self.segments[row]
            fields["attention_mask"][place, :n] = 1
        if self.labels is not None:
            fields["labels"] = self.labels[rows]
        return {name: torch.from_numpy(field).to(device) for name, field in fields.items()} | {"rows": rows}


def encode_texts(tokenizer, first, second=None, labels=None, max_length=256):
    """`EncodedTexts` of sentences, or of pairs whose longer one is cut first, by a transformers tokenizer."""
    found = tokenizer(first, second, truncation="longest_first" if second else True, max_length=max_length,
                      return_token_type_ids=True, return_attention_mask=False)  # fmt: skip
    ids, segments = ([np.asarray(row, np.int32) for row in found[name]] for name in ("input_ids", "token_type_ids"))
    return EncodedTexts(ids, segments, labels)


def by_length(texts, batch_size):
    """Rows in batches of like length, for evaluation: a list of int64 arrays that hold every row once."""
    order = np.argsort([len(ids) for ids in texts.ids], kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
