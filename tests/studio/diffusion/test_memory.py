"""Pipelines larger than the memory budget: their components come for their stage, and pictures are the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import studio
from studio.diffusion import stepping
from studio.engine.calls.call import run_inline
from studio.engine.engine import Engine
from studio.engine.memory.ledger import Ledger, tensor_bytes, weight_bytes
from studio.engine.memory.model import Model
from studio.engine.memory.model_cache import ModelCache
from studio.testing.fake_gpu import FakeGpu
from studio.weights.loading import SafetensorsSource
from tests.studio.engine.bench import ask

from . import tiny, whole

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")


class Drawn(studio.PipelineGenerator):
    """Draw with a pipeline of a folder."""

    name, output = "drawn", studio.Image

    class Inputs(studio.Inputs):
        prompt: str = studio.field("a red boat", help="prompt")

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # type: ignore[misc]

    def dtype_for(self, device: str) -> str:
        return "float32"

    def arguments(self, model: Any, inputs: Inputs) -> Mapping[str, Any]:
        return {"prompt": inputs.prompt, "num_inference_steps": 3, "width": 32, "height": 32}


@cache
def sdxl(seed: int) -> Any:
    """A pipeline of 55 MB, of which only the denoiser depends on `seed`."""
    import diffusers
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoders = [whole.clip_text(projection, hidden) for projection, hidden in ((False, 128), (True, 192))]
        vae = whole.kl(block_out_channels=(64, 96))
        torch.manual_seed(seed)
        net = whole.unet(
            block_out_channels=(64, 96), addition_embed_type="text_time", addition_time_embed_dim=8,
            cross_attention_dim=320, projection_class_embeddings_input_dim=80, transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        )  # fmt: skip
    tokenizers = [whole.clip_tokenizer() for _ in range(2)]
    return diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1], unet=net, scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pipelines with the same text encoders and VAE."""
    made = [tmp_path_factory.mktemp("sdxl") for _ in range(2)]
    for seed, folder in enumerate(made):
        sdxl(seed).save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def size(folders: list[Path]) -> int:
    """Bytes of the weights of one pipeline."""
    return weight_bytes(folders[0].rglob("*.safetensors"), "float32")


def draw(cache: ModelCache, model: Model, prompt: str, peak: int | None = 0) -> np.ndarray:
    """Draw with a loaded model, as an engine does that has measured `peak` for its calls."""

    def begin() -> None:
        cache.components.begin_call(peak, 0)
        assert ledger.used <= (ledger.budget or 0)

    ledger = cache.ledger
    arguments = {"prompt": prompt, "num_inference_steps": 3, "width": 32, "height": 32, "output_type": "np"}
    with tiny.one_thread():
        begin()
        state = stepping.start(model.value, arguments, studio.Rng(1))
        while not state.done:
            begin()
            (state,) = stepping.step(model.value, [state])
        begin()
        (result,) = stepping.finish(model.value, [state])
    return tiny.pixels(result)


@pytest.fixture(scope="module")
def expected(folders: list[Path]) -> list[np.ndarray]:
    """The pictures of the two pipelines with enough memory."""
    cache = ModelCache("cpu", ledger=Ledger(1 << 40))
    models = [run_inline(cache.get(ask(Drawn(folder)))) for folder in folders]
    assert not any(model.streamed for model in models)
    return [draw(cache, model, "a red boat") for model in models]


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_picture_is_the_same_whatever_fits(
    folders: list[Path], size: int, expected: list[np.ndarray], share: float
) -> None:
    cache = ModelCache("cpu", ledger=Ledger(int(share * size)))
    model = run_inline(cache.get(ask(Drawn(folders[0]))))
    assert model.streamed
    for peak in (None, 0, size // 10):
        assert np.array_equal(draw(cache, model, "a red boat", peak), expected[0])
        assert tensor_bytes(model.value, "cpu") + model.passing == cache.ledger.used <= share * size
    assert cache.ledger.most_used <= share * size
    cache.evict_all(lambda each: 0)
    assert cache.ledger.used == 0


def test_pipelines_share_what_their_files_have_in_common_also_if_it_is_streamed(
    folders: list[Path], size: int, expected: list[np.ndarray]
) -> None:
    cache = ModelCache("cpu", ledger=Ledger(int(0.6 * size)))
    one, other = (run_inline(cache.get(ask(Drawn(folder)))) for folder in folders)
    parts = [model.value.components for model in (one, other)]
    assert {name for name in parts[0] if parts[0][name] is parts[1][name]} == {"text_encoder", "text_encoder_2", "vae"}
    for model, picture in ((one, expected[0]), (other, expected[1]), (one, expected[0])):
        assert np.array_equal(draw(cache, model, "a red boat"), picture)
    assert tensor_bytes([one.value, other.value], "cpu") + one.passing == cache.ledger.used
    cache.evict_all(lambda model: 0 if model is one else None)
    assert np.array_equal(draw(cache, other, "a red boat"), expected[1])
    cache.evict_all(lambda model: 0)
    assert cache.ledger.used == 0


def test_on_a_gpu_layers_come_without_a_wait_and_evicted_ones_wait_in_pinned_memory(
    folders: list[Path], size: int, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGpu.installed() as gpu:
        cache = ModelCache(gpu.name, ledger=Ledger(int(0.6 * size)), host=Ledger(8 * size))
        request = ask(Drawn(folders[0]))
        model = run_inline(cache.get(request))
        for _ in range(2):
            with gpu.counting() as counts:
                made = draw(cache, model, "a red boat")
            assert np.abs(made - expected[0]).max() <= 1e-5
            assert not [line for line in counts.waits if line.startswith(("streamer.py", "streaming.py", "loading.py"))]
            assert cache.ledger.most_used <= 0.6 * size
        reads: list[str] = []
        monkeypatch.setattr(SafetensorsSource, "copy_into", lambda source, name, memory: reads.append(name))
        cache.evict_all(lambda each: 0)
        assert model.offloaded
        assert cache.ledger.used == model.passing
        assert run_inline(cache.get(request)) is model
        assert np.array_equal(draw(cache, model, "a red boat"), made)
        assert not reads, "all of it was in pinned memory"
        cache.clear()
        assert (cache.ledger.used, cache.components.host and cache.components.host.used) == (0, 0)


def test_an_engine_draws_above_its_budget_and_says_so(folders: list[Path], size: int) -> None:
    requests = [ask(Drawn(folders[0]), {"prompt": prompt}, stored=False) for prompt in ("a red boat", "two cats")]
    with Engine("cpu", "float32") as engine:
        whole = [engine.submit(request).result() for request in requests]
    with Engine("cpu", "float32", memory=int(0.9 * size)) as engine:
        streamed = [engine.submit(request).result() for request in requests]
        assert engine.ledger.most_used <= 0.9 * size
    assert streamed == whole
    assert streamed[0].recipe is not None
    assert any("were streamed" in notice for notice in streamed[0].recipe.notices)


@pytest.mark.slow
def test_every_line_of_the_benchmark_runs() -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "components.py"
    done = subprocess.run([sys.executable, script, "--tiny"], check=True, stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 6
    assert all(row["same"] for row in rows)
