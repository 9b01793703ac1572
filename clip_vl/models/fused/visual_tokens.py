"""Visual tokens: from pixels through the tower, from its features stored before, or from a detector's regions."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.grid import build_grid_encoder
from clip_vl.models.clip.statistics import CLIP_MEAN, CLIP_STD
from clip_vl.models.dropout import Dropout


class RegionConfig(NamedTuple):
    """In the place of a tower: features of a detector's boxes, such as LXMERT's 36 with 2,048 numbers each."""

    grid_dim: int = 2048
    use_boxes: bool = True


class Regions(NamedTuple):
    """features (N, K, F); boxes (N, K, 4): left, top, right, bottom in 0..1; visible bool (N, K), False for padding."""

    features: torch.Tensor
    boxes: torch.Tensor
    visible: torch.Tensor


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
    """Grid cells or regions to visual tokens: LayerNorm(Linear(feature)); no segment and no BERT position.

    With boxes (LXMERT, arXiv:1908.07490, section 2.1) the mean of that and of LayerNorm(Linear(box)).
    """

    def __init__(self, config, grid_dim, use_boxes=False):
        super().__init__()
        self.visn_fc = nn.Linear(grid_dim, config.hidden_size)
        self.visn_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        if use_boxes:
            self.box_fc = nn.Linear(4, config.hidden_size)
            self.box_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)

    def forward(self, features, boxes=None):
        """features: (..., C), boxes: (..., 4) or None -> (..., D)."""
        x = self.visn_layer_norm(self.visn_fc(features))
        return x if boxes is None else (x + self.box_layer_norm(self.box_fc(boxes))) / 2


class VisualTokens(nn.Module):
    """What both kinds of encoder stack have in common: their layers, and how pixels become tokens beside the text.

    stacks: {published name: layers};  the rest as in `VLEncoder`
    """

    def __init__(
        self,
        stacks,
        config,
        grid,
        stored_features,
        positional_embedding,
        pos_num,
        sub_feat_num,
        max_pooling,
        **tower,
    ):
        super().__init__()
        for name, layers in stacks.items():
            setattr(self, name, nn.ModuleList(layers))
        self.sub_feat_num, self.max_pooling = sub_feat_num, max_pooling
        if grid is None:
            return
        regions = isinstance(grid, RegionConfig)
        self.grid_dim = grid.grid_dim
        self.use_boxes = regions and grid.use_boxes
        self.visn_fc = VisualEmbeddings(config, grid.grid_dim, self.use_boxes)
        self.dropout = Dropout(config.hidden_dropout_prob)
        if regions:
            return
        self.stride = grid.stride * (2 if max_pooling else 1)  # pixels per cell
        self.visual_model = None if stored_features else VisualTower(grid, **tower)
        self.visual_pos = GridPosition(pos_num, grid.grid_dim) if positional_embedding else None

    def visual_tokens(self, text, images, image_of_text, image_boxes):
        """-> tokens (B, V, D) and their visibility (B, V), one row per text; none (V = 0) without images."""
        if images is None:
            return text.new_empty(len(text), 0, text.shape[-1]), torch.ones(len(text), 0, device=text.device)
        if isinstance(images, Regions):
            return self._regions(images, image_of_text)
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

    def _regions(self, regions, image_of_text):
        """A token per region and whether it is one, (N, K, D) and (N, K), or a row per text."""
        if regions.features.shape[-1] != self.grid_dim:
            raise UserError(
                f"the region features have {regions.features.shape[-1]} numbers and the model takes {self.grid_dim}; "
                f"pass --region_dim {regions.features.shape[-1]}"
            )
        tokens = self.dropout(self.visn_fc(regions.features.float(), regions.boxes if self.use_boxes else None))
        if image_of_text is None:
            return tokens, regions.visible
        return tokens.index_select(0, image_of_text), regions.visible[image_of_text]

    def _cells(self, images, image_boxes):
        """Grid cells with their positions added, (N, V, C) row-major, and which of them show the picture, (N, V)."""
        grid_features = images.float() if self.visual_model is None else self.visual_model(images)
        if grid_features.shape[1] != self.grid_dim:
            raise UserError(
                f"the stored features have {grid_features.shape[1]} numbers per cell and the model takes "
                f"{self.grid_dim}; pass the --clip_model_name that they were extracted with"
            )
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
