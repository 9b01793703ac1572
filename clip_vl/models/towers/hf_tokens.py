"""Token tensors of transformers tokenizers, padded to the longest text of a batch."""

import torch

from clip_vl.models.clip.tokenizer import pad_ids


class HuggingFaceTokenizer:
    """Texts to {"input_ids", "attention_mask"} (B, L) of a transformers tokenizer, padded to the batch's longest."""

    def __init__(self, tokenizer, max_length, lower_case=False):
        self.tokenizer, self.max_length, self.lower_case = tokenizer, max_length, lower_case

    def __call__(self, texts, rng=None):
        """B texts -> dict of (B, L) int64; rng is not used."""
        texts = [text.lower() for text in texts] if self.lower_case else list(texts)
        if self.tokenizer.is_fast and self.tokenizer.padding_side == "right":
            return self._fast(texts)
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def _fast(self, texts):
        """The same ids from what lies below transformers' wrapper, which takes most of the time."""
        pipeline = self.tokenizer.backend_tokenizer
        pipeline.enable_truncation(self.max_length)
        pipeline.no_padding()
        return padded([encoding.ids for encoding in pipeline.encode_batch_fast(texts)], self.tokenizer.pad_token_id)


def padded(sequences, pad_id):
    """B lists of ids -> {"input_ids", "attention_mask"} (B, L) int64, 1 keep, 0 padding."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    input_ids = pad_ids(sequences)
    keep = torch.arange(input_ids.shape[1]) < lengths[:, None]
    return {"input_ids": input_ids.masked_fill_(~keep, pad_id), "attention_mask": keep.long()}


def first_position(config):
    """The position of a text's first token: RoBERTa and its kin count from the padding's id on."""
    return config.pad_token_id + 1 if "roberta" in config.model_type or config.model_type == "camembert" else 0
