"""The single stream against transformers' layers, and what each option of it promises."""

import re

import pytest
import torch
import transformers
from torch.nn import functional as F

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.grid import GridConfig
from clip_vl.models.clip.statistics import CLIP_MEAN, CLIP_STD
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.encoder import VLClassifier, VLEncoder, VLPretrainer
from clip_vl.models.fused.visual_tokens import VisualTower, picture_cells

CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=16,
)
GRID = GridConfig((1, 1), 8)  # stride 8, 64 channels
H, W = 32, 48  # 4 x 6 cells


def encoder(config=CONFIG, grid=GRID, **options):
    torch.manual_seed(0)
    model = VLEncoder(config, grid, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batch(B=3):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (B, 3, H, W), dtype=torch.uint8, generator=generator)
    input_ids = torch.randint(1, CONFIG.vocab_size, (B, 7), generator=generator)
    attention_mask = (torch.arange(7) < torch.tensor([7, 4, 5])[:B, None]).long()
    return images, input_ids * attention_mask, attention_mask


def reference_layers(model):
    """transformers' BertLayers with our encoder's weights."""
    config = transformers.BertConfig(**vars(CONFIG), attn_implementation="eager")
    layers = [transformers.models.bert.modeling_bert.BertLayer(config).eval() for _ in model.encoder.layer]
    for theirs, ours in zip(layers, model.encoder.layer):
        theirs.load_state_dict(ours.state_dict(), strict=True)
    return layers


def reference_stream(model, images, input_ids, attention_mask):
    """[text ; LN(Linear(grid + row + column))] through transformers' layers, written from the paper's description."""
    stream = model.encoder
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    pixels = (images.permute(0, 2, 3, 1) / 255 - mean) / std
    grid = stream.visual_model.visual(pixels.permute(0, 3, 1, 2).contiguous())  # (B, C, 4, 6)
    position = stream.visual_pos
    for row in range(grid.shape[2]):
        for column in range(grid.shape[3]):
            both = position.x_position_embedding.weight[row] + position.y_position_embedding.weight[column]
            grid[:, :, row, column] += both
    cells = grid.flatten(2).transpose(1, 2)
    projection, norm = stream.visn_fc.visn_fc, stream.visn_fc.visn_layer_norm
    visual = F.layer_norm(F.linear(cells, projection.weight, projection.bias), (48,), norm.weight, norm.bias, 1e-12)
    x = torch.cat([model.embeddings(input_ids), visual], dim=1)
    keep = torch.cat([attention_mask, torch.ones(cells.shape[:2], dtype=torch.int64)], dim=1)
    mask = (1.0 - keep[:, None, None, :]) * -10000.0
    for layer in reference_layers(model):
        x = layer(x, attention_mask=mask)
        x = x[0] if isinstance(x, tuple) else x
    return x


@torch.no_grad()
def test_the_single_stream_agrees_with_transformers_layers_on_concatenated_embeddings():
    model = encoder(positional_embedding=True)
    inputs = batch()
    text_states, visual_states, pooled = model(*inputs)
    expected = reference_stream(model, *inputs)
    assert torch.allclose(torch.cat([text_states, visual_states], dim=1), expected, atol=1e-5)
    assert torch.allclose(pooled, model.pooler.dense(expected[:, 0]), atol=1e-5)


@torch.no_grad()
def test_pixels_are_normalised_as_clip_does():
    images = batch()[0]
    seen = []
    tower = VisualTower(GRID)
    tower.visual.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tower(images)
    expected = (images / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    assert torch.allclose(seen[0], expected, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_padded_words_influence_nothing():
    model = encoder()
    images, input_ids, attention_mask = batch()
    changed = torch.where(attention_mask == 1, input_ids, 9)
    before, after = model(images, input_ids, attention_mask), model(images, changed, attention_mask)
    kept = attention_mask.bool()
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[0][kept], after[0][kept])
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])


@torch.no_grad()
def test_cells_outside_the_picture_influence_nothing_once_boxes_are_given(monkeypatch):
    model = encoder(positional_embedding=True)
    images, input_ids, attention_mask = batch()
    boxes = torch.tensor([[8, 0, 16, 48]] * 3)  # rows 1 and 2 of 4
    outside = ~picture_cells(boxes, 4, 6, 8)[0].view(4, 6)
    plain = model(images, input_ids, attention_mask, image_boxes=boxes)
    grid_features = model.encoder.visual_model(images)
    grid_features[:, :, outside] = 1e3
    monkeypatch.setattr(model.encoder.visual_model, "forward", lambda images: grid_features)
    changed = model(images, input_ids, attention_mask, image_boxes=boxes)
    inside = ~outside.flatten()
    assert torch.equal(plain[0], changed[0]) and torch.equal(plain[2], changed[2])
    assert torch.equal(plain[1][:, inside], changed[1][:, inside])
    assert not torch.allclose(changed[0], model(images, input_ids, attention_mask)[0])


