"""The official VQA v2 evaluator: answer normalisation and leave-one-out accuracy (Antol et al., arXiv:1505.00468;
Goyal et al., arXiv:1612.00837), with the quirks of the released program, for a score is only comparable with them.
"""

import re
from collections import Counter, defaultdict

from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.text import id_of

ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
PUNCTUATION = set(';/[]"{}()=+\\_-><@`,?!')
DIGIT_COMMA = re.compile(r"\d,\d")
# Any period that no digit follows. The original meant to spare one after a digit too, but misspelt the look-behind.
PERIOD = re.compile(r"\.(?!\d)")
PERIODS_REMOVED = 32  # the original passes re.UNICODE (32) where re.sub takes the count

# A word written with exactly one of its apostrophes missing gets it back: dont -> don't, couldntve stays as it is. The
# original lists I'm, I've and I'd've as well; their capital never meets the lower-cased answer, so "im" stays "im".
APOSTROPHES = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in APOSTROPHES for place, char in enumerate(word) if char == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the original has this pair the wrong way round

SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # leave-one-out accuracy of an answer that 0, 1, 2, 3, 4 or more of ten gave


def tidy(answer):
    """Line breaks and tabs become spaces and the ends are stripped: all that is done to an undisputed answer."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(answer):
    """Each mark becomes a space, or nothing where it stands beside a space or the answer holds a number like 1,000."""
    stripped = answer
    for mark in PUNCTUATION.intersection(answer):
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        stripped = stripped.replace(mark, "" if beside_space or DIGIT_COMMA.search(answer) else " ")
    return PERIOD.sub("", stripped, count=PERIODS_REMOVED)


def normalise_words(answer):
    """Lower-case words, number words as digits, no articles, apostrophes restored."""
    words = [DIGITS.get(word, word) for word in answer.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise(answer):
    """The form in which the evaluator compares answers."""
    return normalise_words(strip_punctuation(tidy(answer)))


def question_accuracy(prediction, human_answers):
    """Leave-one-out accuracy in 0..1: the mean over annotators of min(1, others who gave the prediction / 3).

    human_answers: the (ten) answers as strings. When all agree to the letter nothing is normalised, neither they nor
    the prediction: a quirk that costs "A dog" its point against ten times "dog".
    """
    undisputed = len({tidy(answer) for answer in human_answers}) == 1
    form = tidy if undisputed else normalise
    prediction = form(prediction)
    matches = [form(answer) == prediction for answer in human_answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def official_accuracy(predictions, annotations):
    """Score a whole split as the official server does.

    predictions: dict question id -> answer string
    annotations: the "annotations" list of an official file; of each question_id, answers, answer_type, question_type
    returns:     {"overall", "n", "per_answer_type": {type: percent}, "per_question_type": {type: percent}}
    errors:      DataError unless both are of the same questions, for the score of a subset is another number
    """
    predictions = {id_of(number): answer for number, answer in predictions.items()}
    _check_same_questions(predictions, annotations)
    accuracies = defaultdict(list)
    for row in annotations:
        prediction = predictions[id_of(row["question_id"])]
        accuracy = question_accuracy(prediction, [each["answer"] for each in row["answers"]])
        for group in ("overall", ("answer", row["answer_type"]), ("question", row["question_type"])):
            accuracies[group].append(accuracy)
    percent = {group: 100 * sum(values) / len(values) for group, values in accuracies.items()}
    overall = percent.pop("overall")
    return {
        "overall": overall,
        "n": len(annotations),
        "per_answer_type": {name: value for (kind, name), value in percent.items() if kind == "answer"},
        "per_question_type": {name: value for (kind, name), value in percent.items() if kind == "question"},
    }


def soft_scores(answers):
    """Training target of one question: {answer: 0.3, 0.6, 0.9 or 1.0}, from its (ten) human answers.

    Equal answers are counted as they are given: normalise them first to count what the evaluator would. The score is
    the leave-one-out accuracy which that answer would get as a prediction.
    """
    return {answer: SOFT_SCORES[min(count, 4)] for answer, count in Counter(answers).items()}


def _check_same_questions(predictions, annotations):
    asked = {id_of(row["question_id"]) for row in annotations}
    if not asked:
        raise DataError("there are no annotations to score against")
    for fault, ids in (("have no prediction", asked - predictions.keys()), ("are unknown", predictions.keys() - asked)):
        if ids:
            example = min(ids, key=str)
            raise DataError(
                f"{len(ids):,} questions {fault}, for example {example}: "
                "the predictions must be of exactly the questions that are annotated"
            )
