// The jobs as the server tells of them. The page keeps nothing that a reload would lose.

import { computed, signal, type Signal } from "@preact/signals";
import { post, type Json, type MediaRef } from "./api";
import type { components } from "./openapi";
import { listen, type Message } from "./stream";

type Schemas = components["schemas"];

export type JobState = Schemas["JobState"];

export interface Model {
  source?: string;
  variant?: string;
  additions?: { kind: string; source: string; weight?: number }[];
}

/** What a job or a recipe says was run: a generator, or a workflow, which has a `document`. */
export interface Work {
  generator?: string;
  inputs?: Record<string, Json>;
  seed: number;
  model?: Model;
  document?: string;
}

/** A job to add, and its kind of output. The model is among the inputs. */
export interface NewJob {
  generator: string;
  inputs: Record<string, Json>;
  seed: number;
  output: string;
}

export interface Job {
  id: string;
  work: Work;
  state: JobState;
  order: number;
  created: number;
  started: number | null;
  ended: number | null;
  progress: { position: number; steps: number; eta_s: number | null; doing: string } | null;
  asked: "" | "pause" | "cancel";
  error: { code: string; message: string } | null;
  artifacts: (MediaRef & { name: string })[];
  notices: string[];
}

/** What a running job shows while it runs; kept in memory only. */
export interface Live {
  position: number;
  steps: number;
  left: number | null;
  loading: boolean;
  preview: string | null;
  text: string;
}

const NOTHING: Live = { position: 0, steps: 0, left: null, loading: false, preview: null, text: "" };
export const KEPT = 200; // ended jobs
const PREVIEW_EVERY = 1; // steps

export const jobs = signal<ReadonlyMap<string, Job>>(new Map());
export const loaded = signal(false);
export const online = signal(true);
const lives = new Map<string, Signal<Live>>();

export const ended = (job: Job): boolean => !["queued", "running", "paused"].includes(job.state);

export const newest = computed(() => [...jobs.value.values()].sort((a, b) => b.created - a.created));
export const waiting = computed(() =>
  [...jobs.value.values()]
    .filter((job) => !ended(job))
    .sort((a, b) => Number(b.state === "running") - Number(a.state === "running") || a.order - b.order),
);
/** Changes whenever a job is done, so that the gallery looks again. */
export const outputs = computed(() => newest.value.filter((job) => job.state === "done").length);

export function liveOf(id: string): Signal<Live> {
  let found = lives.get(id);
  if (!found) lives.set(id, (found = signal(NOTHING)));
  return found;
}

export function follow(): () => void {
  return listen("/api/events", hear, (yes) => (online.value = yes));
}

function hear(message: Message): void {
  const data = JSON.parse(message.data);
  if (message.event === "jobs") {
    put(data.jobs as Job[], true);
    loaded.value = true;
  } else if (message.event === "job") put([data as Job], false);
  else if (message.event === "gone") remove(data.jobs as string[]);
  else if (message.event === "progress") progressed(data);
}

/** Take over jobs; `all` says that there are no others. */
export function put(found: Job[], all: boolean): void {
  const next = new Map(all ? [] : jobs.value);
  for (const job of found) {
    next.set(job.id, job);
    if (ended(job)) forget(job.id);
  }
  const old = [...next.values()].filter(ended).sort((a, b) => b.created - a.created).slice(KEPT);
  for (const job of old) next.delete(job.id);
  for (const id of [...lives.keys()]) if (!next.has(id)) forget(id);
  jobs.value = next;
}

function remove(ids: string[]): void {
  const next = new Map(jobs.value);
  for (const id of ids) {
    next.delete(id);
    forget(id);
  }
  jobs.value = next;
}

function forget(id: string): void {
  const live = lives.get(id);
  if (live?.value.preview) URL.revokeObjectURL(live.value.preview);
  lives.delete(id);
}

interface Told {
  job: string;
  type: string;
  position?: number;
  steps?: number;
  eta_s?: number;
  start?: number;
  text?: string;
  media?: { media_type: string; data?: string };
}

function progressed(told: Told): void {
  const job = jobs.value.get(told.job);
  if (job && ended(job)) return;
  const live = liveOf(told.job);
  const old = live.value;
  if (told.type === "loading") live.value = { ...old, loading: true };
  else if (told.type === "started") live.value = { ...old, loading: false, steps: told.steps ?? 0 };
  else if (told.type === "progress")
    live.value = {
      ...old, loading: false, position: told.position ?? 0, steps: told.steps ?? 0, left: told.eta_s ?? null,
    };
  else if (told.type === "delta") live.value = { ...old, text: old.text.slice(0, told.start ?? 0) + (told.text ?? "") };
  else if (told.type === "preview" && told.media?.data) {
    if (old.preview) URL.revokeObjectURL(old.preview);
    live.value = { ...old, preview: URL.createObjectURL(blobOf(told.media.data, told.media.media_type)) };
  }
}

function blobOf(base64: string, type: string): Blob {
  return new Blob([Uint8Array.from(atob(base64), (each) => each.charCodeAt(0))], { type });
}

/** Queue a job. The key makes a repeated request the same job. */
export async function add(job: NewJob): Promise<void> {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, "0"));
  const { output, ...rest } = job;
  const shows = output === "text" ? { stream: true } : { preview_every: PREVIEW_EVERY };
  const body: Schemas["JobBody"] = { ...rest, ...shows };
  const made = await post<Job>("/api/jobs", body, { "Idempotency-Key": key.join("") });
  if (!jobs.value.has(made.id)) put([made], false); // else the stream was faster, and knows more
}

/** Ask for a change. The stream tells what came of it: an answer may be older than what was already heard. */
export async function act(id: string, what: "cancel" | "pause" | "resume" | "retry"): Promise<void> {
  const job = jobs.value.get(id);
  if (job?.state === "running" && (what === "cancel" || what === "pause")) put([{ ...job, asked: what }], false);
  try {
    await post(`/api/jobs/${id}/${what}`, {});
  } catch (error) {
    const now = jobs.value.get(id);
    if (job && now?.asked === what) put([{ ...now, asked: job.asked }], false);
    throw error;
  }
}

export async function move(id: string, where: Schemas["MoveBody"]): Promise<void> {
  await post(`/api/jobs/${id}/move`, where);
}

export const randomSeed = (): number => crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;

/** The words that a job is known by. */
export function titleOf(work: Work): string {
  const inputs = work.inputs ?? {};
  for (const name of ["prompt", "text", "of"]) if (typeof inputs[name] === "string" && inputs[name]) return inputs[name];
  return work.generator ?? "";
}
