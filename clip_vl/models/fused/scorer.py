"""How well a text and an image match, in the judgement of a fused encoder, and the model whose judgement is trained.

scorer, flags = open_fused_scorer("snap/pretrain/NAME/Epoch09", device)
grids = scorer.see(images)                                 # once for each image
log_odds = scorer(grids, boxes, input_ids, attention_mask, image_of_text)
"""

import dataclasses

import torch
from torch import nn

from clip_vl.engine.errors import UserError
from clip_vl.flags.fused import SETTINGS, TOWER_SETTINGS, FusedEncoderFlags
from clip_vl.models.fused.build import build_encoder, load_pretrained_parts, with_tower
from clip_vl.models.fused.checkpoints import load_encoder, read_checkpoint
from clip_vl.models.fused.encoder import VLPretrainer
from clip_vl.models.fused.settings import recall_fused
from clip_vl.models.loading.weights import load_weights

OTHER_HEADS = ("answer_head.", "obj_predict_head.")  # of pre-training, not needed to judge pairs
MATCHED = 1  # of the two classes of the matching head
OF_SCORES = ("image_size_min", "image_size_max", "max_length", "mask_padding", "use_max_pooling",
             "pooler_tanh")  # beside weights  # fmt: skip


class FusedScorer(nn.Module):
    """model: a `VLPretrainer`, whose visual tower moves out of its encoder, which then takes grids."""

    def __init__(self, model, mask_padding=False):
        super().__init__()
        self.encoder, self.head, self.mask_padding = model.bert, model.cls.seq_relationship, mask_padding
        self.tower, self.encoder.encoder.visual_model = self.encoder.encoder.visual_model, None

    @torch.no_grad()
    def see(self, images):
        """images: uint8 (N, 3, H, W) on canvases -> grids (N, C, h, w)."""
        return self.tower(images)

    @torch.no_grad()
    def forward(self, grids, boxes, input_ids, attention_mask, image_of_text=None):
        """(B,) float32 log-odds that text and image match: their sigmoid is the probability of the matching head.

        grids: of `see`;  boxes: (N, 4) of `place_on_canvas`;  the rest as in `VLEncoder`
        """
        return self.log_odds(grids, boxes, input_ids, attention_mask, image_of_text)

    def log_odds(self, grids, boxes, input_ids, attention_mask, image_of_text=None):
        """The same, with gradients where they are on."""
        boxes = boxes if self.mask_padding else None
        *_, pooled = self.encoder(grids, input_ids, attention_mask, image_of_text, boxes)
        return log_odds_of(self.head(pooled))


def log_odds_of(match_logits):
    """(B, 2) logits of a matching head -> (B,) float32 log-odds that text and image match."""
    logits = match_logits.float()
    return logits[:, MATCHED] - logits[:, 1 - MATCHED]


def settings_of(flags):
    """What a scorer's judgement depends on besides its weights and its words, for keys of caches."""
    return [getattr(flags, name) for name in OF_SCORES]


def build_matcher(args, device):
    """A `VLPretrainer` whose matching head learns to tell pairs; its head of masked words stays as it is.

    It starts from a checkpoint of `pretrain`, from its encoder alone with --loadLXMERT, or from CLIP's and BERT's.
    """
    state, path = read_checkpoint(args.load or args.load_lxmert)
    encoder = build_encoder(args, state)
    model = VLPretrainer(encoder)
    state = with_tower(state, path, encoder, args)
    if state is None:
        load_pretrained_parts(model, encoder, args)
    elif args.load:
        _check_head(state, path, "; --loadLXMERT takes the encoder of any")
        load_weights(model, state, ignore=OTHER_HEADS, allow_partial=args.allow_partial, source=path)
    else:
        load_encoder(encoder, state, path, args)
    model.cls.predictions.requires_grad_(False)
    return model.to(device, memory_format=torch.channels_last)


def open_fused_scorer(stem, device, bert=None):
    """The scorer of a checkpoint of `pretrain`, named by its stem, ready to score; and the flags it was trained with.

    bert:   folder of the text model's config.json and vocab.txt [the one recorded]
    raises: UserError where the checkpoint has no matching head, or sees regions and not images
    """
    flags = _recorded_flags(stem, bert)
    if not flags.input_raw_images:
        raise UserError(f"{stem} was trained on a detector's regions; scoring pairs needs a model that sees images")
    state, path = read_checkpoint(stem)
    _check_head(state, path)
    encoder = build_encoder(flags, state)
    model = VLPretrainer(encoder)
    load_weights(model, with_tower(state, path, encoder, flags), ignore=OTHER_HEADS, source=path)
    return FusedScorer(model, flags.mask_padding).to(device, memory_format=torch.channels_last).eval(), flags


def _check_head(state, path, more=""):
    if not any(name.startswith("cls.seq_relationship.") for name in state):
        raise UserError(f"{path} has no matching head: pass a checkpoint of `pretrain` with --taskMatched{more}")


def _recorded_flags(stem, bert=None):
    """The flags that the settings of a checkpoint stand for; what it does not say is that of a stream over images."""
    flags = FusedEncoderFlags(visualbert_style=True, input_raw_images=True, bert=bert)
    given = {"bert"} if bert else set()
    names = (*SETTINGS, *TOWER_SETTINGS)
    return dataclasses.replace(flags, **recall_fused(stem, "_LXRT.pth", dataclasses.asdict(flags), given, names))
