// Which page is shown: the part of the URL after #, such as #/artifact/ID.

import { signal } from "@preact/signals";

const here = (): string[] => location.hash.replace(/^#\/?/, "").split("/").filter(Boolean);

export const route = signal<string[]>(here());

addEventListener("hashchange", () => {
  route.value = here();
  scrollTo(0, 0);
  requestAnimationFrame(() => document.querySelector<HTMLElement>("h1")?.focus());
});

export function go(page: string): void {
  location.hash = `#/${page}`;
}
