"""The generated sibling tasks of VQA: GQA's questions, SNLI-VE's hypotheses and NLVR2's statements about two images.

Each maker returns the random scenes of one unit and the rows of its annotation file, in LXMERT's forms:

    maker(split, number, rng) -> ({path under the data root: (img_id, scene)}, rows)

Upper bounds without the images: of the hypotheses 33 % with one answer for all and 50 % from the words, since each form
of hypothesis has two equally frequent answers; of the statements 50 %, and about 63 % with one image of each pair
(`scenes.statements`).
"""

from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.scenes.scene import ATTRIBUTES, random_scene
from clip_vl.datasets.scenes.sentences import (
    RELATIONS,
    TRIES,
    article,
    color_and_shape,
    plural,
    questions,
    the_one,
    two_kinds,
    two_things,
)
from clip_vl.datasets.scenes.statements import PAIRS, statements

FOLDERS = {"gqa": "gqa_raw_images/images", "snli_ve": "flickr30k_images", "nlvr2": "nlvr2_raw_images"}
NUMBERS = {2: "two", 3: "three"}

# ---- GQA

GQA_QUESTIONS = 10  # per image; fewer where the scene allows no more


def gqa_image(split, number, rng):
    """One image with its questions; those of `submit` have no types and answers."""
    img_id, scene = f"n{1_000_000 + number}", random_scene(rng)
    rows = []
    for index, question in enumerate(questions(scene, rng, GQA_QUESTIONS)):
        row = {"question_id": f"{1_000_000 + number}{index:03d}", "img_id": img_id, "sent": question.text}
        if split != "submit":
            row |= gqa_types(question)
            row["label"] = {question.answer: 1.0}
        rows.append(row)
    return {f"{FOLDERS['gqa']}/{img_id}.jpg": (img_id, scene)}, rows


def gqa_types(question):
    """GQA's structural and semantic type of a question, under the keys of the annotation file."""
    if question.answer_type == "yes/no":
        structure = "compare" if " more " in question.text else "verify"
    else:
        structure = "choose" if " or " in question.text else "query"
    if any(f" {relation} " in question.text for relation in RELATIONS):
        return {"question_type": structure, "answer_type": "rel"}
    about_looks = question.question_type.startswith(("what", "is the"))
    return {"question_type": structure, "answer_type": "attr" if about_looks else "obj"}


# ---- SNLI-VE: a claim that the image decides, alone or with a part that no image shows

ENTAILMENTS = TASKS["snli_ve"].classes
FORMS = (  # (how the unseen part is joined, whether the visible claim is true, class)
    (None, True, "entailment"),
    (None, False, "contradiction"),
    ("and", True, "neutral"),
    ("and", False, "contradiction"),
    ("or", True, "entailment"),
    ("or", False, "neutral"),
)
UNSEEN = (  # of an object in the image: "the ring is red and made of wood"
    "heavy", "soft", "old", "expensive", "fragile", "magnetic", "made of wood", "made of glass", "made of metal",
    "made of paper", "drawn first", "drawn last", "drawn by a child", "for sale", "liked by everyone",
)  # fmt: skip
UNSEEN_BESIDE = ("heavier than it", "older than it", "softer than it", "more expensive than it", "drawn before it")
UNSEEN_CLAUSES = (  # after a claim about the whole image
    "someone likes this picture", "this picture is for sale", "this picture is old", "a child drew this picture",
    "this picture hangs in a museum", "someone has seen this picture before", "it is raining outside",
)  # fmt: skip


def snli_ve_image(split, number, rng):
    """One image with six hypotheses, two of each class, in random order."""
    img_id, scene = f"{4_000_000 + number}", random_scene(rng)
    rows = [
        {"question_id": f"{img_id}.jpg#{index}r1{label[0]}", "img_id": img_id, "sent": text, "label": {label: 1.0}}
        for index, (text, label) in enumerate(hypotheses(scene, rng))
    ]
    return {f"{FOLDERS['snli_ve']}/{img_id}.jpg": (img_id, scene)}, rows


