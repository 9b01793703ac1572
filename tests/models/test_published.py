"""Published checkpoints by their names and shapes: CLIP-ViL's three and LXMERT's, pre-trained and fine-tuned.

The files made here have every name and shape of the published ones and one number of storage per tensor, so they take
kilobytes; the models that take them in lie on the meta device, where a shape is all there is.
"""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from clip_vl.datasets.lxmert.answers import AnswerTable
from clip_vl.engine.errors import UserError
from clip_vl.models.clip.grid import GRID_ENCODERS
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.build import build_classifier, build_encoder, pooler_has_tanh
from clip_vl.models.fused.checkpoints import load_answer_head, read_checkpoint
from clip_vl.models.fused.encoder import VLPretrainer
from clip_vl.models.fused.heads import answer_layers
from clip_vl.models.loading.weights import load_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*meta parameter.*:UserWarning")  # copying there does nothing



@pytest.fixture(autouse=True)
def expanded_tensors(monkeypatch):
    """Other files may not hold tensors whose elements share memory."""
    monkeypatch.setattr("clip_vl.models.loading.pickled_tensors.refuse_overlap", lambda size, stride: None)


WIDTH, WORDS = 768, 30522
REGION_HEADS = {"obj": 1600, "attr": 400, "feat": 2048}
TOWERS = {  # blocks per stage, stem width, cells of the native input, CLIP's embedding, text width
    "RN50": ((3, 4, 6, 3), 64, 49, 1024, 512),
    "RN101": ((3, 4, 23, 3), 64, 49, 512, 512),
    "RN50x4": ((4, 6, 10, 6), 80, 81, 640, 640),
}


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name, width=WIDTH):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name, width):
    return norm(name, width) | {f"{name}.running_mean": (width,), f"{name}.running_var": (width,),
                                f"{name}.num_batches_tracked": ()}  # fmt: skip


def attention(name):
    found = {}
    for part in ("query", "key", "value"):
        found |= linear(f"{name}.{part}", WIDTH, WIDTH)
    return found


def output(name, width=WIDTH):
    return linear(f"{name}.dense", WIDTH, width) | norm(f"{name}.LayerNorm")


def bert_layer(name):
    return (
        attention(f"{name}.attention.self")
        | output(f"{name}.attention.output")
        | linear(f"{name}.intermediate.dense", 3072, WIDTH)
        | output(f"{name}.output", 3072)
    )


def cross_layer(name):
    shapes = attention(f"{name}.visual_attention.att") | output(f"{name}.visual_attention.output")
    for stream in ("lang", "visn"):
        shapes |= attention(f"{name}.{stream}_self_att.self") | output(f"{name}.{stream}_self_att.output")
        shapes |= linear(f"{name}.{stream}_inter.dense", 3072, WIDTH) | output(f"{name}.{stream}_output", 3072)
    return shapes


def encoder_shapes(visual_dim, **stacks):
    """Embeddings, pooler, visual embedding and layers; stacks: how many of layer, x_layers and r_layers."""
    shapes = norm("bert.embeddings.LayerNorm")
    for kind, rows in (("word", WORDS), ("position", 512), ("token_type", 2)):
        shapes[f"bert.embeddings.{kind}_embeddings.weight"] = (rows, WIDTH)
    for stack, count in stacks.items():
        for i in range(count):
            shapes |= (cross_layer if stack == "x_layers" else bert_layer)(f"bert.encoder.{stack}.{i}")
    for part, columns in (("visn", visual_dim), ("box", 4)):
        shapes |= linear(f"bert.encoder.visn_fc.{part}_fc", WIDTH, columns)
        shapes |= norm(f"bert.encoder.visn_fc.{part}_layer_norm")
    return shapes | linear("bert.pooler.dense", WIDTH, WIDTH)


def pretraining_heads():
    return (
        linear("cls.predictions.transform.dense", WIDTH, WIDTH)
        | norm("cls.predictions.transform.LayerNorm")
        | {"cls.predictions.bias": (WORDS,), "cls.predictions.decoder.weight": (WORDS, WIDTH)}
        | linear("cls.seq_relationship", 2, WIDTH)
    )


