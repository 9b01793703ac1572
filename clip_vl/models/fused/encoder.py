"""The single-stream image-text encoder of CLIP-ViL (arXiv:2107.06383) and the two models built on it.

Parameter names are those of the published checkpoints. The two-stream encoder is in two_stream.py.
"""

import torch
from torch import nn

from clip_vl.models.fused.bert import BertEmbeddings, BertLayer, BertPooler, attention_bias, init_weights
from clip_vl.models.fused.heads import AnswerHead, PretrainHeads, RegionHead, answer_layers
from clip_vl.models.fused.visual_tokens import Regions, VisualTokens


class FusedStream(VisualTokens):
    """[text ; visual tokens] through one stack of BERT layers. Arguments as in `VLEncoder`."""

    def __init__(self, config, num_layers, **visual):
        super().__init__({"layer": [BertLayer(config) for _ in range(num_layers)]}, config, **visual)

    def forward(self, text, attention_mask, images, image_of_text, image_boxes):
        """text: embedded (B, L, D); the rest as in `VLEncoder` -> text_states (B, L, D), visual_states (B, V, D)."""
        L = text.shape[1]
        visual, visible = self.visual_tokens(text, images, image_of_text, image_boxes)
        # Under CPU autocast the visual tokens are bfloat16 and so becomes the stream, which saves a cast per layer.
        x = torch.cat([text.to(visual.dtype), visual], dim=1)  # (B, L + V, D)
        bias = attention_bias(torch.cat([attention_mask, visible.to(attention_mask.dtype)], dim=1))
        for layer in self.layer:
            x = layer(x, bias)
        return x[:, :L], x[:, L:]


class VLEncoder(nn.Module):
    """Text and image into one BERT stack; called `bert` in the published checkpoints.

    config:  BertConfig; num_layers (default config.num_hidden_layers) layers of it
    cross_layers, visual_layers: with any of the first, two streams as in LXMERT, the text's of num_layers; else one
    pooler_tanh: LXMERT's pooler ends in tanh, CLIP-ViL's in its linear layer (None: with two streams)
    grid:    GridConfig or ViTConfig of the visual tower, RegionConfig for a detector's regions, or None for a model of
             text alone, which builds no visual part
    stored_features: take the tower's features instead of pixels, and build no tower
    positional_embedding, pos_num: learned positions for up to pos_num rows and columns of cells
    sub_feat_num:        cells drawn per sample in training (None: all); evaluation sees all
    max_pooling:         2x2 max pooling of the grid
    bn_mode, freeze_visual, checkpoint_backbone: as in `VisualTower`
    """

    def __init__(
        self,
        config,
        grid,
        *,
        num_layers=None,
        cross_layers=0,
        visual_layers=0,
        pooler_tanh=None,
        stored_features=False,
        positional_embedding=False,
        pos_num=25,
        sub_feat_num=None,
        max_pooling=False,
        bn_mode="train",
        freeze_visual=False,
        checkpoint_backbone=False,
    ):
        super().__init__()
        self.config, self.grid = config, grid
        self.embeddings = BertEmbeddings(config)
        num_layers = config.num_hidden_layers if num_layers is None else num_layers
        visual = {
            "grid": grid,
            "stored_features": stored_features,
            "positional_embedding": positional_embedding,
            "pos_num": pos_num,
            "sub_feat_num": sub_feat_num,
            "max_pooling": max_pooling,
            "bn_mode": bn_mode,
            "frozen": freeze_visual,
            "checkpoint_backbone": checkpoint_backbone,
        }
        if cross_layers:
            from clip_vl.models.fused.two_stream import TwoStream

            self.encoder = TwoStream(config, num_layers, cross_layers, visual_layers, **visual)
        else:
            self.encoder = FusedStream(config, num_layers, **visual)
        self.pooler = BertPooler(config, tanh=bool(cross_layers) if pooler_tanh is None else pooler_tanh)
        init_weights(self, config.initializer_range)

    def forward(self, images, input_ids, attention_mask, image_of_text=None, image_boxes=None):
        """Encode B texts, each with one of N images.

        images:         uint8 (N, 3, H, W), grid features (N, C, h, w) stored before, `Regions`, or None: text only
        input_ids:      (B, L), starting with [CLS]
        attention_mask: (B, L), 1 keep, 0 padding
        image_of_text:  (B,), row of `images` for each text; None means row b for text b
        image_boxes:    (N, 4) top, left, height, width of the picture on its canvas; given, no token attends to
                        cells outside of it, which are attended like others otherwise
        returns:        text_states (B, L, D), visual_states (B, V, D), pooled (B, D)
        """
        text = self.embeddings(input_ids)
        text_states, visual_states = self.encoder(text, attention_mask, images, image_of_text, image_boxes)
        return text_states, visual_states, self.pooler(text_states)