def test_a_cell_belongs_to_the_picture_when_they_overlap():
    box = torch.tensor([[9, 0, 7, 17]])  # rows 9-15, columns 0-16 of 32 x 32 pixels
    expected = [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert picture_cells(box, 4, 4, 8).view(4, 4).long().tolist() == expected


@torch.no_grad()
def test_sharing_an_image_equals_repeating_it():
    model = encoder(positional_embedding=True)
    images, input_ids, attention_mask = batch()
    image_of_text, boxes = torch.tensor([1, 0, 1]), torch.tensor([[0, 0, 32, 48], [0, 8, 32, 32]])
    shared = model(images[:2], input_ids, attention_mask, image_of_text, boxes)
    repeated = model(images[image_of_text], input_ids, attention_mask, None, boxes[image_of_text])
    for ours, theirs in zip(shared, repeated):
        assert torch.allclose(ours, theirs, atol=1e-5)


def tokens_with_numbered_cells(model, monkeypatch, B=3):
    """What the stream receives when cell c of image n is the constant 100 n + c and nothing is projected."""
    numbers = 100 * torch.arange(B).view(B, 1, 1, 1) + torch.arange(24).view(1, 1, 4, 6)
    monkeypatch.setattr(model.encoder.visual_model, "forward", lambda _: numbers.float().expand(-1, 64, -1, -1))
    monkeypatch.setattr(model.encoder.visn_fc, "forward", lambda cells: cells)
    monkeypatch.setattr(model.encoder.dropout, "forward", lambda tokens: tokens)


def test_sub_sampling_draws_distinct_cells_of_the_right_image_in_training_only(monkeypatch):
    model = encoder(sub_feat_num=10)
    tokens_with_numbered_cells(model, monkeypatch)
    image_of_text = torch.tensor([2, 0, 2])
    images = torch.zeros(3, 3, H, W)
    draws = [model.train().encoder.visual_tokens(None, images, image_of_text, None)[0][..., 0] for _ in range(2)]
    assert draws[0].shape == (3, 10)
    for row, image in zip(draws[0], image_of_text):
        assert len(row.unique()) == 10
        assert torch.equal(row // 100, image.float().expand(10))
    assert not torch.equal(draws[0].sort().values, draws[1].sort().values)
    everything = model.eval().encoder.visual_tokens(None, images, image_of_text, None)[0][..., 0]
    assert torch.equal(everything % 100, torch.arange(24.0).expand(3, 24))


def test_sub_sampling_is_uniform(monkeypatch):
    model = encoder(sub_feat_num=6)
    tokens_with_numbered_cells(model, monkeypatch, B=1)
    texts = torch.zeros(8000, dtype=torch.int64)
    drawn = model.train().encoder.visual_tokens(None, torch.zeros(1, 3, H, W), texts, None)[0][..., 0]
    counts = drawn.flatten().long().bincount(minlength=24)
    assert (counts - 2000).abs().max() < 5 * (2000 * 0.75) ** 0.5


def test_sub_sampling_prefers_cells_of_the_picture_and_masks_the_others(monkeypatch):
    model = encoder(sub_feat_num=10)
    tokens_with_numbered_cells(model, monkeypatch, B=2)
    boxes = torch.tensor([[0, 0, 8, 48], [0, 0, 32, 32]])  # 6 cells, fewer than 10; and 16 cells, more
    tokens, visible = model.train().encoder.visual_tokens(None, torch.zeros(2, 3, H, W), torch.tensor([0, 1]), boxes)
    assert visible.sum(dim=1).tolist() == [6, 10]
    assert sorted(tokens[0, visible[0], 0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_more_samples_than_cells_is_an_error_with_both_numbers():
    model = encoder(sub_feat_num=100, max_pooling=True).train()
    with pytest.raises(UserError, match=r"--sub_feat_num 100 .* 6 of the grid"):
        model(*batch())
    assert model.eval()(*batch())[1].shape == (3, 6, 48)


def test_a_grid_larger_than_the_position_table_is_an_error_with_both_numbers():
    with pytest.raises(UserError, match=r"4 x 6 cells, but only 5 positions .* raise --pos_num to 6"):
        encoder(positional_embedding=True, pos_num=5)(*batch())


@torch.no_grad()
def test_max_pooling_keeps_the_largest_of_each_two_by_two():
    model = encoder(max_pooling=True)
    images = batch()[0]
    cells, visible = model.encoder._cells(images, torch.tensor([[0, 0, 32, 16]] * 3))
    grid = model.encoder.visual_model(images)
    assert torch.equal(cells[:, 0], grid[:, :, :2, :2].amax(dim=(2, 3)))
    assert visible[0].view(2, 3).tolist() == [[True, False, False]] * 2


def test_text_alone_needs_no_image_and_builds_no_tower():
    _, input_ids, attention_mask = batch()
    model = encoder(grid=None)
    text_states, visual_states, pooled = model(None, input_ids, attention_mask)
    assert (text_states.shape, visual_states.shape, pooled.shape) == ((3, 7, 48), (3, 0, 48), (3, 48))
    assert not [name for name in model.state_dict() if "vis" in name]
    with_tower = encoder()
    with_tower.load_state_dict(model.state_dict(), strict=False)
    assert torch.allclose(with_tower(None, input_ids, attention_mask)[0], text_states, atol=1e-6)


def test_a_frozen_tower_gets_no_gradients_and_the_rest_does():
    model = encoder(freeze_visual=True, positional_embedding=True).train()
    model(*batch())[2].sum().backward()
    tower = model.encoder.visual_model.visual
    assert all(p.grad is None and not p.requires_grad for p in tower.parameters())
    assert tower.bn1.num_batches_tracked == 1  # as published: only the gradients are off
    assert all(p.grad is not None for name, p in model.named_parameters() if "visual_model" not in name)


def test_bfloat16_autocast_stays_close_and_keeps_the_stream_in_bfloat16():
    model = encoder(positional_embedding=True)
    with torch.no_grad():
        exact = model(*batch())[2]
        with torch.autocast("cpu", torch.bfloat16):
            text_states, _, pooled = model(*batch())
    assert text_states.dtype == torch.bfloat16
    assert (pooled.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_new_weights_are_berts_normal_and_the_tower_keeps_its_own():
    torch.manual_seed(0)
    model = VLPretrainer(VLEncoder(CONFIG, GRID, positional_embedding=True), num_answers=50)
    for name, parameter in model.named_parameters():
        if "visual_model" in name:
            continue
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name
        else:
            assert parameter.unique().tolist() == [1.0 if re.search(r"(Norm|norm|logit_fc\.2)\.weight", name) else 0.0]
    tower = model.bert.encoder.visual_model.visual
    assert tower.conv3.weight.std().item() == pytest.approx((2 / (9 * 8)) ** 0.5, rel=0.2)


# --- the two models -----------------------------------------------------------------------------------------------


def pretrainer(num_answers=5):
    torch.manual_seed(0)
    return VLPretrainer(VLEncoder(CONFIG, GRID, positional_embedding=True), num_answers)


def targets(masked=(), answers=()):
    mlm_targets, answer = torch.full((3, 7), -1), torch.full((3,), -1)
    for b, position, token in masked:
        mlm_targets[b, position] = token
    for b, target in answers:
        answer[b] = target
    return mlm_targets, answer


@torch.no_grad()
def test_heads_see_the_rows_with_targets_in_order():
    model = pretrainer().eval()
    inputs = batch()
    outputs = model(*inputs, *targets(masked=[(0, 2, 11), (2, 1, 12)], answers=[(1, 4)]))
    states, _, pooled = model.bert(*inputs)
    table = model.bert.embeddings.word_embeddings.weight
    words = model.cls.predictions(torch.stack([states[0, 2], states[2, 1]]), table)
    assert torch.allclose(outputs["mlm_logits"], words, atol=1e-5)
    assert outputs["mlm_targets"].tolist() == [11, 12]
    assert torch.allclose(outputs["match_logits"], model.cls.seq_relationship(pooled), atol=1e-5)
    assert torch.allclose(outputs["answer_logits"], model.answer_head(pooled[1:2]), atol=1e-5)
    assert outputs["answer_targets"].tolist() == [4]


def test_a_batch_without_targets_gives_every_parameter_a_gradient():
    model = pretrainer()
    outputs = model(*batch(), *targets())
    assert outputs["mlm_logits"].shape == (0, 60) and outputs["answer_logits"].shape == (0, 5)
    sum(outputs[name].sum() for name in ("mlm_logits", "match_logits", "answer_logits")).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    for head in (model.cls.predictions, model.answer_head):
        assert all(p.grad.abs().max() == 0 for p in head.parameters())


def test_without_answers_there_is_no_answer_head():
    model = pretrainer(num_answers=0)
    assert not [name for name in model.state_dict() if "answer" in name]
    assert set(model(*batch(), *targets())) == {"mlm_logits", "mlm_targets", "match_logits"}


def test_a_classifiers_names_are_those_of_the_fine_tuned_checkpoints():
    model = VLClassifier(encoder(), num_answers=11)
    outside = {key for key in model.state_dict() if not key.startswith("lxrt_encoder.model.bert.")}
    assert outside == {f"logit_fc.{i}.{kind}" for i in (0, 2, 3) for kind in ("weight", "bias")}
    inside = {key.removeprefix("lxrt_encoder.model.bert.") for key in model.state_dict()} - outside
    assert inside == set(encoder().state_dict())
    assert model(*batch()).shape == (3, 11)


def test_the_word_table_is_stored_once():
    state = pretrainer().state_dict()
    storages = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
    assert len(storages) == len(set(storages))
    assert not [key for key in state if "decoder" in key]
