from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import studio
from studio.engine import CancelledEvent, Delta, Finished, Preview, Progress
from studio.errors import Busy, Cancelled, InputError, MediaError, UnknownName, UsageError


@pytest.fixture
def host(sample_plugin):
    with studio.Studio(plugins=[sample_plugin], device="cpu") as made:
        yield made


def test_media_are_made_kept_and_described(host):
    made = host.generate("noise", prompt="x", seed=3)
    assert isinstance(made, studio.Image)
    assert host.store.open(made.sha256) == made
    recipe = made.recipe
    assert (recipe.spec.generator, recipe.spec.seed, recipe.device, recipe.plugin.name) == (
        "noise",
        3,
        "cpu",
        "sample_plugin",
    )
    assert recipe.libraries["python"] == sys.version.split()[0]
    assert host.show(made.sha256[:10]).recipe == recipe


def test_the_same_seed_gives_the_same_bytes(host, sample_plugin, tmp_path):
    one, other = (host.generate("noise", prompt="x", seed=3).save(tmp_path / name) for name in ("1.png", "2.png"))
    assert one.read_bytes() == other.read_bytes()
    code = f"""
import studio
with studio.Studio(home={str(tmp_path / "else")!r}, plugins=[{str(sample_plugin)!r}], device="cpu") as host:
    host.generate("noise", prompt="x", seed=3).save({str(tmp_path / "3.png")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "3.png").read_bytes() == one.read_bytes()
    assert host.generate("noise", prompt="x", seed=4) != host.generate("noise", prompt="x", seed=3)


def test_a_seed_is_made_up_and_told(host):
    seeds = {host.generate("counter").recipe.spec.seed for _ in range(5)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_several_follow_one_another_and_equal_those_made_alone(host):
    tickets = host.submit_many("counter", 4, seed=10, count=6)
    together = [ticket.result() for ticket in tickets]
    assert [media.recipe.spec.seed for media in together] == [10, 11, 12, 13]
    assert together == [host.generate("counter", seed=10 + i, count=6) for i in range(4)]
    assert {media.recipe.batch_width.max for media in together} == {4}


def test_results_do_not_depend_on_what_else_runs(host):
    alone = {seed: host.generate("counter", seed=seed, count=seed) for seed in range(1, 12)}
    tickets = [host.submit("counter", seed=seed, count=seed) for seed in alone]
    tickets[4].cancel()
    for seed, ticket in zip(alone, tickets, strict=True):
        if seed != 5:
            assert ticket.result() == alone[seed]


def test_events_stream(host):
    events = list(host.stream("counter", seed=1, count=4, preview_every=2))
    assert [event.position for event in events if isinstance(event, Progress)] == [1, 2, 3, 4]
    assert [event.position for event in events if isinstance(event, Preview)] == [2]
    assert isinstance(events[-1], Finished)
    assert events[-1].media.path.exists()


def test_too_many_requests_are_refused_and_cost_nothing(sample_plugin):
    with studio.Studio(plugins=[sample_plugin], device="cpu", max_requests=2) as host:
        with pytest.raises(Busy, match="0 requests are unfinished; with 3 more they exceed 2"):
            host.submit_many("counter", 3)
        assert len([ticket.result() for ticket in host.submit_many("counter", 2)]) == 2
        assert host.generate("counter")


def test_a_stream_of_any_generator_of_text_tells_it(host):
    told = list(host.stream("counter", seed=1, count=4))
    assert "".join(event.text for event in told if isinstance(event, Delta)) == told[-1].media
    spec = studio.JobSpec(generator="counter", inputs={"count": 4}, seed=1)
    assert [event for event in host.stream(spec) if isinstance(event, Delta)]
    assert not told[-1].media.recipe.spec.stream, "it decides nothing of the output"


class Endless(studio.Generator):
    """Never be done."""

    name = "endless"
    output = studio.Text

    def start(self, model, inputs, rng):
        return studio.State(steps=10**9)

    def step(self, model, states):
        return [replace(state, position=state.position + 1) for state in states]

    def finish(self, model, state):
        raise NotImplementedError


def test_leaving_a_stream_cancels(host, monkeypatch):
    monkeypatch.setitem(host.plugins.generators, "endless", Endless())
    monkeypatch.setitem(host.plugins._owners, "endless", host.plugins.owner("counter"))
    submitted, submit = [], host.submit
    monkeypatch.setattr(
        host, "submit", lambda *what, **values: submitted.append(submit(*what, **values)) or submitted[0]
    )
    for event in host.stream("endless"):
        if isinstance(event, Progress):
            break
    with pytest.raises(Cancelled):
        submitted[0].result(500)
    assert [type(event) for event in submitted[0].events()][-1] is CancelledEvent


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda host: host.generate("conter"), UnknownName, "`conter`"),
        (lambda host: host.submit("counter", count=0), InputError, "from 1 to 1000"),
        (lambda host: host.submit("counter", cuont=1), UnknownName, "`cuont`"),
        (lambda host: host.submit("counter", seed=-1), InputError, "`seed` is -1"),
        (lambda host: host.submit("counter", seed=True), InputError, "`seed` is True"),
        (lambda host: host.submit("counter", seed=2**63), InputError, "at most|from 0 to"),
        (lambda host: host.submit("counter", preview_every=-1), InputError, "`preview_every` is -1"),
        (lambda host: host.submit_many("counter", 0), InputError, "`n` is 0"),
        (lambda host: host.submit_many("counter", 2, seed=2**63 - 1), InputError, "for 2 in a row"),
        (lambda host: host.submit("invert", image="no.png"), MediaError, "no.png"),
        (lambda host: host.show("no.png"), UsageError, "there is no file `no.png`"),
        (lambda host: host.stream("conter"), UnknownName, "`conter`"),
    ],
)
def test_bad_calls_are_refused_before_anything_runs(host, call, kind, words):
    with pytest.raises(kind, match=words):
        call(host)


def test_bad_settings_are_refused(tmp_path):
    for most in (0, -1, True, 2.5):
        with pytest.raises(InputError, match=f"`max_requests` is {most}, but must be a whole number from 1"):
            studio.Studio(max_requests=most)
    with pytest.raises(UnknownName, match="dtype"):
        studio.Studio(dtype="float8")
    with pytest.raises(UsageError, match="does not exist"):
        _ = studio.Studio(plugins=[tmp_path / "gone.py"]).generators
    with pytest.raises(UsageError, match="must be `cpu`"):
        studio.Studio(device="gpu").router  # noqa: B018 (reading it raises)


def test_a_closed_studio_says_so(sample_plugin):
    host = studio.Studio(plugins=[sample_plugin])
    host.close()
    host.close()
    with pytest.raises(UsageError, match="closed"):
        host.generate("counter")


def test_media_given_are_kept_as_parents(host):
    given = studio.Image.from_array(np.full((8, 8, 3), 9, np.uint8))
    made = host.generate("invert", image=given)
    assert made.samples().max() == 246
    assert made.recipe.parents == (given.sha256,)
    assert made.recipe.spec.inputs == {"image": {"sha256": given.sha256, "media_type": "image/png"}}
    assert host.store.open(given.sha256) == given


def test_notices_reach_the_recipe(host):
    assert host.generate("counter", cut=True).recipe.notices == ("the count was cut",)


def test_priority_and_time_limit_are_checked_before_anything_runs(host):
    with pytest.raises(studio.errors.UnknownName, match="no priority is called `urgent`"):
        host.submit("counter", priority="urgent")
    with pytest.raises(studio.errors.InputError, match="`time_limit_s` is 0"):
        host.submit("counter", time_limit_s=0)
    ticket = host.submit("counter", seed=1, priority="background", client="ann", time_limit_s=9.5)
    request = ticket.request
    assert (request.spec.priority, request.spec.client, request.spec.time_limit_s) == ("background", "ann", 9.5)
    assert ticket.result(500)


def test_an_invariant_studio_shares_no_step_and_says_so(tmp_path, sample_plugin):
    options = {"invariant": True, "memory": "1GiB"}
    with studio.Studio(home=tmp_path / "i", plugins=[sample_plugin], device="cpu", **options) as host:
        together = [ticket.result(500) for ticket in host.submit_many("counter", 3, seed=1, count=4)]
        assert {media.recipe.batch_width.max for media in together} == {1}
        assert all(media.recipe.spec.invariant for media in together)
        assert host.router.engines[0].ledger.budget == 1 << 30
    with pytest.raises(studio.errors.UsageError, match="the memory is `lots`"):
        studio.Studio(memory="lots")


def test_what_was_measured_outlives_the_process_and_is_told(host, tmp_path, sample_plugin):
    host.generate("counter", seed=1, count=4)
    host.close()
    with studio.Studio(home=host.home, plugins=[sample_plugin], device="cpu") as again:
        rows = again.doctor().steps
    assert {(row.generator, row.width, row.device) for row in rows} == {("counter", 1, "cpu")}
    assert [row.call for row in rows] == ["finish", "start", "step"]
    assert rows[2].median > 0
