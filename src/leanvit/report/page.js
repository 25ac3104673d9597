// Plots in the page's own colours, with a legend of switches; the theme; the choice of a comparison; depth of tokens.
(() => {
  "use strict";
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const GLYPHS = { circle: "●", diamond: "◆", square: "■", "triangle-up": "▲", cross: "✚", star: "★" };
  const SERIES = 10;

  // --- colours: an element is asked, as a variable may hold light-dark() ---
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
  const faint = (rgb, alpha) => rgb.replace(/^rgb\((.*)\)$/, (_, parts) => `rgba(${parts}, ${alpha})`);

  // --- plots ---
  const plots = Object.entries(figures).map(([id, views]) => ({
    id, views, view: Object.keys(views)[0], off: new Set(), element: document.getElementById(id),
    box: document.getElementById(id).closest(".plotbox"),
  }));

  const themed = (plot) => {
    const figure = plot.views[plot.view];
    const ink = colour("--ink"), line = colour("--line"), soft = colour("--soft"), card = colour("--page");
    const axis = (own) => ({
      gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true,
      ...own, title: { ...own.title, standoff: 8, font: { size: 13, color: ink } },
    });
    const data = figure.data.map((trace) => {
      const series = trace.meta.series;
      const c = series < 0 ? soft : colour(`--s${series % SERIES}`);
      const error = (e) => (e ? { ...e, color: faint(c, 0.38) } : undefined);
      return {
        ...trace,
        visible: !trace.meta.groups.some((group) => plot.off.has(group)),
        line: { ...trace.line, color: c },
        marker: { ...trace.marker, color: c, line: { color: card, width: trace.mode === "markers" ? 1 : 0 } },
        error_x: error(trace.error_x), error_y: error(trace.error_y),
      };
    });
    const layout = {
      ...figure.layout,
      xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: soft, size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: line, font: { color: ink, size: 13 }, align: "left" },
      width: plot.element.clientWidth, height: plot.element.clientHeight, // plotly's own fitting waits, and paper does not
      margin: { l: 52, r: 14, t: 10, b: 46 }, hovermode: "closest", showlegend: false, dragmode: false,
    };
    return [data, layout];
  };

  const draw = (plot) => {
    const [data, layout] = themed(plot);
    return Plotly.react(plot.element, data, layout, { displayModeBar: false });
  };
  const drawAll = () => plots.forEach(draw);
  const fitting = new ResizeObserver((entries) => requestAnimationFrame(() => {
    for (const { target } of entries) {
      const plot = plots.find((one) => one.element === target);
      if (target.clientWidth && target.clientWidth !== target.layout?.width) draw(plot);
    }
  }));

  const legend = (plot) => {
    const keys = plot.box.querySelector(".keys");
    keys.replaceChildren(...plot.views[plot.view].legend.map((entry) => {
      const button = document.createElement("button");
      const mark = document.createElement("span");
      button.type = "button";
      button.className = "switchkey";
      button.setAttribute("aria-pressed", String(!plot.off.has(entry.group)));
      mark.className = "mark";
      mark.setAttribute("aria-hidden", "true");
      mark.textContent = GLYPHS[entry.symbol];
      mark.style.color = entry.series < 0 ? "var(--soft)" : `var(--s${entry.series % SERIES})`;
      button.append(mark, entry.name);
      button.addEventListener("click", () => {
        plot.off.has(entry.group) ? plot.off.delete(entry.group) : plot.off.add(entry.group);
        button.setAttribute("aria-pressed", String(!plot.off.has(entry.group)));
        draw(plot);
      });
      return button;
    }));
  };

  for (const plot of plots) {
    legend(plot);
    for (const choice of plot.box.querySelectorAll("input[type=radio]")) {
      choice.checked = choice.value === plot.view;
      choice.addEventListener("change", () => { plot.view = choice.value; legend(plot); draw(plot); });
    }
  }

  // --- light and dark ---
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const toggle = document.getElementById("theme");
  const named = () => { toggle.querySelector("span").textContent = dark() ? "Light" : "Dark"; };
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("leanvit-theme", root.dataset.theme); } catch { /* a browser that keeps nothing */ }
    named();
    drawAll();
  });
  system.addEventListener("change", () => { named(); drawAll(); });
  named();
  drawAll();
  plots.forEach((plot) => fitting.observe(plot.element));

  // --- which lean model is compared with dense ---
  for (const select of document.querySelectorAll("select[data-panels]")) {
    const show = () => {
      for (const panel of document.querySelectorAll(`[data-of="${select.dataset.panels}"]`)) {
        panel.hidden = panel.dataset.panel !== select.value;
      }
    };
    select.addEventListener("change", show);
    show();
  }

  // --- depth of the token maps ---
  for (const slider of document.querySelectorAll("input[data-depths]")) {
    const part = slider.closest(".tokens"), output = part.querySelector("output");
    const labels = JSON.parse(slider.dataset.depths);
    const show = () => {
      output.textContent = labels[slider.value];
      slider.setAttribute("aria-valuetext", labels[slider.value]);
      for (const layer of part.querySelectorAll("[data-depth]")) {
        layer.classList.toggle("on", layer.dataset.depth === slider.value);
      }
    };
    slider.addEventListener("input", show);
    slider.value = slider.max;
    show();
  }

  // --- print: light, everything unfolded, plots as wide as the paper ---
  let folded = [];
  window.addEventListener("beforeprint", () => {
    root.dataset.printing = "";
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((one) => { one.open = true; });
    drawAll();
  });
  window.addEventListener("afterprint", () => {
    delete root.dataset.printing;
    folded.forEach((one) => { one.open = false; });
    drawAll();
  });
  root.dataset.ready = "";
})();
