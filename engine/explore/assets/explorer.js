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
    const ask = document.getElementById("console-ask");
    if (ask) ask.click();
  }
});

document.addEventListener("submit", (event) => event.preventDefault());
