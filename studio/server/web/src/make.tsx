// The page "Make": a prompt and a button. Everything else is folded.

import { useEffect, useRef, useState } from "preact/hooks";
import { FieldView, titleOfField } from "./field";
import { chosen, choose, draft, generators, KINDS, missing, MOST, set, submit, usual, type Generator } from "./form";
import { ended, loaded, newest, randomSeed } from "./jobs";
import { JobCard } from "./job";
import { known, t } from "./preferences";
import type { Field } from "./schema";

const SHOWN = 24;
const FEW = 8; // fields that need no second fold
const TIPS: Record<string, string[]> = {
  image: ["a red apple", "a blue cup on a table", "一个绿色的梨"],
  video: ["a red ball moving right", "a blue square moving up"],
  text: ["Once upon a time", "The little fox"],
};

export function Make() {
  return (
    <div class="make">
      <h1 tabIndex={-1} class="visually-hidden">{t("app.make")}</h1>
      <Form />
      <Results />
    </div>
  );
}

function Form() {
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const generator = chosen.value;
  const field = generator?.fields.find((each) => each.name === "prompt" && each.control !== "media");

  async function send(): Promise<void> {
    const lacking = missing();
    if (lacking.length) {
      setProblem(t("make.required", { name: lacking.map(titleOfField).join(", ") }));
      return;
    }
    setBusy(true);
    setProblem("");
    try {
      await submit();
    } catch (error) {
      setProblem((error as Error).message);
    } finally {
      setBusy(false);
    }
  }

  return (
    <form
      class="panel"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <KindControl />
      {field && <Prompt field={field} send={send} />}
      {problem && <p class="error" role="alert">{problem}</p>}
      <button class="main big" type="submit" disabled={busy || !generator}>{t("make.button")}</button>
      {generator && <Settings generator={generator} />}
    </form>
  );
}

function KindControl() {
  const kinds = KINDS.filter((kind) => usual.value[kind]);
  const current = chosen.value?.output;
  return (
    <fieldset class="kinds">
      <legend class="visually-hidden">{t("kind.legend")}</legend>
      {kinds.map((kind) => (
        <label key={kind} class={kind === current ? "on" : ""}>
          <input
            type="radio" name="kind" value={kind} checked={kind === current}
            onChange={() => void choose(usual.value[kind] ?? "")}
          />
          {t(`kind.${kind}`)}
        </label>
      ))}
    </fieldset>
  );
}

function Prompt({ field, send }: { field: Field; send: () => Promise<void> }) {
  const ref = useRef<HTMLTextAreaElement>(null);
  const value = String(draft.value.values.prompt ?? "");
  useEffect(() => {
    const box = ref.current;
    if (!box) return;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight + 2, 320)}px`;
  }, [value]);
  return (
    <div class="prompt">
      <label for="prompt">{t("make.prompt")}</label>
      <textarea
        id="prompt" ref={ref} rows={3} dir="auto" maxLength={field.maxLength} placeholder={t("make.placeholder")}
        value={value} onInput={(event) => set({ prompt: event.currentTarget.value })}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            void send();
          }
        }}
      />
    </div>
  );
}

function Settings({ generator }: { generator: Generator }) {
  const { values, count } = draft.value;
  const shown = generator.fields.filter((each) => each.name !== "prompt" || each.control === "media");
  const first = shown.length > FEW ? shown.filter(isCommon) : shown;
  const more = shown.filter((each) => !first.includes(each));
  const draw = (each: Field) => (
    <FieldView
      key={`${generator.name} ${each.name}`} field={each} value={values[each.name]} models={generator.models}
      set={(value) => set({ [each.name]: value })}
    />
  );
  return (
    <details class="settings" open={generator.required.some((name) => name !== "prompt")}>
      <summary>{t("make.settings")}</summary>
      <div class="fields">
        <div class="field">
          <label for="generator">{t("make.generator")}</label>
          <select id="generator" onChange={(event) => void choose(event.currentTarget.value)}>
            {generators.value.map((each) => (
              <option key={each.name} value={each.name} selected={each.name === generator.name}>{each.name}</option>
            ))}
          </select>
          <p class="help" lang="en">{generator.summary}</p>
        </div>
        <div class="pair">
          <div class="field">
            <label for="count">{t("make.number")}</label>
            <input
              id="count" type="number" min={1} max={MOST} value={count}
              onInput={(event) => {
                const given = Math.round(Number(event.currentTarget.value)) || 1;
                draft.value = { ...draft.value, count: Math.min(MOST, Math.max(1, given)) };
              }}
            />
          </div>
          <SeedControl />
        </div>
        {first.map(draw)}
      </div>
      {more.length > 0 && (
        <details class="more" open={more.some((each) => each.required)}>
          <summary>{t("make.more")}</summary>
          <div class="fields">{more.map(draw)}</div>
        </details>
      )}
      <button
        type="button"
        onClick={() => {
          draft.value = { ...draft.value, seed: null, count: 1, values: values.prompt ? { prompt: values.prompt } : {} };
        }}
      >
        {t("make.reset")}
      </button>
    </details>
  );
}

const COMMON = ["model", "negative", "size", "steps", "guidance", "frames", "fps", "image", "max_tokens", "temperature",
  "seconds"];
const isCommon = (field: Field): boolean => field.required || COMMON.includes(field.name);

function SeedControl() {
  const { seed } = draft.value;
  return (
    <div class="field">
      <label for="seed">{t("make.seed")}</label>
      <div class="number">
        <input
          id="seed" type="number" min={0} max={2 ** 53 - 1} step={1} value={seed ?? ""} placeholder={t("make.random")}
          onInput={(event) => {
            const given = event.currentTarget.value;
            draft.value = { ...draft.value, seed: given === "" ? null : Math.abs(Math.round(Number(given))) };
          }}
        />
        <button
          type="button" class="square" aria-label={t("make.dice")} title={t("make.dice")}
          onClick={() => (draft.value = { ...draft.value, seed: randomSeed() })}
        >
          <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true">
            <rect x="3" y="3" width="18" height="18" rx="4" fill="none" stroke="currentColor" stroke-width="2" />
            {[[8, 8], [16, 8], [12, 12], [8, 16], [16, 16]].map(([x, y]) => (
              <circle key={`${x} ${y}`} cx={x} cy={y} r="1.7" fill="currentColor" />
            ))}
          </svg>
        </button>
      </div>
    </div>
  );
}

function Results() {
  const found = newest.value.slice(0, SHOWN);
  const open = newest.value.slice(SHOWN).filter((job) => !ended(job));
  const tips = TIPS[chosen.value?.output ?? ""] ?? [];
  return (
    <section class="results" aria-label={t("make.results")}>
      {loaded.value && found.length === 0 && (
        <div class="empty">
          <p>{t("make.empty")}</p>
          {tips.length > 0 && <p class="quiet">{t("make.tips")}</p>}
          <p class="tips">
            {tips.map((tip) => (
              <button key={tip} type="button" onClick={() => set({ prompt: tip })}>{tip}</button>
            ))}
          </p>
        </div>
      )}
      <ul class="cards">{[...found, ...open].map((job) => <JobCard key={job.id} job={job} />)}</ul>
    </section>
  );
}

export const kindName = (kind: string): string => known(`kind.${kind}`, kind);
