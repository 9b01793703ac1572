"""Texts to token ids for CLIP text towers: CLIP's byte-pair encoding, open_clip's ids exactly, and BERT's WordPiece.

Both are called with a list of str and give {"input_ids": (B, L) int64}, padded with 0 to the longest text of the list.
They pickle small, for the workers of a loader, and read their vocabulary once per process.
"""

import gzip
import html
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.text import read_lines

START, END = "<start_of_text>", "<end_of_text>"
MERGES = 49152 - 256 - 2  # what CLIP uses of its file of merges
REMEMBERED_WORDS = 1_000_000  # of the texts seen so far; then the memory starts again
WORDS = START + "|" + END + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def pad_ids(sequences):
    """B lists of ids -> (B, L) int64, padded with 0; L is the longest."""
    batch = np.zeros((len(sequences), max(map(len, sequences), default=0)), dtype=np.int64)
    for row, ids in zip(batch, sequences):
        row[: len(ids)] = ids
    return torch.from_numpy(batch)


class ClipTokenizer:
    """CLIP's byte-pair encoding (arXiv:2103.00020, section 2.4): start, at most context_length - 2 tokens, end.

    A text that is too long loses its tail; its last token is the end all the same, as in open_clip.
    """

    def __init__(self, context_length=77):
        if context_length < 2:
            raise UserError(
                f"a context of {context_length} tokens has no room for the start and the end; use 2 or more"
            )
        self.context_length = context_length

    def __call__(self, texts, rng=None):
        """B texts -> {"input_ids": (B, L)}; rng is not used."""
        return {"input_ids": pad_ids([self._ids(text) for text in texts])}

    def encode(self, text):
        """Ids of a text, without start and end, however many they are."""
        pattern, memory, tokens_of = _vocabulary()
        ids = []
        for word in pattern.findall(clean(text)):
            found = memory.get(word)
            if found is None:
                if len(memory) >= REMEMBERED_WORDS:
                    memory.clear()
                found = memory[word] = tokens_of(word)
            ids += found
        return ids

    def _ids(self, text):
        start, end = special_ids()
        return [start, *self.encode(text)[: self.context_length - 2], end]


def clean(text):
    """Mended (ftfy), HTML entities resolved twice, white space single, lower case."""
    if not text.isascii() or not text.isprintable() or "&" in text:  # otherwise nothing is there to mend or resolve
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def special_ids():
    """The ids of start and end: 49406, 49407."""
    return 512 + MERGES, 512 + MERGES + 1


@lru_cache(maxsize=1)
def _vocabulary():
    """(pattern of words, memory {word: ids}, function of a word giving its ids), of the file that open_clip ships."""
    import regex
    from tokenizers.models import BPE

    letters = _letters_of_bytes()
    index, merges = byte_pairs()
    model = BPE(vocab=index, merges=merges, end_of_word_suffix="</w>")
    special = dict(zip((START, END), ([row] for row in special_ids())))

    def tokens_of(word):
        if word in special:
            return special[word]
        return [token.id for token in model.tokenize("".join(letters[byte] for byte in word.encode("utf-8")))]

    return regex.compile(WORDS, regex.IGNORECASE), {}, tokens_of


def byte_pairs():
    """({token: id} without start and end, [pairs of tokens that are merged, in order]) of CLIP's vocabulary."""
    lines = gzip.decompress(_merges_file().read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = _letters_of_bytes().values()
    names = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    return {name: row for row, name in enumerate(names)}, merges


def _merges_file():
    spec = find_spec("open_clip")  # found, not imported: that takes seconds
    folders = spec.submodule_search_locations if spec else []
    path = next((Path(folder) / "bpe_simple_vocab_16e6.txt.gz" for folder in folders), None)
    if path is None or not path.is_file():
        raise UserError("CLIP's vocabulary comes with open_clip, which is not installed: pip install open-clip-torch")
    return path


def _letters_of_bytes():
    """Byte -> printable character, GPT-2's table: printable Latin-1 stands for itself, the rest comes after it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


class WordPieceTokenizer:
    """BERT's WordPiece over a vocabulary: [CLS] ... [SEP], padded with [PAD], which must be its first token.

    A small vocabulary makes a small table of embeddings: the built-in scenes' has 186 words, CLIP's 49,408.

    vocab: a folder with a vocab.txt, or its list of tokens
    """

    def __init__(self, vocab, context_length=77):
        if context_length < 2:
            raise UserError(f"a context of {context_length} tokens has no room for [CLS] and [SEP]; use 2 or more")
        self.tokens, self.context_length = tuple(read_vocabulary(vocab)), context_length
        self.vocab_size = _wordpiece(self.tokens).get_vocab_size()

    def __call__(self, texts, rng=None):
        """B texts -> {"input_ids": (B, L)}; rng is not used."""
        pipeline = _wordpiece(self.tokens)
        pipeline.enable_truncation(self.context_length)
        return {"input_ids": pad_ids([encoding.ids for encoding in pipeline.encode_batch(list(texts))])}

    def pipeline(self):
        """A tokenizers.Tokenizer of its own, without truncation."""
        from tokenizers import Tokenizer

        own = Tokenizer.from_str(_wordpiece(self.tokens).to_str())
        own.no_truncation()
        return own



def read_vocabulary(vocab):
    """The tokens of a folder's vocab.txt, or those that are given as a list, which must be a BERT vocabulary."""
    tokens, path = vocab, "the checkpoint's vocabulary"
    if not isinstance(vocab, list | tuple):
        path = Path(vocab) / "vocab.txt"
        tokens = read_lines(path, "give a folder with a BERT vocabulary")
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(tokens)
    if missing:
        raise DataError(f"{path}: the token {min(missing)} is missing; is this a BERT vocabulary?")
    if tokens[0] != "[PAD]":
        raise DataError(f"{path}: [PAD] must be the first token, because 0 is padding here")
    return list(tokens)


@lru_cache(maxsize=4)
def _wordpiece(tokens):
    from tokenizers import BertWordPieceTokenizer

    return BertWordPieceTokenizer({token: row for row, token in enumerate(tokens)}, lowercase=True)
