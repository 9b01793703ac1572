"""Layers by structure, for towers whose depths and first and last parts are known."""

import pytest
import timm
import torch
from open_clip import get_model_config
from open_clip.model import _build_text_tower
from torch import nn

from clip_vl.models.dual.layers import layer_of_parameters
from clip_vl.models.towers.image import build_image_tower


def build(builder, name):
    with torch.device("meta"):
        return build_image_tower(builder, name)


# tower, L, and for some parameters their layer
IMAGES = [
    ("clip", "ViT-B-32", 12, {"class_embedding": 0, "positional_embedding": 0, "conv1.weight": 0, "ln_pre.bias": 0,
                              "transformer.resblocks.0.ln_1.weight": 1, "transformer.resblocks.11.mlp.c_fc.bias": 12,
                              "ln_post.weight": 13, "proj": 13}),
    ("clip", "RN50", 16, {"conv3.weight": 0, "layer1.0.conv1.weight": 1, "layer2.0.downsample.0.weight": 4,
                          "layer4.2.bn3.bias": 16, "attnpool.c_proj.weight": 17, "attnpool.positional_embedding": 17}),
    ("clip", "RN-tiny", 4, {"conv1.weight": 0, "layer1.0.conv1.weight": 1, "layer4.0.conv1.weight": 4,
                            "attnpool.q_proj.bias": 5}),
    ("openclip", "ViT-B-32", 12, {"model.class_embedding": 0, "model.transformer.resblocks.3.ln_1.bias": 4,
                                  "model.proj": 13}),
    ("torchvision", "resnet18", 8, {"model.conv1.weight": 0, "model.layer1.1.bn2.bias": 2,
                                    "model.layer4.1.conv2.weight": 8}),
    ("torchvision", "vit_b_16", 12, {"model.conv_proj.weight": 0, "model.class_token": 0,
                                     "model.encoder.pos_embedding": 0, "model.encoder.ln.weight": 13,
                                     "model.encoder.layers.encoder_layer_0.ln_1.bias": 1}),
    ("torchvision", "convnext_tiny", 18, {"model.features.0.0.weight": 0, "model.features.1.0.layer_scale": 1,
                                          "model.features.2.1.weight": 4, "model.features.7.2.layer_scale": 18,
                                          "model.classifier.0.weight": 19}),
    ("torchvision", "swin_t", 12, {"model.features.2.reduction.weight": 3, "model.norm.weight": 13}),
    ("torchvision", "mobilenet_v3_large", 15, {"model.features.15.block.3.0.weight": 15}),
    ("torchvision", "vgg11", 8, {"model.features.0.weight": 1, "model.features.18.bias": 8}),  # no blocks at all
]  # fmt: skip


@pytest.mark.parametrize("builder, name, L, known", IMAGES, ids=[f"{b}-{n}" for b, n, _, _ in IMAGES])
def test_layers_of_image_towers(builder, name, L, known):
    tower = build(builder, name)
    layers, found = layer_of_parameters(tower)
    assert found == L and set(layers) == {key for key, _ in tower.named_parameters()}
    assert {key: layers[key] for key in known} == known
    assert set(range(1, L + 1)) <= set(layers.values()) <= set(range(L + 2))


@pytest.mark.parametrize("name, L, known", [
    ("vit_tiny_patch16_224", 12, {"cls_token": 0, "patch_embed.proj.bias": 0,
                                  "blocks.11.norm1.bias": 12, "norm.bias": 13}),
    ("convnext_atto", 12, {"stem.0.weight": 0, "stages.1.downsample.1.weight": 3, "head.norm.weight": 13}),
    ("swin_tiny_patch4_window7_224", 12, {"layers.0.blocks.1.norm1.bias": 2, "layers.1.downsample.norm.bias": 3}),
])  # fmt: skip
def test_layers_of_timms(name, L, known):
    layers, found = layer_of_parameters(timm.create_model(name, num_classes=0))
    assert found == L and {key: layers[key] for key in known} == known


class Wrapper(nn.Module):
    """A text tower around a library's model, with a parameter of its own."""

    def __init__(self, model):
        super().__init__()
        self.model, self.prompt = model, nn.Parameter(torch.zeros(4, 8))


def test_layers_of_bert_under_a_wrapper():
    """Embeddings far larger than the layers, as in small BERTs, hide nothing."""
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    layers, found = layer_of_parameters(Wrapper(BertModel(BertConfig(**shape))))
    known = {"prompt": 0, "model.embeddings.word_embeddings.weight": 0, "model.embeddings.LayerNorm.bias": 0,
             "model.encoder.layer.0.attention.self.query.weight": 1, "model.encoder.layer.2.output.dense.bias": 3,
             "model.pooler.dense.weight": 4}  # fmt: skip
    assert found == 3 and {key: layers[key] for key in known} == known


def test_layers_of_open_clips_text_tower():
    config = get_model_config("ViT-S-32")
    with torch.device("meta"):
        layers, found = layer_of_parameters(_build_text_tower(config["embed_dim"], config["text_cfg"]))
    known = {"token_embedding.weight": 0, "positional_embedding": 0, "transformer.resblocks.0.ln_1.bias": 1,
             "ln_final.weight": 13, "text_projection": 13}  # fmt: skip
    assert found == 12 and {key: layers[key] for key in known} == known


def test_an_embedding_registered_after_the_layers_is_at_the_input():
    """CLIP registers its token embedding after its transformer."""
    tower = nn.Module()
    tower.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2))
    tower.token_embedding, tower.norm = nn.Embedding(5, 8), nn.LayerNorm(8)
    layers, found = layer_of_parameters(tower)
    assert found == 2 and layers["token_embedding.weight"] == 0 and layers["norm.bias"] == 3
