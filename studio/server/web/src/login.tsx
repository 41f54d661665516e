// The page that asks for a token.

import { useState } from "preact/hooks";
import { ask, setToken } from "./api";
import { t } from "./preferences";

export function Login({ enter }: { enter: () => void }) {
  const [text, setText] = useState("");
  const [wrong, setWrong] = useState("");
  async function send(): Promise<void> {
    setToken(text.trim());
    try {
      await ask("/api/health");
      enter();
    } catch (error) {
      setToken(null);
      setWrong((error as { status?: number }).status === 401 ? t("login.wrong") : (error as Error).message);
    }
  }
  return (
    <main class="login">
      <form
        class="panel"
        onSubmit={(event) => {
          event.preventDefault();
          void send();
        }}
      >
        <h1>{t("login.title")}</h1>
        <p>{t("login.help")}</p>
        <label for="token">{t("login.token")}</label>
        <input
          id="token" type="password" autocomplete="off" required value={text} aria-invalid={wrong !== ""}
          aria-describedby={wrong ? "token-wrong" : undefined} onInput={(event) => setText(event.currentTarget.value)}
        />
        {wrong && <p id="token-wrong" role="alert" class="error">{wrong}</p>}
        <button type="submit" class="main">{t("login.enter")}</button>
      </form>
    </main>
  );
}
