"""The single-stream image-text encoder of CLIP-ViL (arXiv:2107.06383) and the two models built on it.

Parameter names are those of the published checkpoints. A two-stream encoder would take the place of `FusedStream`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.errors import UserError
from clip_vl.models.bert import BertEmbeddings, BertLayer, BertPooler, attention_bias
from clip_vl.models.clip import build_grid_encoder
from clip_vl.models.dropout import Dropout
from clip_vl.models.heads import AnswerHead, PretrainHeads, answer_layers
from clip_vl.models.weights import init_weights

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class VisualTower(nn.Module):
    """Pixels to grid features; `frozen` means no gradients (the norms' statistics follow bn_mode all the same)."""

    def __init__(self, grid, bn_mode="train", frozen=False, checkpoint_backbone=False):
        super().__init__()
        self.visual = build_grid_encoder(grid, bn_mode, checkpoint_backbone)
        if frozen:
            self.visual.requires_grad_(False)
        # (x / 255 - mean) / std, written as scale * x + shift
        mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images):
        """images: uint8 (N, 3, H, W) -> grid_features (N, C, h, w)."""
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        pixels = pixels.mul_(self.scale).add_(self.shift)
        return self.visual(pixels)


class GridPosition(nn.Module):
    """A learned vector per row plus one per column. In the published names "x" counts rows and "y" columns."""

    def __init__(self, pos_num, grid_dim):
        super().__init__()
        self.pos_num = pos_num
        self.x_position_embedding = nn.Embedding(pos_num, grid_dim)
        self.y_position_embedding = nn.Embedding(pos_num, grid_dim)

    def forward(self, rows, columns):
        """-> (rows * columns, C), row-major."""
        if max(rows, columns) > self.pos_num:
            raise UserError(
                f"the grid has {rows} x {columns} cells, but only {self.pos_num} positions are learned per axis: "
                f"raise --pos_num to {max(rows, columns)} or more, or use smaller images"
            )
        by_row, by_column = self.x_position_embedding.weight[:rows], self.y_position_embedding.weight[:columns]
        return (by_row[:, None] + by_column[None]).flatten(0, 1)


class VisualEmbeddings(nn.Module):
    """Grid cells to visual tokens: LayerNorm(Linear(cell)); no segment and no BERT position."""

    def __init__(self, config, grid_dim):
        super().__init__()
        self.visn_fc = nn.Linear(grid_dim, config.hidden_size)
        self.visn_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)

    def forward(self, cells):
        """cells: (..., C) -> (..., D)."""
        return self.visn_layer_norm(self.visn_fc(cells))


class FusedStream(nn.Module):
    """[text ; visual tokens] through one stack of BERT layers. Arguments as in `VLEncoder`."""

    def __init__(self, config, grid, num_layers, positional_embedding, pos_num, sub_feat_num, max_pooling, **tower):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(num_layers))
        self.sub_feat_num, self.max_pooling = sub_feat_num, max_pooling
        if grid is None:
            return
        self.stride = grid.stride * (2 if max_pooling else 1)  # pixels per cell
        self.visual_model = VisualTower(grid, **tower)
        self.visual_pos = GridPosition(pos_num, grid.grid_dim) if positional_embedding else None
        self.visn_fc = VisualEmbeddings(config, grid.grid_dim)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, text, attention_mask, images, image_of_text, image_boxes):
        """text: embedded (B, L, D); the rest as in `VLEncoder` -> text_states (B, L, D), visual_states (B, V, D)."""
        B, L, D = text.shape
        if images is None:
            visual, visible = text.new_empty(B, 0, D), attention_mask.new_empty(B, 0)
        else:
            visual, visible = self._visual_tokens(images, image_of_text, image_boxes)
        # Under CPU autocast the visual tokens are bfloat16 and so becomes the stream, which saves a cast per layer.
        x = torch.cat([text.to(visual.dtype), visual], dim=1)  # (B, L + V, D)
        bias = attention_bias(torch.cat([attention_mask, visible.to(attention_mask.dtype)], dim=1))
        for layer in self.layer:
            x = layer(x, bias)
        return x[:, :L], x[:, L:]

    def _visual_tokens(self, images, image_of_text, image_boxes):
        """-> tokens (B, V, D) and their visibility (B, V), one row per text."""
        cells, visible = self._cells(images, image_boxes)  # (N, V, C), (N, V)
        if image_of_text is None:
            image_of_text = torch.arange(len(images), device=images.device)
        if self.training and self.sub_feat_num is not None:
            chosen = _sample_cells(visible[image_of_text], self.sub_feat_num)  # (B, n)
            flat = (image_of_text[:, None] * cells.shape[1] + chosen).flatten()
            tokens = self.visn_fc(cells.flatten(0, 1).index_select(0, flat).unflatten(0, chosen.shape))
            visible = visible.flatten()[flat].view(chosen.shape)
        else:
            tokens = self.visn_fc(cells).index_select(0, image_of_text)
            visible = visible[image_of_text]
        return self.dropout(tokens), visible

    def _cells(self, images, image_boxes):
        """Grid cells with their positions added, (N, V, C) row-major, and which of them show the picture, (N, V)."""
        grid_features = self.visual_model(images)
        if self.max_pooling:
            grid_features = F.max_pool2d(grid_features, 2)
        rows, columns = grid_features.shape[-2:]
        cells = grid_features.permute(0, 2, 3, 1).flatten(1, 2)
        if self.visual_pos is not None:
            cells = cells + self.visual_pos(rows, columns).to(cells.dtype)
        if image_boxes is None:
            return cells, torch.ones(cells.shape[:2], dtype=torch.bool, device=cells.device)
        return cells, picture_cells(image_boxes, rows, columns, self.stride)


