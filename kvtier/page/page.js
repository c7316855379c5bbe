// Draws the plots of a page with uPlot, again when the theme changes, and with new numbers where a server is asked for them.
"use strict";
(() => {
  const HEIGHT = 260;
  const POWERS_OF_TWO = Array.from({ length: 60 }, (_, i) => 2 ** i);
  const FONT = "12px system-ui, sans-serif";
  const drawn = new Map(); // the element of a plot -> [what it shows, its uPlot]

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  const round = (value) => new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format(value);

  function binary(value) {
    const names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let i = 0;
    while (Math.abs(value) >= 1024 && i < names.length - 1) { value /= 1024; i++; }
    return round(value) + " " + names[i];
  }

  function write(value, unit) {
    if (value == null) return "–";
    if (unit === "share") return round(value * 100) + " %";
    if (unit === "seconds") return value !== 0 && Math.abs(value) < 1 ? round(value * 1000) + " ms" : round(value) + " s";
    if (unit === "bytes") return binary(value);
    if (unit === "bytes/s") return binary(value) + "/s";
    const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
    return short.format(value) + (unit ? " " + unit : "");
  }

  const tick = (value, unit) => (unit.startsWith("tokens") || unit === "GB/s" ? write(value, "") : write(value, unit));

  // What is stacked is drawn from the top down, each over the one before.
  function columns(plot) {
    if (!plot.stacked) return plot.series.map((one) => one.y);
    const sum = plot.x.map(() => 0);
    return plot.series.map((one) => one.y.map((y, i) => (sum[i] += y ?? 0))).reverse();
  }

  const shown = (plot) => (plot.stacked ? [...plot.series].reverse() : plot.series);
  const data = (plot) => [plot.x, ...columns(plot)];

  function labelsFit(u, values) {
    u.ctx.font = FONT;
    const widths = values.map((text) => u.ctx.measureText(text).width);
    return Math.max(...widths, 0) + 8 < u.width / values.length;
  }

  function yAxisSize(u, values, axis, cycle) {
    if (cycle > 1) return u.axes[axis]._size;
    u.ctx.font = FONT;
    return 16 + Math.ceil(Math.max(...(values ?? []).map((text) => u.ctx.measureText(text).width), 0));
  }

  function xAxisSize(u, values) {
    if (!u.kvtier.categories.length || !values || labelsFit(u, values)) return 34;
    u.ctx.font = FONT;
    const longest = Math.max(...values.map((text) => u.ctx.measureText(text).width));
    return 24 + Math.ceil(longest * 0.6);
  }

  function xAxis(plot) {
    const look = { stroke: () => colour("soft"), font: FONT, size: 34, grid: { show: false }, ticks: { stroke: () => colour("rule") } };
    if (plot.time) look.size = 46;
    if (plot.xLabel) Object.assign(look, { label: plot.xLabel, labelFont: FONT, labelSize: 16, labelGap: -4 });
    if (!plot.categories.length) return look;
    return Object.assign(look, {
      splits: () => plot.categories.map((_, i) => i),
      values: () => plot.categories,
      rotate: (u, values) => (labelsFit(u, values) ? 0 : -35),
      size: xAxisSize,
    });
  }

  function xValue(plot) {
    return (u, x, _, i) => {
      if (i == null) return "";
      if (plot.titles) return plot.titles[i];
      if (plot.categories.length) return plot.categories[Math.round(x)] ?? "";
      return plot.time ? new Date(x * 1000).toLocaleTimeString() : round(x);
    };
  }

  // Without a pointer the legend of what goes on in time shows the latest value.
  function yValue(plot, one) {
    return (u, _, __, i) => {
      if (i == null && plot.time) i = one.y.findLastIndex((y) => y != null);
      return i == null || i < 0 || one.y[i] == null ? "" : write(one.y[i], plot.unit);
    };
  }

  function look(plot, one) {
    const stroke = colour(one.colour);
    const points = { fill: () => colour("paper") };
    const style = { label: one.name, stroke, width: 2, spanGaps: true, points, value: yValue(plot, one) };
    if (one.draw === "dashes") return { ...style, dash: [6, 4], points: { show: false } };
    if (one.draw === "dots") return { ...style, paths: () => null, points: { show: true, size: 8, fill: stroke + "99", width: 0 } };
    if (one.draw === "bars") return { ...style, fill: stroke, width: 0, paths: uPlot.paths.bars({ size: [0.6, 90] }), points: { show: false } };
    if (one.draw === "fill") return { ...style, fill: stroke, width: 1, points: { show: false } };
    return style;
  }

  function options(plot, width) {
    const top = (most) => (most > 0 ? uPlot.rangeNum(0, most, 0.08, true)[1] : 1);
    const bound = plot.unit === "share" ? 1 : Infinity;
    const xRange = plot.categories.length ? { range: [-0.5, plot.categories.length - 0.5] } : {};
    return {
      width,
      height: HEIGHT,
      class: plot.stacked ? "fixed" : "free",
      scales: {
        x: { time: plot.time, ...xRange },
        y: { range: (u, _, most) => [0, Math.min(top(most), bound)] },
      },
      axes: [
        xAxis(plot),
        {
          stroke: () => colour("soft"), font: FONT, size: yAxisSize, grid: { stroke: () => colour("rule") }, ticks: { show: false },
          ...(plot.unit.startsWith("bytes") ? { incrs: POWERS_OF_TWO } : {}),
          values: (u, splits) => splits.map((value) => tick(value, plot.unit)),
        },
      ],
      cursor: { drag: { x: !plot.categories.length, y: false }, ...(plot.time ? { sync: { key: "time" } } : {}) },
      series: [{ label: plot.xLabel || "at", value: xValue(plot) }, ...shown(plot).map((one) => look(plot, one))],
    };
  }

  function draw(element, plot) {
    drawn.get(element)?.[1].destroy();
    element.replaceChildren();
    const own = options(plot, element.clientWidth || 600);
    const plugin = { opts: (u) => { u.kvtier = plot; } };
    drawn.set(element, [plot, new uPlot({ ...own, plugins: [plugin] }, data(plot), element)]);
  }

  const form = (plot) => JSON.stringify({ ...plot, x: 0, titles: 0, series: plot.series.map((one) => [one.name, one.colour]) });

  function show(piece, i) {
    const element = document.querySelector(`[data-piece="${i}"]`);
    if (typeof piece === "string") {
      if (element.innerHTML !== piece) element.innerHTML = piece;
    } else if (piece) {
      const [before, u] = drawn.get(element) ?? [];
      if (!before || form(before) !== form(piece)) return draw(element, piece);
      before.x = piece.x;
      before.titles = piece.titles;
      before.series.forEach((one, n) => { one.y = piece.series[n].y; });
      u.setData(data(before));
    }
  }

  async function follow(seconds) {
    for (;;) {
      await new Promise((done) => setTimeout(done, seconds * 1000));
      try {
        const answer = await fetch("pieces.json", { cache: "no-store" });
        const now = await answer.json();
        if (now.length !== document.querySelectorAll("[data-piece]").length) return location.reload();
        now.forEach(show);
        document.body.classList.remove("stale");
      } catch {
        document.body.classList.add("stale");
      }
    }
  }

  JSON.parse(document.getElementById("pieces").textContent).forEach(show);
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) drawn.get(target)?.[1].setSize({ width: target.clientWidth, height: HEIGHT });
  });
  document.querySelectorAll(".plot").forEach((each) => sizes.observe(each));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [element, [plot]] of [...drawn]) draw(element, plot);
  });
  const live = Number(document.body.dataset.live);
  if (live) follow(live);
})();
