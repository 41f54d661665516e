// A job as a card: its preview while it runs, its outputs, and what can be done with it.

import { useState } from "preact/hooks";
import { fileOf } from "./api";
import { again, fill } from "./form";
import { act, ended, liveOf, randomSeed, titleOf, type Job } from "./jobs";
import { MediaView, Thumbnail } from "./media";
import { duration, t } from "./preferences";
import { go } from "./router";

export function stateOf(job: Job): string {
  if (job.asked === "pause") return t("job.pausing");
  if (job.asked === "cancel") return t("job.stopping");
  return t(`job.${job.state}`);
}

export function JobCard({ job }: { job: Job }) {
  const title = titleOf(job.work);
  return (
    <li class={`card ${job.state}`}>
      <div class="stage">{job.artifacts.length ? <Outputs job={job} title={title} /> : <Preview job={job} title={title} />}</div>
      <div class="below">
        <p class="title" dir="auto">{title}</p>
        <Progress job={job} />
        {job.error && <p class="error" role="alert">{job.error.message}</p>}
        {job.notices.map((notice) => <p key={notice} class="notice">{notice}</p>)}
        <Actions job={job} />
      </div>
    </li>
  );
}

function Outputs({ job, title }: { job: Job; title: string }) {
  return (
    <>
      {job.artifacts.map((made) => {
        const shown = { url: fileOf(made.sha256), type: made.media_type, title };
        return made.media_type.startsWith("audio/") ? (
          <MediaView key={made.sha256} {...shown} />
        ) : (
          <a
            key={made.sha256} href={`#/artifact/${made.sha256}`}
            aria-label={made.media_type.startsWith("text/") ? undefined : title}
          >
            <Thumbnail {...shown} />
          </a>
        );
      })}
    </>
  );
}

function Preview({ job, title }: { job: Job; title: string }) {
  const live = liveOf(job.id).value;
  if (live.preview) return <img class="preview" src={live.preview} alt={t("job.preview", { prompt: title })} />;
  if (live.text) return <p class="writing" aria-live="off">{live.text}</p>;
  return <span class={`blank ${job.state === "running" ? "busy" : ""}`} />;
}

/** The state, and of a running job how far it is and how long it will take. */
export function Progress({ job }: { job: Job }) {
  const live = liveOf(job.id).value;
  const steps = live.steps || job.progress?.steps || 0;
  const position = Math.max(live.position, job.progress?.position ?? 0);
  const left = live.left ?? job.progress?.eta_s ?? null;
  const parts = [stateOf(job)];
  if (job.state === "running" && !job.asked) {
    if (live.loading) parts.push(t("job.loading"));
    else if (steps > 1) parts.push(t("job.step", { position, steps }));
    if (left !== null && position > 0 && position < steps) parts.push(t("job.left", { time: duration(left) }));
  }
  return (
    <>
      <p class="state"><span class={`dot ${job.state}`} />{parts.join(" · ")}</p>
      {!ended(job) && steps > 1 && <progress aria-label={t("job.progress")} max={steps} value={position} />}
    </>
  );
}

export function Actions({ job }: { job: Job }) {
  const [problem, setProblem] = useState("");
  const run = (what: () => Promise<unknown>) => () => {
    setProblem("");
    what().catch((error: Error) => setProblem(error.message));
  };
  const repeatable = job.work.document === undefined;
  const use = async () => {
    await fill(job.work);
    go("make");
  };
  return (
    <div class="actions">
      {(job.state === "running" || job.state === "queued") && !job.asked && (
        <button type="button" onClick={run(() => act(job.id, "pause"))}>{t("job.pause")}</button>
      )}
      {job.state === "paused" && (
        <button type="button" class="main" onClick={run(() => act(job.id, "resume"))}>{t("job.resume")}</button>
      )}
      {!ended(job) && job.asked !== "cancel" && (
        <button type="button" onClick={run(() => act(job.id, "cancel"))}>{t("job.stop")}</button>
      )}
      {ended(job) && job.state !== "done" && (
        <button type="button" onClick={run(() => act(job.id, "retry"))}>{t("job.retry")}</button>
      )}
      {job.state === "done" && repeatable && (
        <button type="button" onClick={run(() => again(job.work, { seed: randomSeed() }))}>{t("job.again")}</button>
      )}
      {repeatable && <button type="button" onClick={run(use)}>{t("job.use")}</button>}
      {problem && <p class="error" role="alert">{problem}</p>}
    </div>
  );
}
