"""Score LongBench predictions the plain way, as a reference for the time and results of `evals score DIR --json`.

Calls the libraries of the official evaluation (rouge 1.0.1, fuzzywuzzy, jieba) once per sample and reference. Shares
nothing with `evals.longbench`: no caching, no pruning, no input checks. Prints one JSON object {task: score}.

    python bench/reference_score.py DIR            # DIR has <task>.jsonl files in the official prediction format
    python bench/reference_score.py DIR --timings  # print the seconds of each task to stderr
"""

import json
import re
import string
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # jieba imports pkg_resources; fuzzywuzzy warns about its pure-Python path
    import jieba
    from fuzzywuzzy import fuzz
    from rouge import Rouge

jieba.setLogLevel("WARNING")

FULL_WIDTH = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、"
    "〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def f1(prediction: list[str], gold: list[str]) -> float:
    same = sum((Counter(prediction) & Counter(gold)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def qa_f1(prediction: str, gold: str, classes: list[str]) -> float:
    def tokens(text: str) -> list[str]:
        text = "".join(character for character in text.lower() if character not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    return f1(tokens(prediction), tokens(gold))


def qa_f1_zh(prediction: str, gold: str, classes: list[str]) -> float:
    def tokens(text: str) -> list[str]:
        dropped = set(string.punctuation + FULL_WIDTH)
        words = ("".join(c for c in word.lower() if c not in dropped) for word in jieba.cut(text, cut_all=False))
        return [word for word in ("".join(word.split()) for word in words) if word]

    return f1(tokens(prediction), tokens(gold))


def rouge(prediction: str, gold: str, classes: list[str]) -> float:
    try:
        return Rouge().get_scores([prediction], [gold], avg=True)["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0


def rouge_zh(prediction: str, gold: str, classes: list[str]) -> float:
    return rouge(" ".join(jieba.cut(prediction, cut_all=False)), " ".join(jieba.cut(gold, cut_all=False)), classes)


def classification(prediction: str, gold: str, classes: list[str]) -> float:
    found = [name for name in classes if name in prediction]
    for name in found:  # modifies the list while iterating, as the official evaluation does
        if name in gold and name != gold:
            found.remove(name)
    return 1 / len(found) if gold in found else 0.0


def count(prediction: str, gold: str, classes: list[str]) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(gold) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, gold: str, classes: list[str]) -> float:
    return count(prediction, re.findall(r"Paragraph (\d+)", gold)[0], classes)


def retrieval_zh(prediction: str, gold: str, classes: list[str]) -> float:
    return count(prediction, re.findall(r"段落(\d+)", gold)[0], classes)


def code_similarity(prediction: str, gold: str, classes: list[str]) -> float:
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return fuzz.ratio(line, gold) / 100


METRICS = {
    "narrativeqa": qa_f1, "qasper": qa_f1, "multifieldqa_en": qa_f1, "multifieldqa_zh": qa_f1_zh,
    "hotpotqa": qa_f1, "2wikimqa": qa_f1, "musique": qa_f1, "dureader": rouge_zh,
    "gov_report": rouge, "qmsum": rouge, "multi_news": rouge, "vcsum": rouge_zh,
    "trec": classification, "triviaqa": qa_f1, "samsum": rouge, "lsht": classification,
    "passage_count": count, "passage_retrieval_en": retrieval, "passage_retrieval_zh": retrieval_zh,
    "lcc": code_similarity, "repobench-p": code_similarity,
}  # fmt: skip
FIRST_LINE = {"trec", "triviaqa", "samsum", "lsht"}


def score(task: str, records: list[dict]) -> float:
    classes = records[-1]["all_classes"]
    total = 0.0
    for record in records:
        prediction = record["pred"]
        if task in FIRST_LINE:
            prediction = prediction.lstrip("\n").split("\n")[0]
        total += max(METRICS[task](prediction, gold, classes) for gold in record["answers"])
    return round(100 * total / len(records), 2)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    scores = {}
    for task in METRICS:
        if not (folder / f"{task}.jsonl").exists():
            continue
        start = time.perf_counter()
        with open(folder / f"{task}.jsonl", encoding="utf-8") as lines:
            scores[task] = score(task, [json.loads(line) for line in lines])
        if "--timings" in sys.argv:
            print(f"{task:22s}{time.perf_counter() - start:8.2f} s", file=sys.stderr)
    print(json.dumps(scores, ensure_ascii=False))
