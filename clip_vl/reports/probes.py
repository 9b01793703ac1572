"""The most confident mistakes of a probe for the report: image, true caption, and the caption that was preferred."""

from clip_vl.reports.images import thumbnail


def mistakes(verdicts):
    """Positions of the wrong items, the one with the widest margin first."""
    wrong = [i for i, v in enumerate(verdicts) if not is_right(v)]
    return sorted(wrong, key=lambda i: (verdicts[i].margin, i))


def is_right(verdict):
    """Whether an item is right under the pessimistic rule; of Winoground by the group score."""
    if verdict.right is not None:
        return verdict.right["group"][0]
    if verdict.decision is not None:
        return verdict.decision == bool(verdict.gold) and not verdict.tie
    return verdict.rank == 1


def pairs_to_compare(item, crops, block):
    """[(caption, crop, text)] of what the scores compare: the first image with its caption and with the strongest
    other one, or the one caption with two images.

    crops: numbers of the item's images;  block: scores (K, L)
    """
    if len(item.captions) == 1:
        names = (item.captions[0], f"{item.captions[0]} (the other image)")
        return [(name, crop, item.captions[0]) for name, crop in zip(names, crops)]
    strongest = max(range(1, len(item.captions)), key=lambda index: block[0][index])
    return [(item.captions[index], crops[0], item.captions[index]) for index in (0, strongest)]


def card(name, item, block, verdict, image):
    """A card of gallery.json. image: bytes of an image file; block: scores (K, L)."""
    options = [[caption, round(float(score), 4)] for caption, score in zip(item.captions, block[0])]
    truth = options[:1]
    if len(item.images) > 1:
        options += [[f"{item.captions[-1]} (of the other image)", round(float(block[-1][-1]), 4)]]
    if verdict.decision is not None:
        truth = [[("false", "true")[item.gold], 1.0]]
    return {
        "image": thumbnail(image) if image else "",
        "title": item.captions[0],
        "truth_label": "true",
        "truth": truth,
        "predictions": sorted(options, key=lambda pair: -pair[1]),
        "correct": is_right(verdict),
        "note": f"{name}, {item.id}: margin {verdict.margin:.4f}",
    }
