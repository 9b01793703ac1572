"""Answer vocabularies: the pre-training table of 9,500 answers, the VQA labels, and the way labels find their class."""

import hashlib
import json
from pathlib import Path

from clip_vl.datasets.storage.json_stream import iterate_json_list, read_json
from clip_vl.engine.errors import DataError, UserError

ARTICLES = ("a ", "an ", "the ")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
REWORDED = {word: str(number) for number, word in enumerate(NUMBERS, start=1)}
REWORDED |= {"grey": "gray", "a man": "man", "the man": "man", "a woman": "woman", "the woman": "woman"}


def normalise_answer(answer):
    """The form of an answer in the pre-training table, by the rules of LXMERT (arXiv:1908.07490).

    Lower case, without one trailing full stop and without leading articles (each once, in the order a, an, the);
    "one" to "ten" as digits, "grey" as "gray".
    """
    answer = answer.lower()
    if answer.endswith("."):
        answer = answer[:-1].strip()
    for article in ARTICLES:
        if answer.startswith(article):
            answer = answer[len(article) :].strip()
    return REWORDED.get(answer, answer)


class AnswerTable:
    """The answers of `all_ans.json`, [{"ans": str, "dsets": [names]}, ...]; the place in the list is the class id.

    qa_sets: names of data sets; only answers of at least one of them are kept, numbered densely. None keeps all.
    """

    def __init__(self, path, qa_sets=None):
        qa_sets = None if qa_sets is None else set(qa_sets)
        self.answers, self.index, known = [], {}, set()
        for line, entry in iterate_json_list(path):
            answer, sets = _table_entry(entry, f"{path}:{line}")
            known |= sets
            if qa_sets is None or sets & qa_sets:
                if self.index.setdefault(answer, len(self.answers)) != len(self.answers):
                    raise DataError(f"{path}:{line}: the answer {answer!r} stands in the table twice")
                self.answers.append(answer)
        if qa_sets and not qa_sets <= known:
            raise UserError(f"unknown answer set {min(qa_sets - known)!r}; {path} has {', '.join(sorted(known))}")
        if not self.answers:
            raise DataError(f"{path} holds no answers")
        self.digest = hashlib.sha256(json.dumps(self.answers).encode()).hexdigest()

    def __len__(self):
        return len(self.answers)

    def find(self, answer):
        """The class of an answer as annotators wrote it, or None."""
        return self.index.get(normalise_answer(answer))


def _table_entry(entry, place):
    answer, sets = (entry.get("ans"), entry.get("dsets")) if isinstance(entry, dict) else (None, None)
    if not isinstance(answer, str) or not isinstance(sets, list) or not all(isinstance(name, str) for name in sets):
        form = '{"ans": "dog", "dsets": ["vqa"]}'
        raise DataError(f"{place}: an answer must look like {form}, not {entry!r:.80}")
    normal = normalise_answer(answer)
    if answer != normal:
        raise DataError(f"{place}: the answer {answer!r} must have its normal form {normal!r}, or no label reaches it")
    return answer, set(sets)


def label_scores(label, find):
    """The classes of one soft label.

    label:   dict answer -> score in [0, 1]
    find:    answer -> class or None, such as `AnswerTable.find` or `dict.get`
    returns: classes in the order met, their scores, and the number of answers without a class. Answers that share a
             class count once, with the larger score; a score of zero is no answer.
    """
    scores, unknown = {}, 0
    for answer, score in label.items():
        if type(score) not in (int, float) or not 0 <= score <= 1:
            raise DataError(f"the score of answer {answer!r} must be a number from 0 to 1, not {score!r:.40}")
        found = find(answer)
        unknown += found is None
        if found is not None and score > 0:
            scores[found] = max(score, scores.get(found, 0))
    return list(scores), list(scores.values()), unknown


def read_label_vocab(folder):
    """The list of a task's answers, from two files that must be each other's inverse.

    folder: holds trainval_label2ans.json (list, class -> answer) and trainval_ans2label.json (object, answer -> class)
    """
    list_path, dict_path = Path(folder) / "trainval_label2ans.json", Path(folder) / "trainval_ans2label.json"
    answers, labels = read_json(list_path), read_json(dict_path)
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers) or not answers:
        raise DataError(f"{list_path}: a list of answers was expected")
    if not isinstance(labels, dict) or len(labels) != len(answers):
        raise DataError(f"{dict_path}: an object with the {len(answers):,} answers of {list_path.name} was expected")
    for label, answer in enumerate(answers):
        if labels.get(answer) != label:
            raise DataError(f"{dict_path}: {answer!r} is {labels.get(answer)!r} here, but {label} in {list_path.name}")
    return answers
