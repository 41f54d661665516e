"""Files that are as they should be, in every format, and files that are not: one clear error each."""

import json
import shutil
import struct
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from studio.errors import UsageError, WeightsError
from studio_gpt.families import config_of
from studio_gpt.gguf_file import Gguf
from studio_gpt.load import find

from .conftest import VOCAB

KINDS = gguf.GGMLQuantizationType
WRITTEN = [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_0, KINDS.Q4_1, KINDS.Q5_0, KINDS.Q5_1]


def turned(rows, heads):
    """Rows of queries and keys as llama.cpp's converter lays them."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, theirs, tokenizer, kind, pre="gpt-2", endian=gguf.GGUFEndian.LITTLE, **more):
    """A Llama of transformers as a GGUF file, its matrices packed as `kind`; the model gets the numbers it holds then.

    `more` are further entries about the tokenizer, such as `add_bos_token`.
    """
    c, weights = theirs.config, theirs.state_dict()
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    vocab = json.loads(tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(vocab["vocab"], key=vocab["vocab"].get))
    writer.add_token_types([3] * 3 + [1] * (len(vocab["vocab"]) - 3))
    for name, value in more.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(f"tokenizer.{name}" if name == "chat_template" else f"tokenizer.ggml.{name}", value)
    writer.add_token_merges([" ".join(pair) for pair in vocab["merges"]])
    writer.add_eos_token_id(1)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
             "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
             "down_proj": "ffn_down"}  # fmt: skip
    for stored, tensor in weights.items():
        parts = stored.split(".")
        name = names[parts[-2]] + ".weight"
        name = f"blk.{parts[2]}.{name}" if "layers" in parts else name
        rows, packs = tensor.numpy(), kind if tensor.dim() > 1 else KINDS.F32
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(parts[-2])
        packed = quantize(turned(rows, heads) if heads else rows, packs)
        writer.add_tensor(name, packed, raw_dtype=packs)
        tensor.copy_(torch.from_numpy(np.array(dequantize(quantize(rows, packs), packs))).view_as(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wide_llama():
    """Its rows are as long as blocks are."""
    import transformers

    torch.manual_seed(5)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )).eval()  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.name)
def test_a_gguf_file_is_the_model_that_was_packed_into_it(kind, tokenizer, tmp_path):
    theirs, path = wide_llama(), tmp_path / "model.gguf"
    with torch.no_grad():
        write_gguf(path, theirs, tokenizer, kind)
        found = find(path)
        tokens = torch.randint(0, VOCAB, (1, 30))
        torch.testing.assert_close(found.build("cpu", "float32")(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)
    text = "The animal was tired, 23 apples 🍎 一个"
    assert found.tokens().encode(text) == tokenizer.encode(text).ids
    assert found.tokens().ends == {1}


@pytest.mark.parametrize("kind", [KINDS.Q2_K, KINDS.Q3_K, KINDS.Q4_K, KINDS.Q5_K, KINDS.Q6_K], ids=lambda k: k.name)
def test_k_quants_are_read_as_the_package_reads_them(kind, tmp_path):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, (6, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = Gguf(tmp_path / "a.gguf").tensor("x")
    assert read.shape == (6, 2 * block)
    np.testing.assert_array_equal(read, dequantize(raw, kind))


@pytest.fixture(scope="module")
def small_gguf(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    with torch.no_grad():
        write_gguf(path, wide_llama(), tokenizer, KINDS.Q8_0)
    return path.read_bytes()


def test_a_big_endian_gguf_file_is_called_that(tokenizer, tmp_path):
    with torch.no_grad():
        write_gguf(tmp_path / "big.gguf", wide_llama(), tokenizer, KINDS.F32, endian=gguf.GGUFEndian.BIG)
    with pytest.raises(WeightsError, match="is a big-endian GGUF file") as raised:
        find(tmp_path / "big.gguf")
    assert "little-endian" in raised.value.hint


def greedy_logits(folder, tokens):
    return find(folder).build("cpu", "float32")(tokens)


@pytest.mark.parametrize("name", ["llama-3", "gpt2"])
@pytest.mark.parametrize("head", ["own", "copy", "in place of the embedding"])
def test_a_head_that_is_stored_beside_a_tied_embedding_is_what_transformers_takes(name, head, checkpoints, tmp_path):
    import transformers

    folder, _ = checkpoints(name)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (embedding,) = (each for each in weights if each.endswith(("embed_tokens.weight", "wte.weight")))
    weights["lm_head.weight"] = weights[embedding].clone()
    if head == "own":
        weights["lm_head.weight"] += torch.randn(weights[embedding].shape)
    elif head != "copy":
        del weights[embedding]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    tokens = torch.randint(0, VOCAB, (1, 20))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(greedy_logits(tmp_path, tokens), theirs(tokens).logits, atol=1e-4, rtol=0)
    assert find(tmp_path).config.tied is (head != "own")


@given(data=st.data())
def test_a_damaged_gguf_header_is_an_error_or_another_file_and_never_a_crash(data, small_gguf, tmp_path_factory):
    path = tmp_path_factory.mktemp("bad") / "model.gguf"
    at = data.draw(st.integers(0, 3000))
    wrong = data.draw(st.binary(min_size=1, max_size=8))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(small_gguf))))
    path.write_bytes((small_gguf[:at] + wrong + small_gguf[at + len(wrong) :])[:cut])
    with suppress(WeightsError):
        find(path).tokens()


@pytest.mark.parametrize(("at", "value", "words"), [
    (8, 1 << 60, "tensors, but has"), (16, 1 << 50, "metadata entries, but has"), (24, 1 << 40, "characters in a name"),
])  # fmt: skip
def test_a_lying_gguf_header_is_refused_before_anything_is_allocated(at, value, words, small_gguf, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf[:at] + struct.pack("<Q", value) + small_gguf[at + 8 :])
    with pytest.raises(WeightsError, match=words):
        find(path)
    path.write_bytes(small_gguf[:-2000])
    with pytest.raises(WeightsError, match="ends at byte"):
        find(path)


def read(folder):
    found = find(folder)
    return found.build("cpu", "float32"), found.tokens()


def break_nan(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors")


def break_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors")


def break_cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def break_lack(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def break_more(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.extra": torch.zeros(2)}, folder / "model.safetensors")


def break_shard(folder):
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": {"type": "Magic"}}')


def swell_tokenizer(folder):
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 30)  # a hole: it takes no room on the disk


@pytest.mark.parametrize(("change", "words"), [
    (break_nan, "`norm.weight` has NaN or infinity"),
    (break_shape, r"the module's `norm.weight` has|shape \[31\]"),
    (break_cut, "cannot be read as safetensors"),
    (break_lack, "lack the tensor `layers.1.mlp.up_proj.weight`"),
    (break_more, "unexpected `extra`"),
    (break_shard, "lacks `model-00001-of-00002.safetensors`"),
    (change_config(model_type="rwkv"), "type is 'rwkv'"),
    (change_config(hidden_size=10**9), "`hidden_size` is 1000000000; it must be a whole number from 1 to"),
    (change_config(hidden_act="magic"), "`hidden_act` is 'magic'"),
    (change_config(rope_parameters={"rope_type": "yarn"}), "scaling is `yarn`; supported: default, linear, llama3"),
    (change_config(quantization_config={"bits": 4}), "quantization_config"),
    (change_config(vocab_size=VOCAB - 8), "shape|knows"),
    (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has no \\*.safetensors"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    (break_tokenizer, "is not a tokenizer"),
    (swell_tokenizer, "it has more than 67,108,864 bytes"),
])  # fmt: skip
def test_each_fault_of_a_folder_is_one_clear_error(change, words, checkpoints, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoints("llama")[0], folder)
    change(folder)
    with pytest.raises(WeightsError, match=words) as raised:
        read(folder)
    assert raised.value.hint


def test_shards_are_one_model(checkpoints, tmp_path):
    folder, theirs = checkpoints("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tokens = torch.randint(0, VOCAB, (1, 9))
    whole, parts = (find(each).build("cpu", "float32")(tokens) for each in (folder, tmp_path))
    assert torch.equal(whole, parts)


@given(values=st.dictionaries(
    st.sampled_from(["n_embd", "n_layer", "n_head", "vocab_size", "layer_norm_epsilon", "activation_function",
                     "tie_word_embeddings", "n_inner"]),
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2000), st.floats(allow_nan=True), st.text(max_size=5)),
))  # fmt: skip
def test_any_configuration_is_read_or_refused(values):
    with suppress(UsageError):
        config_of({"model_type": "gpt2", **values})
