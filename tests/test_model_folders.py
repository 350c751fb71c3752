"""A model's folder gives the same model as in transformers, or is refused with the name of the fault."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compresskv import checkpoints
from compresskv.checking import frozen
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.setting import FULL
from compresskv.errors import UserError
from compresskv.models import ModelConfig, load
from tests.support import tiny
from tests.support.checkpoint_files import change, edit
from tests.support.refusals import assert_about, refused

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.0.self_attn.q_proj.weight"
IDS = tiny.prompt(40)
NEW = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "model")


def shard(folder, where="", keep=False):
    """Put the weights into two files at `where`, relative to the folder, and an index beside config.json."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    places: dict[str, str] = {}
    for number in (1, 2):
        name = f"{where}model-{number}-of-2.safetensors"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        part = names[number - 1 :: 2]
        save_file({name: weights[name] for name in part}, folder / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    if not keep:
        (folder / WEIGHTS).unlink()


def loaded(folder):
    return load(ModelConfig("tiny", path=str(folder), device="cpu", dtype="float32"))


def assert_refused_to_load(folder, *names):
    """Each of `names` must be in the error: its field, the file or the value."""
    with pytest.raises(UserError) as caught:
        loaded(folder)
    assert_about(caught.value, caught.value.field)
    for name in names:
        assert name in str(caught.value)


def serves(folder):
    """The greedy answer with the checkpoint's settings equals that of transformers."""
    ours = loaded(folder)
    stopping = Stopping(NEW, ours.stop_ids, settings=ours.settings("honoured"))
    with attached(ours.model):
        answer = generate(ours.model, IDS, [FULL], stopping)[0].tokens
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    mask = torch.ones(1, IDS.numel(), dtype=torch.long)
    given = plain.generate(IDS[None], attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    assert answer == given[0, IDS.numel() :].tolist()


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("eos_token_id", ["x", -1, 1.5, 2.0, [[1]], True, [], [2, "x"], [2, -1], 1 << 40, {"a": 1}]),
        ("repetition_penalty", [NAN, INFINITE, 0, "x", -1, True, [1.2]]),
        ("bad_words_ids", [[[]], [3], "x", [["a"]], [[-1]], [[96]], True, 3, [[3.5]], []]),
        ("watermarking_config", [True, "x", {"seeding_scheme": "x"}, {"foo": 1}, {"greenlist_ratio": "x"}]),
        ("min_length", [-1, "x", 1.5, True, NAN, 10**30]),
        ("min_new_tokens", [-1, "x", 1.5, True]),
        ("suppress_tokens", [[96], [-1], "x", 3, [[3]], True, [1.5]]),
        ("begin_suppress_tokens", [[96], [-1], "x", 3, [[3]], True]),
        ("no_repeat_ngram_size", [-1, "x", 1.5, True]),
        ("forced_eos_token_id", [-1, "x", 96, True, [[2]]]),
        ("exponential_decay_length_penalty", [[2], "x", [2, "x"], [2, -1], [2.5, 1.5], True]),
        ("sequence_bias", [[], {}, "x", [[[96], 1.0]], [[[3], "x"]], True, [[3, 1.0]], [[[], 1.0]], {"3": 1.0}]),
        ("guidance_scale", ["x", NAN, True]),
        ("pad_token_id", ["x", 1.5, [1]]),
        ("bos_token_id", ["x", 1.5]),
    ],
)
def test_nonsense_in_generation_config_names_the_field(folder, field, values):
    before = (folder / GENERATION).read_text()
    for value in values:
        edit(folder, GENERATION, **{field: value})
        assert_refused_to_load(folder, GENERATION, field)
        (folder / GENERATION).write_text(before)


@pytest.mark.parametrize("text", ["", "{", "[]", "true", "3", "null", "\ufeff{}", b"\xff\xfe"])
def test_a_broken_generation_config_is_refused(folder, text):
    (folder / GENERATION).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused_to_load(folder, GENERATION)


