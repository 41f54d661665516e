// Requests to Studio's server. The token stays in this tab, and is never part of a URL.

import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import type { paths } from "./openapi";

const TOKEN = "studio-token";

type Filled<Path> = Path extends `${infer Head}{${string}}${infer Tail}` ? `${Head}${string}${Filled<Tail>}` : Path;
type Known = Filled<keyof paths>;

/** A path of the server, as its OpenAPI describes it. */
export type Path = Known | `${Known}?${string}`;
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** Whether the server refuses requests for want of a token; null while that is not known. */
export const locked = signal<boolean | null>(null);
export const hasToken = signal(sessionStorage.getItem(TOKEN) !== null);

/** An error of the server, or of the way to it (status 0). */
export class ApiError extends Error {
  constructor(readonly status: number, message: string, readonly hint: string | null = null) {
    super(message);
  }
}

export function setToken(token: string | null): void {
  if (token === null) sessionStorage.removeItem(TOKEN);
  else sessionStorage.setItem(TOKEN, token);
  hasToken.value = token !== null;
}

/** Ask the server; raises ApiError unless it answers well. */
export async function ask(path: Path, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(TOKEN);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  let response: Response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, String(error));
  }
  if (response.status === 401) locked.value = true;
  else locked.value = false;
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response: Response): Promise<ApiError> {
  const text = await response.text();
  try {
    const error = JSON.parse(text).error;
    return new ApiError(response.status, String(error.message), error.hint ? String(error.hint) : null);
  } catch {
    return new ApiError(response.status, `${response.status} ${response.statusText}`);
  }
}

export async function get<T>(path: Path, signal?: AbortSignal): Promise<T> {
  return (await ask(path, signal ? { signal } : {})).json() as Promise<T>;
}

export async function post<T>(path: Path, body: unknown, headers: Record<string, string> = {}): Promise<T> {
  const given = { method: "POST", body: JSON.stringify(body) };
  return (await ask(path, { ...given, headers: { "Content-Type": "application/json", ...headers } })).json() as Promise<T>;
}

/** The path of an artifact's file. */
export type FilePath = `/api/artifacts/${string}`;
export const fileOf = (sha256: string): FilePath => `/api/artifacts/${sha256}`;

/** A stored file, as inputs of jobs name it. */
export interface MediaRef {
  sha256: string;
  media_type: string;
}

export async function upload(file: File, kind: string): Promise<MediaRef> {
  const form = new FormData();
  form.append("file", file);
  form.append("kind", kind);
  return (await ask("/api/artifacts", { method: "POST", body: form })).json() as Promise<MediaRef>;
}

/** A URL that an element can show. With a token the file is fetched first, as elements cannot send one. */
export function useUrl(path: Path | null): string | null {
  const [url, setUrl] = useState<string | null>(hasToken.value ? null : path);
  useEffect(() => {
    if (path === null || !hasToken.value) {
      setUrl(path);
      return undefined;
    }
    const stop = new AbortController();
    let made: string | null = null;
    ask(path, { signal: stop.signal })
      .then((response) => response.blob())
      .then((blob) => {
        if (!stop.signal.aborted) setUrl((made = URL.createObjectURL(blob)));
      })
      .catch(() => setUrl(null));
    return () => {
      stop.abort();
      if (made !== null) URL.revokeObjectURL(made);
    };
  }, [path, hasToken.value]);
  return url;
}

/** The text of a file, or null until it is there. */
export function useText(path: Path): string | null {
  const [text, setText] = useState<string | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    ask(path, { signal: stop.signal })
      .then((response) => response.text())
      .then(setText)
      .catch(() => setText(null));
    return () => stop.abort();
  }, [path]);
  return text;
}
