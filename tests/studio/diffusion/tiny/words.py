"""Tiny text encoders and tokenizers for the pipelines of this package that are built without them.

`worded` gives a pipeline as people's folders have it, with all that a prompt needs. `UNWORDED` has the families for
which that is not done, with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import processors

from .parts import clip_text, clip_words, letters

WORDS = "abcdefghijklmnopqrstuvwxyz "
_SMALL = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
          "max_position_embeddings": 1024}  # fmt: skip
_KEYED = {**_SMALL, "num_key_value_heads": 1, "head_dim": 8}
Encoder = Callable[[int], Any]


def t5_words() -> Any:
    words = ["<pad>", "</s>", "<unk>", "▁", *WORDS.strip()]
    return transformers.T5Tokenizer(vocab=[(word, 0.0 if i < 3 else -2.0 - i / 10) for i, word in enumerate(words)],
                                    extra_ids=0, model_max_length=512)  # fmt: skip


def qwen_words() -> Any:
    words = ["<|endoftext|>", *WORDS.replace(" ", "Ġ"), "Ċ", "<", ">", "|", "_", ".", ",", ":"]
    made = transformers.Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def glm_words() -> Any:
    """It begins each text with a token, also an empty one."""
    made = letters()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    return made


def bert_words() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.strip(), *(f"##{each}" for each in WORDS.strip())]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def _t5(kind: str) -> Encoder:
    def make(width: int) -> Any:
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
        )
        return getattr(transformers, f"{kind}EncoderModel")(config)

    return make


def _model(kind: str, config: str, **more: Any) -> Encoder:
    return lambda width: getattr(transformers, kind)(getattr(transformers, config)(hidden_size=width, **more))


def _qwen_vl(width: int) -> Any:
    text = {**_KEYED, "hidden_size": width, "num_key_value_heads": 2, "head_dim": width // 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    return transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, vision_start_token_id=60, vision_end_token_id=61, image_token_id=62,
        video_token_id=63))  # fmt: skip


ENCODERS: dict[str, tuple[Encoder, Callable[[], Any]]] = {
    "CLIPTextModelWithProjection": (
        lambda width: clip_text(projected=True, hidden_size=width, max_position_embeddings=256),
        clip_words,
    ),
    "CLIPTextModel": (lambda width: clip_text(hidden_size=width, max_position_embeddings=256), clip_words),
    "UMT5EncoderModel": (_t5("UMT5"), t5_words),
    "T5EncoderModel": (_t5("T5"), t5_words),
    "Gemma2PreTrainedModel": (_model("Gemma2Model", "Gemma2Config", **_KEYED), letters),
    "GemmaPreTrainedModel": (_model("GemmaModel", "GemmaConfig", **_KEYED), letters),
    "GlmModel": (_model("GlmModel", "GlmConfig", **_KEYED, pad_token_id=0), glm_words),
    "LlamaModel": (_model("LlamaModel", "LlamaConfig", **_KEYED), letters),
    "LlamaForCausalLM": (_model("LlamaForCausalLM", "LlamaConfig", **_KEYED), letters),
    "Qwen3Model": (_model("Qwen3Model", "Qwen3Config", **_KEYED), qwen_words),
    "Qwen2_5_VLForConditionalGeneration": (_qwen_vl, qwen_words),
    "PreTrainedModel": (_model("Qwen3Model", "Qwen3Config", **_KEYED), qwen_words),
    "BertModel": (_model("BertModel", "BertConfig", **_SMALL), bert_words),
}
"""By what a pipeline's constructor asks for: an encoder of a width, and a tokenizer for it. The first that fits."""


JOINED = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "HiDreamImagePipeline")
"""Pipelines that join the states of two CLIP encoders, of half the width each."""
_LONGER = {"CogVideoXPipeline": {"max_text_seq_length": 226}}
"""Settings of a denoiser for texts of the pipeline's own length."""


