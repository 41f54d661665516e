// The page: the frame, and which page is in it.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ask, hasToken, locked, setToken } from "./api";
import { Artifact } from "./artifact";
import { load } from "./form";
import { Gallery } from "./gallery";
import { follow, online, waiting } from "./jobs";
import { Login } from "./login";
import { Make } from "./make";
import { language, setLanguage, setTheme, t, theme } from "./preferences";
import { Queue } from "./queue";
import { route } from "./router";

function Page() {
  const [entered, setEntered] = useState(0);
  useEffect(() => {
    ask("/api/health").catch(() => undefined);
  }, []);
  if (locked.value === true) return <Login enter={() => setEntered(entered + 1)} />;
  return locked.value === null ? null : <Frame key={entered} />;
}

function Frame() {
  const [problem, setProblem] = useState("");
  useEffect(() => {
    load().catch((error: Error) => setProblem(error.message));
    return follow();
  }, []);
  const open = waiting.value.length;
  useEffect(() => {
    document.title = open ? `(${open}) Studio` : "Studio";
  }, [open]);
  return (
    <>
      <a class="skip" href="#content" onClick={skip}>{t("app.skip")}</a>
      <header>
        <nav aria-label={t("app.pages")}>
          <Tab page="make" text={t("app.make")} />
          <Tab page="gallery" text={t("app.gallery")} />
          <Tab page="queue" text={open ? `${t("app.queue")} (${open})` : t("app.queue")} />
        </nav>
        <div class="choices">
          {hasToken.value && (
            <button
              type="button"
              onClick={() => {
                setToken(null);
                locked.value = true;
              }}
            >
              {t("app.logout")}
            </button>
          )}
          <button
            type="button" lang={language.value === "zh" ? "en" : "zh-Hans"}
            onClick={() => setLanguage(language.value === "zh" ? "en" : "zh")}
          >
            {t("app.language")}
          </button>
          <button type="button" onClick={() => setTheme(theme.value === "dark" ? "light" : "dark")}>
            {t(theme.value === "dark" ? "app.theme.light" : "app.theme.dark")}
          </button>
        </div>
      </header>
      {!online.value && <p class="banner" role="status">{t("app.offline")}</p>}
      {problem && <p class="banner error" role="alert">{problem}</p>}
      <main id="content" tabIndex={-1}><Content /></main>
    </>
  );
}

function skip(event: Event): void {
  event.preventDefault();
  document.querySelector<HTMLElement>("#content")?.focus();
}

function Tab({ page, text }: { page: string; text: string }) {
  const shown = route.value[0] ?? "make";
  const here = shown === page || (shown === "artifact" && page === "gallery");
  return <a href={`#/${page}`} aria-current={here ? "page" : undefined}>{text}</a>;
}

function Content() {
  const [page = "make", id] = route.value;
  if (page === "make") return <Make />;
  if (page === "gallery") return <Gallery />;
  if (page === "queue") return <Queue />;
  if (page === "artifact" && id) return <Artifact key={id} id={id} />;
  return <h1 tabIndex={-1}>{t("app.missing")}</h1>;
}

render(<Page />, document.body);
