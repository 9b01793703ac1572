"""LXMERT's two-stream encoder (arXiv:1908.07490, section 2): text and image apart, then cross layers."""

from torch import nn

from clip_vl.models.fused.bert import (
    BertAttention,
    BertIntermediate,
    BertLayer,
    BertOutput,
    BertSelfAttention,
    attention_bias,
)
from clip_vl.models.fused.visual_tokens import VisualTokens


class TwoStream(VisualTokens):
    """Text layers, visual layers, and cross layers in which each looks at the other. Arguments as in `VLEncoder`."""

    def __init__(self, config, num_layers, cross_layers, visual_layers, **visual):
        stacks = {
            "layer": [BertLayer(config) for _ in range(num_layers)],
            "x_layers": [CrossLayer(config) for _ in range(cross_layers)],
            "r_layers": [BertLayer(config) for _ in range(visual_layers)],
        }
        super().__init__(stacks, config, **visual)

    def forward(self, text, attention_mask, images, image_of_text, image_boxes):
        """text: embedded (B, L, D); the rest as in `VLEncoder` -> text_states (B, L, D), visual_states (B, V, D)."""
        visual, visible = self.visual_tokens(text, images, image_of_text, image_boxes)
        text = text.to(visual.dtype)
        text_bias, visual_bias = attention_bias(attention_mask), attention_bias(visible)
        for layer in self.layer:
            text = layer(text, text_bias)
        for layer in self.r_layers:
            visual = layer(visual, visual_bias)
        for layer in self.x_layers:
            text, visual = layer(text, text_bias, visual, visual_bias)
        # The last layer's visual half feeds no loss; this zero keeps its weights in the exchange of gradients.
        return text + 0 * visual.sum(), visual


class CrossLayer(nn.Module):
    """Each stream attends to the other with the same weights, then to itself, then its feed-forward network."""

    def __init__(self, config):
        super().__init__()
        self.visual_attention = CrossAttention(config)
        self.lang_self_att, self.visn_self_att = BertAttention(config), BertAttention(config)
        self.lang_inter, self.visn_inter = BertIntermediate(config), BertIntermediate(config)
        self.lang_output = BertOutput(config, config.intermediate_size)
        self.visn_output = BertOutput(config, config.intermediate_size)

    def forward(self, text, text_bias, visual, visual_bias):
        """text: (B, L, D), visual: (B, V, D), biases as in `attend` -> both streams."""
        text, visual = (
            self.visual_attention(text, visual, visual_bias),
            self.visual_attention(visual, text, text_bias),
        )
        text = self.lang_self_att(text, text_bias)
        visual = self.visn_self_att(visual, visual_bias)
        return self.lang_output(self.lang_inter(text), text), self.visn_output(self.visn_inter(visual), visual)


class CrossAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.att = BertSelfAttention(config)
        self.output = BertOutput(config, config.hidden_size)

    def forward(self, x, context, bias):
        """x: (B, L, D) looks at context: (B, M, D) -> (B, L, D)."""
        return self.output(self.att(x, bias, context), x)
