"""From flags to a model: its shape and the weights it starts from."""

from pathlib import Path

import torch

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.models.clip.grid import GRID_ENCODERS
from clip_vl.models.fused import settings as vl_settings
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.checkpoints import load_encoder, read_checkpoint
from clip_vl.models.fused.encoder import VLClassifier, VLEncoder
from clip_vl.models.fused.optim import VISUAL
from clip_vl.models.fused.pretrained import (
    detect_grid_encoder,
    detect_layers,
    detect_positions,
    digest_warning,
    load_bert,
    load_clip_visual,
)
from clip_vl.models.fused.visual_tokens import RegionConfig
from clip_vl.models.loading.weights import load_weights

HINT = "`python -m clip_vl.prepare check` says where it comes from; --random_init trains without it."
BOXES = "visn_fc.box_fc."  # of every model of a detector's regions with their boxes


def bert_folder(args):
    return vl_settings.bert_folder(args.bert, args.data_root)


def build_encoder(args, state=None, with_images=True):
    """The encoder that the flags describe; a checkpoint `state` overrules the tower, the layers and the positions."""
    name = args.clip_model_name
    found = detect_grid_encoder(state) if state and args.input_raw_images else None
    if found and found != name:
        dist.print0(f"the checkpoint holds {found}: building that instead of --clip_model_name {name}")
        name = found
    if name not in GRID_ENCODERS:
        raise UserError(f"--clip_model_name {name} is not a grid encoder; choose one of {', '.join(GRID_ENCODERS)}")
    layers = {"num_layers": args.llayers, "cross_layers": args.xlayers, "visual_layers": args.rlayers}
    if args.visualbert_style:
        layers |= {"cross_layers": 0, "visual_layers": 0}
    found = detect_layers(state) if state else layers
    if found != layers:
        dist.print0(f"the checkpoint has {found}: building that instead of {layers}")
    positions = args.pos_num * args.use_positional_embedding
    if state and args.input_raw_images and detect_positions(state) != positions:
        dist.print0(f"the checkpoint has {detect_positions(state)} positions per axis: building that, not {positions}")
        positions = detect_positions(state)
    grid = GRID_ENCODERS[name] if args.input_raw_images else RegionConfig(args.region_dim, not args.drop_boxes)
    tanh = pooler_has_tanh(state, found["cross_layers"], args.input_raw_images, args.pooler_tanh)
    return VLEncoder(
        BertConfig.from_folder(bert_folder(args)),
        grid if with_images else None,
        **found,
        pooler_tanh=tanh,
        stored_features=bool(args.features),
        positional_embedding=positions > 0,
        pos_num=positions,
        sub_feat_num=args.sub_feat_num if args.sub_sampling else None,
        max_pooling=args.use_max_pooling,
        bn_mode=args.bn_mode,
        freeze_visual=args.freeze_clip,
        checkpoint_backbone=args.checkpoint_backbone,
    )


def pooler_has_tanh(state, cross_layers, raw_images, asked=None):
    """Whether the pooler ends in tanh: `asked` where that is not None, else as the model's family has it.

    CLIP-ViL's code has none, in one stream and in two; its files hold a visual tower. LXMERT's has; its files hold
    boxes of regions and no tower. Where a file holds neither, a model of grid features is CLIP-ViL's.
    """
    if asked is not None or not cross_layers:
        return bool(asked)
    names = state or ()
    if any(VISUAL in name for name in names):
        return False
    return any(BOXES in name for name in names) or not raw_images


def load_pretrained_parts(model, encoder, args):
    """CLIP's and BERT's weights into a new model; nothing with --random_init."""
    if args.random_init or args.from_scratch:
        return
    if getattr(encoder.encoder, "visual_model", None) is not None:
        load_tower(encoder, args)
    load_bert(model, bert_folder(args), f"Put it there or point --bert to its folder; {HINT}")


def load_tower(encoder, args):
    """CLIP's weights into the visual tower."""
    path = Path(args.clip_weights or Path(args.data_root) / "clip" / f"{args.clip_model_name.replace('/', '-')}.pt")
    load_clip_visual(encoder.encoder.visual_model.visual, path, f"Put it there or point --clip_weights to it; {HINT}")
    dist.print0(digest_warning(path) or f"visual tower from {path}")


def with_tower(state, path, encoder, args):
    """The state dict of a checkpoint, with CLIP's visual tower where the encoder has one and the checkpoint, which was
    trained from stored features, has none.
    """
    has_tower = getattr(encoder.encoder, "visual_model", None) is not None
    if state is None or not has_tower or any(VISUAL in name for name in state):
        return state
    if args.random_init:
        raise UserError(f"{path} has no visual tower: pass the --features it was trained from, or no --random_init")
    load_tower(encoder, args)
    prefix = next((name.partition("embeddings.")[0] for name in state if "word_embeddings" in name), "")
    tower = encoder.encoder.visual_model.state_dict().items()
    return state | {f"{prefix}encoder.{VISUAL}{name}": tensor for name, tensor in tower}


def compile_parts(model, wanted):
    """The model; where `wanted`, its visual tower and each layer are compiled in place, which renames no weight."""
    if not wanted:
        return model
    encoder = model.bert.encoder
    if getattr(encoder, "visual_model", None) is not None:
        encoder.visual_model.compile()
    for layer in (*encoder.layer, *getattr(encoder, "r_layers", ()), *getattr(encoder, "x_layers", ())):
        layer.compile()
    return model


def build_classifier(num_answers, device, args, *, with_images=True, images_each=1):
    """A `VLClassifier` on its device with a fine-tuned, a pre-trained, CLIP's and BERT's, or random weights.

    returns: the model; the state dict of the pre-training checkpoint that its encoder came from, and its path, or Nones
    """
    fine_tuned, path = read_checkpoint(args.load, ".pth")
    state = fine_tuned
    if state is None:
        state, path = read_checkpoint(args.load_lxmert_qa or args.load_lxmert)
    encoder = build_encoder(args, state, with_images)
    model = VLClassifier(encoder, num_answers, images_each)
    state = with_tower(state, path, encoder, args)
    if fine_tuned is not None:
        load_weights(model, state, allow_partial=args.allow_partial, source=path)
        state = path = None
    elif state is not None:
        load_encoder(encoder, state, path, args)
    else:
        load_pretrained_parts(model, encoder, args)
    return model.to(device, memory_format=torch.channels_last), state, path
