from __future__ import annotations

import hashlib

import pytest

import studio
from studio.engine.calls.call import run_inline
from studio.engine.memory.model_cache import ModelCache
from studio.errors import WeightsError
from studio.weights import checksums
from studio.weights.checksums import hash_weights
from tests.studio.engine.bench import ask


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"unet")
    (tmp_path / "vae.safetensors").write_bytes(b"vae")
    return tmp_path


def test_names_are_relative_and_hashes_right(folder):
    files = [folder / "unet" / "model.safetensors", folder / "vae.safetensors"]
    assert hash_weights(files) == {"unet/model.safetensors": digest(b"unet"), "vae.safetensors": digest(b"vae")}
    assert hash_weights([]) == {}


def test_damage_names_file_and_both_hashes(folder):
    file = folder / "unet" / "model.safetensors"
    (folder / "SHA256SUMS").write_text(
        f"{digest(b'vae')}  ./vae.safetensors\n{digest(b'unet')} *unet/model.safetensors\n"
    )
    assert hash_weights([file]) == {"unet/model.safetensors": digest(b"unet")}
    file.write_bytes(b"evil")
    with pytest.raises(WeightsError) as caught:
        hash_weights([file])
    assert (caught.value.expected, caught.value.actual) == (digest(b"unet"), digest(b"evil"))
    assert str(file) in caught.value.message
    assert digest(b"unet") in caught.value.message
    assert digest(b"evil") in caught.value.message


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        hash_weights([tmp_path / "gone.safetensors"])


def test_a_file_is_hashed_once_until_it_changes(folder, monkeypatch):
    reads = []
    real = hashlib.file_digest
    monkeypatch.setattr(checksums.hashlib, "file_digest", lambda *given: reads.append(1) or real(*given))
    file = folder / "vae.safetensors"
    hash_weights([file])
    hash_weights([file])
    assert len(reads) == 1
    file.write_bytes(b"new weights")
    assert hash_weights([file]) == {"vae.safetensors": digest(b"new weights")}
    assert len(reads) == 2


class Heavy(studio.Generator):
    """Load something."""

    name = "heavy"
    output = studio.Text

    def __init__(self):
        self.loads = []

    def dtype_for(self, device):
        return "bfloat16"

    def load(self, ref, device, dtype):
        self.loads.append((device, dtype))
        return object()


def test_a_model_is_loaded_once_per_dtype():
    heavy, source = Heavy(), ModelCache("cpu")
    assert not source.loaded(ask(heavy))
    first = run_inline(source.get(ask(heavy)))
    assert run_inline(source.get(ask(heavy))) is first
    assert run_inline(source.get(ask(heavy, dtype="float32"))) is not first
    assert heavy.loads == [("cpu", "bfloat16"), ("cpu", "float32")]
    assert run_inline(ModelCache("cpu", "float16").get(ask(Heavy()))).dtype == "float16"
