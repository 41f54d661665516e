"""IP-Adapters (Ye et al. 2023) for U-Nets of diffusers, from untrusted safetensors files: a picture as a prompt.

The layout is that of the published ones: a file, and beside it or one folder above a folder `image_encoder`.

Try it: ``load_ip_adapters(pipe, [(Path("ip-adapter_sd15.safetensors"), 0.6)])``
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.loaders import offline
from studio.loaders.adapters import reporting, tensors_of

_OTHER = "use an IP-Adapter that was trained for this model"
_PARTS = ("image_proj", "ip_adapter")


def adapter_file(path: Path) -> Path:
    """The file of an IP-Adapter, which is a file or a folder with one. Raises WeightsError."""
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(found) != 1:
        message = f"`{path}` has {len(found)} safetensors files; an IP-Adapter is one"
        raise WeightsError(path, message, hint="give the file")
    return found[0]


def image_encoder(path: Path) -> Path:
    """The folder with the image encoder of an IP-Adapter. Raises WeightsError."""
    folder = adapter_file(path).parent
    for place in (folder / "image_encoder", folder.parent / "image_encoder"):
        if (place / "config.json").exists():
            return place
    message = f"the IP-Adapter `{path}` needs its image encoder, and `{folder / 'image_encoder'}` has none"
    raise WeightsError(path, message, hint="put the folder `image_encoder` beside the file")


def add_feature_extractor(pipe: Any) -> None:
    """Give a pipeline the preprocessing of pictures for its image encoder, if it has none."""
    import transformers

    if getattr(pipe, "feature_extractor", None) is None:
        side = pipe.image_encoder.config.image_size
        pipe.register_modules(feature_extractor=transformers.CLIPImageProcessor(size=side, crop_size=side))


def load_ip_adapters(pipe: Any, adapters: Sequence[tuple[Path, float]]) -> None:
    """Add IP-Adapters to a pipeline's U-Net, each with a scale. Raises WeightsError for one of another base model."""
    if not hasattr(pipe, "load_ip_adapter") or not hasattr(pipe, "unet"):
        raise WeightsError(adapters[0][0], f"a `{type(pipe).__name__}` takes no IP-Adapter", hint="use another model")
    states = [_state(path) for path, _ in adapters]
    with reporting(), offline(adapters[0][0]):
        try:
            pipe.load_ip_adapter(
                states, subfolder=[""] * len(states), weight_name=[""] * len(states), low_cpu_mem_usage=False
            )
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            message = f"the IP-Adapter `{adapters[0][0]}` does not fit this `{type(pipe).__name__}`: {reason[:160]}"
            raise WeightsError(adapters[0][0], message, hint=_OTHER) from error
    pipe.set_ip_adapter_scale([scale for _, scale in adapters])
    pipe.unet.requires_grad_(False).eval()


def _state(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a file by part. Raises WeightsError for a file of another kind."""
    tensors, _ = tensors_of(path)
    made: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in made or "lora" in rest:
            message = f"`{path}` is not an IP-Adapter of a known kind: it has `{name:.80}`"
            raise WeightsError(path, message, hint="use an IP-Adapter without LoRA")
        made[part][rest] = tensor
    if empty := [part for part, each in made.items() if not each]:
        raise WeightsError(path, f"`{path}` is not an IP-Adapter: it has no `{empty[0]}`", hint=_OTHER)
    return made
