"""lm-evaluation-harness over a compressed cache: real runs of it on tasks of a few lines."""

import json
import random
import re

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from compresskv.compressed_cache import compressed
from compresskv.errors import UserError
from tests.engine.test_rotary import BOUNDARY
from tests.engine.test_rotary import made as rotary
from tests.support import tiny
from tests.support.methods_in_use import SNAPKV
from tests.support.refusals import refused

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from evals.lm_eval import __main__ as command  # noqa: E402
from evals.lm_eval.model import CompressedLM  # noqa: E402

BUDGET = 12
WORDS = ["red", "blue", "house", "horse", "river", "tree", "stone", "bird", "cloud", "fire", "road", "wind"]
KINDS = ("generate_until", "loglikelihood", "multiple_choice")


def text(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture(scope="module")
def tokenizer():
    """Byte pairs over the words, so that a word's tokens depend on what is before it; no token begins a text."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<eos>", "<unk>"]
    made.train_from_iterator([text(300, 0)], trainers.BpeTrainer(vocab_size=64, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model():
    return tiny.model("llama")


def make(model, tokenizer, method=None, budget=None, **options) -> CompressedLM:
    return CompressedLM(model, method, budget, tokenizer=tokenizer, **options)


@pytest.fixture(scope="module")
def tasks(model, tokenizer, tmp_path_factory):
    """A folder with a task of each kind, whose right answers are those of the full cache."""
    folder = tmp_path_factory.mktemp("tasks")
    full = HFLM(model, tokenizer=tokenizer)
    documents = []
    for seed in range(8):
        context, choices = text(30, seed), [text(3, 100 * seed + i) for i in range(4)]
        (generated,) = full.generate_until([generation(context, until=["e"], max_gen_toks=6)])
        scored = full.loglikelihood([pair(context, f" {choice}") for choice in choices])
        gold = max(range(4), key=lambda i: scored[i][0])
        documents.append({"context": context, "choices": choices, "gold": gold, "generated": generated})
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}}}
    common = data | {"test_split": "test", "doc_to_text": "{{context}}", "metadata": {"version": 1}}
    parts = {
        "generate_until": {
            "doc_to_target": "{{generated}}",
            "generation_kwargs": {"until": ["e"], "max_gen_toks": 6},
            "metric_list": [{"metric": "exact_match"}],
        },
        "loglikelihood": {
            "doc_to_target": " {{choices[gold]}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "multiple_choice": {
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [{"metric": "acc"}],
        },
    }
    for kind, part in parts.items():
        task = common | {"task": f"tiny_{kind}", "output_type": kind} | part
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def evaluate(lm, tasks, **options):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = [f"tiny_{kind}" for kind in KINDS]
    return lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, **options)


def documents(tasks) -> list[dict]:
    return [json.loads(line) for line in (tasks / "documents.jsonl").read_text().splitlines()]


def generation(context: str, **options) -> Instance:
    return Instance("generate_until", {}, (context, {"do_sample": False, **options}), 0)


def pair(context: str, continuation: str) -> Instance:
    return Instance("loglikelihood", {}, (context, continuation), 0)


def assert_alike(ours, theirs, pairs, tolerance=1e-4):
    """Equal log-likelihoods, greedy or not."""
    for (score, greedy), (other, other_greedy) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True
    ):
        assert score == pytest.approx(other, abs=tolerance)
        assert greedy == other_greedy


def by_hand(model, context: list[int], continuation: list[int], method, budget) -> float:
    """The log-likelihood of `continuation`, token by token, in a separate cache."""
    total = 0.0
    with compressed(model, method, budget) as cache, torch.no_grad():
        logits = model(torch.tensor([context]), past_key_values=cache).logits
        for token in continuation:
            total += logits[0, -1].log_softmax(-1)[token].item()
            logits = model(torch.tensor([[token]]), past_key_values=cache).logits
    return total


@pytest.mark.parametrize("length", [None, 30])
def test_with_everything_kept_it_is_the_model_of_lm_eval(model, tokenizer, length):
    """Log-likelihoods and texts, borders of context and continuation, and long contexts, which lose their beginning."""
    options = {} if length is None else {"max_length": length}
    ours, theirs = make(model, tokenizer, **options), HFLM(model, tokenizer=tokenizer, **options)
    for seed in (0, 1):
        contexts = ("", f"{text(5, seed)} ", "ho", text(20, seed), text(60, seed))
        endings = (" use", "use red", f" {text(6, seed + 7)}")
        assert_alike(ours, theirs, [pair(context, ending) for context in contexts for ending in endings])
        requests = [generation(text(n, seed), until=until, max_gen_toks=9) for n in (1, 60) for until in ([], ["re"])]
        assert ours.generate_until(requests) == theirs.generate_until(requests)
    if length:
        with refused("continuation"):
            ours.loglikelihood([pair("red", f" {text(60, 4)}")])


def test_three_kinds_of_tasks(model, tokenizer, tasks):
    """Everything kept scores 100. A small budget scores less, and the same as a plain loop."""
    full, small = (evaluate(make(model, tokenizer, m, b), tasks) for m, b in ((None, None), (SNAPKV, BUDGET)))
    accuracy = {"generate_until": "exact_match,none", "multiple_choice": "acc,none"}
    for kind, metric in accuracy.items():
        assert full["results"][f"tiny_{kind}"][metric] == 1
        assert small["results"][f"tiny_{kind}"][metric] < 1
    encode = make(model, tokenizer)._encode_pair
    right, nll = 0, []
    for document in documents(tasks):
        pairs = [encode(document["context"], f" {choice}") for choice in document["choices"]]
        scores = [by_hand(model, *ids, SNAPKV, BUDGET) for ids in pairs]
        right += max(range(4), key=lambda i: scores[i]) == document["gold"]
        nll.append(-scores[document["gold"]])
    assert small["results"]["tiny_multiple_choice"]["acc,none"] == right / 8
    perplexity = torch.tensor(nll).mean().exp().item()
    assert small["results"]["tiny_loglikelihood"]["perplexity,none"] == pytest.approx(perplexity, rel=1e-4)
    assert small["config"]["budget"] == BUDGET == small["config"]["realised_budget"]
    assert small["config"]["contexts"] == 8 * 2  # log-likelihoods of both tasks share their contexts
    assert full["config"]["contexts_kept_whole"] == 8 * 2


@pytest.mark.parametrize("family", ["qwen2-hybrid", "mistral-sliding"])
def test_sliding_windows_score_each_continuation_alike(family, tokenizer):
    """One context, several continuations: each as in a separate cache, although a window cannot go back."""
    model = tiny.model(family)
    lm = make(model, tokenizer, None if family == "mistral-sliding" else SNAPKV, BUDGET)
    pairs = [pair(text(20, 1), f" {text(words, words)}") for words in (3, 9, 5)]
    for (score, greedy), pair_alone in zip(lm.loglikelihood(pairs), pairs, strict=True):
        ((alone, greedy_alone),) = lm.loglikelihood([pair_alone])
        assert score == pytest.approx(alone, abs=1e-4)
        assert greedy == greedy_alone


def test_a_context_is_compressed_once_for_all_its_continuations(model, tokenizer):
    lm = make(model, tokenizer, SNAPKV, BUDGET)
    lm.loglikelihood([pair(text(20, n % 2), f" {text(3, n)}") for n in range(6)])
    assert lm.realised == [BUDGET, BUDGET]


def test_chunks_change_nothing(model, tokenizer):
    whole, chunked = (make(model, tokenizer, SNAPKV, BUDGET, prefill_chunk=chunk) for chunk in (None, 16))
    requests = [generation(text(40, 5), until=[], max_gen_toks=8)]
    assert whole.generate_until(requests) == chunked.generate_until(requests)
    assert_alike(whole, chunked, [pair(text(40, 5), f" {text(4, 6)}")])


def test_an_empty_context_generates_from_the_end_token(model, tokenizer):
    lm = make(model, tokenizer)
    empty, end = (lm.generate_until([generation(context, until=[], max_gen_toks=4)]) for context in ("", "<eos>"))
    assert empty == end


def test_what_is_not_served_is_refused(model, tokenizer, caplog):
    with refused("batch_size", value=8):
        make(model, tokenizer, SNAPKV, BUDGET, batch_size=8)
    with refused("budget", value=3):
        make(model, tokenizer, SNAPKV, 3)
    lm = make(model, tokenizer, SNAPKV, BUDGET)
    rolling = Instance("loglikelihood_rolling", {}, ("red house",), 0, metadata=("wikitext", 0, 1))
    with refused("--tasks", value="wikitext"):
        lm.loglikelihood_rolling([rolling])
    assert "single token" not in caplog.text
    lm.loglikelihood([pair(text(20, 1), " red"), pair(text(20, 1), " <eos>")])
    assert "continuations are a single token" in caplog.text


def test_the_command_line(model, tokenizer, tasks, tmp_path, capsys):
    folder = tmp_path / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    small = [f"model.path={folder}", "model.chat_template=false", "model.dtype=float32", "model.device=cpu"]
    options = ["--tasks", "tiny_*", "--include_path", str(tasks), "--limit", "3", "--output", str(tmp_path / "out")]
    metadata = ["--metadata", json.dumps({"max_seq_lengths": [4096]})]
    command.main([*options, *metadata, "--log_samples", "method=snapkv", "budget=12", "observation.window=4", *small])
    assert "|tiny_multiple_choice|" in (printed := capsys.readouterr().out)
    assert re.search(r"^\| *Tasks *\|.*\| *Metric *\|", printed, re.MULTILINE)  # the names of its columns
    assert "tiny, SnapKV 12: 6 contexts, 0 of them whole, 12.0 tokens kept on average" in printed
    (written,) = (tmp_path / "out" / "tiny").glob("results_*.json")
    results = json.loads(written.read_text())
    assert results["configs"]["tiny_loglikelihood"]["metadata"]["max_seq_lengths"] == [4096]
    assert results["config"]["budget"] == 12
    assert results["n-samples"]["tiny_loglikelihood"] == {"original": 8, "effective": 3}
    assert len(list((tmp_path / "out" / "tiny").glob("samples_*.jsonl"))) == 3


@pytest.mark.parametrize(("override", "field"), [("eval.limit=3", "eval.limit"), ("method=snapkw", "method")])
def test_mistakes_on_the_command_line_are_one_sentence(override, field):
    with refused(field):
        command.main(["--tasks", "x", override])


def test_without_the_extra_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with refused("lm_eval"):
        command.main(["--tasks", "x", "method=snapkv"])


@pytest.mark.parametrize("name", ["longrope", "ntk"])
def test_rope_that_depends_on_the_length_is_that_of_context_and_continuation(tokenizer, name):
    """One that crosses the boundary, one that begins beyond it, and two of one context on both sides."""
    contexts = {length: text(length, length).strip() for length in (6, 20)}
    pairs = [pair(context, f" {text(words, words)}") for context in contexts.values() for words in (1, 6, 12)]
    ours = make(rotary(name), tokenizer)
    ours.loglikelihood([pair(text(40, 1), " red")])
    lengths = [len(tokenizer(each.args[0] + each.args[1]).input_ids) for each in pairs]
    assert min(lengths) <= BOUNDARY < max(lengths)
    assert_alike(ours, HFLM(rotary(name), tokenizer=tokenizer), pairs, 1e-3)


DATED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if loud %}!{% endif %}{{ strftime_now('%d %b %Y') }}{% if add_generation_prompt %}<answer>{% endif %}"
)


def test_chats_have_the_fixed_date_and_the_variables_of_the_template(model, tokenizer):
    chat = [{"role": "user", "content": "red house"}]
    tokenizer.chat_template = DATED
    try:
        plain, loud = make(model, tokenizer), make(model, tokenizer, chat_template_args={"loud": True})
        assert plain.apply_chat_template(chat) == "<user>red house26 Jul 2024<answer>"
        assert loud.apply_chat_template(chat) == "<user>red house!26 Jul 2024<answer>"
        open_end = [*chat, {"role": "assistant", "content": "blue"}]
        assert plain.apply_chat_template(open_end, add_generation_prompt=False) == "<user>red house<assistant>blue"
        tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + DATED
        system = [{"role": "system", "content": "be brief"}, *chat]
        assert plain.apply_chat_template(system) == "<user>red house26 Jul 2024<answer>"
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        with pytest.raises(UserError):
            plain.apply_chat_template(system)
    finally:
        tokenizer.chat_template = None


WRONG = [
    *(("max_gen_toks", 10**6), ("max_gen_toks", 0), ("max_new_tokens", "many"), ("until", [5]), ("num_beams", 2)),
    *(("num_return_sequences", 3), ("max_length", 9), ("use_cache", False)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_arguments_of_generation_that_do_not_fit_are_named(model, tokenizer, name, value):
    with pytest.raises(UserError) as caught:
        make(model, tokenizer).generate_until([generation("red house", **{name: value})])
    assert caught.value.field in (name, "--gen_kwargs")
    assert caught.value.value == value or caught.value.value[name] == value


def test_the_oracle_is_refused_before_a_model_is_loaded():
    with refused("method", value="oracle"):
        command.setting(["method=oracle", "budget=64"])
