// Showing media: pictures, clips, sounds and text. Everything from outside is inserted as text, never as markup.

import { useText, useUrl, type FilePath } from "./api";

interface Shown {
  url: FilePath;
  type: string;
  title: string;
}

/** An output in full, with the browser's controls. */
export function MediaView({ url, type, title }: Shown) {
  if (type.startsWith("text/")) return <TextView url={url} />;
  if (type.startsWith("video/")) return <Clip url={url} title={title} controls />;
  if (type.startsWith("audio/")) return <Sound url={url} title={title} />;
  if (type.startsWith("image/")) return <Picture url={url} title={title} />;
  return <p class="quiet">{type}</p>;
}

/** A small view for a list, which takes no clicks of its own. */
export function Thumbnail({ url, type, title }: Shown) {
  if (type.startsWith("image/")) return <Picture url={url} title={title} />;
  if (type.startsWith("video/")) return <Clip url={url} title={title} />;
  if (type.startsWith("text/")) return <TextView url={url} />;
  return <span class="glyph">{title || type}</span>;
}

function Picture({ url, title }: { url: FilePath; title: string }) {
  const shown = useUrl(url);
  return shown ? <img src={shown} alt={title} decoding="async" /> : <span class="blank" />;
}

function Clip({ url, title, controls = false }: { url: FilePath; title: string; controls?: boolean }) {
  const shown = useUrl(url);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  return shown ? (
    <video src={shown} aria-label={title} controls={controls} autoplay={!still} loop muted playsInline />
  ) : (
    <span class="blank" />
  );
}

function Sound({ url, title }: { url: FilePath; title: string }) {
  const shown = useUrl(url);
  return shown ? <audio src={shown} aria-label={title} controls /> : <span class="blank" />;
}

function TextView({ url }: { url: FilePath }) {
  return <p class="writing">{useText(url) ?? "…"}</p>;
}