def test_end_tokens_of_config_json_count_without_a_generation_config(folder):
    (folder / GENERATION).unlink()
    edit(folder, CONFIG, eos_token_id=-1)
    assert_refused_to_load(folder, CONFIG, "eos_token_id")
    edit(folder, CONFIG, eos_token_id=2)
    serves(folder)


@pytest.mark.parametrize("ends", [50256, [1, 50256]])
def test_an_end_token_that_the_model_lacks_ends_nothing(folder, ends):
    """Configurations of small models keep the end token that their family has by default."""
    edit(folder, GENERATION, eos_token_id=ends, min_new_tokens=3)
    serves(folder)
    assert any("50256" in note for note in loaded(folder).notes)
    edit(folder, GENERATION, eos_token_id=50256)
    edit(folder, TOKENIZER, eos_token=None)
    assert_refused_to_load(folder, "eos_token_id=[50256]")


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 3, "bad_words_ids": [[7]], "suppress_tokens": [3]},
        {"watermarking_config": {"bias": 9.0}},
        {"watermarking_config": {"bias": 9.0, "seeding_scheme": "selfhash"}},
    ],
)
def test_what_can_be_honoured_is(folder, asked):
    edit(folder, GENERATION, **asked)
    serves(folder)


@pytest.mark.parametrize(
    ("whole", "same"),
    [
        ({"repetition_penalty": 2}, {"repetition_penalty": 2.0}),
        ({"sequence_bias": [[[7], -9]]}, {"sequence_bias": [[[7], -9.0]]}),
    ],
)
def test_a_whole_number_is_taken_for_a_float(folder, whole, same):
    """transformers refuses whole numbers; the names of results keep them."""
    edit(folder, GENERATION, **same)
    serves(folder)
    edit(folder, GENERATION, **whole)
    model = loaded(folder)
    assert json.dumps(model.generation_defaults) == json.dumps(whole)
    with attached(model.model):
        given, expected = (
            generate(model.model, IDS, [FULL], Stopping(NEW, settings=frozen(settings)))[0].tokens
            for settings in (whole, same)
        )
    assert given == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [("encoder_repetition_penalty", 1.5), ("stop_strings", ["a"]), ("token_healing", True), ("dola_layers", "low")],
)
def test_what_cannot_be_honoured_is_refused_only_where_it_is_asked_for(folder, field, value):
    edit(folder, GENERATION, **{field: value})
    model = loaded(folder)
    assert model.settings("ignored") == {}
    with refused("protocol.generation_config"):
        model.settings("honoured")


@pytest.mark.parametrize(
    "field",
    [
        *("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads"),
        *("intermediate_size", "head_dim", "max_position_embeddings"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(folder, field, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it is being loaded"))
    before = (folder / CONFIG).read_text()
    for value in (0, -1, "x", NAN, 1.5, True, 10**12, 96 * 10**9):
        edit(folder, CONFIG, **{field: value})
        assert_refused_to_load(folder, *([field] if value not in (10**12, 96 * 10**9) else []))
        (folder / CONFIG).write_text(before)
    edit(folder, CONFIG, num_hidden_layers=2000)
    assert_refused_to_load(folder, "num_hidden_layers")


@pytest.mark.parametrize(
    "values",
    [
        {"quantization_config": {"quant_method": "nope"}},
        {"quantization_config": {"bits": 4}},
        {"quantization_config": []},
        {"quantization_config": "x"},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"compression_config": {"format": "int-quantized"}},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["MistralForCausalLM"]},
        {"model_type": "gemma"},
        {"transformers_weights": "../base/model.safetensors"},
        {"transformers_weights": "/model.safetensors"},
        {"transformers_weights": 5},
        {"pad_token_id": 96},
    ],
)
def test_a_config_that_would_be_read_in_another_way_is_refused(folder, values):
    edit(folder, CONFIG, **values)
    assert_refused_to_load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": None},
        {"architectures": ["SomethingOfOurOwn"]},
        {"dtype": "float16"},
        {"quantization_config": None},
        {"transformers_weights": WEIGHTS},
        {"use_cache": False},
        {"tie_word_embeddings": True},
    ],
)
def test_a_config_that_is_unusual_is_served(folder, values):
    edit(folder, CONFIG, **values)
    serves(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn])
