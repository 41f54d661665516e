"""Jobs: accepted, run in turn, paused and resumed to the same output, cancelled, retried, moved, pruned."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import studio
from studio.errors import Busy, InputError, UnknownName, UsageError
from studio.jobs import Job, JobState, WorkflowWork
from studio.jobs.feed import PER_ATTEMPT

WORKFLOW = """
inputs:
  words: {type: text, list: true}
  file: {type: text, default: ""}
nodes:
  first: {use: note, inputs: {text: one, file: "${file}"}}
  many: {use: note, map: "${words}", inputs: {text: "${item}", file: "${file}"}}
  last: {use: gate, inputs: {count: 1000}}
outputs: {first: "${first}", many: "${many}", sum: "${last}"}
"""


def states(jobs, id):
    return [event.data["state"] for event in jobs.events(id) if event.type == "state"]


def reach(jobs, id, position):
    """Wait until a job has made so many steps."""
    for event in jobs.events(id):
        if event.type == "progress" and event.data["position"] >= position:
            return
    raise AssertionError(f"the job ended before step {position}")


def committed(jobs):
    """The hashes of what nodes of workflows have made."""
    with jobs._database.reading() as tables:
        return tables.node_hashes()


def plain(jobs, count, seed=1):
    """What an uninterrupted run makes."""
    gate = jobs.studio.generator("gate")
    gate.permits.release(count)
    made = jobs.studio.generate("gate", seed=seed, count=count)
    gate.steps = 0
    return made


def settle(jobs, id):
    """Let steps through until a job that was asked to stop has stopped."""
    while jobs.get(id).state is JobState.RUNNING:
        jobs.studio.generator("gate").permits.release(1)


def test_a_job_runs_to_its_output(jobs):
    job = jobs.add(jobs.spec("note", text="hello", seed=1), client="ann")
    assert (job.state, job.client, job.attempts) == (JobState.QUEUED, "ann", 0)
    jobs.start()
    done = jobs.wait(job.id, 60)
    assert done.state is JobState.DONE
    assert [jobs.studio.store.open(each.sha256) for each in done.artifacts] == ["hello"]
    assert states(jobs, job.id) == ["queued", "running", "done"]
    assert Job.from_json(done.to_json()) == done


def test_jobs_survive_the_process_that_accepted_them(opened):
    first = opened()
    ids = [first.add(first.spec("note", text=f"{n}", seed=1)).id for n in range(5)]
    first.close()
    second = opened()
    assert [job.id for job in second.list()] == ids[::-1]
    second.start()
    second.drain()
    assert {second.get(id).state for id in ids} == {JobState.DONE}


def test_an_idempotency_key_gives_the_same_job_and_refuses_other_work(jobs):
    work = jobs.spec("note", text="hello", key="k")
    first = jobs.add(work, key="k")
    assert jobs.add(jobs.spec("note", text="hello", key="k"), key="k").id == first.id
    with pytest.raises(UsageError, match="conflict: the idempotency key `k` belongs to another job with other work"):
        jobs.add(jobs.spec("note", text="other", key="k"), key="k")
    assert jobs.add(work, key="k", client="another").id != first.id
    with pytest.raises(InputError, match="has 201 characters; 1 to 200"):
        jobs.add(work, key="k" * 201)


def test_equal_keys_of_many_threads_make_one_job(jobs):
    work, found = jobs.spec("note", text="hello", seed=1), []
    threads = [threading.Thread(target=lambda: found.append(jobs.add(work, key="k").id)) for _ in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert len(jobs.list()) == 1


def test_what_cannot_run_is_refused_at_once(jobs):
    with pytest.raises(UnknownName, match="no generator is called `nott`"):
        jobs.add(studio.JobSpec(generator="nott", seed=1))
    with pytest.raises(InputError, match="text"):
        jobs.add(studio.JobSpec(generator="note", seed=1))
    with pytest.raises(InputError, match="the output of a job is always stored"):
        jobs.add(studio.JobSpec(generator="note", inputs={"text": "a"}, seed=1, stored=False))
    with pytest.raises(studio.errors.WorkflowError, match="no-such"):
        jobs.add(WorkflowWork(document="nodes: {a: {use: no-such}}"))
    assert jobs.list() == []


def test_a_full_queue_is_busy_and_accepts_again(opened):
    jobs = opened(max_queued=2)
    kept = [jobs.add(jobs.spec("note", text="a", seed=n)) for n in range(2)]
    with pytest.raises(Busy, match="2 jobs are queued, and at most 2 may be"):
        jobs.add(jobs.spec("note", text="a", seed=3))
    jobs.cancel(kept[0].id)
    jobs.add(jobs.spec("note", text="a", seed=3))


def test_a_paused_job_continues_to_the_same_output(jobs):
    expected = plain(jobs, 1000)
    gate = jobs.studio.generator("gate")
    job = jobs.add(jobs.spec("gate", count=1000, seed=1))
    jobs.start()
    gate.permits.release(2)
    reach(jobs, job.id, 2)
    assert jobs.pause(job.id).asked == "pause"
    settle(jobs, job.id)
    paused = jobs.get(job.id)
    assert paused.state is JobState.PAUSED
    assert 2 <= paused.progress.position == gate.steps < 1000
    assert jobs.studio.router.engines[0].ledger.used == 0
    jobs.resume(job.id)
    gate.permits.release(1000)
    done = jobs.wait(job.id, 60)
    assert gate.steps == 1000, "no step was made twice"
    assert done.artifacts[0].sha256 == expected.sha256
    assert states(jobs, job.id) == ["queued", "running", "paused", "queued", "running", "done"]


def test_a_paused_job_continues_in_another_process(opened):
    first = opened()
    expected = plain(first, 1000)
    job = first.add(first.spec("gate", count=1000, seed=1))
    first.start()
    first.studio.generator("gate").permits.release(3)
    reach(first, job.id, 3)
    first.pause(job.id)
    settle(first, job.id)
    first.close()
    first.studio.close()
    second = opened()
    second.start()
    second.resume(job.id)
    second.studio.generator("gate").permits.release(1000)
    assert second.wait(job.id, 60).artifacts[0].sha256 == expected.sha256
    assert first.studio.generator("gate").steps + second.studio.generator("gate").steps == 1000


def test_closing_saves_running_jobs_and_queues_them_again(opened):
    first = opened()
    expected = plain(first, 1000)
    job = first.add(first.spec("gate", count=1000, seed=1))
    first.start()
    gate = first.studio.generator("gate")
    gate.permits.release(3)
    reach(first, job.id, 3)
    closing = threading.Thread(target=first.close)
    closing.start()
    while closing.is_alive():
        gate.permits.release(1)
    first.studio.close()
    second = opened()
    assert second.get(job.id).state is JobState.QUEUED
    second.start()
    second.studio.generator("gate").permits.release(1000)
    assert second.wait(job.id, 60).artifacts[0].sha256 == expected.sha256
    assert gate.steps + second.studio.generator("gate").steps == 1000


def test_a_job_whose_state_cannot_be_saved_goes_on(jobs):
    job = jobs.add(jobs.spec("gate", count=1000, savable=False, seed=1))
    jobs.start()
    gate = jobs.studio.generator("gate")
    gate.permits.release(1)
    reach(jobs, job.id, 1)
    jobs.pause(job.id)
    settle(jobs, job.id)
    done = jobs.get(job.id)
    assert done.state is JobState.DONE
    assert any("cannot be resumed" in text for text in done.notices)


def test_a_queued_job_is_paused_and_cancelled_before_it_starts(jobs):
    paused, cancelled, other = (jobs.add(jobs.spec("note", text="a", seed=n)) for n in range(3))
    jobs.pause(paused.id)
    jobs.cancel(cancelled.id)
    jobs.start()
    assert jobs.wait(other.id, 60).state is JobState.DONE
    assert jobs.get(paused.id).state is JobState.PAUSED
    assert jobs.get(cancelled.id).attempts == 0
    with pytest.raises(UsageError, match="is cancelled, so it cannot be paused"):
        jobs.pause(cancelled.id)
    with pytest.raises(UsageError, match="is done, so it cannot be retried"):
        jobs.retry(other.id)


def test_a_running_job_is_cancelled_and_retried(jobs):
    job = jobs.add(jobs.spec("gate", count=1000, seed=1))
    jobs.start()
    gate = jobs.studio.generator("gate")
    gate.permits.release(1)
    reach(jobs, job.id, 1)
    jobs.cancel(job.id)
    settle(jobs, job.id)
    assert jobs.get(job.id).state is JobState.CANCELLED
    assert jobs.studio.router.engines[0].ledger.used == 0
    gate.permits.release(1000)
    jobs.retry(job.id)
    assert jobs.wait(job.id, 60).state is JobState.DONE


def test_a_failed_job_says_why(jobs):
    job = jobs.add(jobs.spec("note", text="fail", seed=1))
    jobs.start()
    failed = jobs.wait(job.id, 60)
    assert failed.state is JobState.FAILED
    assert failed.error.title == "GeneratorFailed"
    assert "as it was told" in failed.error.message


def test_a_job_of_a_removed_plugin_fails_with_that(opened, tmp_path, url):
    first = opened()
    job = first.add(first.spec("note", text="a", seed=1))
    first.close()
    from studio.jobs import Jobs

    with studio.Studio(home=tmp_path / "home", device="cpu") as host, Jobs(host, url) as jobs:
        jobs.start()
        failed = jobs.wait(job.id, 60)
    assert failed.state is JobState.FAILED
    assert failed.error.message == "no generator is called `note`"


def test_clients_take_turns_and_a_moved_job_is_next(jobs, monkeypatch):
    monkeypatch.setattr("studio.jobs.worker.MOST_RUNNING", 1)
    ann = [jobs.add(jobs.spec("note", text=f"ann {n}", seed=1), client="ann") for n in range(3)]
    bob = [jobs.add(jobs.spec("note", text=f"bob {n}", seed=1), client="bob") for n in range(3)]
    jobs.move(ann[2].id, first=True)
    jobs.move(bob[2].id, before=bob[1].id)
    with pytest.raises(UsageError, match="either to the front or before another job"):
        jobs.move(ann[0].id)
    jobs.start()
    jobs.drain()
    started = sorted(jobs.list(), key=lambda job: job.started)
    order = [job.work.inputs["text"] for job in started]
    assert [each for each in order if each < "b"] == ["ann 2", "ann 0", "ann 1"]
    assert [each for each in order if each > "b"] == ["bob 0", "bob 2", "bob 1"]


def test_interactive_jobs_do_not_wait_for_background_ones(jobs, monkeypatch):
    monkeypatch.setattr("studio.jobs.worker.MOST_RUNNING", 1)
    jobs.add(jobs.spec("gate", count=2, seed=1), priority="background")
    jobs.start()
    job = jobs.add(jobs.spec("gate", count=1, seed=2))
    for event in jobs.events(job.id):
        if event.type == "state" and event.data["state"] == "running":
            break
    assert jobs.get(job.id).state is JobState.RUNNING


def test_events_go_on_from_a_number_and_after_the_end(jobs):
    job = jobs.add(jobs.spec("gate", count=3, seed=1))
    jobs.start()
    jobs.studio.generator("gate").permits.release(3)
    everything = list(jobs.events(job.id))
    assert [each.number for each in everything] == sorted({each.number for each in everything})
    assert everything[-1].last
    assert everything[1].number == PER_ATTEMPT
    for each in everything:
        later = list(jobs.events(job.id, each.number))
        assert later[-1:] == everything[-1:] or each.last

    async def follow():
        return [event async for event in jobs.events_async(job.id, 1)]

    assert asyncio.run(follow())[-1] == everything[-1]
    with pytest.raises(UnknownName, match="no job is called `nothing`"):
        next(jobs.events("nothing"))


def test_coroutines_follow_a_running_job(jobs):
    job = jobs.add(jobs.spec("gate", count=2, seed=1))
    jobs.start()
    gate = jobs.studio.generator("gate")

    async def follow():
        seen = []
        async for event in jobs.events_async(job.id):
            seen.append(event.type)
            if event.type in ("started", "progress"):
                gate.permits.release(1)
        return seen

    seen = asyncio.run(follow())
    assert seen.count("progress") >= 1
    assert seen[-1] == "state"


def test_a_workflow_runs_and_no_committed_node_runs_again(opened, tmp_path):
    first, log = opened(), tmp_path / "log"
    path = tmp_path / "flow.yaml"
    path.write_text(WORKFLOW)
    job = first.add(first.workflow(path, {"words": ["a", "b"], "file": str(log)}, seed=3))
    path.unlink()  # the job has the text
    first.start()
    gate, released = first.studio.generator("gate"), 0
    while len(committed(first)) < 3:
        if gate.steps == released:
            gate.permits.release(1)
            released += 1
    first.pause(job.id)
    settle(first, job.id)
    assert first.get(job.id).state is JobState.PAUSED
    first.close()
    first.studio.close()
    (tmp_path / "home" / "memo.sqlite3").unlink()  # the result cache is not what the job relies on
    second = opened()
    second.start()
    second.resume(job.id)
    second.studio.generator("gate").permits.release(1000)
    done = second.wait(job.id, 60)
    assert done.state is JobState.DONE
    assert [each.name for each in done.artifacts] == ["first", "many-1", "many-2", "sum"]
    assert sorted(log.read_text().split()) == ["a", "b", "one"]


def test_a_workflow_with_a_failed_node_keeps_the_other_outputs(jobs):
    nodes = "nodes: {a: {use: note, inputs: {text: fail}}, b: {use: note, inputs: {text: fine}}}"
    job = jobs.add(WorkflowWork(document=nodes + '\noutputs: {a: "${a}", b: "${b}"}'))
    jobs.start()
    failed = jobs.wait(job.id, 60)
    assert failed.state is JobState.FAILED
    assert failed.error.message.startswith("the node `a` failed: ")
    assert [each.name for each in failed.artifacts] == ["b"]


def test_a_workflow_without_a_file_has_no_sub_workflows(jobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub.yaml").write_text('nodes: {a: {use: note, inputs: {text: hi}}}\noutputs: {a: "${a}"}')
    with pytest.raises(studio.errors.WorkflowError, match=r"sub.yaml.*Not a directory") as refused:
        jobs.add(WorkflowWork(document='nodes: {a: {workflow: sub.yaml}}\noutputs: {a: "${a.a}"}'))
    assert str(tmp_path) not in str(refused.value)


def test_the_output_is_written_where_it_was_asked_for(jobs, tmp_path):
    from studio.destination import Destination

    target = tmp_path / "made.txt"
    work = jobs.spec("note", text="hello", seed=1, destination=Destination(target).as_json(jobs.studio.home))
    job = jobs.add(work)
    jobs.start()
    assert jobs.wait(job.id, 60).artifacts[0].path == str(target)
    assert target.read_text() == "hello"
    again = jobs.wait(jobs.add(work).id, 60)
    assert again.error.title == "FileTaken"
    assert target.read_text() == "hello"


def test_ended_jobs_are_pruned_and_others_kept(jobs):
    done = [jobs.add(jobs.spec("note", text="a", seed=n)) for n in range(3)]
    jobs.start()
    jobs.drain()
    waiting = jobs.add(jobs.spec("gate", count=1, seed=1))
    assert jobs.prune(older_than=3600) == 0
    assert jobs.prune(keep=1) == 2
    assert jobs.prune() == 1
    assert [job.id for job in jobs.list()] == [waiting.id]
    with pytest.raises(UnknownName):
        jobs.get(done[0].id)


def test_jobs_are_listed_in_pages(jobs):
    ids = [jobs.add(jobs.spec("note", text="a", seed=n)).id for n in range(5)]
    first = jobs.list(limit=2)
    second = jobs.list(limit=2, after=first[-1].id)
    third = jobs.list(limit=2, after=second[-1].id)
    assert [job.id for job in (*first, *second, *third)] == ids[::-1]
    assert jobs.list(JobState.DONE) == []


def test_only_one_process_runs_the_jobs(opened, monkeypatch):
    monkeypatch.setattr("studio.jobs.worker._TAKEOVER_S", 0)
    first, second = opened(), opened()
    first.start()
    with pytest.raises(UsageError, match="another process runs the jobs of this data folder"):
        second.start()
    job = second.add(second.spec("note", text="a", seed=1))
    assert second.wait(job.id, 60).state is JobState.DONE
    assert states(second, job.id) == ["queued", "running", "done"]
    first.close()
    monkeypatch.undo()
    second.start()


def test_pending_jobs_survive_an_upgrade_of_their_generator(opened):
    first = opened()
    job = first.add(first.spec("gate", count=1000, seed=1))
    waiting = first.add(first.spec("note", text="a", seed=1))
    first.pause(waiting.id)
    first.start()
    first.studio.generator("gate").permits.release(2)
    reach(first, job.id, 2)
    first.pause(job.id)
    settle(first, job.id)
    first.close()
    first.studio.close()
    second = opened()
    gate = second.studio.generator("gate")
    gate.version = "2"
    gate.permits.release(1000)
    second.start()
    for id in (job.id, waiting.id):
        second.resume(id)
        assert second.wait(id, 60).state is JobState.DONE
    assert "the version of `gate` changed" in " ".join(second.get(job.id).notices)
    assert gate.steps == 1000, "it started again"


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 3.2e7, -3.2e7])
def test_a_clock_that_jumps_runs_each_job_once(opened, monkeypatch, tmp_path, jump):
    first = opened()
    log = tmp_path / "log"
    ids = [first.add(first.spec("note", text=f"{n}", file=str(log), seed=1)).id for n in range(3)]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    first.start()
    ids += [first.add(first.spec("note", text=f"{n}", file=str(log), seed=1)).id for n in range(3, 6)]
    first.drain()
    assert {first.get(id).state for id in ids} == {JobState.DONE}
    assert sorted(log.read_text().split()) == [f"{n}" for n in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_restart_of_the_database_server_costs_no_job(opened, url):
    import psycopg

    jobs = opened()
    jobs.start()
    jobs.wait(jobs.add(jobs.spec("note", text="before", seed=1)).id, 60)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        other.execute("select pg_terminate_backend(pid) from pg_stat_activity where pid != pg_backend_pid()"
                      " and datname = current_database()")  # fmt: skip
    job = jobs.add(jobs.spec("note", text="after", seed=1))
    assert jobs.wait(job.id, 60).state is JobState.DONE


def test_another_process_sees_states_and_progress(opened):
    first, second = opened(), opened()
    job = first.add(first.spec("gate", count=1000, seed=1))
    first.start()
    gate = first.studio.generator("gate")
    gate.permits.release(5)
    seen = []
    for event in second.events(job.id):
        seen.append(event)
        if event.type == "progress":
            gate.permits.release(1000)
    assert [event.data["state"] for event in seen if event.type == "state"] == ["queued", "running", "done"]
    assert any(event.type == "progress" and event.data["steps"] == 1000 for event in seen)


def test_a_job_that_is_paused_and_then_cancelled_is_cancelled(jobs):
    job = jobs.add(jobs.spec("gate", count=1000, seed=1))
    jobs.start()
    jobs.studio.generator("gate").permits.release(1)
    reach(jobs, job.id, 1)
    jobs.pause(job.id)
    jobs.cancel(job.id)
    settle(jobs, job.id)
    assert jobs.get(job.id).state is JobState.CANCELLED


def test_each_job_that_ends_is_told_before_the_queue_counts_as_empty(jobs):
    told = []
    ids = {jobs.add(jobs.spec("note", text=f"{n}", seed=1)).id for n in range(9)}
    jobs.start(ended=lambda job: told.append(job.id))
    assert jobs.drain(60)
    assert set(told) == ids


def test_any_number_of_moves_keeps_the_order(jobs):
    last, *others = [jobs.add(jobs.spec("note", text=str(n), seed=1), client="ann") for n in range(4)]
    jobs.move(last.id, before=others[0].id)
    for _ in range(130):  # a place halves its distance each time, and floats have 53 bits
        moved = others.pop(0)
        jobs.move(moved.id, before=last.id)
        others.append(moved)
    with jobs._database.reading() as tables:
        assert [job.id for job in tables.jobs(by_order=True)] == [each.id for each in (*others, last)]


def test_events_after_a_number_that_no_database_holds_are_none(jobs):
    job = jobs.add(jobs.spec("note", text="a", seed=1))
    jobs.start()
    jobs.wait(job.id, 60)
    assert list(jobs.events(job.id, after=10**30)) == []
