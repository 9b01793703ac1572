"""The model card of an exported dual encoder, in Markdown."""

from clip_vl.engine.readers.json_files import read_object
from clip_vl.models.clip.activations import openclip_name
from clip_vl.models.towers.pixels import OPENCLIP_CROPS, Pixels

SCORES = 24  # lines of the card
CROPS = {"short_side": "the short side resized and the centre cut out", "squash": "resized to the square as a whole",
         "pad": "the long side resized, the rest black"}  # fmt: skip


def card(source, target, settings, model, split="", scores=()):
    """Markdown: what the model is, how it is opened, what it was trained on, and what it scored on a split.

    scores: dicts of label, value, low, high and n, with None where there is no interval or number
    """
    library = "open_clip" if target.suffix == ".pt" else "transformers"
    name = (read_object(source.parent / "args.json") or {}).get("name", source.stem)
    told = {"image_model": settings["image_model"], "text_model": settings["text_model"]} | settings["trained_with"]
    rows = [f"| {row['label']} | {row['value']:.2f} | {_interval(row)} | {row['n'] or ''} |" for row in scores[:SCORES]]
    size = sum(parameter.numel() for parameter in model.parameters())
    pixels, length = Pixels(**settings["pixels"]), model.tokenizer.context_length
    words = f"WordPiece over {len(settings['vocabulary'])} words" if "vocabulary" in settings else "CLIP's byte pairs"
    lines = [
        "---", f"library_name: {library}", "pipeline_tag: zero-shot-image-classification", "---", "",
        f"# {_plain(name)}", "",
        f"A CLIP model of {size / 1e6:.1f} million parameters, trained with clip_vl. Images: {pixels.resolution} x "
        f"{pixels.resolution} pixels, {CROPS[pixels.crop]} ({pixels.crop}), {pixels.interpolation}, mean "
        f"{list(pixels.mean)}, std {list(pixels.std)}; activation {model.image_tower.activation}. Texts: {words}, at "
        f"most {length} tokens, start and end included.", "",
        "```python", *_snippet(library, target.name, settings, pixels), "```", "",
        "| trained with | |", "|---|---|", *(f"| {key} | {_plain(value)} |" for key, value in told.items()), "",
    ]  # fmt: skip
    if rows:
        on = f"on {_plain(split)}" if split else ""
        head = ["| | score | 95 % interval | n |", "|---|---|---|---|"]
        lines += [f"Scores {on}".strip() + ":", "", *head, *rows, ""]
    return "\n".join(lines)


def _snippet(library, name, settings, pixels):
    """Lines of Python that open the model."""
    if library == "transformers":
        return ["from transformers import CLIPModel, CLIPProcessor", "",
                f'model, processor = CLIPModel.from_pretrained("{name}"), CLIPProcessor.from_pretrained("{name}")',
                'inputs = processor(text=["a cat", "a dog"], images=image, return_tensors="pt", padding=True,',
                "                   truncation=True)",
                "probabilities = model(**inputs).logits_per_image.softmax(1)"]  # fmt: skip
    quick = any(settings["quick_gelu"])
    mode = next(name for name, crop in OPENCLIP_CROPS.items() if crop == pixels.crop)
    return ["import open_clip", "",
            "model, _, preprocess = open_clip.create_model_and_transforms(",
            f'    "{openclip_name(settings["image_model"])}", pretrained="{name}", force_quick_gelu={quick},',
            f"    force_image_size={pixels.resolution},",
            f"    image_mean={list(pixels.mean)}, image_std={list(pixels.std)},",
            f'    image_interpolation="{pixels.interpolation}", image_resize_mode="{mode}")']  # fmt: skip


def _interval(row):
    return "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"


def _plain(value):
    return " ".join(str(value).split()).replace("|", "&#124;").replace("<", "&lt;")
