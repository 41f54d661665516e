// Language and theme: kept in the browser, by default those of the system.

import { effect, signal } from "@preact/signals";
import { en, type Word } from "./en";
import { zh } from "./zh";

export type Language = "en" | "zh";
export type Theme = "light" | "dark";

const usual: Language = navigator.language.startsWith("zh") ? "zh" : "en";
const dark = matchMedia("(prefers-color-scheme: dark)").matches;

export const language = signal<Language>((localStorage.getItem("language") as Language | null) ?? usual);
export const theme = signal<Theme>((localStorage.getItem("theme") as Theme | null) ?? (dark ? "dark" : "light"));

effect(() => {
  document.documentElement.lang = language.value === "zh" ? "zh-Hans" : "en";
  document.documentElement.dataset.theme = theme.value;
});

export function setLanguage(value: Language): void {
  localStorage.setItem("language", value);
  language.value = value;
}

export function setTheme(value: Theme): void {
  localStorage.setItem("theme", value);
  theme.value = value;
}

/** A text in the language of the page; `{name}` in it is replaced. */
export function t(word: Word, values: Record<string, string | number> = {}): string {
  const text = (language.value === "zh" ? zh : en)[word];
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** The text of a word that a plugin may have made up, or `otherwise`. */
export function known(word: string, otherwise: string): string {
  return Object.hasOwn(en, word) ? t(word as Word) : otherwise;
}

/** A duration, rounded as one would say it. */
export function duration(seconds: number): string {
  const unit = seconds < 90 ? "second" : seconds < 5400 ? "minute" : "hour";
  const value = Math.max(1, Math.round(seconds / { second: 1, minute: 60, hour: 3600 }[unit]));
  const locale = language.value === "zh" ? "zh-Hans" : "en";
  return new Intl.NumberFormat(locale, { style: "unit", unit, unitDisplay: "short" }).format(value);
}
