"use strict";
(function () {
  const DARK = JSON.parse(document.getElementById("dark-colours").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const forPrint = window.location.hash === "#print";
  const places = Array.from(document.querySelectorAll(".plot"));
  let printing = forPrint;

  // Colours stand under names that end in "color"; texts do not, so a text that looks like one stays as it is.
  function recoloured(value) {
    if (Array.isArray(value)) return value.map(recoloured);
    if (value === null || typeof value !== "object") return value;
    const copy = {};
    for (const [name, inner] of Object.entries(value)) {
      copy[name] = typeof inner === "string" && /color$/.test(name) && inner in DARK ? DARK[inner] : recoloured(inner);
    }
    return copy;
  }

  function fitted(place) {
    const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    const width = printing ? 660 : place.clientWidth || 640;
    const shown = dark.matches && !printing ? recoloured(figure) : figure;
    shown.layout.width = printing ? width : undefined;
    shown.layout.autosize = !printing;
    if (printing && shown.layout.height <= 400) shown.layout.height = 300; // two on a page
    if (width < 560) { // a legend beside the lines would leave them no room
      shown.layout.legend = Object.assign({}, shown.layout.legend, { orientation: "h", x: 0, y: -0.22, yanchor: "top" });
      shown.layout.margin = Object.assign({}, shown.layout.margin, { l: 52, r: 8 });
      shown.layout.height = (shown.layout.height || 400) + 70;
      if (shown.layout.scene) {
        shown.data[0].showscale = false;
        shown.layout.height = 400;
        shown.layout.scene.camera = { eye: { x: 2.1, y: -2.9, z: 1.4 } };
      }
    }
    return shown;
  }

  function draw(place) {
    const figure = fitted(place);
    const options = {
      responsive: !printing, displaylogo: false, staticPlot: printing, modeBarButtonsToRemove: ["lasso2d", "select2d"]
    };
    return Plotly.react(place, figure.data, figure.layout, options).then(() => { place.dataset.drawn = "true"; });
  }

  function drawSafely(place) {
    return draw(place).catch(() => {
      place.textContent = "This figure cannot be drawn by this browser; the commands below give its numbers.";
      place.classList.add("broken");
    });
  }

  // Surfaces take a graphics context each, of which a browser has few: those out of sight give theirs back.
  const surfaces = places.filter((place) => place.classList.contains("surface"));
  const flat = places.filter((place) => !place.classList.contains("surface"));

  async function drawAll() {
    for (const place of flat) {
      await drawSafely(place);
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    document.documentElement.dataset.drawn = "true";
  }

  document.querySelectorAll("details.folded").forEach((each) => {
    if (forPrint) each.open = true;
    each.addEventListener("toggle", () => each.querySelectorAll(".plot").forEach((place) => drawSafely(place)));
  });
  if (forPrint) document.querySelectorAll("details.how").forEach((each) => { each.open = true; });
  const contents = document.querySelector("nav details");
  if (contents && window.matchMedia("(min-width: 76rem)").matches) contents.open = true;

  drawAll();
  if (!printing && "IntersectionObserver" in window) {
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) drawSafely(entry.target);
        else if (entry.target.dataset.drawn) { Plotly.purge(entry.target); delete entry.target.dataset.drawn; }
      }
    }, { rootMargin: "300px" });
    surfaces.forEach((place) => watcher.observe(place));
  }
  dark.addEventListener("change", () => places.forEach((place) => { if (place.dataset.drawn) drawSafely(place); }));
  window.addEventListener("beforeprint", () => {
    printing = true;
    document.querySelectorAll("details.folded").forEach((each) => { each.open = true; });
    flat.forEach((place) => drawSafely(place));
  });
  window.addEventListener("afterprint", () => {
    printing = forPrint;
    flat.forEach((place) => drawSafely(place));
  });
})();
