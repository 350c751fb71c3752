"""Prompts: hand-written renderings, truncation against a literal reference, chat wrappers and their BOS tokens."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.longbench.prompts import render, stop_ids, template, truncate_middle
from evals.longbench.tasks import ALL, TASKS
from tests.support.refusals import refused

SMOLLM2_CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
UNWRAPPED = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")

# Input "Where is the cat?", context "The cat sat on the mat."; in Chinese tasks the `records` fixture's Chinese ones
RENDERED = {
    "multifieldqa_en": "Read the following text and answer briefly.\n\nThe cat sat on the mat.\n\n"
    "Now, answer the following question based on the above text, only give me the answer and do not output any other "
    "words.\n\nQuestion: Where is the cat?\nAnswer:",
    "dureader": "请基于给定的文章回答下述问题。\n\n文章：猫在垫子上。\n\n请基于上述文章回答下面的问题。\n\n"
    "问题：那只猫在哪里？\n回答：",
    "gov_report": "You are given a report by a government agency. Write a one-page summary of the report.\n\n"
    "Report:\nThe cat sat on the mat.\n\nNow, write a one-page summary of the report.\n\nSummary:",
    "samsum": "Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
    "The cat sat on the mat.\n\nWhere is the cat?",
    "repobench-p": "Please complete the code given below. \n"
    "The cat sat on the mat.Where is the cat?Next line of code:\n",
}


@pytest.mark.parametrize("name", RENDERED)
def test_rendering_equals_the_hand_written_string(name, records, smollm2):
    prompt = render(TASKS[name], records[name], smollm2, window=2048, chat_wrapper="template")
    expected = RENDERED[name] if name in UNWRAPPED else SMOLLM2_CHAT.format(prompt=RENDERED[name])
    assert prompt.text == expected
    assert list(prompt.ids) == smollm2(expected).input_ids
    assert prompt.tokens == len(prompt.ids)
    assert prompt.truncated is False
    assert prompt.sha256 == hashlib.sha256(expected.encode("utf-8")).hexdigest()


def test_braces_and_special_words_in_a_record_are_left_alone(records):
    record = replace(records["lcc"], input="", context="f'{context} {input} {0}'")
    assert "f'{context} {input} {0}'" in template(TASKS["lcc"], record)


def literal_truncation(prompt, tokenizer, max_length):
    """The official rule, one id at a time."""
    ids = tokenizer(prompt, truncation=False).input_ids
    if len(ids) <= max_length:
        return prompt
    half = int(max_length / 2)
    first, last = [], []
    for position in range(half):
        first.append(ids[position])
        last.insert(0, ids[len(ids) - 1 - position])
    return tokenizer.decode(first, skip_special_tokens=True) + tokenizer.decode(last, skip_special_tokens=True)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab .\n猫é🐈1{", min_size=0, max_size=80), st.integers(2, 60))
def test_truncation_equals_the_literal_rule(smollm2, mistral, prompt, max_length):
    for tokenizer in (smollm2, mistral):
        ours = truncate_middle(prompt, tokenizer, max_length)
        assert (prompt if ours is None else ours) == literal_truncation(prompt, tokenizer, max_length)


@pytest.mark.parametrize(("name", "window"), [(name, 700 + place % 2) for place, name in enumerate(ALL)])
def test_a_long_prompt_is_cut_before_it_is_wrapped(name, window, records, smollm2):
    record = replace(records[name], context=records[name].context * 300)
    task = TASKS[name]
    prompt = render(task, record, smollm2, window=window, chat_wrapper="template")
    wrapper = len(smollm2(SMOLLM2_CHAT.format(prompt="")).input_ids) if task.chat_wrapper else 0
    cut = literal_truncation(template(task, record), smollm2, window - task.max_new_tokens - wrapper)
    assert prompt.text == (SMOLLM2_CHAT.format(prompt=cut) if task.chat_wrapper else cut)
    assert prompt.truncated
    assert abs(prompt.tokens - (window - task.max_new_tokens)) <= 4  # the seam is tokenised anew


def test_a_prompt_that_just_fits_is_not_cut(records, llama3):
    task, record = TASKS["qasper"], records["qasper"]
    tokens = render(task, record, llama3, window=10_000, chat_wrapper="template").tokens
    exact = render(task, record, llama3, window=tokens + task.max_new_tokens, chat_wrapper="template")
    assert (exact.tokens, exact.truncated) == (tokens, False)
    assert render(task, record, llama3, window=tokens + task.max_new_tokens - 1, chat_wrapper="template").truncated


@pytest.mark.parametrize("name", ["qasper", "trec"])
def test_exactly_one_bos_under_template(name, records, llama3, mistral):
    for tokenizer in (llama3, mistral):  # one template writes the BOS, the other does not
        prompt = render(TASKS[name], records[name], tokenizer, window=4000, chat_wrapper="template")
        assert prompt.ids[0] == tokenizer.bos_token_id
        assert prompt.ids.count(tokenizer.bos_token_id) == 1


def test_released_wraps_llama_with_two_bos(records, llama3):
    prompt = render(TASKS["qasper"], records["qasper"], llama3, window=4000, chat_wrapper="released")
    body = template(TASKS["qasper"], records["qasper"])
    assert prompt.text == (
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{body}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert prompt.ids[:2] == (llama3.bos_token_id,) * 2
    assert prompt.ids.count(llama3.bos_token_id) == 2


def test_released_wraps_no_other_model_and_none_of_the_six_tasks(records, llama3, mistral, smollm2):
    for tokenizer in (mistral, smollm2):
        prompt = render(TASKS["qasper"], records["qasper"], tokenizer, window=4000, chat_wrapper="released")
        assert prompt.text == template(TASKS["qasper"], records["qasper"])
        assert list(prompt.ids) == tokenizer(prompt.text).input_ids
    for name in UNWRAPPED:
        prompt = render(TASKS[name], records[name], llama3, window=4000, chat_wrapper="released")
        assert prompt.text == template(TASKS[name], records[name])
        assert prompt.ids.count(llama3.bos_token_id) == 1


def test_a_window_without_room_is_refused(records, smollm2):
    with refused("model.window", value=512):
        render(TASKS["gov_report"], records["gov_report"], smollm2, window=512, chat_wrapper="template")


def test_a_tokenizer_without_chat_template_is_refused_where_one_is_needed(records, base):
    with refused("model.chat_template"):
        render(TASKS["qasper"], records["qasper"], base, window=4000, chat_wrapper="template")
    assert (
        render(TASKS["trec"], records["trec"], base, window=4000, chat_wrapper="template").ids[0] == base.bos_token_id
    )


def test_only_samsum_stops_at_a_newline(smollm2):
    newline = smollm2("\n").input_ids[-1]
    assert stop_ids(TASKS["samsum"], smollm2, {1, 2}) == {newline, smollm2.eos_token_id}
    assert stop_ids(TASKS["qasper"], smollm2, {1, 2}) == {1, 2}
