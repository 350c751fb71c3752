"""Where the context of a LongBench prompt ends."""

from dataclasses import replace

import pytest

from compresskv.chat import question_start
from evals.longbench.prompts import render
from evals.longbench.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_the_context_of_every_longbench_task_ends_before_its_question(name, records, smollm2):
    """Also of a prompt that lost its middle."""
    for context, window in ((records[name].context, 2048), (records[name].context * 400, 900)):
        record = replace(records[name], context=context)
        prompt = render(TASKS[name], record, smollm2, window=window, chat_wrapper="template")
        after = TASKS[name].prompt.partition("{context}")[2].format(input=record.input)
        start = question_start(prompt.text, after, prompt.ids, smollm2)
        assert smollm2.decode(prompt.ids[start:]).lstrip().startswith(after.strip()[:20])
        assert smollm2.decode(prompt.ids[:start]) in prompt.text
