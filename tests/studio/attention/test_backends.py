from __future__ import annotations

from studio.attention import backends


def test_every_backend_works_or_says_why_not():
    found = {backend.name: backend for backend in backends("cpu")}
    assert {"sdpa-math", "sdpa-flash", "flex", "xformers"} <= set(found)
    assert found["sdpa-math"].available
    for backend in found.values():
        assert backend.available == (backend.reason == "")
        assert "\n" not in backend.reason


def test_a_backend_said_to_work_does(monkeypatch):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(1, 1, 16, 64)
    exact = (q @ q.mT / 8).softmax(-1) @ q
    for backend in backends("cpu"):
        kind = {"sdpa-math": SDPBackend.MATH, "sdpa-flash": SDPBackend.FLASH_ATTENTION}.get(backend.name)
        if kind and backend.available:
            with sdpa_kernel(kind):
                made = torch.nn.functional.scaled_dot_product_attention(q, q, q)
            assert torch.allclose(made, exact, atol=1e-5)
