// The form on the page "Make": which generator, with which values. It survives a reload of its tab.

import { batch, computed, effect, signal } from "@preact/signals";
import { get } from "./api";
import { add, randomSeed, type Work } from "./jobs";
import { fieldsOf, inputsOf, isEmpty, valuesOf, type Field, type Values } from "./schema";

export interface Summary {
  name: string;
  output: string;
  summary: string;
  required: string[];
}

export interface Generator extends Summary {
  fields: Field[];
  models: string[];
}

export const KINDS = ["image", "video", "text", "audio"] as const;
export const MOST = 64; // jobs at a click

export const generators = signal<Summary[]>([]);
const known = signal<Record<string, Generator>>({});

interface Draft {
  generator: string;
  values: Values;
  seed: number | null;
  count: number;
}

const EMPTY: Draft = { generator: "", values: {}, seed: null, count: 1 };
const STORED = "studio-draft";

function stored(): Draft {
  try {
    return { ...EMPTY, ...JSON.parse(sessionStorage.getItem(STORED) ?? "{}") };
  } catch {
    return EMPTY;
  }
}

export const draft = signal<Draft>(stored());
effect(() => sessionStorage.setItem(STORED, JSON.stringify(draft.value)));

export const chosen = computed<Generator | null>(() => known.value[draft.value.generator] ?? null);

/** The generators that a prompt suffices for, by kind: the usual one of each kind is the first. */
export const usual = computed(() => {
  const found: Record<string, string> = {};
  for (const each of generators.value)
    if (each.required.length === 1 && each.required[0] === "prompt") found[each.output] ??= each.name;
  return found;
});

export async function load(): Promise<void> {
  generators.value = (await get<{ generators: Summary[] }>("/api/generators")).generators;
  const names = new Set(generators.value.map((each) => each.name));
  const first = KINDS.map((kind) => usual.value[kind]).find((name) => name) ?? generators.value[0]?.name ?? "";
  await choose(names.has(draft.value.generator) ? draft.value.generator : first);
}

export async function described(name: string): Promise<Generator> {
  const found = known.value[name];
  if (found) return found;
  const { inputs, ...rest } = await get<Summary & { inputs: unknown; models: string[] }>(
    `/api/generators/${encodeURIComponent(name)}`,
  );
  const made = { ...rest, fields: fieldsOf(inputs) };
  known.value = { ...known.value, [name]: made };
  return made;
}

/** Choose a generator. Values that it has too are kept if they are words. */
export async function choose(name: string): Promise<void> {
  if (!name) return;
  const found = await described(name);
  const { prompt } = draft.value.values;
  const takes = found.fields.some((each) => each.name === "prompt");
  const values: Values = name === draft.value.generator ? draft.value.values : takes && prompt ? { prompt } : {};
  draft.value = { ...draft.value, generator: name, values };
}

export function set(values: Values): void {
  draft.value = { ...draft.value, values: { ...draft.value.values, ...values } };
}

/** Fill the form with what a job or an artifact was made with. */
export async function fill(work: Work): Promise<void> {
  const found = await described(work.generator ?? "");
  batch(() => {
    draft.value = { generator: found.name, values: valuesOf(found.fields, work), seed: work.seed, count: 1 };
  });
}

/** The required fields that have no value. */
export function missing(): Field[] {
  return chosen.value?.fields.filter((each) => each.required && isEmpty(draft.value.values[each.name])) ?? [];
}

/** Queue the jobs of the form, with consecutive seeds. */
export async function submit(): Promise<void> {
  const generator = chosen.value;
  if (!generator) return;
  const { values, seed, count } = draft.value;
  const inputs = inputsOf(generator.fields, values);
  const first = seed ?? randomSeed();
  for (let at = 0; at < count; at++) await add({ generator: generator.name, output: generator.output, inputs, seed: first + at });
}

/** Queue a job again, with another seed or with one input changed. */
export async function again(work: Work, changes: { seed?: number; values?: Values }): Promise<void> {
  const { name, output, fields } = await described(work.generator ?? "");
  const inputs = inputsOf(fields, { ...valuesOf(fields, work), ...changes.values });
  await add({ generator: name, output, inputs, seed: changes.seed ?? work.seed });
}
