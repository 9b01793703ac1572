"""A trained dual encoder goes to open_clip and transformers and comes back, through files, as a user does it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.images.crops import EvalCrop
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import UserError
from clip_vl.models.clip.tokenizer import ClipTokenizer
from clip_vl.models.dual.build import build_dual_encoder
from clip_vl.models.dual.settings import dual_settings
from clip_vl.models.dual.spec import LossNeeds, dual_spec, flags_of
from clip_vl.models.loading.export import write_clip
from clip_vl.models.loading.processor import image_processor, pixels_of_processor, transformers_tokenizer
from clip_vl.models.loading.settings import as_record, read_settings
from clip_vl.models.towers.pixels import Pixels

TOWERS = ["--image_model", "ViT-tiny", "--text_model", "ViT-tiny", "--image_resolution", "48"]


@pytest.fixture(scope="module")
def trained(programs, tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("clip"), np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(root / f"{number}.png")
    (root / "pairs.csv").write_text("filepath,title\n" + "".join(f"{i}.png,a picture {i}\n" for i in range(4)))
    data = ["--train_data", root / "pairs.csv", "--valid_data", root / "pairs.csv", "--batch_size", "4"]
    how = ["--epochs", "1", "--precision", "fp32", "--datasets_dir", root, "--output", root / "run"]
    programs.run("align", *TOWERS, *data, *how)
    return root / "run" / "epoch_1.pt"


@pytest.mark.parametrize("target", ["clip", "open_clip.pt"])
def test_there_and_back_is_the_same_to_the_bit(programs, trained, tmp_path, target):
    programs.run("convert", trained, tmp_path / target)
    programs.run("convert", tmp_path / target, tmp_path / "back.pt")
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (trained, tmp_path / "back.pt"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    card = tmp_path / "clip" / "README.md" if target == "clip" else tmp_path / "open_clip.md"
    assert "| loss | InfoNCE |" in card.read_text() and "text to image recall@1" in card.read_text()


def test_transformers_opens_the_folder_and_gives_our_logits(programs, trained, tmp_path):
    from transformers import CLIPImageProcessor, CLIPModel

    from clip_vl.models.dual.build import open_dual_encoder

    programs.run("convert", trained, tmp_path / "clip")
    spec = dual_spec(read_settings(trained).values | {"load": str(trained)})
    ours, theirs = open_dual_encoder(spec, "cpu"), CLIPModel.from_pretrained(tmp_path / "clip").eval()
    picture = Image.open(trained.parent.parent / "0.png")
    pixels = CLIPImageProcessor.from_pretrained(tmp_path / "clip")(picture, return_tensors="pt")["pixel_values"]
    same = (torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255 - ours.mean) / ours.std
    assert torch.allclose(pixels, same, atol=1e-5)
    ids = ours.tokenizer(["a picture 0", "something much longer than that"])["input_ids"]
    with torch.no_grad():
        found = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits_per_image
        expected = ours.logit_scale.exp() * ours.encode_image(pixels) @ ours.encode_text(ids).T
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture
def small(tmp_path):
    """(model, its file): two transformers over 48 pixels, WordPiece of a few words, squashed images, QuickGELU."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "red"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    spec = dual_spec({"image_model": "ViT-tiny", "text_model": "ViT-tiny", "image_resolution": 48,
                      "text_vocab": str(tmp_path), "max_seq_length": 8, "force_quick_gelu": True})  # fmt: skip
    model = build_dual_encoder(spec, LossNeeds(scale=True)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    settings = dual_settings(flags_of(spec) | {"image_crop": "squash", "loss": "InfoNCE"}, model)
    save_plain(tmp_path / "epoch_1.pt", {"state_dict": model.state_dict()}, as_record(settings))
    return model, tmp_path / "epoch_1.pt"


@torch.no_grad()
def test_clip_processor_and_clip_model_give_our_features(small, tmp_path):
    """From the folder alone: its pixels of an oblong image, its ids of texts, and the features of both."""
    from transformers import CLIPModel, CLIPProcessor

    model, path = small
    write_clip(path, tmp_path / "clip")
    processor, other = CLIPProcessor.from_pretrained(tmp_path / "clip"), CLIPModel.from_pretrained(tmp_path / "clip")
    image = Image.fromarray((np.indices((64, 90)).sum(0)[..., None] * [1, 1.2, 0.5]).astype(np.uint8))
    texts = ["a red cat", "Dog, a dog a dog a dog a dog"]
    inputs = processor(text=texts, images=image, return_tensors="pt", padding=True, truncation=True)
    ids = model.tokenizer(texts)["input_ids"]
    assert torch.equal(inputs["input_ids"], ids) and ids[0].tolist()[:5] == [2, 5, 8, 6, 3]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    ours = model.encode_image(EvalCrop(48, crop="squash")(buffer.getvalue())[None])
    theirs = other.eval()(**inputs)
    assert torch.nn.functional.cosine_similarity(theirs.image_embeds, ours).item() > 0.9999
    assert torch.allclose(theirs.text_embeds, model.encode_text(ids), atol=1e-5)
    card = (tmp_path / "clip" / "README.md").read_text()
    assert "WordPiece over 9 words" in card and "squash" in card and "CLIPProcessor.from_pretrained" in card


def test_byte_pairs_are_exported_with_their_tokenizer():
    ours = ClipTokenizer(16)
    theirs = transformers_tokenizer(ours)
    texts = ["A photo of a cat's 2 hats.", "naïve façade — £5", "one two three four five six seven eight nine ten " * 3]
    found = theirs(texts, truncation=True)["input_ids"]
    assert found == [[i for i in row if i] for row in ours(texts)["input_ids"].tolist()]


@pytest.mark.parametrize("target", ["clip", "open_clip.pt"])
def test_settings_survive_the_way_there_and_back(programs, small, tmp_path, target):
    _, path = small
    (tmp_path / "away").mkdir()
    write_clip(path, tmp_path / "away" / target)
    programs.run_here("convert", tmp_path / "away" / target, tmp_path / "away" / "back.pt")
    back = torch.load(tmp_path / "away" / "back.pt", weights_only=True)["state_dict"]
    assert back["quick_gelu"].tolist() == [1, 1]
    assert read_settings(tmp_path / "away" / "back.pt").values == read_settings(path).values
    if target == "clip":  # as transformers would save it again, without our metadata
        from safetensors.torch import load_file, save_file

        weights = tmp_path / "away" / "clip" / "model.safetensors"
        save_file(load_file(weights), weights, {"format": "pt"})
        programs.run_here("convert", tmp_path / "away" / "clip", tmp_path / "away" / "again.pt")
        found = read_settings(tmp_path / "away" / "again.pt").values
        assert found["quick_gelu"] == [1, 1] and found["pixels"] == read_settings(path).values["pixels"]


@pytest.mark.parametrize("pixels, size", [
    (Pixels(48, crop="squash"), {"height": 48, "width": 48}),
    (Pixels(48, (0.5,) * 3, (0.5,) * 3, "bilinear", short_side=54), {"shortest_edge": 54}),
])  # fmt: skip
def test_a_processor_says_what_the_tower_expects(pixels, size):
    config = image_processor(pixels)
    assert config["size"] == size and config["do_center_crop"] == (pixels.crop != "squash")
    assert config["resample"] == {"bicubic": 3, "bilinear": 2}[pixels.interpolation]
    back = pixels_of_processor(config)
    assert (back.resolution, back.crop, tuple(back.mean)) == (48, pixels.crop, pixels.mean)
    with pytest.raises(UserError, match="cannot pad"):
        image_processor(Pixels(48, crop="pad"))


def test_bad_targets_get_one_sentence(programs, trained, tmp_path):
    with pytest.raises(UserError, match="a dual encoder becomes"):
        programs.run_here("convert", trained, tmp_path / "model.safetensors")
    torch.save(torch.load(trained, weights_only=True), tmp_path / "lost.pt")
    with pytest.raises(UserError, match=r"no args\.json is there"):
        programs.run_here("convert", tmp_path / "lost.pt", tmp_path / "clip")
    programs.run("convert", trained, tmp_path / "open_clip.pt")
    with pytest.raises(UserError, match="for --load"):
        programs.run_here("convert", tmp_path / "open_clip.pt", tmp_path / "clip.pth")
