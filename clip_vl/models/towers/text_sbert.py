"""Text towers of sentence-transformers: a folder of modules, of a transformer or of word vectors such as GloVe's."""

import copy

import torch
from torch import nn

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.models.loading.hf_files import local_folder, reading
from clip_vl.models.towers.hf_attention import cheapen_dropout, use_own_attention
from clip_vl.models.towers.hf_tokens import HuggingFaceTokenizer


def build_sbert_tower(name, *, pretrained=True, cache_dir=None, weights=None, max_length=77):
    """A local SentenceTransformer folder, always with its weights; its code, if it has some, is refused."""
    if weights:
        raise UserError("weights are not for the sbert builder: its folder holds them")
    folder = local_folder(name, cache_dir, "modules.json")
    _check(folder)
    from sentence_transformers import SentenceTransformer

    with reading(folder, "modules"):
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
    return SbertTower(model, max_length)


def _check(folder):
    """Every class that the folder names must be sentence-transformers' own: importing others would run code."""
    for path, key in (
        (folder / "modules.json", "type"),
        *((p, "tokenizer_class") for p in folder.rglob("*_config.json")),
    ):
        try:
            content = parse_json(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON ({error}); fetch it again") from error
        for entry in content if isinstance(content, list) else [content]:
            named = entry.get(key) if isinstance(entry, dict) else None
            own = named is None or str(named).startswith("sentence_transformers.")
            if not own and (key == "type" or "." in str(named)):
                raise DataError(
                    f"{path}: refused: its {key} {named!r} is code from elsewhere; only sentence_transformers' is run"
                )


class SbertTokenizer:
    """Texts to the input tensors of a first module of word vectors, padded to the batch's longest.

    It holds the module without its parameters and layers, which a loader's workers need not have.
    """

    def __init__(self, first, max_length):
        self.module, self.max_length = copy.copy(first), max_length
        self.module._parameters, self.module._modules, self.module._buffers = {}, {}, {}

    def __call__(self, texts, rng=None):
        """B texts -> dict of tensors; rng is not used."""
        preprocess = getattr(self.module, "preprocess", None) or self.module.tokenize
        encoded = preprocess(list(texts))
        return {name: torch.as_tensor(value) for name, value in encoded.items() if not isinstance(value, str)}


class SbertTower(nn.Module):
    """The modules in their order; the feature is what they call the sentence's embedding."""

    initial_logit_scale = None

    def __init__(self, model, max_length):
        super().__init__()
        first = model[0]
        self.context_length = min(max_length, getattr(first, "max_seq_length", None) or max_length)
        first.max_seq_length = self.context_length
        self.parts = nn.ModuleList(model)
        encoder = getattr(first, "auto_model", None)
        if encoder is None:
            self.tokenizer = SbertTokenizer(first, self.context_length)
        else:
            use_own_attention(cheapen_dropout(encoder))
            self.tokenizer = HuggingFaceTokenizer(
                first.tokenizer, self.context_length, getattr(first, "do_lower_case", False)
            )
        measure = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
        self.width = measure()

    def tokenize(self, texts, rng=None):
        return self.tokenizer(texts, rng)

    def forward(self, tokens):
        """tokens: dict of tensors -> (B, width), as the folder's modules leave it."""
        features = dict(tokens)
        for module in self.parts:
            features = module(features)
        return features["sentence_embedding"]
