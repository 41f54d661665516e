// The page "Queue": what waits and runs, in order. Waiting jobs are moved by dragging, or with the arrow buttons.

import { useState } from "preact/hooks";
import { Actions, Progress } from "./job";
import { ended, move, newest, titleOf, waiting, type Job } from "./jobs";
import { t } from "./preferences";

const SHOWN = 50;

export function Queue() {
  const open = waiting.value;
  const old = newest.value.filter(ended).slice(0, SHOWN);
  return (
    <div class="queue">
      <h1 tabIndex={-1}>{t("queue.title")}</h1>
      <h2>{t("queue.waiting")}</h2>
      {open.length === 0 ? <p class="empty">{t("queue.empty")}</p> : <Waiting jobs={open} />}
      {old.length > 0 && <h2>{t("queue.ended")}</h2>}
      <ul class="rows">
        {old.map((job) => (
          <li key={job.id}><Row job={job} /></li>
        ))}
      </ul>
    </div>
  );
}

function Waiting({ jobs }: { jobs: Job[] }) {
  const [problem, setProblem] = useState("");
  const [moved, setMoved] = useState("");
  const [dragged, setDragged] = useState<string | null>(null);
  const [over, setOver] = useState<string | null>(null);
  const movable = jobs.filter((job) => job.state !== "running");

  function place(job: Job, before: Job | undefined, at: number): void {
    setProblem("");
    if (before === undefined || before.id === job.id) return;
    move(job.id, { before: before.id })
      .then(() => setMoved(t("queue.moved", { place: at + 1 })))
      .catch((error: Error) => setProblem(error.message));
  }

  return (
    <>
      {movable.length > 1 && <p class="quiet">{t("queue.drag")}</p>}
      {problem && <p class="error" role="alert">{problem}</p>}
      <p class="visually-hidden" aria-live="polite">{moved}</p>
      <ul class="rows">
        {jobs.map((job) => {
          const at = movable.indexOf(job);
          const title = titleOf(job.work);
          return (
            <li
              key={job.id} draggable={at >= 0} class={over === job.id && dragged !== job.id ? "over" : ""}
              onDragStart={() => setDragged(job.id)}
              onDragEnd={() => {
                setDragged(null);
                setOver(null);
              }}
              onDragOver={(event) => {
                if (dragged === null || at < 0) return;
                event.preventDefault();
                setOver(job.id);
              }}
              onDrop={(event) => {
                event.preventDefault();
                const from = movable.find((each) => each.id === dragged);
                if (from) place(from, job, at);
              }}
            >
              <Row job={job} />
              {at >= 0 && movable.length > 1 && (
                <span class="movers">
                  <button
                    type="button" class="square" disabled={at === 0} aria-label={t("queue.up", { prompt: title })}
                    onClick={() => place(job, movable[at - 1], at - 1)}
                  >
                    ↑
                  </button>
                  <button
                    type="button" class="square" disabled={at === movable.length - 1}
                    aria-label={t("queue.down", { prompt: title })}
                    onClick={() => {
                      const next = movable[at + 1];
                      if (next) place(next, job, at);
                    }}
                  >
                    ↓
                  </button>
                </span>
              )}
            </li>
          );
        })}
      </ul>
    </>
  );
}

function Row({ job }: { job: Job }) {
  return (
    <div class="row">
      <div class="what">
        <p class="title" dir="auto">{titleOf(job.work)}</p>
        <Progress job={job} />
        {job.error && <p class="error">{job.error.message}</p>}
      </div>
      <Actions job={job} />
    </div>
  );
}