def test_quantised_weights_without_scales_are_refused(folder, dtype):
    change(folder, {QUERY: (load_file(folder / WEIGHTS)[QUERY] * 50).to(dtype)})
    assert_refused_to_load(folder, QUERY)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_floating_dtype_are_served(folder, dtype):
    change(folder, {QUERY: load_file(folder / WEIGHTS)[QUERY].to(dtype)})
    serves(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_refused(folder, name):
    (folder / name).write_text("{}")
    assert_refused_to_load(folder, name)
    for file in (CONFIG, WEIGHTS):
        (folder / file).unlink()
    assert_refused_to_load(folder, name)


def test_an_index_leaves_its_folder_only_by_being_refused(folder, tmp_path):
    for where in ("../elsewhere/", f"{tmp_path}/absolute/", "shards/../../elsewhere/"):
        (folder / "shards").mkdir(exist_ok=True)
        shard(folder, where, keep=True)
        (folder / WEIGHTS).rename(tmp_path / WEIGHTS)
        assert_refused_to_load(folder, INDEX, where[:20])  # of a long value, the message has the beginning
        (tmp_path / WEIGHTS).rename(folder / WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {"metadata": {}, "weight_map": []},
        {"metadata": {}, "weight_map": {}},
        {"metadata": {}, "weight_map": {QUERY: 5}},
        {"metadata": {}, "weight_map": {QUERY: "x.bin"}},
        {"metadata": {}, "weight_map": {QUERY: "absent.safetensors"}},
        {"weight_map": {QUERY: WEIGHTS}},
        {"metadata": None, "weight_map": {QUERY: WEIGHTS}},
    ],
)
def test_a_broken_index_is_refused(folder, content):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(content))
    assert_refused_to_load(folder)


@pytest.mark.parametrize("metadata", [{}, {"mergekit_version": "0.1.0"}, {"total_size": 1, "format": "pt"}])
def test_an_index_may_say_what_it_likes_beside_its_map(folder, metadata):
    shard(folder)
    edit(folder, INDEX, metadata=metadata)
    serves(folder)


def test_weights_that_are_there_twice_are_refused(folder):
    shutil.copy(folder / WEIGHTS, folder / "model.fp16.safetensors")  # which nobody reads
    shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors")
    serves(folder)
    shard(folder, keep=True)
    assert_refused_to_load(folder, INDEX)
    (folder / INDEX).unlink()
    shutil.copy(folder / WEIGHTS, folder / "shard-00000-model-00001-of-00001.safetensors")
    assert_refused_to_load(folder, "shard-00000")


def test_a_tensor_in_two_files_is_refused(folder):
    shard(folder)
    first, second = (load_file(folder / f"model-{number}-of-2.safetensors") for number in (1, 2))
    name = min(first)
    save_file({**second, name: -first[name]}, folder / "model-2-of-2.safetensors", {"format": "pt"})
    assert_refused_to_load(folder, name)


def test_a_tokenizer_whose_end_the_model_lacks_is_refused(folder):
    edit(folder, TOKENIZER, eos_token="<end>")
    assert_refused_to_load(folder, TOKENIZER, "<end>")


def test_a_pipe_is_not_waited_for(folder):
    for name in (CONFIG, GENERATION):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert_refused_to_load(folder, name)
        (folder / name).unlink()
        (folder / name).write_bytes(content)