def worded(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline with text encoders and tokenizers, and the arguments of a call without embeddings."""
    from . import build

    pipe, arguments = build(name)
    given = arguments(1)
    wanted = inspect.signature(type(pipe).__init__).parameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if name in _LONGER:
            net = pipe.transformer
            pipe.register_modules(transformer=type(net).from_config({**net.config, **_LONGER[name]}).eval())
        for part in [each for each in wanted if each.startswith("text_encoder")]:
            words, asked = part.replace("text_encoder", "tokenizer"), str(wanted[part].annotation)
            if getattr(pipe, words, None) is not None:
                continue
            encoder, tokenizer = next(made for kind, made in ENCODERS.items() if kind in asked)
            width = 16 if name in JOINED and "CLIP" in asked else _width(part, asked, given)
            pipe.register_modules(**{part: encoder(width).eval(), words: tokenizer()})
    return pipe, {key: each for key, each in given.items()
                  if "embeds" not in key and "mask" not in key.replace("mask_image", "")}  # fmt: skip


def _width(part: str, asked: str, given: dict[str, Any]) -> int:
    """The hidden size of a text encoder, from the embeddings that the network takes."""
    known = {"CLIP": ("pooled_prompt_embeds",), "T5": ("prompt_embeds_t5",), "Llama": ("prompt_embeds_llama3",)}
    second = f"prompt_embeds{part.removeprefix('text_encoder')}"
    names = [*next((keys for kind, keys in known.items() if kind in asked), ()), second, "prompt_embeds"]
    found = next(given[key] for key in names if key in given)
    return int((found[0] if isinstance(found, list) else found).shape[-1])


UNWORDED = {
    "FLUX.2": "no tiny form of its text encoders is made here; their states come from layers up to 27",
    "PixArt": "its resolution bins begin at 256 pixels, too many for a quick test",
    "Sana": "its resolution bins begin at 512 pixels",
    "Sana Video": "its resolution bins begin at 480 pixels",
    "HiDream": "it draws a million pixels, whatever the size",
    "PRX": "its resolution bins begin at 512 pixels",
    "Krea 2": "no tiny form of its text encoder, Qwen3-VL, is made here",
    "Kandinsky 5": "no tiny form of its text encoder, Qwen2.5-VL with a processor, is made here",
    "EasyAnimate": "no tiny form of its text encoder, Qwen2-VL, is made here",
    "LTX-2": "no tiny form of its text encoder, Gemma 3, is made here",
    "Allegro": "its decoder does not work at 64 pixels, the size of the test",
    "Cosmos": "it needs the package `cosmos_guardrail`",
    "Kolors": "it needs the package `sentencepiece`",
    "DiT": "it is asked for by a class number, not by a prompt",
    "Bria": "it fails in the table",
}
"""The families that are not compared through the command line, with the reason."""
COMPARED = {
    "image": [
        "StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline", "LatentConsistencyModelPipeline",
        "StableUnCLIPPipeline", "StableDiffusionXLPipeline", "StableDiffusionControlNetPipeline", "FluxPipeline",
        "FluxFillPipeline", "ChromaPipeline", "StableDiffusion3Pipeline", "Lumina2Pipeline", "AuraFlowPipeline",
        "CogView3PlusPipeline", "CogView4Pipeline", "HunyuanDiTPipeline", "QwenImagePipeline", "ZImagePipeline",
        "OmniGenPipeline", "OvisImagePipeline", "KandinskyV22CombinedPipeline", "Kandinsky3Pipeline",
        "StableCascadeCombinedPipeline",
    ],
    "video": [
        "WanPipeline", "SkyReelsV2Pipeline", "LTXPipeline", "CogVideoXPipeline", "HunyuanVideoPipeline",
        "MochiPipeline", "LattePipeline", "AnimateDiffPipeline", "StableVideoDiffusionPipeline",
    ],
    "audio": ["StableAudioPipeline", "AceStepPipeline"],
}  # fmt: skip
"""By command: the classes that are compared with diffusers through the command line."""
