"""Text towers by name, from three libraries: open_clip, Hugging Face transformers, sentence-transformers; and our own.

Every tower has its tokenizer (list of str -> dict of token tensors, for the loader's workers) and its output width
(`width`) as attributes. Weights come from files on this machine; nothing is fetched, and no code in them runs.
"""

from clip_vl.engine.errors import UserError

BUILDERS = ("openclip", "huggingface", "sbert", "clip")


def build_text_tower(
    builder, name, *, tag="", pretrained=False, pooler="cls", max_length=77, cache_dir=None, weights=None, vocab=None,
    prompt=False, n_prompt=4, adapter=None, quick_gelu=False,
):  # fmt: skip
    """A text tower: dict of token tensors -> (B, width), not L2-normalised.

    builder:    one of BUILDERS
    name:       the library's name of the architecture, or a local folder
    tag:        which published weights (openai); for openclip and clip
    pretrained: load the published weights, from the folder or from cache_dir
    pooler:     cls, cls_before_pooler, mean or PromptBERT; for huggingface
    max_length: tokens of a text at most, where the tower has room for as many
    weights:    a file to load instead of published weights
    vocab:      folder with a vocab.txt, for clip: WordPiece instead of CLIP's byte pairs
    prompt, n_prompt: trainable vectors after the start token (CoOp), for clip and openclip
    adapter:    name of an adapter, for huggingface (models/dual/adapters.py); it freezes the tower's own weights
    quick_gelu: OpenAI's GELU, for clip and openclip
    """
    if builder not in BUILDERS:
        raise UserError(f"text builder {builder!r} is none of {', '.join(BUILDERS)}")
    _only_for(builder, ("huggingface",), adapter=adapter)
    _only_for(builder, ("clip",), vocab=vocab)
    _only_for(builder, ("clip", "openclip"), prompt=prompt, quick_gelu=quick_gelu)
    if prompt and n_prompt < 1:
        raise UserError(f"--n_prompt {n_prompt} must be at least 1")
    common = {"pretrained": pretrained, "cache_dir": cache_dir, "weights": weights, "max_length": max_length}
    clip = common | {"tag": tag, "n_prompt": n_prompt if prompt else 0, "quick_gelu": quick_gelu}
    if builder == "clip":
        from clip_vl.models.clip.text import build_clip_text

        return build_clip_text(name, vocab=vocab, **clip)
    if builder == "openclip":
        from clip_vl.models.towers.text_openclip import build_openclip_text

        return build_openclip_text(name, **clip)
    if builder == "huggingface":
        from clip_vl.models.towers.text_huggingface import build_hf_tower

        return build_hf_tower(name, pooler=pooler, adapter=adapter, **common)
    from clip_vl.models.towers.text_sbert import build_sbert_tower

    return build_sbert_tower(name, **common)


def _only_for(builder, builders, **options):
    for option, value in options.items():
        if value and builder not in builders:
            raise UserError(f"{option} is for the {' and '.join(builders)} builder of texts, not for {builder}")