def test_sizes_under_other_names_are_refused(folder):
    edit(folder, CONFIG, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        content = json.loads((folder / CONFIG).read_text())
        content.pop(name)
        (folder / CONFIG).write_text(json.dumps(content))
    for field, name in (("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads"), ("n_embd", "hidden_size")):
        for value in (0, 10**9):
            edit(folder, CONFIG, **({"n_layer": 2, "n_head": 6, "n_embd": 96} | {field: value}))
            assert_refused_to_load(folder, *([name] if value == 0 else []))


def test_a_token_that_the_model_lacks_is_refused_where_a_prompt_has_it(folder):
    edit(folder, TOKENIZER, extra_special_tokens=["<more>"])
    model = loaded(folder)
    assert model.encode("some text").numel() == 9
    with refused("model"):
        model.encode("some <more> text")


@pytest.mark.parametrize("file", ["tokenizer.json", TOKENIZER, "special_tokens_map.json", "added_tokens.json"])
def test_broken_tokenizer_files_are_refused(folder, file):
    for text in ("", "{", "[]", "3"):
        (folder / file).write_text(text)
        assert_refused_to_load(folder)


def fingerprint(folder, code=False):
    return checkpoints.fingerprint(str(folder), None, code)


def test_a_folder_of_plain_files_keeps_its_fingerprint(folder):
    """The fingerprint names results and must stay a hash of the names and sha256 of all files."""
    contents = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    (folder / "README.md").write_text("nobody reads this")
    (folder / "vocab.txt").write_text("nor this, beside tokenizer.json")
    assert fingerprint(folder) == hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_weights_below_the_folder_are_in_its_fingerprint(folder):
    shard(folder, "shards/")
    serves(folder)
    before = fingerprint(folder)
    flip(folder / "shards" / "model-2-of-2.safetensors")
    assert fingerprint(folder) != before


def test_weights_behind_a_link_are_in_the_fingerprint(folder, tmp_path):
    elsewhere = (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(elsewhere)
    before = fingerprint(folder)
    flip(elsewhere)
    assert fingerprint(folder) != before


def test_other_files_that_are_read_are_in_the_fingerprint(folder):
    (folder / "tokenizer.json").rename(folder / "merges.txt")
    for name, code in (
        ("vocab.txt", False),
        ("additional_chat_templates/tool.jinja", False),
        ("parts/modeling.py", True),
    ):
        before = fingerprint(folder, code)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        assert fingerprint(folder, code) != before


def test_code_of_another_folder_is_in_the_fingerprint(folder, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "modeling.py").write_text("a = 1")
    edit(folder, CONFIG, auto_map={"AutoModelForCausalLM": f"{tmp_path}/code--modeling.Own"})
    plain, before = fingerprint(folder), fingerprint(folder, code=True)
    (tmp_path / "code" / "modeling.py").write_text("a = 2")
    assert fingerprint(folder, code=True) != before
    assert fingerprint(folder) == plain


@pytest.fixture
def cached(base, tmp_path, monkeypatch):
    """The hub's cache with the tiny model as org/tiny: its id, and the folder of its one commit."""
    home = tmp_path / "hub" / "models--org--tiny"
    snapshot = home / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    for file in base.iterdir():
        content = file.read_bytes()
        if file.name == WEIGHTS:
            name = hashlib.sha256(content).hexdigest()
        else:
            name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (home / "blobs" / name).write_bytes(content)
        (snapshot / file.name).symlink_to(f"../../blobs/{name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return "org/tiny", snapshot


def test_a_cache_of_the_hub_is_known_by_its_commit_while_it_is_as_downloaded(cached):
    source, snapshot = cached
    commit = hashlib.sha256(json.dumps([source, "a" * 40]).encode()).hexdigest()[:16]
    model = load(ModelConfig("tiny", path=source, device="cpu", dtype="float32"))
    assert model.fingerprint == checkpoints.fingerprint(source, "main") == commit
    seen = {commit}
    for name in (WEIGHTS, CONFIG, "tokenizer.json"):
        before = (snapshot / name).read_bytes()
        flip(snapshot / name)  # through the link, into the blob
        seen.add(checkpoints.fingerprint(source, None))
        (snapshot / name).write_bytes(before)
        assert checkpoints.fingerprint(source, None) == commit
    content = (snapshot / GENERATION).read_bytes()
    (snapshot / GENERATION).unlink()
    (snapshot / GENERATION).write_bytes(content + b" ")  # as `sed -i` does
    seen.add(checkpoints.fingerprint(source, None))
    assert len(seen) == 5
