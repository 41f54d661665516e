// Server-sent events over fetch, which can send a token; `EventSource` cannot. A lost connection goes on from the last
// event.

import { ask, ApiError, type Path } from "./api";

export interface Message {
  id: string;
  event: string;
  data: string;
}

/** Split a stream of text into messages (https://html.spec.whatwg.org/multipage/server-sent-events.html). */
export class MessageParser {
  private rest = "";
  private data: string[] = [];
  private event = "";
  private id = "";

  push(text: string): Message[] {
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop() ?? "";
    const found: Message[] = [];
    for (const line of lines) {
      if (line === "") {
        if (this.data.length) found.push({ id: this.id, event: this.event || "message", data: this.data.join("\n") });
        this.data = [];
        this.event = "";
        continue;
      }
      const [, name, value = ""] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
      if (name === "data") this.data.push(value);
      else if (name === "event") this.event = value;
      else if (name === "id") this.id = value;
    }
    return found;
  }
}

const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 5000;

/** Hear the events of a path until the returned function is called. A tab that nobody sees does not listen. */
export function listen(path: Path, hear: (message: Message) => void, connected: (yes: boolean) => void): () => void {
  let last = "";
  let stop = new AbortController();
  let over = false;
  let waits = FIRST_WAIT_MS;
  let wake: () => void = () => undefined;

  async function once(): Promise<void> {
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (last) headers["Last-Event-ID"] = last;
    const response = await ask(path, { headers, signal: stop.signal, cache: "no-store" });
    if (response.body === null) throw new ApiError(0, "no body");
    connected(true);
    waits = FIRST_WAIT_MS;
    const parser = new MessageParser();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      for (const message of parser.push(value)) {
        if (message.id) last = message.id;
        hear(message);
      }
    }
  }

  async function forever(): Promise<void> {
    while (!over) {
      if (!document.hidden) {
        try {
          await once();
        } catch (error) {
          if (error instanceof ApiError && error.status === 401) return;
        }
        if (!document.hidden && !over) connected(false);
      }
      await new Promise<void>((resolve) => {
        wake = resolve;
        if (!document.hidden) setTimeout(resolve, waits);
      });
      waits = Math.min(2 * waits, LONGEST_WAIT_MS);
    }
  }

  function seen(): void {
    if (document.hidden) {
      stop.abort();
      stop = new AbortController();
    } else {
      waits = FIRST_WAIT_MS;
      wake();
    }
  }

  document.addEventListener("visibilitychange", seen);
  void forever();
  return () => {
    over = true;
    document.removeEventListener("visibilitychange", seen);
    stop.abort();
    wake();
  };
}