def answer_head(name, answers):
    return (
        linear(f"{name}.0", 2 * WIDTH, WIDTH) | norm(f"{name}.2", 2 * WIDTH) | linear(f"{name}.3", answers, 2 * WIDTH)
    )


def resnet(blocks, width, cells, embedding, text):
    """All of CLIP's model as it lies in the checkpoints: the tower, its attention pool, and the text tower."""
    visual, C = "visual.", width
    shapes = {"visual.conv1.weight": (width // 2, 3, 3, 3), "visual.conv2.weight": (width // 2, width // 2, 3, 3),
              "visual.conv3.weight": (width, width // 2, 3, 3)}  # fmt: skip
    for number, channels in enumerate((width // 2, width // 2, width), start=1):
        shapes |= batch_norm(f"visual.bn{number}", channels)
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for i in range(count):
            block = f"{visual}layer{stage + 1}.{i}."
            kernels = ((inner, C, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1))
            for number, kernel in enumerate(kernels, start=1):
                shapes[f"{block}conv{number}.weight"] = kernel
                shapes |= batch_norm(f"{block}bn{number}", kernel[0])
            if i == 0:
                shapes[f"{block}downsample.0.weight"] = (4 * inner, C, 1, 1)
                shapes |= batch_norm(f"{block}downsample.1", 4 * inner)
            C = 4 * inner
    shapes["visual.attnpool.positional_embedding"] = (cells + 1, C)
    for part in "kqvc":
        shapes |= linear(f"visual.attnpool.{part}_proj", embedding if part == "c" else C, C)
    shapes |= {"positional_embedding": (77, text), "text_projection": (text, embedding), "logit_scale": (),
               "token_embedding.weight": (49408, text)}  # fmt: skip
    shapes |= norm("ln_final", text)
    for i in range(12):
        block = f"transformer.resblocks.{i}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * text, text), f"{block}attn.in_proj_bias": (3 * text,)}
        shapes |= linear(f"{block}attn.out_proj", text, text) | norm(f"{block}ln_1", text) | norm(f"{block}ln_2", text)
        shapes |= linear(f"{block}mlp.c_fc", 4 * text, text) | linear(f"{block}mlp.c_proj", text, 4 * text)
    return {f"bert.encoder.visual_model.{name}": shape for name, shape in shapes.items()}


def clip_vil(name):
    """Names and shapes of a second-stage checkpoint."""
    blocks, width, *rest = TOWERS[name]
    C = 32 * width
    positions = {f"bert.encoder.visual_pos.{axis}_position_embedding.weight": (25, C) for axis in "xy"}
    return (
        encoder_shapes(C, layer=12) | positions | pretraining_heads() | resnet(blocks, width, *rest)
        | answer_head("answer_head.logit_fc", 9500)
    )  # fmt: skip


def lxmert():
    """Names and shapes of LXMERT's model_LXRT.pth."""
    heads = output("obj_predict_head.transform")
    for name, rows in REGION_HEADS.items():
        heads |= linear(f"obj_predict_head.decoder_dict.{name}", rows, WIDTH)
    stacks = encoder_shapes(2048, layer=9, x_layers=5, r_layers=5)
    return stacks | pretraining_heads() | heads | answer_head("answer_head.logit_fc", 9500)


def write(path, shapes, prefix=""):
    """A checkpoint of these names and shapes in which every tensor repeats one number."""
    torch.save({prefix + name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture(scope="module")
def bert_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "config.json").write_text(json.dumps({"vocab_size": WORDS}))
    return folder


def arguments(bert, **more):
    """Flags that ask for something else than the checkpoints hold."""
    asked = {"llayers": 1, "xlayers": 0, "rlayers": 0, "visualbert_style": True, "clip_model_name": "RN50x16",
             "bert": str(bert), "data_root": "", "input_raw_images": True, "use_positional_embedding": False,
             "pos_num": 25, "sub_sampling": False, "use_max_pooling": False, "bn_mode": "train", "freeze_clip": False,
             "checkpoint_backbone": False, "features": None, "region_dim": 2048, "drop_boxes": False,
             "allow_partial": False, "random_init": True, "from_scratch": False, "load": None, "load_lxmert": None,
             "load_lxmert_qa": None, "pooler_tanh": None}  # fmt: skip
    return SimpleNamespace(**asked | more)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name, names", [("RN50", 712), ("RN101", 1018), ("RN50x4", 892)])
def test_every_name_of_clip_vils_checkpoints_has_its_place_or_is_known_to_have_none(
    bert_base, tmp_path, name, names, prefix
):
    shapes = clip_vil(name)
    assert len(shapes) == names
    write(tmp_path / "Epoch11_LXRT.pth", shapes, prefix)
    state, path = read_checkpoint(tmp_path / "Epoch11")
    with torch.device("meta"):
        encoder = build_encoder(arguments(bert_base), state)
        model = VLPretrainer(encoder, num_answers=9500)
    assert encoder.grid == GRID_ENCODERS[name] and len(encoder.encoder.layer) == 12
    assert load_weights(model, state, source=path) == ""
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert own.items() <= shapes.items()
    unused = (
        r"visual_model\.(visual\.attnpool|transformer|ln_final|token|text|logit|positional)|box_|predictions.decoder"
    )
    assert all(re.search(unused, key) for key in shapes.keys() - own.keys())


@pytest.mark.parametrize(
    "missing", ["bert.encoder.layer.3.output.dense.weight", "bert.encoder.visual_model.visual.conv1.weight"]
)
def test_one_missing_name_is_named(bert_base, tmp_path, missing):
    write(tmp_path / "Epoch11_LXRT.pth", {name: shape for name, shape in clip_vil("RN50").items() if name != missing})
    args = arguments(bert_base, load_lxmert=tmp_path / "Epoch11")
    with torch.device("meta"), pytest.raises(UserError, match=f"{missing.removeprefix('bert.')} +missing"):
        build_classifier(3129, torch.device("meta"), args)


LXMERT_ASKED = {"input_raw_images": False, "features": "boxes.tsv"}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("flag", ["load_lxmert", "load_lxmert_qa"])
def test_lxmerts_own_file_gives_its_two_streams_under_its_stem(bert_base, tmp_path, prefix, flag):
    write(tmp_path / "model_LXRT.pth", lxmert(), prefix)
    args = arguments(bert_base, **LXMERT_ASKED | {flag: tmp_path / "model"})
    with torch.device("meta"):
        model, state, path = build_classifier(3129, torch.device("meta"), args)
        assert load_weights(VLPretrainer(model.bert, 9500, REGION_HEADS), state, source=path) == ""
    stacks = model.bert.encoder
    assert (len(stacks.layer), len(stacks.x_layers), len(stacks.r_layers)) == (9, 5, 5) and stacks.use_boxes
    assert model.bert.pooler.tanh


def two_stream_states():
    """Names of the files of two-stream models: CLIP-ViL's code writes weights for boxes that it never uses."""
    boxes = dict.fromkeys(encoder_shapes(2048, layer=9, x_layers=5, r_layers=5))
    plain = {name: None for name in boxes if "box_" not in name}
    return {"clip_vil": boxes | dict.fromkeys(resnet(*TOWERS["RN50"])), "lxmert": boxes, "plain": plain}


@pytest.mark.parametrize("asked, expected", [(None, None), (True, True), (False, False)])
@pytest.mark.parametrize("file, raw_images, tanh", [
    ("clip_vil", True, False), ("clip_vil", False, False), ("lxmert", False, True), ("lxmert", True, True),
    ("plain", True, False), ("plain", False, True), (None, True, False), (None, False, True),
])  # fmt: skip
def test_the_pooler_of_two_streams_has_the_tanh_of_its_family(file, raw_images, tanh, asked, expected):
    """CLIP-ViL's modeling.py leaves the activation out in every model, LXMERT's has it; grids are CLIP-ViL's."""
    state = two_stream_states().get(file)
    assert pooler_has_tanh(state, 5, raw_images, asked) is (tanh if expected is None else expected)
    assert pooler_has_tanh(state, 0, raw_images) is False


def test_a_two_stream_checkpoint_of_clip_vil_pools_without_tanh(bert_base):
    shapes = encoder_shapes(2048, layer=9, x_layers=5, r_layers=5) | resnet(*TOWERS["RN50"])
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        encoder = build_encoder(arguments(bert_base), state)
        asked = build_encoder(arguments(bert_base, pooler_tanh=True), state)
    assert len(encoder.encoder.x_layers) == 5 and not encoder.pooler.tanh and asked.pooler.tanh


@pytest.mark.parametrize("inside", ["lxrt_encoder.model.bert.", "lxrt_encoder.model.module.bert."])
@pytest.mark.parametrize("outside", ["", "module."])
def test_a_fine_tuned_lxmert_loads_from_one_and_several_gpus(bert_base, tmp_path, inside, outside):
    encoder = encoder_shapes(2048, layer=9, x_layers=5, r_layers=5)
    shapes = {name.replace("bert.", inside, 1): shape for name, shape in encoder.items()}
    write(tmp_path / "BEST.pth", shapes | answer_head("logit_fc", 3129), outside)
    args = arguments(bert_base, **LXMERT_ASKED, load=tmp_path / "BEST")
    with torch.device("meta"):
        model, _, _ = build_classifier(3129, torch.device("meta"), args)
    assert len(model.state_dict()) == len(shapes) + 6
    with torch.device("meta"), pytest.raises(UserError, match=r"logit_fc.3.bias +\(3129,\) +\(1842,\)"):
        build_classifier(1842, torch.device("meta"), args)


def test_names_of_the_first_berts_are_understood(bert_base, tmp_path):
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    shapes = {re.sub("|".join(old), lambda m: old[m[0]], name): shape for name, shape in lxmert().items()}
    assert sum("gamma" in name for name in shapes) > 40
    write(tmp_path / "model_LXRT.pth", shapes)
    with torch.device("meta"):
        build_classifier(3, torch.device("meta"), arguments(bert_base, **LXMERT_ASKED, load_lxmert=tmp_path / "model"))


@pytest.mark.parametrize("stem", ["BEST", "BEST_LXRT", "BEST.pth"])
@pytest.mark.parametrize("name", ["BEST.pth", "BEST_LXRT.pth"])
def test_either_name_of_a_file_is_found_by_its_stem(tmp_path, stem, name):
    write(tmp_path / name, {"x": (2,)})
    if stem == "BEST.pth" != name:
        with pytest.raises(UserError, match="no checkpoint"):
            read_checkpoint(tmp_path / stem, ".pth")
    else:
        assert read_checkpoint(tmp_path / stem, ".pth")[1] == tmp_path / name


@pytest.mark.parametrize("task, answers, found", [("vqa", 3129, 3124), ("gqa", 1842, 1736)])
def test_each_answer_takes_the_row_of_its_text_and_the_unknown_ones_zeros(real_data, task, answers, found):
    folder = real_data / "probes" / "lxmert"
    table = AnswerTable(folder / "all_ans.json")
    labels = json.loads((folder / f"{task}_trainval_label2ans.json").read_text())
    config = BertConfig(hidden_size=4)
    state = {
        f"answer_head.logit_fc.{name}": tensor for name, tensor in answer_layers(config, 9500).state_dict().items()
    }
    state["answer_head.logit_fc.3.bias"] = torch.arange(1, 9501).float()  # each row says which it is
    head = answer_layers(config, answers)
    assert load_answer_head(head, state, "model_LXRT.pth", labels, table, folder / "all_ans.json") == found
    rows = head[3].bias.long().tolist()
    assert rows.count(0) == answers - found and not head[3].weight[[row == 0 for row in rows]].any()
    for label in ("yes", "red", "left"):
        assert table.answers[rows[labels.index(label)] - 1] == label
    assert torch.equal(head[0].weight, state["answer_head.logit_fc.0.weight"])
