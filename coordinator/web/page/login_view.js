// Who looks must say so, where the coordinator requires it.

import { freshId, h, say } from "./dom.js";
import { logIn } from "./session.js";

export function loginView(place) {
  const trouble = h("p", { class: "field-error", role: "alert" });
  const user = h("input", { id: freshId("user"), name: "user", autocomplete: "username", autocapitalize: "none", spellcheck: "false", required: true });
  const password = h("input", { id: freshId("password"), name: "password", type: "password", autocomplete: "current-password", required: true });
  const button = h("button", { type: "submit", class: "button button-main" }, "Log in");

  async function submit(event) {
    event.preventDefault();
    const missing = [user, password].find((input) => !input.value);
    trouble.textContent = "";
    if (missing) {
      trouble.textContent = missing === user ? "Who are you? The user is missing." : "The password is missing.";
      missing.focus();
      return;
    }
    button.disabled = true;
    try {
      await logIn(user.value, password.value);
      say("Logged in");
    } catch (error) {
      const wait = error.status === 429 && error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
      trouble.textContent = `${error.message}.${wait}`.replace("..", ".");
      password.value = "";
      password.focus();
    } finally {
      button.disabled = false;
    }
  }

  place.append(
    h(
      "form",
      { class: "card login", novalidate: true, on: { submit } },
      h("h1", {}, "Log in"),
      h("div", { class: "field" }, h("label", { for: user.id }, "User"), user),
      h("div", { class: "field" }, h("label", { for: password.id }, "Password"), password),
      trouble,
      button,
    ),
  );
  user.focus();
}
