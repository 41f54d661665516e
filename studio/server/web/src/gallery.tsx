// The page "Gallery": all outputs, the latest first. Only rows that are seen are in the document.

import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { get, type FilePath } from "./api";
import { KINDS } from "./form";
import { outputs } from "./jobs";
import { Thumbnail } from "./media";
import { t } from "./preferences";

interface Item {
  sha256: string;
  media_type: string;
  url: FilePath;
  created: number;
  generator: string;
  title: string;
}

interface Page {
  artifacts: Item[];
  next: string | null;
}

const PAGE = 120;
const GAP = 12; // pixels, as in the style
const SMALLEST = 150;
const SPARE = 2; // rows above and below those that are seen

const kind = signal("");

export function Gallery() {
  const { items, more, problem } = useItems(kind.value);
  return (
    <div class="gallery">
      <h1 tabIndex={-1}>{t("gallery.title")}</h1>
      <fieldset class="kinds">
        <legend class="visually-hidden">{t("gallery.filter")}</legend>
        {["", ...KINDS].map((each) => (
          <label key={each} class={each === kind.value ? "on" : ""}>
            <input type="radio" name="filter" checked={each === kind.value} onChange={() => (kind.value = each)} />
            {each ? t(`kind.${each as (typeof KINDS)[number]}`) : t("gallery.all")}
          </label>
        ))}
      </fieldset>
      {problem && <p class="error" role="alert">{t("gallery.error")} {problem}</p>}
      {items?.length === 0 && <p class="empty">{t("gallery.empty")}</p>}
      {items && items.length > 0 && <Tiles items={items} more={more} />}
    </div>
  );
}

function useItems(wanted: string) {
  const [items, setItems] = useState<Item[] | null>(null);
  const [problem, setProblem] = useState("");
  const next = useRef<string | null>(null);
  const busy = useRef(false);
  const made = outputs.value;
  const path = `/api/artifacts?limit=${PAGE}${wanted ? `&kind=${wanted}` : ""}` as const;

  useEffect(() => {
    const stop = new AbortController();
    next.current = null;
    setItems(null);
    get<Page>(path, stop.signal)
      .then((page) => {
        next.current = page.next;
        setItems(page.artifacts);
        setProblem("");
      })
      .catch((error: Error) => !stop.signal.aborted && setProblem(error.message));
    return () => stop.abort();
  }, [path]);

  useEffect(() => {
    if (items === null) return undefined;
    const stop = new AbortController();
    get<Page>(path, stop.signal)
      .then((page) => setItems((old) => merged(page.artifacts, old ?? [])))
      .catch((error: Error) => !stop.signal.aborted && setProblem(error.message));
    return () => stop.abort();
  }, [made]);

  async function more(): Promise<void> {
    if (busy.current || next.current === null) return;
    busy.current = true;
    try {
      const page = await get<Page>(`${path}&before=${next.current}`);
      next.current = page.next;
      setItems((old) => merged(old ?? [], page.artifacts));
    } catch (error) {
      setProblem((error as Error).message);
    } finally {
      busy.current = false;
    }
  }
  return { items, more, problem };
}

function merged(first: Item[], second: Item[]): Item[] {
  const known = new Set(first.map((each) => each.sha256));
  return [...first, ...second.filter((each) => !known.has(each.sha256))];
}

function Tiles({ items, more }: { items: Item[]; more: () => Promise<void> }) {
  const ref = useRef<HTMLUListElement>(null);
  const [view, setView] = useState({ width: 0, top: 0, height: 0 });
  useLayoutEffect(() => {
    const list = ref.current;
    if (!list) return undefined;
    const look = (): void => {
      const { top, width } = list.getBoundingClientRect();
      setView({ width, top: Math.max(0, -top), height: innerHeight });
    };
    const observer = new ResizeObserver(look);
    observer.observe(list);
    addEventListener("scroll", look, { passive: true });
    look();
    return () => {
      observer.disconnect();
      removeEventListener("scroll", look);
    };
  }, []);
  const columns = Math.max(2, Math.floor((view.width + GAP) / (SMALLEST + GAP)));
  const side = (view.width - GAP * (columns - 1)) / columns;
  const row = side + GAP;
  const rows = Math.ceil(items.length / columns);
  const first = Math.max(0, Math.floor(view.top / row) - SPARE);
  const last = Math.min(rows, Math.ceil((view.top + view.height) / row) + SPARE);
  useEffect(() => {
    if (view.width && last >= rows - SPARE) void more();
  }, [last, rows, view.width]);

  const shown = view.width ? items.slice(first * columns, last * columns) : [];
  return (
    <ul class="tiles" ref={ref} style={{ height: `${rows * row}px` }} onKeyDown={(event) => step(event, columns)}>
      {shown.map((item, index) => {
        const at = first * columns + index;
        const place = { left: `${(at % columns) * row}px`, top: `${Math.floor(at / columns) * row}px` };
        return (
          <li key={item.sha256} style={{ ...place, width: `${side}px`, height: `${side}px` }}>
            <a
              href={`#/artifact/${item.sha256}`} data-at={at}
              aria-label={item.media_type.startsWith("text/") ? undefined : item.title || item.generator}
            >
              <Thumbnail url={item.url} type={item.media_type} title={item.title || item.generator} />
            </a>
          </li>
        );
      })}
    </ul>
  );
}

/** The arrow keys go from tile to tile. */
function step(event: KeyboardEvent, columns: number): void {
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const at = (event.target as HTMLElement).closest<HTMLElement>("[data-at]")?.dataset.at;
  if (by === undefined || at === undefined) return;
  const next = document.querySelector<HTMLElement>(`[data-at="${Number(at) + by}"]`);
  if (next) {
    event.preventDefault();
    next.focus();
  }
}
