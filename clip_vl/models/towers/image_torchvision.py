"""torchvision's classification models without their classifiers, found by structure and not by name."""

import difflib
import re

from torch import nn

from clip_vl.engine.errors import UserError
from clip_vl.models.loading.pretrained_files import load_tower, published_file
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.towers.pixels import Pixels, describe, measure_width
from clip_vl.models.towers.pooled import PooledTower

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers half way, of GoogLeNet and Inception


def build_torchvision_tower(name, *, tag="", pretrained=False, resolution=None, cache_dir=None, weights=None,
                            checkpointing=False):  # fmt: skip
    """A stripped classification model; arguments as for `build_image_tower`, the tag such as IMAGENET1K_V2."""
    if checkpointing:
        raise UserError(f"torchvision's {name} cannot recompute its activations; timm's and the clip builder's can")
    published = _published(name, tag)
    if pretrained and not weights:
        weights = _file(name, published, cache_dir)
    transforms = published.transforms()
    side = resolution or transforms.crop_size[0]
    model = _create(name, side, loaded=bool(weights))
    head = strip_classifier(model, name)
    if weights:
        state = _fit(read_state_dict(weights), model, side)
        load_tower(model, state, f"{weights} (image tower {name})", ignore=(f"{head}.", *AUXILIARY))
    tower = PooledTower(model)
    pixels = Pixels(
        side, transforms.mean, transforms.std, transforms.interpolation.value,
        short_side=round(transforms.resize_size[0] * side / transforms.crop_size[0]),
    )  # fmt: skip
    return describe(tower, measure_width(tower, side, name), pixels)


def classification_models():
    """Names of torchvision's classification models."""
    from torchvision import models

    return models.list_models(module=models)


def _nearest(name):
    close = difflib.get_close_matches(name, classification_models(), n=3, cutoff=0.4)
    return f"the nearest names: {', '.join(close)}" if close else "torchvision.models.list_models() names them"


def _published(name, tag):
    """torchvision's entry of the tag, or of the architecture's best weights: url and transforms."""
    from torchvision import models

    if name not in classification_models():
        raise UserError(
            f"{name} is none of torchvision's {len(classification_models())} classification models; {_nearest(name)}"
        )
    entries = models.get_model_weights(name)
    if tag and tag not in entries.__members__:
        raise UserError(f"{name} has no published weights tagged {tag!r}; its tags: {', '.join(entries.__members__)}")
    return entries[tag or "DEFAULT"]


def _file(name, published, cache_dir):
    import torch

    folder = f"{torch.hub.get_dir()}/checkpoints"
    return published_file(f"torchvision's {name} ({published.name})", folder, cache_dir, published.url)


def _create(name, side, loaded):
    """The whole model for images of that side, without auxiliary classifiers."""
    from torchvision import models

    options = {}
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect pixels of -1..1, which the model makes of the usual statistics itself.
        options = {"aux_logits": False, "init_weights": not loaded, "transform_input": loaded, "dropout": 0.0}
    if name.startswith("vit_"):
        options = {"image_size": side}
    if name.startswith("maxvit"):
        options = {"input_size": (side, side)}
    try:
        return models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:
        raise UserError(f"{name} cannot take images of {side} x {side} pixels: {error}") from error


def strip_classifier(model, name="the model"):
    """Remove the classifier in place -> its attribute's name.

    It is the last child that has parameters. Of a sequence, what stands before the first Linear or Conv2d stays
    (norms, pooling), but for dropout: AlexNet's, VGG's and MobileNetV3's hidden layers are the classifier's.
    """
    head = [key for key, child in model.named_children() if any(True for _ in child.parameters())][-1]
    classifier = getattr(model, head)
    layers = list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, (nn.Linear, nn.Conv2d))), None)
    if first is None:
        raise UserError(f"{name} does not end in a classifier: its last part, {head}, is a {type(classifier).__name__}")
    setattr(model, head, nn.Sequential(*(layer for layer in layers[:first] if not isinstance(layer, nn.Dropout))))
    if isinstance(layers[first], nn.Conv2d) and not hasattr(model, "avgpool"):
        getattr(model, head).append(nn.AdaptiveAvgPool2d(1))  # SqueezeNet pools its classes, not its features
    return head


def _fit(state, model, side):
    """Names and position table as the model has them: DenseNet's files are older than its code."""
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value for key, value in state.items()}
    if isinstance(model, VisionTransformer) and "encoder.pos_embedding" in state:
        return dict(interpolate_embeddings(side, model.patch_size, state))
    return state
