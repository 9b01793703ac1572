"""Published weights are found where libraries keep them, never fetched, and never taken for another model's."""

import pytest

from clip_vl.engine.errors import UserError
from clip_vl.models.loading.pretrained_files import openclip_file, published_file

FILES = ("model.safetensors", "pytorch_model.bin")


def test_the_hubs_cache_is_searched(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").touch()
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    assert published_file("it", tmp_path, tmp_path, hub="owner/name", files=FILES) == snapshot / "pytorch_model.bin"


def test_a_hub_file_without_its_repositorys_folder_is_not_taken(tmp_path):
    """All repositories name their files alike: a bare one may be any model's."""
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=rf"put model.safetensors of https://.*owner/name at {tmp_path}/name/model"):
        published_file("it", "/nowhere", tmp_path, hub="owner/name", files=FILES)
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / "model.safetensors").touch()
    assert published_file("it", "/nowhere", tmp_path, hub="owner/name", files=FILES).parent.name == "name"


def test_open_clips_tags_lead_to_their_files(tmp_path):
    (tmp_path / "CLIP-ViT-B-32-laion2B-s34B-b79K").mkdir()
    file = tmp_path / "CLIP-ViT-B-32-laion2B-s34B-b79K" / "open_clip_pytorch_model.bin"
    file.touch()
    assert openclip_file("ViT-B-32", "laion2b_s34b_b79k", tmp_path) == file
