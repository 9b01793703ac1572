"""How transformers' CLIPProcessor reads images and texts for one of our models: its two configurations, and back."""

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.statistics import CLIP_MEAN, CLIP_STD
from clip_vl.models.clip.tokenizer import ClipTokenizer, WordPieceTokenizer, byte_pairs, special_ids
from clip_vl.models.towers.pixels import Pixels

RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def image_processor(pixels):
    """The preprocessor_config.json of transformers' CLIPImageProcessor for `Pixels`."""
    side = pixels.resolution
    if pixels.crop == "pad":
        raise UserError("transformers' CLIPImageProcessor cannot pad images to a square, as this model expects them "
                        "(crop pad): write a .pt, whose card says so")  # fmt: skip
    squash = pixels.crop == "squash"
    square = {"height": side, "width": side}
    return {"image_processor_type": "CLIPImageProcessor", "do_resize": True,
            "size": square if squash else {"shortest_edge": pixels.short_side or side},
            "resample": RESAMPLE[pixels.interpolation], "do_center_crop": not squash, "crop_size": square,
            "do_rescale": True, "do_convert_rgb": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": list(pixels.mean), "image_std": list(pixels.std)}  # fmt: skip


def pixels_of_processor(config):
    """The `Pixels` of a preprocessor_config.json, the other way round."""
    size, crop = config.get("size", 224), config.get("crop_size", 224)
    side = lambda value: int(value if isinstance(value, int) else value.get("shortest_edge", value.get("height")))  # noqa: E731
    squash = not config.get("do_center_crop", True)
    resolution = side(size) if squash else side(crop)
    interpolation = {number: name for name, number in RESAMPLE.items()}.get(config.get("resample", 3), "bicubic")
    mean, std = config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
    return Pixels(resolution, mean, std, interpolation, "squash" if squash else "short_side", side(size))


def transformers_tokenizer(tokenizer):
    """A transformers tokenizer with the words and the length of ours."""
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    length = tokenizer.context_length
    if isinstance(tokenizer, WordPieceTokenizer):
        if tokenizer.tokens.index("[SEP]") == 2:  # transformers' CLIP then takes the highest id for the end of a text
            raise UserError("transformers' CLIP cannot find the end of a text where [SEP] has the id 2")
        special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                   "bos_token": "[CLS]", "eos_token": "[SEP]"}  # fmt: skip
        names = ["input_ids", "attention_mask"]
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer.pipeline(), model_max_length=length,
                                       model_input_names=names, **special)  # fmt: skip
    if not isinstance(tokenizer, ClipTokenizer):
        raise UserError("transformers' CLIP has a text tower of CLIP's own kind; this one is none")
    vocab, merges = byte_pairs()
    vocab |= dict(zip(("<|startoftext|>", "<|endoftext|>"), special_ids()))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)
