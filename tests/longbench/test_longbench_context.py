"""Where the context of a LongBench prompt ends."""

from dataclasses import replace

import pytest

from compresskv.chat import question_start
from evals.longbench.prompts import render
from evals.longbench.tasks import TASKS

LOST = ("qasper", "lcc", "vcsum", "samsum")
"""Tasks whose prompt also loses its middle: with a chat wrapper and without, Chinese, with a question and without."""


@pytest.mark.parametrize(("name", "times"), [*((name, 1) for name in TASKS), *((name, 200) for name in LOST)])
def test_the_context_of_every_longbench_task_ends_before_its_question(name, times, records, smollm2):
    record = replace(records[name], context=records[name].context * times)
    prompt = render(TASKS[name], record, smollm2, window=900, chat_wrapper="template")
    assert prompt.truncated == (times > 1)
    after = TASKS[name].prompt.partition("{context}")[2].format(input=record.input)
    start = question_start(prompt.text, after, prompt.ids, smollm2)
    assert smollm2.decode(prompt.ids[start:]).lstrip().startswith(after.strip()[:20])
    assert smollm2.decode(prompt.ids[:start]) in prompt.text
