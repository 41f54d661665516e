// One field of a form, drawn from its schema.

import { useId, useState } from "preact/hooks";
import { fileOf, upload, type Json, type MediaRef } from "./api";
import { MediaView } from "./media";
import { known, t } from "./preferences";
import { hasSlider, type Field } from "./schema";

interface Props {
  field: Field;
  value: Json | undefined;
  set: (value: Json) => void;
}

export const titleOfField = (field: Field): string => known(`field.${field.name}`, field.title);

export function FieldView({ field, value, set, models }: Props & { models: string[] }) {
  const id = useId();
  const help = field.help ? `${id}-help` : undefined;
  const shared = { id, field, value: value ?? field.usual, set, help };
  if (field.control === "flag") {
    return (
      <div class="field flag">
        <input
          id={id} type="checkbox" checked={Boolean(shared.value)} aria-describedby={help}
          onChange={(event) => set(event.currentTarget.checked)}
        />
        <label for={id}>{titleOfField(field)}</label>
        <Help id={help} text={field.help} />
      </div>
    );
  }
  return (
    <div class="field">
      <label for={id}>{titleOfField(field)}</label>
      {field.model === "source" ? <ModelControl {...shared} models={models} /> : <ControlView {...shared} />}
      <Help id={help} text={field.help} />
    </div>
  );
}

function Help({ id, text }: { id: string | undefined; text: string }) {
  return text ? <p id={id} class="help" lang="en">{text}</p> : null;
}

interface Shared {
  id: string;
  field: Field;
  value: Json;
  set: (value: Json) => void;
  help: string | undefined;
}

function ControlView(props: Shared) {
  const { field, id, value, set, help } = props;
  const given = { id, "aria-describedby": help, "aria-required": field.required };
  switch (field.control) {
    case "number":
      return <NumberControl {...props} />;
    case "choice":
      return (
        <select {...given} onChange={(event) => set(event.currentTarget.value || null)}>
          {value === null && <option value="">{t("make.auto")}</option>}
          {field.options?.map((each) => (
            <option key={each} value={each} selected={value === each}>{each}</option>
          ))}
        </select>
      );
    case "media":
      return <MediaControl {...props} />;
    case "list":
      return (
        <textarea
          {...given} rows={2} placeholder={t("make.lines")} value={Array.isArray(value) ? value.join("\n") : ""}
          onInput={(event) => set(event.currentTarget.value.split("\n").filter((line) => line.trim() !== ""))}
        />
      );
    case "json":
      return <JsonControl {...props} />;
    case "text":
      return (
        <textarea
          {...given} rows={3} maxLength={field.maxLength} value={String(value ?? "")}
          onInput={(event) => set(event.currentTarget.value)}
        />
      );
    default:
      return (
        <input
          {...given} type="text" maxLength={field.maxLength} value={String(value ?? "")}
          placeholder={field.required ? undefined : t("make.auto")} onInput={(event) => set(event.currentTarget.value)}
        />
      );
  }
}

function NumberControl({ id, field, value, set, help }: Shared) {
  const given = { min: field.min, max: field.max, step: field.step };
  const number = typeof value === "number" ? value : null;
  const changed = (event: { currentTarget: HTMLInputElement }): void =>
    set(event.currentTarget.value === "" ? null : Number(event.currentTarget.value));
  return (
    <div class="number">
      {hasSlider(field) && (
        <input
          type="range" {...given} class={number === null ? "unset" : ""} value={number ?? field.min}
          aria-label={titleOfField(field)} aria-valuetext={number === null ? t("make.auto") : String(number)}
          onInput={changed}
        />
      )}
      <input
        id={id} type="number" {...given} step="any" value={number ?? ""} placeholder={t("make.auto")}
        aria-describedby={help} onInput={changed}
      />
    </div>
  );
}

function ModelControl({ id, value, set, help, models }: Shared & { models: string[] }) {
  const chosen = String(value ?? "");
  const all = chosen && !models.includes(chosen) ? [chosen, ...models] : models;
  return (
    <select id={id} aria-describedby={help} onChange={(event) => set(event.currentTarget.value)}>
      <option value="">{t("make.default")}</option>
      {all.map((each) => (
        <option key={each} value={each} selected={each === chosen}>{each}</option>
      ))}
    </select>
  );
}

function JsonControl({ id, value, set, help }: Shared) {
  const [text, setText] = useState(value === null ? "" : JSON.stringify(value));
  const [bad, setBad] = useState(false);
  return (
    <>
      <textarea
        id={id} rows={2} value={text} aria-describedby={help} aria-invalid={bad}
        onInput={(event) => {
          setText(event.currentTarget.value);
          try {
            set(event.currentTarget.value ? JSON.parse(event.currentTarget.value) : null);
            setBad(false);
          } catch {
            setBad(true);
          }
        }}
      />
      {bad && <p role="alert" class="error">{t("make.badJson")}</p>}
    </>
  );
}

const ACCEPTED: Record<string, string> = { image: "image/*", video: "video/*", audio: "audio/*" };

/** A drop zone: files are uploaded at once, and the value names them by their hash. */
function MediaControl({ id, field, value, set, help }: Shared) {
  const [busy, setBusy] = useState(false);
  const [over, setOver] = useState(false);
  const [error, setError] = useState("");
  const kind = field.media ?? "image";
  const refs = (Array.isArray(value) ? value : value ? [value] : []) as unknown as MediaRef[];
  const put = (found: MediaRef[]): void => set((field.many ? found : (found[0] ?? null)) as unknown as Json);

  async function take(files: FileList | null): Promise<void> {
    if (!files?.length) return;
    setBusy(true);
    setError("");
    try {
      const found = await Promise.all([...files].map((file) => upload(file, kind)));
      put(field.many ? [...refs, ...found] : found);
    } catch (problem) {
      setError(String((problem as Error).message));
    } finally {
      setBusy(false);
    }
  }

  return (
    <div
      class={`drop${over ? " over" : ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        void take(event.dataTransfer?.files ?? null);
      }}
      onPaste={(event) => void take(event.clipboardData?.files ?? null)}
    >
      {refs.map((each, at) => (
        <span key={each.sha256} class="dropped">
          <MediaView url={fileOf(each.sha256)} type={each.media_type} title={titleOfField(field)} />
          <button type="button" onClick={() => put(refs.filter((_, other) => other !== at))}>{t("make.remove")}</button>
        </span>
      ))}
      <span class="quiet">{busy ? t("make.uploading") : t("make.drop")}</span>
      <input
        id={id} type="file" accept={ACCEPTED[kind]} multiple={field.many} aria-describedby={help}
        onChange={(event) => void take(event.currentTarget.files)}
      />
      {error && <p role="alert" class="error">{error}</p>}
    </div>
  );
}
