"""The engine lends generators the attention backends of plugins, and each recipe names who served that request."""

from __future__ import annotations

import threading

import pytest
import torch

import studio
from studio.attention import attend
from studio.errors import UnknownName

PLUGIN = '''
import torch
import studio
from studio.attention import Backend, attend


class Sevens(Backend):
    """Whatever is asked, the answer is 7."""

    name = "sevens"

    def refuses(self, problem):
        return []

    def attend(self, q, k, v, problem, scale):
        return torch.full_like(q, 7)


class Asks(studio.Generator):
    """Ask a backend by name, or none, and say what it answered."""

    name = "asks"
    output = studio.Text

    class Inputs(studio.Inputs):
        backend: str = studio.field("auto", help="which, or `none`")

    def generate(self, model, inputs, rng):
        x = torch.ones(1, 4, 2, 8)
        if inputs.backend == "none":
            return studio.Text("-")
        return studio.Text(str(attend(x, x, x, backend=inputs.backend).mean().item()))


@studio.hookimpl
def studio_generators():
    return [Asks()]


@studio.hookimpl
def studio_attention_backends():
    return [Sevens()]
'''


@pytest.fixture
def host(tmp_path):
    file = tmp_path / "sevens.py"
    file.write_text(PLUGIN)
    with studio.Studio(home=tmp_path / "home", device="cpu", plugins=[file]) as made:
        yield made


def test_a_plugins_backend_serves_generators_and_each_recipe_names_its_own(host):
    tickets = [host.submit("asks", backend=name) for name in ("sevens", "chunked", "auto", "none")]
    made = [ticket.result(500) for ticket in tickets]
    assert [each.text for each in made] == ["7.0", "1.0", "1.0", "-"]
    assert [each.recipe.facts.get("attention") for each in made] == [["sevens"], ["chunked"], ["sdpa-flash"], None]


def test_what_was_lent_is_lent_to_that_call_alone(host):
    assert host.submit("asks", backend="sevens").result(500).text == "7.0"
    x = torch.ones(1, 4, 2, 8)
    found = []

    def ask():
        try:
            attend(x, x, x, backend="sevens")
        except UnknownName as error:
            found.append(error)

    for thread in [threading.Thread(target=ask) for _ in range(2)]:
        thread.start()
        thread.join()
    ask()
    assert len(found) == 3
