"""PromptBERT (arXiv:2201.04337): a sentence's feature is the state of [MASK] in a template around the sentence.

The template's own share is taken away: its feature with nothing between the quotation marks, what comes behind them
at the positions that it has behind the sentence.
"""

import numpy as np
import torch
from torch import nn

from clip_vl.engine.errors import UserError
from clip_vl.models.towers.hf_tokens import first_position, padded

TEMPLATES = {  # the first one is the one of evaluation; {} is the sentence, <mask> the tokenizer's mask token
    "bert": ('The sentence of "{}" means <mask>.', 'This sentence : "{}" means <mask>.'),
    "roberta": ("This sentence : '{}' means<mask>.", "The sentence : '{}' means<mask>."),
}


class PromptBertTokenizer:
    """Texts between the two halves of a template: input_ids, attention_mask (B, L), template, length (B,).

    Only the sentence is cut where a text is too long. With an rng, in training, each text draws its template.
    """

    def __init__(self, tokenizer, templates, max_length):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.parts = [_halves(tokenizer, template) for template in templates]
        self.room = max_length - max(len(before) + len(after) for before, after in self.parts)
        if self.room < 1:
            raise UserError(
                f"max_length {max_length} leaves no room for a text in PromptBERT's template; use 32 or more"
            )

    def __call__(self, texts, rng=None):
        texts = list(texts)
        drawn = np.zeros(len(texts), np.int64) if rng is None else rng.integers(len(self.parts), size=len(texts))
        encoded = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=self.room)["input_ids"]
        halves = [self.parts[template] for template in drawn]
        rows = [before + ids + after for ids, (before, after) in zip(encoded, halves)]
        lengths = torch.tensor([len(ids) for ids in encoded])
        tokens = padded(rows, self.tokenizer.pad_token_id)
        return tokens | {"template": torch.from_numpy(drawn), "length": lengths}


def _halves(tokenizer, template):
    """The ids before and behind the sentence, special tokens included."""
    before, after = template.replace("<mask>", tokenizer.mask_token).split("{}")
    before, after = (tokenizer(half, add_special_tokens=False)["input_ids"] for half in (before, after))
    return [tokenizer.cls_token_id, *before], [*after, tokenizer.sep_token_id]


class PromptBertTower(nn.Module):
    """The mask token's last state less that of the empty template."""

    initial_logit_scale, pooler = None, "PromptBERT"

    def __init__(self, model, tokenizer, max_length):
        super().__init__()
        kind = model.config.model_type
        if kind not in TEMPLATES:
            raise UserError(f"PromptBERT has templates for {' and '.join(TEMPLATES)}, not for a {kind}; use mean")
        self.model = model
        self.tokenizer = PromptBertTokenizer(tokenizer, TEMPLATES[kind], max_length)
        self.width, self.context_length = model.config.hidden_size, max_length
        self.mask_id, self.first_position = tokenizer.mask_token_id, first_position(model.config)

    def tokenize(self, texts, rng=None):
        return self.tokenizer(texts, rng)

    def forward(self, tokens):
        """tokens: dict as PromptBertTokenizer makes it -> (B, width), not L2-normalised."""
        states = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return self._at_mask(states, tokens["input_ids"]) - self._empty(tokens["template"], tokens["length"])

    def _at_mask(self, states, ids):
        """The states (B, L, D) at the template's mask, the last one there is: a text may hold others."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        where = torch.where(ids == self.mask_id, positions, -1).amax(dim=1)
        return states[torch.arange(len(ids), device=ids.device), where]

    def _empty(self, template, length):
        """Features (B, D) of the templates without a sentence; each pair (template, length) is computed once."""
        pairs, where = torch.unique(torch.stack([template, length], dim=1), dim=0, return_inverse=True)
        features = torch.cat([self._empty_of(t, pairs[pairs[:, 0] == t, 1]) for t in pairs[:, 0].unique().tolist()])
        return features[where]  # pairs are sorted by template, as the parts of features are

    def _empty_of(self, template, lengths):
        """lengths: (U,) tokens of the sentences that are not there -> (U, D)."""
        before, after = self.tokenizer.parts[template]
        ids = torch.tensor(before + after, device=lengths.device).expand(len(lengths), -1)
        behind = torch.arange(ids.shape[1], device=lengths.device) >= len(before)
        positions = self.first_position + torch.arange(ids.shape[1], device=lengths.device) + behind * lengths[:, None]
        outputs = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
        return self._at_mask(outputs.last_hidden_state, ids)