def hypotheses(scene, rng):
    """Six different (text, class), one of each of FORMS: "and" and "or" each occur with two classes."""
    found = {}
    for joiner, holds, label in rng.sample(FORMS, len(FORMS)):
        text = None
        while text is None or text in found:
            claim, unseen = visible_claim(scene, rng, holds)
            text = f"{claim} {joiner} {rng.choice(unseen)}" if joiner else claim
        found[text] = label
    return list(found.items())


def visible_claim(scene, rng, holds):
    """(claim, unseen parts that fit its subject); the claim is true of the scene if `holds`, else false."""
    found = None
    while found is None:
        claim = rng.choices(list(CLAIMS), CLAIMS.values())[0]
        found = next((words for words in (claim(scene, rng, holds) for _ in range(TRIES)) if words), None)
    return found


def looks(scene, rng, holds):
    """The only object of a shape or colour, or of both, has an attribute, or has another one."""
    name = rng.choice(("color", "shape", "size", "size", "texture", "texture"))
    found = the_one(scene, rng, {"color": "shape", "shape": "color"}.get(name, "both"))
    if found is None:
        return None
    thing, words = found
    actual = getattr(thing, name)
    said = actual if holds else rng.choice([value for value in ATTRIBUTES[name] if value != actual])
    return f"the {words} is {article(said) if name == 'shape' else said}", UNSEEN


def exists(scene, rng, holds):
    words = color_and_shape(scene, rng, holds)
    return words and (f"there is {article(words)}", UNSEEN_CLAUSES)


def stands(scene, rng, holds):
    found = two_things(scene, rng, holds)
    return found and ("the {} is {} the {}".format(*found), UNSEEN_BESIDE)


def outnumbers(scene, rng, holds):
    found = two_kinds(scene, rng, holds)
    if found is None:
        return None
    first, second, more = found
    claim = f"there are more {first} than {second}" if more else f"there are as many {first} as {second}"
    return claim, UNSEEN_CLAUSES


def numbers(scene, rng, holds):
    """The number is drawn first and must be true of some shape or colour and false of another."""
    name, number = rng.choice(("shape", "color")), rng.randint(1, 3)
    values = {True: [], False: []}
    for value in ATTRIBUTES[name]:
        values[len(scene.matching(**{name: value})) == number].append(value)
    if not all(values.values()):
        return None
    value = rng.choice(values[holds])
    return exactly(number, value if name == "shape" else f"{value} thing"), UNSEEN_CLAUSES


CLAIMS = {looks: 45, exists: 20, stands: 15, outnumbers: 8, numbers: 12}  # claim maker -> share of the claims


def exactly(number, noun):
    """Such as "there are exactly two rings"."""
    return f"there is exactly one {noun}" if number == 1 else f"there are exactly {NUMBERS[number]} {plural(noun)}"


# ---- NLVR2: eight images in four pairs; each statement is true of two pairs and false of two

STATEMENTS = 5  # per set of images


def nlvr2_set(split, number, rng):
    """Eight images in four pairs, with statements about all pairs.

    Identifiers are split-set-pair-statement, as in NLVR2, where consistency is over the pairs of a set and statement.
    Images are named after their pair.
    """
    pairs, stated = [], []
    while len(stated) < STATEMENTS:  # most sets of images allow fewer
        pairs = [(random_scene(rng), random_scene(rng)) for _ in range(PAIRS)]
        stated = statements(pairs, rng, STATEMENTS)
    images = {}
    for index, pair in enumerate(pairs):
        for side, scene in enumerate(pair):
            img_id = f"{split}-{number}-{index}-img{side}"
            images[f"{FOLDERS['nlvr2']}/{split}/{img_id}.png"] = img_id, scene
    rows = []
    for which, statement in enumerate(stated):
        for index, label in enumerate(statement.labels):
            pair = f"{split}-{number}-{index}"
            rows.append({
                "identifier": f"{pair}-{which}", "img0": f"{pair}-img0", "img1": f"{pair}-img1", "label": int(label),
                "sent": statement.text, "uid": f"nlvr2_{pair}-{which}",
            })  # fmt: skip
    return images, rows


MAKERS = {"gqa": gqa_image, "snli_ve": snli_ve_image, "nlvr2": nlvr2_set}
