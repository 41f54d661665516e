// One output: the whole view, its recipe as readable settings, and what can be done with it.

import { useEffect, useState } from "preact/hooks";
import { fileOf, get, useUrl, type FilePath, type Json } from "./api";
import { FieldView, titleOfField } from "./field";
import { again, described, fill, type Generator } from "./form";
import { titleOf, type Work } from "./jobs";
import { MediaView } from "./media";
import { kindName } from "./make";
import { language, t } from "./preferences";
import { go } from "./router";
import { isEmpty, valuesOf, type Values } from "./schema";

interface Recipe {
  spec: Work;
  kind: string;
  device: string;
  created?: string;
  seconds?: number;
  output: { media_type: string };
}

export function Artifact({ id }: { id: string }) {
  const [recipe, setRecipe] = useState<Recipe | null>(null);
  const [generator, setGenerator] = useState<Generator | null>(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    const stop = new AbortController();
    setRecipe(null);
    setGenerator(null);
    setProblem("");
    get<Recipe>(`/api/artifacts/${id}/recipe`, stop.signal)
      .then(async (found) => {
        setRecipe(found);
        setGenerator(await described(found.spec.generator ?? ""));
      })
      .catch((error: Error) => !stop.signal.aborted && setProblem(error.message));
    return () => stop.abort();
  }, [id]);
  const url = fileOf(id);
  const title = recipe ? titleOf(recipe.spec) : "";
  return (
    <article class="artifact">
      <p><a href="#/gallery">← {t("artifact.back")}</a></p>
      <h1 tabIndex={-1} dir="auto">{title || t("artifact.output")}</h1>
      {problem && <p class="error" role="alert">{problem}</p>}
      {recipe && (
        <div class="sides">
          <div class="stage"><MediaView url={url} type={recipe.output.media_type} title={title} /></div>
          <div>
            <Doing url={url} recipe={recipe} />
            {generator && <Change recipe={recipe} generator={generator} />}
            {(generator || problem) && <Facts id={id} recipe={recipe} generator={generator} />}
          </div>
        </div>
      )}
    </article>
  );
}

function Doing({ url, recipe }: { url: FilePath; recipe: Recipe }) {
  const [problem, setProblem] = useState("");
  const sharable = /^(image|video|audio)\//.test(recipe.output.media_type);
  const use = (): void =>
    void fill(recipe.spec)
      .then(() => go("make"))
      .catch((error: Error) => setProblem(error.message));
  return (
    <div class="actions">
      <button type="button" class="main" onClick={use}>{t("artifact.use")}</button>
      <Download url={url} text={t("artifact.download")} />
      {sharable && <Download url={`${url}/share`} text={t("artifact.share")} />}
      {problem && <p class="error" role="alert">{problem}</p>}
    </div>
  );
}

function Download({ url, text }: { url: FilePath; text: string }) {
  const from = useUrl(url);
  return from ? <a class="button" href={from} download="">{text}</a> : null;
}

/** The same again with one input changed. */
function Change({ recipe, generator }: { recipe: Recipe; generator: Generator }) {
  const values = valuesOf(generator.fields, recipe.spec);
  const [name, setName] = useState(generator.fields[0]?.name ?? "");
  const [value, setValue] = useState<Json | undefined>(values[name]);
  const [problem, setProblem] = useState("");
  const field = generator.fields.find((each) => each.name === name);
  async function send(): Promise<void> {
    setProblem("");
    try {
      await again(recipe.spec, { values: { [name]: value ?? null } as Values });
      go("make");
    } catch (error) {
      setProblem((error as Error).message);
    }
  }
  return (
    <form
      class="change panel"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <h2>{t("artifact.change")}</h2>
      <label for="what">{t("artifact.what")}</label>
      <select
        id="what"
        onChange={(event) => {
          setName(event.currentTarget.value);
          setValue(values[event.currentTarget.value]);
        }}
      >
        {generator.fields.map((each) => (
          <option key={each.name} value={each.name} selected={each.name === name}>{titleOfField(each)}</option>
        ))}
      </select>
      {field && <FieldView key={name} field={field} value={value} models={generator.models} set={setValue} />}
      {problem && <p class="error" role="alert">{problem}</p>}
      <button type="submit" class="main">{t("make.button")}</button>
    </form>
  );
}

function Facts({ id, recipe, generator }: { id: string; recipe: Recipe; generator: Generator | null }) {
  const fields = generator?.fields ?? [];
  const values = generator ? valuesOf(fields, recipe.spec) : (recipe.spec.inputs ?? {});
  const locale = language.value === "zh" ? "zh-Hans" : "en";
  const created = recipe.created ? new Date(recipe.created).toLocaleString(locale) : "";
  const rows: [string, string][] = [
    [t("make.generator"), `${recipe.spec.generator ?? ""} (${kindName(recipe.kind)})`],
    ...Object.entries(values)
      .filter(([, value]) => !isEmpty(value))
      .map(([name, value]): [string, string] => {
        const field = fields.find((each) => each.name === name);
        return [field ? titleOfField(field) : name, plain(value)];
      }),
    [t("field.seed"), String(recipe.spec.seed)],
    [t("artifact.created"), created],
    [t("artifact.seconds"), recipe.seconds === undefined ? "" : recipe.seconds.toFixed(2)],
    [t("artifact.device"), recipe.device],
    [t("artifact.id"), id],
  ];
  return (
    <section>
      <h2>{t("artifact.facts")}</h2>
      <dl class="facts">
        {rows.filter(([, text]) => text).map(([name, text]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd dir="auto">{text}</dd>
          </div>
        ))}
      </dl>
    </section>
  );
}

function plain(value: Json): string {
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return value.map(plain).join(", ");
  if (value !== null && typeof value === "object") return String(value.sha256 ?? JSON.stringify(value)).slice(0, 200);
  return String(value);
}
