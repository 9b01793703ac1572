"""Settings travel inside the files of weights, and a command line takes over what it leaves open."""

import pytest
import torch

from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.fused.settings import digest_of_bert, recall_fused
from clip_vl.models.loading.settings import Settings, as_metadata, as_record, read_settings, recall
from clip_vl.models.loading.state_dicts import read_state_dict

VALUES = {"image_size_min": 96, "lr": 0.5, "image_crop": None, "mask_padding": True, "odd": "\ud800é"}


@pytest.mark.parametrize("name", ["BEST.pth", "epoch_1.pt", "model.safetensors"])
def test_what_is_written_is_read_back_and_the_state_dict_stays_as_it_was(tmp_path, name):
    state = {"weight": torch.randn(3, 4), "bias": torch.arange(5)}
    if name.endswith(".safetensors"):
        from safetensors.torch import load_file, save_file

        save_file(state, tmp_path / name, metadata=as_metadata(VALUES))
        loaded = load_file(tmp_path / name)
    else:
        save_plain(tmp_path / name, state, as_record(VALUES))
        loaded = torch.load(tmp_path / name, weights_only=True)
        mapped = torch.load(tmp_path / name, weights_only=True, mmap=True)
        assert all(torch.equal(mapped[key], state[key]) for key in state)
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
    assert read_state_dict(tmp_path / name).keys() == state.keys()
    assert read_settings(tmp_path / name) == Settings(VALUES, str(tmp_path / name), True)


def test_flags_of_the_command_line_count_and_are_said():
    settings = Settings({"size": 96, "length": 20, "pooling": True, "unknown": 1}, "BEST.pth", True)
    flags = {"size": 384, "length": 30, "pooling": False}
    values, notes = recall(flags, {"length"}, settings, ("size", "length", "pooling", "absent"))
    assert values == {"size": 96, "pooling": True}
    assert notes == ["--length 30 is given, but BEST.pth was trained with 20; the flag is used"]
    assert recall(flags, {"size"}, settings._replace(values={"size": 384}), ("size",)) == ({}, [])
    with pytest.raises(DataError, match="its setting size is 'large'"):
        recall(flags, set(), settings._replace(values={"size": "large"}), ("size",))


def test_an_older_file_has_its_settings_beside_it_and_one_of_others_is_named(tmp_path, capsys):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "BEST.pth")
    flags = {"image_size_min": 384, "bert": None, "data_root": str(tmp_path)}
    assert recall_fused(tmp_path / "BEST", ".pth", flags, set(), ("image_size_min",)) == {}
    assert "BEST.pth holds no settings of its training; assumed: image_size_min 384" in capsys.readouterr().out
    (tmp_path / "args.json").write_text('{"args": {"image_size_min": 96}}')
    found = recall_fused(tmp_path / "BEST", ".pth", flags, set(), ("image_size_min",))
    assert found["image_size_min"] == 96 and "from " in capsys.readouterr().out
    (tmp_path / "args.json").write_text('{"args": 3}')
    with pytest.raises(DataError, match="does not hold the flags of a run"):
        read_settings(tmp_path / "BEST.pth")


def test_another_text_model_is_refused_unless_it_is_asked_for(tmp_path, capsys):
    for name, words in (("mine", "[PAD]\na\nb"), ("other", "[PAD]\nb\na")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text(words)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "cased").mkdir()
    for name in ("vocab.txt", "config.json"):
        (tmp_path / "cased" / name).write_bytes((tmp_path / "mine" / name).read_bytes())
    (tmp_path / "cased" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    digests = [digest_of_bert(tmp_path / name) for name in ("mine", "other", "cased", "absent")]
    assert len(set(digests)) == 4 and digests[3] is None
    settings = {"bert": str(tmp_path / "gone"), "bert_digest": digests[0]}
    save_plain(tmp_path / "BEST.pth", {"weight": torch.zeros(1)}, as_record(settings))

    def taken(folder, given=()):
        flags = {"bert": str(folder), "data_root": "data"}
        return recall_fused(tmp_path / "BEST", ".pth", flags, given, ()).get("bert", str(folder))

    assert taken(tmp_path / "mine") == str(tmp_path / "mine")
    for name in ("other", "cased"):
        with pytest.raises(UserError, match="other words, case or heads"):
            taken(tmp_path / name)
        assert taken(tmp_path / name, {"bert"}) == str(tmp_path / name)
        assert "the flag --bert is used" in capsys.readouterr().out
