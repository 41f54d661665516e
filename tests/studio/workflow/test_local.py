"""The local worker: every node's request says for whom it is done, and inputs may have the names of options."""

from __future__ import annotations

from pathlib import Path

import pytest

import studio
from studio.errors import UnknownName

FLOW = """
inputs: {seed: {type: int}, client: {type: text}}
nodes:
  a: {use: template, inputs: {text: "${client} ${seed}"}}
outputs: {a: "${a}"}
"""


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    (tmp_path / "flow.yaml").write_text(FLOW)
    return tmp_path / "flow.yaml"


def test_requests_say_for_whom(tmp_path: Path, flow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    with studio.Studio(home=tmp_path / "home", device="cpu") as host:
        router = host.router
        accept = router.submit_many
        monkeypatch.setattr(router, "submit_many", lambda requests: seen.extend(requests) or accept(requests))
        options = {"client": "ann", "priority": "background", "time_limit_s": 9.5}
        made = host.run(flow, {"seed": 7, "client": "it"}, seed=3, **options)
        assert made["a"].text == "it 7"
        (spec,) = [request.spec for request in seen]
        assert {name: getattr(spec, name) for name in options} == options
        with pytest.raises(UnknownName, match="no priority is called `now`"):
            raise host.run(flow, {"seed": 8, "client": "it"}, priority="now").failed[0].error
