"""A trained dual encoder goes to open_clip and transformers and comes back, through files, as a user does it."""

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.engine.errors import UserError

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

    from clip_vl.models.clip_files import _Towers
    from clip_vl.models.dual_build import open_dual_encoder
    from clip_vl.models.dual_flags import check_dual_flags

    programs.run("convert", trained, tmp_path / "clip")
    args = _Towers(load=str(trained))
    check_dual_flags(args)
    ours, theirs = open_dual_encoder(args, "cpu"), CLIPModel.from_pretrained(tmp_path / "clip").eval()
    picture = Image.open(trained.parent.parent / "0.png")
    pixels = CLIPImageProcessor.from_pretrained(tmp_path / "clip")(picture, return_tensors="pt")["pixel_values"]
    same = (torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255 - ours.mean) / ours.std
    assert torch.allclose(pixels, same, atol=1e-5)
    ids = ours.tokenizer(["a picture 0", "something much longer than that"])["input_ids"]
    with torch.no_grad():
        found = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits_per_image
        expected = ours.logit_scale.exp() * ours.encode_image(pixels) @ ours.encode_text(ids).T
    assert torch.allclose(found, expected, atol=1e-5)


def test_bad_targets_get_one_sentence(programs, trained, tmp_path):
    with pytest.raises(UserError, match="a dual encoder becomes"):
        programs.run_here("convert", trained, tmp_path / "model.safetensors")
    (tmp_path / "lost.pt").write_bytes(trained.read_bytes())
    with pytest.raises(UserError, match=r"args\.json is not there"):
        programs.run_here("convert", tmp_path / "lost.pt", tmp_path / "clip")
    programs.run("convert", trained, tmp_path / "open_clip.pt")
    with pytest.raises(UserError, match="for --load"):
        programs.run_here("convert", tmp_path / "open_clip.pt", tmp_path / "clip.pth")
