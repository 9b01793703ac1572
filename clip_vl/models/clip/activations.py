"""Which GELU a CLIP checkpoint was trained with: the shapes cannot tell, so a contradiction is an error."""


from clip_vl.engine.errors import UserError
from clip_vl.models.loading.state_dicts import is_archive


def resolve_quick_gelu(name, in_config, asked, tag="", weights=None):
    """Whether the tower is built with QuickGELU, from the architecture's name, the flag, the tag and the file.

    in_config: the architecture's own (true for names that end in -quickgelu)
    asked:     the flag
    tag:       a published tag of that architecture; "openai" and some others mean QuickGELU
    weights:   a TorchScript archive is OpenAI's form of its CLIP files: QuickGELU
    Raises UserError where a tag or a file of the one kind meets a name or flag of the other.
    """
    told = _of_tag(name, tag)
    if weights and is_archive(weights):
        if told is False:
            raise UserError(
                f"{weights} is an archive of OpenAI's (QuickGELU), but the tag {tag} of {name} stands for GELU; "
                "drop the tag, or say openai"
            )
        told = True
    if told is False and (asked or in_config):
        raise UserError(
            f"{name} with the tag {tag} was trained with GELU; drop "
            + ("quick_gelu" if asked else "-quickgelu from the name")
        )
    return in_config or asked or bool(told)


def openclip_name(name):
    """OpenAI's spelling (ViT-B/32, ViT-L/14@336px) to open_clip's (ViT-B-32, ViT-L-14-336)."""
    return name.replace("/", "-").replace("@336px", "-336")


def _of_tag(name, tag):
    """True, False, or None for no tag; an unknown tag is an error that names the known ones."""
    if not tag:
        return None
    return bool(openclip_tag(name, tag).get("quick_gelu", False))


def openclip_tag(name, tag):
    """open_clip's entry of a published tag: url, hf_hub, mean, std, interpolation, resize_mode, quick_gelu."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    entry = get_pretrained_cfg(name, tag)
    if not entry:
        known = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"{name} has no published weights tagged {tag!r}; its tags: {known}")
    return entry


def published_preprocessing(name, tag="", weights=None):
    """open_clip's preprocessing for published weights: mean, std, interpolation, resize_mode, each optional.

    Of a file without a tag it is what all tags of the architecture agree on: SigLIP's differs from CLIP's. A tower from
    scratch has nobody's.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    if tag:
        return openclip_tag(name, tag)
    entries = [get_pretrained_cfg(name, known) for known in list_pretrained_tags_by_model(name)] if weights else []
    first = entries[0] if entries else {}
    return {key: value for key, value in first.items() if all(entry.get(key) == value for entry in entries)}
