"""What sits on the encoder's states: masked words, matching and answers."""

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.models.fused.bert import init_weights


def answer_layers(config, num_answers, images_each=1):
    """LXMERT's answer head (arXiv:1908.07490): pooled (B, images_each * D) -> logits (B, A).

    Its indices 0-3 name the parameters.
    """
    width = config.hidden_size
    layers = nn.Sequential(
        nn.Linear(images_each * width, 2 * width),
        nn.GELU(),
        nn.LayerNorm(2 * width, eps=1e-12),
        nn.Linear(2 * width, num_answers),
    )
    init_weights(layers, config.initializer_range)
    return layers


class AnswerHead(nn.Module):
    """`answer_layers` under the name that pre-training checkpoints give it."""

    def __init__(self, config, num_answers):
        super().__init__()
        self.logit_fc = answer_layers(config, num_answers)

    def forward(self, pooled):
        """pooled: (B, D) -> (B, A)."""
        return self.logit_fc(pooled)


class HeadTransform(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x):
        return self.LayerNorm(F.gelu(self.dense(x)))


class MaskedLMHead(nn.Module):
    """Words from states. The decoder is the word embedding table, handed in, so that it is stored once."""

    def __init__(self, config):
        super().__init__()
        self.transform = HeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states, word_embeddings):
        """states: (N, D), word_embeddings: (V, D) -> logits (N, V)."""
        return F.linear(self.transform(states), word_embeddings, self.bias)


class PretrainHeads(nn.Module):
    """BERT's two: masked words, and whether the pair belongs together (once the next-sentence head)."""

    def __init__(self, config):
        super().__init__()
        self.predictions = MaskedLMHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        init_weights(self, config.initializer_range)


class RegionHead(nn.Module):
    """What is at a region: object and attribute classes, and its feature (LXMERT, arXiv:1908.07490, section 3.1)."""

    def __init__(self, config, outputs):
        """outputs: {name: width}, such as {"obj": 1600, "attr": 400, "feat": 2048}."""
        super().__init__()
        self.transform = HeadTransform(config)
        self.decoder_dict = nn.ModuleDict({name: nn.Linear(config.hidden_size, n) for name, n in outputs.items()})
        init_weights(self, config.initializer_range)

    def forward(self, states):
        """states: (B, K, D) -> {name: (B, K, width)}."""
        states = self.transform(states)
        return {name: decoder(states) for name, decoder in self.decoder_dict.items()}
