// What the server cannot do: the address bar, light and dark, Ctrl+Enter.
"use strict";

window.dash_clientside = window.dash_clientside || {};

window.dash_clientside.fewchannels = {
  // The address follows the view without a new entry for each move of a slider.
  link(address) {
    if (address && address !== window.location.pathname + window.location.search) {
      window.history.replaceState(null, "", address);
    }
    return address;
  },

  theme(clicks) {
    const dark = window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    let theme = window.localStorage.getItem("fewchannels-theme") || dark;
    if (clicks) {
      theme = theme === "dark" ? "light" : "dark";
      window.localStorage.setItem("fewchannels-theme", theme);
      window.location.reload(); // figures are drawn anew; the address has the view
    }
    document.documentElement.dataset.theme = theme;
    return theme;
  },
};

// Callbacks say the page's key, which only scripts of this origin can read. Entering left it here.
const ask = window.fetch;
window.fetch = async (resource, options) => {
  const config = JSON.parse(document.getElementById("_dash-config").textContent);
  const prefix = config.requests_pathname_prefix.replace(/\/$/, "");
  const headers = new Headers(options && options.headers);
  headers.set("X-Fewchannels-Key", window.localStorage.getItem(`fewchannels-key${prefix}`) || "");
  const answer = await ask(resource, { ...options, headers });
  if (answer.status === 403) {
    const refused = new DOMParser().parseFromString(await answer.clone().text(), "text/html");
    document.body.textContent = refused.body.textContent;
  }
  return answer;
};

document.documentElement.lang = "en";
document.documentElement.dataset.theme =
  window.localStorage.getItem("fewchannels-theme") ||
  (window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const ask = document.getElementById("console-ask") || document.getElementById("live-go");
    if (ask) ask.click();
  }
});

// A slider's handle has no name of its own: screen readers are to say which slider it is.
new MutationObserver(() => {
  for (const handle of document.querySelectorAll(".field [role=slider]:not([aria-label])")) {
    handle.setAttribute("aria-label", handle.closest(".field").querySelector("label").textContent);
  }
}).observe(document.documentElement, { childList: true, subtree: true });

document.addEventListener("submit", (event) => event.preventDefault());
