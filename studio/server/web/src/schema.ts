// From a generator's JSON Schema to the fields of a form, so that every plugin has one.

import type { Json } from "./api";
import type { Work } from "./jobs";

export type Control = "line" | "text" | "number" | "choice" | "flag" | "media" | "list" | "json";

export interface Field {
  name: string;
  title: string;
  help: string;
  control: Control;
  required: boolean;
  /** What is used if nothing is given; null is the generator's choice. */
  usual: Json;
  min?: number;
  max?: number;
  step?: number;
  maxLength?: number;
  options?: string[];
  /** The kind of media, and whether several are taken. */
  media?: string;
  many?: boolean;
  /** Which part of the model's reference it is. */
  model?: "source" | "variant" | "additions";
  addition?: string;
}

export type Values = Record<string, Json>;

interface Schema {
  type?: string;
  anyOf?: Schema[];
  $ref?: string;
  $defs?: Record<string, Schema>;
  enum?: Json[];
  const?: Json;
  items?: Schema;
  properties?: Record<string, Schema>;
  required?: string[];
  title?: string;
  description?: string;
  default?: Json;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  multipleOf?: number;
  maxLength?: number;
  "x-studio-media"?: string;
  "x-studio-model"?: "source" | "variant" | "additions";
  "x-studio-kind"?: string;
}

const LONG = 20_000; // a text that may have more characters is written in several lines

/** The fields of an object's schema, in its order. */
export function fieldsOf(root: unknown): Field[] {
  const schema = root as Schema;
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, each]) => field(name, each, schema, required.has(name)));
}

function field(name: string, given: Schema, root: Schema, required: boolean): Field {
  const shape = resolve(given, root);
  const model = given["x-studio-model"] ?? shape["x-studio-model"];
  const addition = given["x-studio-kind"] ?? shape["x-studio-kind"];
  return {
    name,
    title: given.title ?? name,
    help: given.description ?? shape.description ?? "",
    required,
    usual: given.default ?? null,
    ...(model ? { model } : {}),
    ...(addition ? { addition } : {}),
    ...controlOf(shape, root),
  };
}

function controlOf(shape: Schema, root: Schema): Pick<Field, "control"> & Partial<Field> {
  if (shape["x-studio-media"]) return { control: "media", media: shape["x-studio-media"], many: false };
  if (shape.enum) return { control: "choice", options: shape.enum.map(String) };
  if (shape.type === "boolean") return { control: "flag" };
  if (shape.type === "integer" || shape.type === "number") return numberOf(shape);
  if (shape.type === "array") {
    const items = resolve(shape.items ?? {}, root);
    if (items["x-studio-media"]) return { control: "media", media: items["x-studio-media"], many: true };
    return items.type === "string" ? { control: "list" } : { control: "json" };
  }
  if (shape.type === "string") {
    const maxLength = shape.maxLength;
    return { control: (maxLength ?? 0) > LONG ? "text" : "line", ...(maxLength ? { maxLength } : {}) };
  }
  return { control: "json" };
}

function numberOf(shape: Schema): Pick<Field, "control"> & Partial<Field> {
  const whole = shape.type === "integer";
  const low = shape.minimum ?? shape.exclusiveMinimum;
  const high = shape.maximum ?? shape.exclusiveMaximum;
  const span = low !== undefined && high !== undefined ? high - low : Infinity;
  const step = shape.multipleOf ?? (whole ? 1 : span <= 2 ? 0.05 : span <= 40 ? 0.1 : 1);
  return {
    control: "number",
    step,
    ...(low !== undefined ? { min: shape.minimum ?? low + step } : {}),
    ...(high !== undefined ? { max: shape.maximum ?? high - step } : {}),
  };
}

/** The schema that a value has if it is given: references are followed, and null is left out. */
function resolve(given: Schema, root: Schema): Schema {
  let found = given;
  for (let depth = 0; depth < 8; depth++) {
    if (found.$ref?.startsWith("#/$defs/")) found = root.$defs?.[found.$ref.slice(8)] ?? {};
    else if (found.anyOf) {
      const rest = found.anyOf.filter((each) => each.type !== "null");
      if (rest.length !== 1) return rest.every((each) => each.type === "string") ? { type: "string" } : {};
      found = rest[0] ?? {};
    } else break;
  }
  return found.const === undefined ? found : { ...found, enum: [found.const] };
}

/** Whether a slider helps: it needs ends, and steps that a hand can find. */
export function hasSlider(field: Field): boolean {
  return field.min !== undefined && field.max !== undefined && (field.max - field.min) / (field.step ?? 1) <= 1000;
}

export function isEmpty(value: Json | undefined): boolean {
  return value === undefined || value === null || value === "" || (Array.isArray(value) && value.length === 0);
}

/** The inputs of a job from the values of its form; what has its default is left out. */
export function inputsOf(fields: Field[], values: Values): Record<string, Json> {
  const inputs: Record<string, Json> = {};
  for (const each of fields) {
    const value = values[each.name];
    if (value === undefined || (isEmpty(value) && !each.required) || same(value, each.usual)) continue;
    inputs[each.name] = value;
  }
  return inputs;
}

/** The values of the form that a job was made with. */
export function valuesOf(fields: Field[], work: Work): Values {
  const values: Values = {};
  for (const each of fields) {
    if (each.model === "source") values[each.name] = work.model?.source ?? "";
    else if (each.model === "variant") values[each.name] = work.model?.variant || each.usual;
    else if (each.model === "additions") {
      const found = (work.model?.additions ?? []).filter((one) => one.kind === (each.addition ?? each.name));
      const texts = found.map((one) => ((one.weight ?? 1) === 1 ? one.source : `${one.source}:${one.weight}`));
      values[each.name] = each.control === "list" ? texts : (texts[0] ?? "");
    } else if (work.inputs && each.name in work.inputs) values[each.name] = work.inputs[each.name] ?? null;
  }
  const given = fields.filter((each) => !isEmpty(values[each.name]) && !same(values[each.name], each.usual));
  return Object.fromEntries(given.map((each) => [each.name, values[each.name] ?? null]));
}

export function same(a: Json | undefined, b: Json | undefined): boolean {
  return JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
}
