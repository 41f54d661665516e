"""Graphs as ComfyUI exports them ("API format")."""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def text_to_image(**sampler: Any) -> Graph:
    """The default graph of ComfyUI, small; with other inputs of its sampler."""
    given = {"seed": 7, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "3": node("KSampler", model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0],
                  **{**given, **sampler}),
        "4": node("CheckpointLoaderSimple", ckpt_name="image"),
        "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": node("CLIPTextEncode", text="a red apple", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }  # fmt: skip


def image_to_image(name: str, **sampler: Any) -> Graph:
    """The same from an uploaded picture."""
    graph = text_to_image(**{"denoise": 0.5, **sampler})
    graph["5"] = node("VAEEncode", pixels=["10", 0], vae=["4", 2])
    graph["10"] = node("LoadImage", image=name, upload="image")
    return graph