class VLPretrainer(nn.Module):
    """An encoder with the pre-training heads: masked words, matching, with num_answers > 0 answers, and with regions
    those of `region_losses`, {"obj": classes, "attr": classes, "feat": width} or some of them.
    """

    def __init__(self, encoder, num_answers=0, region_losses=None):
        super().__init__()
        self.bert = encoder
        self.cls = PretrainHeads(encoder.config)
        self.answer_head = AnswerHead(encoder.config, num_answers) if num_answers else None
        self.obj_predict_head = RegionHead(encoder.config, region_losses) if region_losses else None

    def forward(self, images, input_ids, attention_mask, mlm_targets, answer, image_of_text=None, image_boxes=None):
        """Logits where there are targets; zero rows still give zero gradients, so that all ranks exchange the same.

        mlm_targets: (B, L), token or -1;  answer: (B,), class or -1;  the rest as in `VLEncoder`
        returns:     mlm_logits (N_masked, V), mlm_targets (N_masked,), match_logits (B, 2) and, with an answer head,
                     answer_logits (N_qa, A), answer_targets (N_qa,), with region heads regions {loss: (B, K, ...)}
        """
        states, visual_states, pooled = self.bert(images, input_ids, attention_mask, image_of_text, image_boxes)
        mlm_states, mlm_targets = _with_targets(states.flatten(0, 1), mlm_targets.flatten())
        outputs = {
            "mlm_logits": self.cls.predictions(mlm_states, self.bert.embeddings.word_embeddings.weight),
            "mlm_targets": mlm_targets,
            "match_logits": self.cls.seq_relationship(pooled),
        }
        if self.answer_head is not None:
            answer_states, outputs["answer_targets"] = _with_targets(pooled, answer)
            outputs["answer_logits"] = self.answer_head(answer_states)
        if self.obj_predict_head is not None:
            outputs["regions"] = self.obj_predict_head(visual_states)
        return outputs


def _with_targets(states, targets):
    """The rows of states (N, D) and targets (N,) whose target is not -1."""
    rows = (targets >= 0).nonzero().squeeze(1)
    return states.index_select(0, rows), targets.index_select(0, rows)


class VLClassifier(nn.Module):
    """An encoder with an answer head, under the names of the fine-tuned checkpoints.

    images_each: how many images a text is about (NLVR2: two); it is encoded with each, and the head sees all of them
    """

    def __init__(self, encoder, num_answers, images_each=1):
        super().__init__()
        self.images_each = images_each
        self.lxrt_encoder = nn.ModuleDict({"model": nn.ModuleDict({"bert": encoder})})
        self.logit_fc = answer_layers(encoder.config, num_answers, images_each)

    @property
    def bert(self):
        return self.lxrt_encoder["model"]["bert"]

    def forward(self, images, input_ids, attention_mask, image_of_text=None, image_boxes=None):
        """Arguments as in `VLEncoder`, a text with each of its images in turn -> logits (B / images_each, A)."""
        _, _, pooled = self.bert(images, input_ids, attention_mask, image_of_text, image_boxes)
        return self.logit_fc(pooled.unflatten(0, (-1, self.images_each)).flatten(1))


def visual_input(batch):
    """What a batch of `datasets.batches` shows: `Regions`, stored grid features, pixels, or None."""
    if "region_features" in batch:
        return Regions(batch["region_features"], batch["region_boxes"], batch["region_visible"])
    return batch.get("grid_features", batch.get("images"))


def classify(model, batch, mask_padding=False):
    """The logits of a VLClassifier, wrapped or not, for a batch of `datasets.batches`."""
    boxes = batch.get("image_boxes") if mask_padding else None
    texts = batch["input_ids"], batch["attention_mask"], batch.get("image_of_text")
    return model(visual_input(batch), *texts, image_boxes=boxes)
