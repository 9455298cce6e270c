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
