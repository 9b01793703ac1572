"""The S-SMKE student: an image and a text encoder, one shared Transformer layer, and a head for distillation."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.errors import UserError
from clip_vl.models.distill.blocks import EPS, LayerScale, PreNormBlock
from clip_vl.models.distill.image_encoder import ImageEncoder, ImageEncoderSpec
from clip_vl.models.distill.text_encoder import TextEncoder
from clip_vl.models.fused.bert import BertConfig, attention_bias

TEXT, IMAGE = 0, 1  # rows of the token-type table
MAX_LOG_SCALE = 4.6052  # ln 100
TEXT_DEFAULT = BertConfig(num_hidden_layers=6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@dataclass(frozen=True)
class StudentSpec:
    """What a student is built from.

    targets:           width of the head, that of the teacher's targets; 0 for the width of the encoders
    token_types:       where the modality's embedding is added: "after" or "before" the encoders, or "off"
    shared_layerscale: the shared layer scales its two residual branches (initially by 0.2)
    init:              "truncated" (normal of std 0.02 cut at 0.02) or "normal" (the published run)
    """

    image: ImageEncoderSpec = ImageEncoderSpec()
    text: BertConfig = TEXT_DEFAULT
    targets: int = 0
    token_types: str = "after"
    shared_layerscale: bool = True
    init: str = "truncated"


class Student(nn.Module):
    """Parameter names are those of the published checkpoints, without their prefix `model.`."""

    def __init__(self, spec):
        super().__init__()
        self.spec, D = spec, spec.image.width
        if spec.text.hidden_size != D:
            raise UserError(f"the image encoder has width {D} and the text encoder {spec.text.hidden_size}: "
                            "the shared layer needs one width")  # fmt: skip
        self.image_model, self.text_model = ImageEncoder(spec.image), TextEncoder(spec.text)
        if spec.token_types != "off":
            self.token_type_embeddings, self.tte_scale = nn.Embedding(2, D), LayerScale(D, 1e-5)
        self.shared = PreNormBlock(D, spec.image.heads, spec.image.hidden, 0.2 if spec.shared_layerscale else None)
        self.fc_norm, self.head = nn.LayerNorm(D, eps=EPS), nn.Linear(D, spec.targets or D)
        self.logit_scales = nn.Parameter(torch.full((2,), math.log(1 / 0.07)))  # of x_interm and of x
        self._initialise()

    def forward(self, images, input_ids, attention_mask):
        """{"image": outputs, "text": outputs} of `image_outputs` and `text_outputs`, with "logit_scales" (2,)."""
        texts = self.text_outputs(input_ids, attention_mask)
        return {"image": self.image_outputs(images), "text": texts, "logit_scales": self.logit_scales}

    def image_outputs(self, images):
        """images: (B, 3, H, W), normalised. See `_outputs`."""
        before, after = self._token_type(IMAGE)
        return self._outputs(self.image_model(images, before), after)

    def text_outputs(self, input_ids, attention_mask):
        """Token ids and attention_mask (1 keeps, 0 pads), (B, L) each. See `_outputs`."""
        before, after = self._token_type(TEXT)
        tokens = self.text_model(input_ids, attention_mask, added=before)
        return self._outputs(tokens, after, attention_bias(attention_mask))

    def _outputs(self, tokens, added, bias=None):
        """tokens: (B, L, D) -> what the shared layer says of the first token.

        x_interm:    (B, hidden), L2-normalised, its first MLP layer before GELU
        x:           (B, D), L2-normalised, the embedding for retrieval and zero-shot classification
        encoder_out: (B, targets), the head for distillation, not normalised
        """
        tokens = tokens if added is None else tokens + added
        with torch.autocast(tokens.device.type, enabled=False):  # the published layer has its attention scores in fp32
            x, inner = self.shared(tokens.to(self.shared.norm1.weight.dtype), bias, queries=1)
        x, inner = x[:, 0], inner[:, 0]
        return {"x_interm": F.normalize(inner, dim=-1), "x": F.normalize(x, dim=-1),
                "encoder_out": self.head(self.fc_norm(x))}  # fmt: skip

    def _token_type(self, row):
        """(added before the encoder, added after it), each (D,) or None."""
        if self.spec.token_types == "off":
            return None, None
        added = self.tte_scale(self.token_type_embeddings.weight[row])
        return (added, None) if self.spec.token_types == "before" else (None, added)

    def encode_image(self, images):
        """(B, D), L2-normalised."""
        return self.image_outputs(images)["x"]

    def encode_text(self, input_ids, attention_mask):
        """(B, D), L2-normalised."""
        return self.text_outputs(input_ids, attention_mask)["x"]

    @torch.no_grad()
    def clamp_scales(self):
        """Both temperatures between 0.01 and 1, after the forward pass and before the loss."""
        self.logit_scales.clamp_(0, MAX_LOG_SCALE)

    def _initialise(self):
        """All but the two encoders, whose weights are loaded or set by their own rule."""
        truncated = self.spec.init == "truncated"
        for part in (self.shared, self.head):
            for linear in (module for module in part.modules() if isinstance(module, nn.Linear)):
                init_linear(linear, truncated)
        if self.spec.token_types != "off":
            nn.init.normal_(self.token_type_embeddings.weight, std=1.0 if truncated else 0.02)


def init_linear(linear, truncated=True, std=0.02):
    """Weights N(0, std), cut at one standard deviation or not; zero bias."""
    if truncated:
        nn.init.trunc_normal_(linear.weight, std=std, a=-std, b=std)
    else:
        nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
