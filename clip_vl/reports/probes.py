"""The most confident mistakes of a probe, to look at: picture, true caption, and what was preferred to it."""

from clip_vl.reports.answers import thumbnail


def mistakes(verdicts, metric=None):
    """Places of the wrong items, the one with the widest margin first; metric: of Winoground's."""
    wrong = [i for i, v in enumerate(verdicts) if not is_right(v)]
    return sorted(wrong, key=lambda i: (verdicts[i].margin, i))


def is_right(verdict):
    """Whether an item is right under the pessimistic rule; of Winoground by the group score."""
    if verdict.right is not None:
        return verdict.right["group"][0]
    if verdict.decision is not None:
        return verdict.decision == bool(verdict.gold) and not verdict.tie
    return verdict.rank == 1


def pairs_to_look_at(item, crops, block):
    """[(caption, crop, text)] of what the scores told apart: the first picture with its caption and with the strongest
    of the others, or the one caption with two pictures.

    crops: numbers of the item's pictures;  block: scores (K, L)
    """
    if len(item.captions) == 1:
        names = (item.captions[0], f"{item.captions[0]} (the other picture)")
        return [(name, crop, item.captions[0]) for name, crop in zip(names, crops)]
    strongest = max(range(1, len(item.captions)), key=lambda place: block[0][place])
    return [(item.captions[place], crops[0], item.captions[place]) for place in (0, strongest)]


def card(name, item, block, verdict, picture):
    """A card of gallery.json. picture: bytes of an image file; block: scores (K, L)."""
    options = [[caption, round(float(score), 4)] for caption, score in zip(item.captions, block[0])]
    truth = options[:1]
    if len(item.images) > 1:
        options += [[f"{item.captions[-1]} (of the other picture)", round(float(block[-1][-1]), 4)]]
    if verdict.decision is not None:
        truth = [[("false", "true")[item.gold], 1.0]]
    return {
        "image": thumbnail(picture) if picture else "",
        "title": item.captions[0],
        "truth_label": "true",
        "truth": truth,
        "predictions": sorted(options, key=lambda pair: -pair[1]),
        "correct": is_right(verdict),
        "note": f"{name}, {item.id}: margin {verdict.margin:.4f}",
    }
