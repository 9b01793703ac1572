"""BERT's text encoder, the first n layers, with segments and without a pooler (arXiv:1810.04805)."""

import torch
from torch import nn

from clip_vl.models.dropout import Dropout
from clip_vl.models.fused.bert import BertLayer, attention_bias


class TextEmbeddings(nn.Module):
    """Word + position + segment, LayerNorm, dropout; only the padding word receives no gradient."""

    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, D, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, D)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D)
        self.LayerNorm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, segment_ids=None):
        """input_ids, segment_ids: (B, L); without segment ids every token is in segment 0 -> (B, L, D)."""
        table = self.token_type_embeddings
        segments = table.weight[0] if segment_ids is None else table(segment_ids)
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + positions + segments))


class TextEncoder(nn.Module):
    """Parameter names are transformers' BertModel's."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, input_ids, attention_mask, segment_ids=None, added=None):
        """Token ids, attention_mask (1 keeps, 0 pads) and segment ids, (B, L) each -> (B, L, D).

        added: (D,), added to every token before the first layer
        """
        states = self.layer_states(input_ids, attention_mask, segment_ids, added)
        return states[-1]

    def layer_states(self, input_ids, attention_mask, segment_ids=None, added=None):
        """The embeddings and every layer's output: a list of (B, L, D)."""
        x = self.embeddings(input_ids, segment_ids)
        states, bias = [x if added is None else x + added], attention_bias(attention_mask)
        for layer in self.encoder["layer"]:
            states.append(layer(states[-1], bias))
        return states


def trim(input_ids, attention_mask):
    """Without the columns that are padding in every row: the features of the texts stay the same."""
    length = int(attention_mask.sum(1).max().clamp(min=1))
    return input_ids[:, :length].contiguous(), attention_mask[:, :length].contiguous()


def random_text_encoder(encoder, std=0.02):
    """Initial weights of an encoder that loads none: N(0, std), zero biases; the padding word is 0."""
    for part in encoder.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight[0].zero_()
    return encoder