def picture_cells(image_boxes, rows, columns, stride):
    """Which cells overlap the picture on its canvas.

    image_boxes: (N, 4) top, left, height, width in pixels; stride: pixels per cell
    returns:     bool (N, rows * columns), row-major
    """
    top, left, height, width = image_boxes[:, :, None].unbind(1)  # (N, 1) each
    y = torch.arange(rows, device=image_boxes.device) * stride
    x = torch.arange(columns, device=image_boxes.device) * stride
    in_rows = (y < top + height) & (y + stride > top)  # (N, rows)
    in_columns = (x < left + width) & (x + stride > left)  # (N, columns)
    return (in_rows[:, :, None] & in_columns[:, None, :]).flatten(1)


def _sample_cells(visible, count):
    """`count` distinct cells per row, uniform among the visible ones; others only where those do not suffice.

    visible: bool (B, V) -> int64 (B, count)
    """
    V = visible.shape[1]
    if count > V:
        raise UserError(f"--sub_feat_num {count} asks for more cells than the {V} of the grid; lower it to {V} or less")
    order = torch.rand(visible.shape, device=visible.device) + visible
    return order.topk(count, dim=1, sorted=False).indices


class VLEncoder(nn.Module):
    """Text and image into one BERT stack; called `bert` in the published checkpoints.

    config:  BertConfig; num_layers (default config.num_hidden_layers) layers of it
    grid:    GridConfig or ViTConfig of the visual tower, or None for a model of text alone, which builds no visual part
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
        self.encoder = FusedStream(
            config,
            grid,
            config.num_hidden_layers if num_layers is None else num_layers,
            positional_embedding,
            pos_num,
            sub_feat_num,
            max_pooling,
            bn_mode=bn_mode,
            frozen=freeze_visual,
            checkpoint_backbone=checkpoint_backbone,
        )
        self.pooler = BertPooler(config)
        init_weights(self, config.initializer_range)

    def forward(self, images, input_ids, attention_mask, image_of_text=None, image_boxes=None):
        """Encode B texts, each with one of N images.

        images:         uint8 (N, 3, H, W), or None: text only
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
    """An encoder with the pre-training heads: masked words, matching and, with num_answers > 0, answers."""

    def __init__(self, encoder, num_answers=0):
        super().__init__()
        self.bert = encoder
        self.cls = PretrainHeads(encoder.config)
        self.answer_head = AnswerHead(encoder.config, num_answers) if num_answers else None

    def forward(self, images, input_ids, attention_mask, mlm_targets, answer, image_of_text=None, image_boxes=None):
        """Logits where there are targets; zero rows still give zero gradients, so that all ranks exchange the same.

        mlm_targets: (B, L), token or -1;  answer: (B,), class or -1;  the rest as in `VLEncoder`
        returns:     mlm_logits (N_masked, V), mlm_targets (N_masked,), match_logits (B, 2) and, with an answer head,
                     answer_logits (N_qa, A), answer_targets (N_qa,)
        """
        states, _, pooled = self.bert(images, input_ids, attention_mask, image_of_text, image_boxes)
        mlm_states, mlm_targets = _with_targets(states.flatten(0, 1), mlm_targets.flatten())
        outputs = {
            "mlm_logits": self.cls.predictions(mlm_states, self.bert.embeddings.word_embeddings.weight),
            "mlm_targets": mlm_targets,
            "match_logits": self.cls.seq_relationship(pooled),
        }
        if self.answer_head is not None:
            answer_states, outputs["answer_targets"] = _with_targets(pooled, answer)
            outputs["answer_logits"] = self.answer_head(answer_states)
        return outputs


def _with_targets(states, targets):
    """The rows of states (N, D) and targets (N,) whose target is not -1."""
    rows = (targets >= 0).nonzero().squeeze(1)
    return states.index_select(0, rows), targets.index_select(0, rows)


class VLClassifier(nn.Module):
    """An encoder with an answer head, under the names of the fine-tuned checkpoints."""

    def __init__(self, encoder, num_answers):
        super().__init__()
        self.lxrt_encoder = nn.ModuleDict({"model": nn.ModuleDict({"bert": encoder})})
        self.logit_fc = answer_layers(encoder.config, num_answers)

    @property
    def bert(self):
        return self.lxrt_encoder["model"]["bert"]

    def forward(self, images, input_ids, attention_mask, image_of_text=None, image_boxes=None):
        """Arguments as in `VLEncoder` -> logits (B, A)."""
        _, _, pooled = self.bert(images, input_ids, attention_mask, image_of_text, image_boxes)
        return self.logit_fc(pooled)
