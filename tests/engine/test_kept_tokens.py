"""Kept tokens as a file: what is written is read back, decodes to the same tokens, and is refused elsewhere."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.setting import Setting
from compresskv.installed import generate_argument
from compresskv.kept_tokens import encoded, read
from tests.support import tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, compresskv, evicting_layers
from tests.support.refusals import refused

NEW = Stopping(12)
OPTIONS = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def exported(tmp_path):
    """Export what a setting keeps of a prompt's first `context` tokens: the file, and the tokens of the answer."""

    def export(model, ids, setting, context=None):
        with attached(model):
            (made,) = generate(model, ids, [setting], NEW, context=context)
        path = tmp_path / "kept.safetensors"
        path.write_bytes(encoded(made.positions, model.config, ids[:context], {"sample": "a"}))
        return path, made

    return export


def answer(model, ids, path, **options):
    """What `model.generate` makes of a prompt with the kept tokens of a file."""
    with compressed(model, kept=path) as cache:
        given = {"attention_mask": torch.ones(1, ids.numel(), dtype=torch.long), generate_argument(): cache}
        out = model.generate(ids[None], max_new_tokens=12, **OPTIONS, **given, **options)
        return out[0, ids.numel() :].tolist(), cache.kept


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("llama", Setting(compresskv(4), 36)),
        ("llama", Setting(SNAPKV, 300)),
        ("qwen2-hybrid", Setting(RAGGED, 40)),
        ("gemma3", Setting(SNAPKV, 20)),
    ],
)
def test_a_file_gives_the_tokens_of_the_exported_run(exported, family, setting):
    model, ids = tiny.model(family), tiny.prompt(90)
    path, made = exported(model, ids, setting)
    for options in ({}, {"prefill_chunk_size": 37}):
        tokens, kept = answer(model, ids, path, **options)
        assert tokens == made.tokens
        assert [[head.tolist() for head in layer] for layer in kept] == [
            [head.tolist() for head in layer] for layer in made.positions
        ]
    assert read(path).layers == evicting_layers(model)


def test_a_compressed_context_is_passed_alone(exported):
    model, ids = tiny.model("llama"), tiny.prompt(90)
    path, made = exported(model, ids, Setting(SNAPKV, 20), context=70)
    with compressed(model, kept=path) as cache:
        model(ids[None, :70], past_key_values=cache)
        mask = torch.ones(1, 90, dtype=torch.long)
        again = copy.deepcopy(cache)
        for each in (cache, again):
            options = {**OPTIONS, "attention_mask": mask, generate_argument(): each}
            out = model.generate(ids[None], max_new_tokens=12, **options)
            assert out[0, 90:].tolist() == made.tokens
    with refused("kept", value=path):
        answer(model, ids, path)


@pytest.mark.parametrize("other", [tiny.prompt(90, 1), tiny.prompt(90)[:80], tiny.prompt(91)])
def test_another_prompt_is_refused(exported, other):
    model = tiny.model("llama")
    path, _ = exported(model, tiny.prompt(90), Setting(SNAPKV, 20))
    with refused("kept", value=path):
        answer(model, other, path)
    with refused("kept", value=path), compressed(model, kept=path) as cache:  # embeddings name no tokens
        model(inputs_embeds=model.get_input_embeddings()(tiny.prompt(90)[None]), past_key_values=cache)
    with refused("kept", value=path), compressed(model, kept=path, prompt_length=len(other)) as cache:
        for part in (other[:40], other[40:]):
            model(part[None], past_key_values=cache)
    for family in ("qwen2-hybrid", "gemma3"):  # models of another shape
        with refused("kept", value=path), compressed(tiny.model(family), kept=path):
            pass


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "method"),
        ({"method": "snapkv"}, "budget"),
        ({"kept": "x", "method": "snapkv"}, "method"),
        ({"kept": "x", "budget": None}, "budget"),
        ({"kept": "x", "calibration": "published"}, "calibration"),
        ({"kept": "x", "when": "prompt+decode"}, "when"),
        ({"kept": "there is none"}, "kept"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(given, field):
    with refused(field), compressed(tiny.model("llama"), **given):
        pass


FAULTS = {
    "beyond the prompt": lambda t: t["tokens"].__setitem__(-1, 90),
    "not rising": lambda t: t["tokens"].__setitem__(1, t["tokens"][0]),
    "too few": lambda t: t.update(tokens=t["tokens"][:-1]),
    "other counts": lambda t: t["counts"].__setitem__((0, 0), -20),
    "other layers": lambda t: t.update(layers=t["layers"][:-1]),
    "flat": lambda t: t.update(counts=t["counts"].ravel()),
    "missing": lambda t: t.pop("layers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_contradicts_itself_is_refused(exported, fault):
    path, _ = exported(tiny.model("llama"), tiny.prompt(90), Setting(SNAPKV, 20))
    tensors, metadata = load_file(path), dict(read(path).metadata)
    FAULTS[fault](tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, metadata)
    with refused("kept", value=path):
        read(path)
    path.write_bytes(b"not at all")
    with refused("kept", value=path):
        read(path)


@given(
    st.sampled_from([20, 65_536, 65_537, 200_000]),
    st.lists(st.integers(0, 20), min_size=8, max_size=8).filter(any),
    st.integers(0, 99),
)
@settings(max_examples=20)
def test_positions_survive_the_file(tmp_path_factory, length, sizes, seed):
    config, generator = tiny.model("llama").config, torch.Generator().manual_seed(seed)
    heads = [torch.randperm(length, generator=generator)[:size].sort().values for size in sizes]
    kept = [heads[layer : layer + 2] for layer in range(0, 8, 2)]
    path = tmp_path_factory.mktemp("kept") / "a.safetensors"
    path.write_bytes(encoded(kept, config, torch.zeros(length, dtype=torch.int64), {}))
    found = read(path)
    assert load_file(path)["tokens"].itemsize == (2 if length <= 65_536 else 4)
    assert found.length == length
    assert all(
        torch.equal(a, b) for one, two in zip(found.kept, kept, strict=True) for a, b in zip(one, two, strict=True)
    )
