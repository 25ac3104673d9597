// Draws the plots in the page's own colours, and again when light turns dark or back.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const themed = (figure) => {
    const ink = colour("--ink"), line = colour("--line"), soft = colour("--soft");
    const axis = (own) => ({
      gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true,
      ...own, title: { ...(own || {}).title, standoff: 8, font: { size: 13, color: soft } },
    });
    const data = figure.data.map((trace) => {
      const series = trace.meta.series;
      const c = series < 0 ? soft : colour(`--s${series % 6}`);
      const error = (e) => (e ? { ...e, color: c } : undefined);
      return {
        ...trace,
        line: { ...trace.line, color: c },
        marker: { ...trace.marker, color: c },
        textfont: { color: ink, size: 12 },
        error_x: error(trace.error_x),
        error_y: error(trace.error_y),
      };
    });
    const layout = {
      ...figure.layout,
      xaxis: axis(figure.layout.xaxis),
      yaxis: axis(figure.layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: soft, size: 12, family: getComputedStyle(document.body).fontFamily },
      margin: { l: 56, r: 16, t: 16, b: 48 },
      hovermode: "closest",
    };
    return [data, layout];
  };

  const draw = () => {
    for (const [id, figure] of Object.entries(figures)) {
      const [data, layout] = themed(figure);
      Plotly.react(id, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  };

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
