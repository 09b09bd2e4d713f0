// The charts of report.html: what they show is in the scripts "content" and "numbers", see chart_data.py.
"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const SMALLEST = 10; // steps, or epochs, that remain when zooming in
const PRINTED = 680; // CSS pixels, the width of a chart on paper

// --- Numbers ---------------------------------------------------------------------------------------------------------

/** The numbers that `pack` in chart_data.py made a text of, a Float32Array. */
async function unpacked() {
  const text = atob(document.getElementById("numbers").textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  const bits = new Uint32Array(data.length / 2);
  for (let i = 0; i < bits.length; i++) bits[i] = ((data[i] << 8) | data[bits.length + i]) << content.shift;
  return new Float32Array(bits.buffer);
}

/** The smallest and the largest of any stretch of a curve. Level k has those of 2^k neighbors; NaN counts for none. */
class Pyramid {
  constructor(lows, highs = lows) {
    this.levels = [[lows, highs]];
    while (lows.length > 1) {
      const half = Math.ceil(lows.length / 2), above = [new Float64Array(half), new Float64Array(half)];
      const last = lows.length - 1;
      for (let i = 0; i < half; i++) {
        const a = 2 * i, b = Math.min(a + 1, last);
        above[0][i] = lows[b] < lows[a] || Number.isNaN(lows[a]) ? lows[b] : lows[a];
        above[1][i] = highs[b] > highs[a] || Number.isNaN(highs[a]) ? highs[b] : highs[a];
      }
      this.levels.push(above);
      [lows, highs] = above;
    }
  }

  get length() {
    return this.levels[0][0].length;
  }

  /** Of the places from <= i < to; [Infinity, -Infinity] where there is none. */
  extremes(from, to) {
    let low = Infinity, high = -Infinity;
    const take = (k, i) => {
      const [lows, highs] = this.levels[k];
      if (lows[i] < low) low = lows[i];
      if (highs[i] > high) high = highs[i];
    };
    to = Math.min(to, this.length);
    for (let k = 0; from < to; k++, from >>= 1, to >>= 1) {
      if (from & 1) take(k, from++);
      if (to & 1) take(k, --to);
    }
    return [low, high];
  }
}

/** The mean of rows as far as all of them go. */
function mean(rows) {
  const length = Math.min(...rows.map((row) => row.length));
  return Float64Array.from({ length }, (_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
}

// --- Colors ----------------------------------------------------------------------------------------------------------

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const mixed = (a, b, share) => a.map((x, i) => x + share * (b[i] - x));
const paint = (color, alpha = 1) => `rgb(${color.map(Math.round).join(" ")} / ${alpha})`;

/** Contrast of two colors as WCAG 2 defines it, 1 to 21. */
function contrast(a, b) {
  const [dark, light] = [a, b]
    .map((color) => color.map((x) => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .map(([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b)
    .sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}

/** A curve's color on the page as it is now, light or dark: one that can be seen, shaded among those of its network. */
function shown(curve) {
  const paper = rgb(css("--paper")), ink = rgb(css("--ink"));
  let color = rgb(curve.color);
  while (contrast(color, paper) < 3) color = mixed(color, ink, 0.1);
  return contrast(color, ink) < 2 ? mixed(color, paper, 0.5 * curve.shade) : mixed(color, ink, 0.6 * curve.shade);
}

// --- Text ------------------------------------------------------------------------------------------------------------

const whole = (x) => x.toLocaleString("en-US", { maximumFractionDigits: 0 });
const significant = (count) => (x) => (Math.abs(x) >= 1000 ? whole(x) : String(Number(x.toPrecision(count))));

/** An element with properties, or attributes where it has no such property. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// --- Charts ----------------------------------------------------------------------------------------------------------

/**
 * One chart: a plot, its controls, and a switch for each curve.
 *
 * unit: what is counted along x, a step or an epoch, of which `bucket` neighbors are one place. curves: with `group`,
 * `name`, `label`, `color`, `shade`, `published`, and what is known of each seed in `runs`. parts(curve, seed,
 * quantity): what is drawn of a curve: ranges, of pyramids whose smallest and largest count, and lines of medians.
 */
class Chart {
  constructor(root, { unit, bucket, curves, views, seeds, quantities, logarithmic, parts, digits }) {
    Object.assign(this, { root, unit, bucket, curves, views, parts, digits });
    this.on = new Set();
    this.seed = seeds[0].value;
    this.quantity = Object.keys(quantities)[0];
    this.quantities = quantities;
    this.log = { x: false, y: logarithmic };
    this.length = Math.max(
      2, ...curves.flatMap((curve) => seeds.flatMap(({ value }) => parts(curve, value, this.quantity)))
        .flatMap((part) => part.pyramids ?? []).map((pyramid) => pyramid.length));
    [this.from, this.to] = [0, this.length];
    this.build(seeds);
    this.show(Math.max(0, views.findIndex(({ on }) => on.length > 1)));
    new ResizeObserver(() => this.root.clientWidth !== this.drawnAt && this.draw()).observe(root);
  }

  build(seeds) {
    const title = this.root.closest("section").querySelector("h2").textContent;
    const choice = (label, options, chosen) => {
      const select = make("select", {}, ...options.map(({ value, text }) => make("option", { value }, text)));
      select.addEventListener("change", () => chosen(select.value));
      return [select, make("label", { className: "control" }, label, select)];
    };
    const button = (text, label, act) => {
      const element = make("button", { type: "button", title: label, "aria-label": label }, text);
      element.addEventListener("click", act);
      return element;
    };
    const box = (label, checked, changed) => {
      const input = make("input", { type: "checkbox", checked });
      input.addEventListener("change", () => changed(input.checked));
      return [input, make("label", { className: "check" }, input, label)];
    };
    const named = this.views.map(({ title }, i) => ({ value: i, text: title }));
    const [view, viewControl] = choice("Figure", [...named, { value: -1, text: "own selection" }], (i) => this.show(i));
    this.viewChoice = view;
    const controls = [viewControl];
    if (Object.keys(this.quantities).length > 1) {
      const all = Object.entries(this.quantities).map(([value, text]) => ({ value, text }));
      const [quantity, control] = choice("Quantity", all, (name) => this.change({ quantity: name }));
      this.quantityChoice = quantity;
      controls.push(control);
    }
    if (seeds.length > 1) controls.push(choice("Seed", seeds, (seed) => this.change({ seed }))[1]);
    for (const axis of ["y", "x"]) {
      const text = axis === "x" ? `logarithmic ${this.unit}s` : "logarithmic values";
      controls.push(box(text, this.log[axis], (on) => this.change({ log: { ...this.log, [axis]: on } }))[1]);
    }
    const zoom = make(
      "div", { className: "zoom", role: "group", "aria-label": "Zoom" },
      button("+", "Zoom in", () => this.zoom(0.5)), button("\u2212", "Zoom out", () => this.zoom(2)),
      button("\u2190", "Earlier", () => this.pan(-0.5)), button("\u2192", "Later", () => this.pan(0.5)),
      button("All", `All ${this.unit}s`, () => this.whole()));
    this.extent = make("output", { className: "extent" });
    this.plot = make("div", {
      className: "plot", tabIndex: 0, role: "application", "aria-roledescription": "chart",
      "aria-label": `${title}. Arrow keys read the values, plus and minus zoom, page up and page down move, ` +
        `escape shows all ${this.unit}s.`,
    });
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.tooltip = make("div", { className: "tooltip", hidden: true });
    this.reading = make("p", { className: "unseen", role: "status" });
    this.switches = new Map();
    const groups = [...new Set(this.curves.map((curve) => curve.group))];
    const fieldsets = groups.map((group) => make(
      "fieldset", {}, make("legend", {}, group), ...this.curves.filter((of) => of.group === group).map((curve) => {
        const swatch = make("span", { className: "swatch" });
        const [input, label] = box(curve.name, false, (on) => this.switch([curve], on));
        input.after(swatch);
        this.switches.set(curve, { input, swatch });
        return label;
      })));
    const all = make(
      "div", { className: "all" },
      button("Show all", `Show all curves: ${title}`, () => this.switch(this.curves, true)),
      button("Hide all", `Hide all curves: ${title}`, () => this.switch(this.curves, false)));
    this.root.replaceChildren(
      make("div", { className: "controls" }, ...controls),
      make("div", { className: "drawing" },
        make("div", { className: "frame" }, this.plot, this.tooltip),
        make("div", { className: "below" }, this.extent, zoom)),
      make("div", { className: "switches", role: "group", "aria-label": "Curves" }, all, ...fieldsets),
      this.reading);
  }

  // --- What is shown

  /** A figure of the report: its curves, its quantity, and as much of the runs as it shows. */
  show(i) {
    const view = this.views[i];
    if (!view) return;
    this.on = new Set(view.on.map((place) => this.curves[place]));
    this.viewChoice.value = i;
    if (view.quantity) {
      this.quantity = view.quantity;
      this.quantityChoice.value = view.quantity;
    }
    [this.from, this.to] = [0, view.places ?? this.length];
    this.draw();
  }

  switch(curves, on) {
    for (const curve of curves) this.on[on ? "add" : "delete"](curve);
    this.viewChoice.value = -1;
    this.draw();
  }

  change(state) {
    Object.assign(this, state);
    if (state.quantity) this.viewChoice.value = -1;
    this.draw();
  }

  /** The place at a share of the width that is shown. */
  at(share) {
    if (!this.log.x) return this.from + share * (this.to - this.from);
    const first = this.from * this.bucket + 1, last = this.to * this.bucket;
    return (first * (last / first) ** share - 1) / this.bucket;
  }

  /** Shows the places from <= i < to, or the nearest that there are. */
  extend(from, to) {
    const span = Math.min(this.length, Math.max(SMALLEST, Math.round(to - from)));
    this.from = Math.max(0, Math.min(this.length - span, Math.round(from)));
    this.to = this.from + span;
    this.draw();
  }

  /** Shows `factor` times as much, around the cursor if it is there. */
  zoom(factor) {
    const { left, idx } = this.chart.cursor;
    const center = idx == null || left < 0 ? 0.5 : left / this.chart.over.clientWidth;
    this.extend(this.at(center * (1 - factor)), this.at(center + (1 - center) * factor));
  }

  pan(share) {
    this.extend(this.at(share), this.at(1 + share));
  }

  whole() {
    this.extend(0, this.length);
  }

  // --- Drawing

  /** Places at which columns of a pixel begin, and the end of the last. */
  columns(pixels) {
    const edges = [this.from];
    for (let pixel = 1; pixel < pixels; pixel++) {
      const place = Math.round(this.at(pixel / pixels));
      if (place > edges.at(-1) && place < this.to) edges.push(place);
    }
    return [...edges, this.to];
  }

  /** The first and the last step of column i. */
  steps(i) {
    return [this.edges[i] * this.bucket + 1, this.edges[i + 1] * this.bucket];
  }

  draw() {
    const printing = document.documentElement.classList.contains("printing");
    this.drawnAt = this.root.clientWidth;
    const width = printing ? PRINTED : this.plot.clientWidth;
    this.edges = this.columns(Math.max(100, width - 70));
    const count = this.edges.length - 1;
    const x = Array.from({ length: count }, (_, i) => (this.steps(i)[0] + this.steps(i)[1]) / 2);
    const data = [x], series = [{}], bands = [];
    this.readings = [];
    const fits = (value) => (Number.isFinite(value) && (!this.log.y || value > 0) ? value : null);
    const add = (values, color, alpha, thickness, dash) => {
      data.push(values.map(fits));
      const points = { show: count <= 30 && thickness >= 1.5, size: 6, fill: paint(color) };
      series.push({ stroke: paint(color, alpha), width: thickness, dash, points, spanGaps: false });
    };
    const lines = [];
    for (const curve of this.curves) {
      const { input, swatch } = this.switches.get(curve), color = shown(curve);
      const dash = curve.published && this.curves.some((other) => !other.published) ? [7, 4] : undefined;
      input.checked = this.on.has(curve);
      swatch.style.background = paint(color);
      if (!this.on.has(curve)) continue;
      for (const part of this.parts(curve, this.seed, this.quantity)) {
        if (part.medians) {
          lines.push([x.map(part.medians), color, dash]);
          continue;
        }
        const pairs = x.map((_, i) => part.pyramids.map((of) => of.extremes(this.edges[i], this.edges[i + 1])));
        const lows = pairs.map((of) => Math.min(...of.map(([low]) => low)));
        const highs = pairs.map((of) => Math.max(...of.map(([, high]) => high)));
        if (part.label) this.readings.push({ label: part.label, color, lows, highs });
        const isLine = lows.every((low, i) => low === highs[i] || low > highs[i]);
        const [alpha, thickness] = isLine ? [part.alpha ?? 0.9, part.thickness ?? 1.2] : [0.5, 0.6];
        add(highs, color, alpha, thickness, dash);
        if (isLine) continue;
        add(lows, color, alpha, thickness, dash);
        bands.push({ series: [data.length - 2, data.length - 1], fill: paint(color, 0.2) });
      }
    }
    const paper = rgb(css("--paper"));
    for (const [values] of lines) add(values, paper, 0.9, 4.2);
    for (const [values, color, dash] of lines) add(values, color, 1, 2, dash);
    this.chart?.destroy();
    this.chart = new uPlot(this.options(width, series, bands), data, this.plot);
    this.tooltip.hidden = true;
    const [first, last] = [this.steps(0)[0], this.steps(count - 1)[1]], end = this.length * this.bucket;
    this.extent.textContent = `${this.unit}s ${whole(first)} to ${whole(last)} of ${whole(end)}`;
  }

  options(width, series, bands) {
    const distribution = (axis) => (this.log[axis] ? 3 : 1);
    const label = this.quantities[this.quantity];
    const font = "12px system-ui, sans-serif", told = (form) => (_, at) => at.map((x) => (x == null ? "" : form(x)));
    const axis = {
      stroke: css("--soft"), font, labelFont: font, labelSize: 20,
      grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1, size: 4 },
    };
    const lowest = (low, high) => (low > high / 2 ? low - 0.1 * (high - low) : Math.min(0, low));
    const range = (_, low, high) => {
      if (low == null) return this.log.y ? [0.1, 10] : [0, 1];
      if (this.log.y) return [low / 1.15, high * 1.15];
      return low === high ? [low - 1, high + 1] : [lowest(low, high), high + 0.04 * (high - lowest(low, high))];
    };
    const x = [this.from * this.bucket + 1, this.to * this.bucket];
    return {
      width, height: Math.max(300, Math.min(460, 0.62 * width)), legend: { show: false }, series, bands,
      scales: { x: { time: false, distr: distribution("x"), range: () => x }, y: { distr: distribution("y"), range } },
      axes: [
        { ...axis, label: this.unit, size: 30, space: 70, values: told(whole) },
        { ...axis, label, size: 48, values: told(significant(3)) },
      ],
      cursor: {
        y: false, points: { show: false }, drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => this.whole() },
      },
      hooks: { setCursor: [(chart) => this.read(chart)], setSelect: [({ select, over }) => {
        const [from, to] = [select.left, select.left + select.width].map((pixel) => this.at(pixel / over.clientWidth));
        // Not at once: uPlot removes its listeners after this, and not those of a chart that is gone.
        if (select.width > 3) queueMicrotask(() => this.extend(from, to));
      }] },
    };
  }

  // --- Reading values

  /** The values at a column, as (label, value, color). */
  values(i) {
    const form = (low, high) => {
      if (low > high) return "-";
      return low === high ? this.digits(low) : `${this.digits(low)} to ${this.digits(high)}`;
    };
    return this.readings.map(({ label, color, lows, highs }) => [label, form(lows[i], highs[i]), color]);
  }

  place(i) {
    const [first, last] = this.steps(i);
    return first === last ? `${this.unit} ${whole(first)}` : `${this.unit}s ${whole(first)} to ${whole(last)}`;
  }

  /** Puts the values at the cursor beside it. */
  read({ cursor, over }) {
    const { idx, left } = cursor;
    this.tooltip.hidden = idx == null || left < 0 || !this.readings.length;
    if (this.tooltip.hidden) return;
    const rows = this.values(idx).map(([label, value, color]) => {
      const swatch = make("span", { className: "swatch", style: `background: ${paint(color)}` });
      return make("tr", {}, make("th", { scope: "row" }, swatch, label), make("td", {}, value));
    });
    this.tooltip.replaceChildren(make("strong", {}, this.place(idx)), make("table", {}, ...rows));
    const right = left > over.clientWidth / 2;
    this.tooltip.style.left = right ? "" : `${over.offsetLeft + left + 14}px`;
    this.tooltip.style.right = right ? `${this.plot.clientWidth - over.offsetLeft - left + 14}px` : "";
  }

  key(event) {
    const { cursor, over } = this.chart, last = this.edges.length - 2, far = event.shiftKey ? 20 : 1;
    const move = (i) => {
      i = Math.max(0, Math.min(last, i));
      this.chart.setCursor({ left: this.chart.valToPos(this.chart.data[0][i], "x"), top: over.clientHeight / 2 });
      const told = this.values(i).map(([label, value]) => `${label}: ${value}`);
      this.reading.textContent = [this.place(i), ...told].join("; ");
    };
    const at = cursor.idx ?? -1;
    const acts = {
      ArrowRight: () => move(at + far), ArrowLeft: () => move(at - far), Home: () => move(0), End: () => move(last),
      "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2),
      PageDown: () => this.pan(0.5), PageUp: () => this.pan(-0.5), Escape: () => this.whole(),
    };
    if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    acts[event.key]();
  }
}

// --- The page --------------------------------------------------------------------------------------------------------

/** A curve with its label and, in its group (of its network, if it has no other), its name. */
function labeled(curve, group) {
  const label = [curve.network, curve.settings].filter(Boolean).join(", ");
  return { ...curve, label, group: group ?? curve.network, name: group ? label : curve.settings || label };
}

/** The seeds that there are, as options. */
const seedsOf = (curves) => [...new Set(curves.flatMap((curve) => Object.keys(curve.runs)))]
  .sort((a, b) => a - b).map((value) => ({ value, text: value }));

function stepsChart(root, numbers) {
  let used = 0;
  const next = (count) => numbers.subarray(used, (used += count));
  const runs = content.runs.map(({ steps }) => {
    const lows = next(Math.ceil(steps / content.bucket));
    return new Pyramid(lows, content.bucket > 1 ? next(lows.length) : lows);
  });
  const medians = content.medians.map(({ first, every, count }) => {
    const values = next(count);
    return (step) => {
      const at = (step - first) / every, i = Math.floor(at);
      if (at < 0 || at > count - 1) return NaN;
      return i === count - 1 ? values[i] : values[i] + (at - i) * (values[i + 1] - values[i]);
    };
  });
  const bands = content.bands.map((band) => labeled(band, "Learning-rate bands"));
  const series = content.series.map((of) => labeled(of));
  const places = (steps) => Math.ceil(steps / content.bucket);
  const views = content.views.filter((view) => view.quantity === null)
    .map((view) => ({ ...view, places: places(view.steps), quantity: undefined }));
  const everyRun = series.map((_, i) => bands.length + i);
  return new Chart(root, {
    unit: "step", bucket: content.bucket, curves: [...bands, ...series], seeds: seedsOf(series), logarithmic: true,
    views: [...views, { title: "The loss of every run", on: everyRun }],
    quantities: { loss: content.quantities.train_loss }, digits: significant(4),
    parts: (curve, seed) => {
      const of = curve.runs[seed];
      if (!of) return [];
      const label = curve.group === "Learning-rate bands" ? `${curve.label}, band` : curve.label;
      return [{ label, pyramids: of.runs.map((i) => runs[i]) }, ...of.medians.map((i) => ({ medians: medians[i] }))];
    },
  });
}

function epochsChart(root) {
  const row = (i, quantity) => Float64Array.from(content.runs[i].epochs[quantity], (x) => x ?? NaN);
  const pyramids = new Map();
  const curves = content.series.map((of) => labeled(of));
  const pyramid = (key, values) => {
    if (!pyramids.has(key)) pyramids.set(key, new Pyramid(values()));
    return pyramids.get(key);
  };
  const seeds = seedsOf(curves);
  const all = { value: "all", text: "all" };
  const views = content.views.filter((view) => view.quantity !== null);
  return new Chart(root, {
    unit: "epoch", bucket: 1, curves, seeds: seeds.length > 1 ? [all, ...seeds] : seeds, logarithmic: false,
    views: [...views, { title: "Every run", on: curves.map((_, i) => i) }],
    quantities: content.quantities, digits: (x) => String(Number(x.toPrecision(7))),
    parts: (curve, seed, quantity) => {
      const chosen = Object.entries(curve.runs).filter(([of]) => seed === "all" || of === seed);
      const runs = chosen.map(([, { runs }]) => runs[0]);
      const several = runs.length > 1;
      const each = chosen.map(([of], k) => ({
        label: several ? `${curve.label}, seed ${of}` : curve.label, alpha: several ? 0.45 : 1,
        thickness: several ? 1 : 2, pyramids: [pyramid(`${runs[k]} ${quantity}`, () => row(runs[k], quantity))],
      }));
      const sound = runs.filter((i) => !content.runs[i].diverged && content.runs[i].epochs[quantity].length);
      if (!several || !sound.length) return each;
      const average = pyramid(`${sound} mean ${quantity}`, () => mean(sound.map((i) => row(i, quantity))));
      const label = `${curve.label}, mean (n = ${sound.length})`;
      return [...each, { label, thickness: 2.4, alpha: 1, pyramids: [average] }];
    },
  });
}

const charts = {};

async function start() {
  const place = (name) => document.querySelector(`[data-chart="${name}"]`);
  if (content.series.length) {
    charts.steps = stepsChart(place("steps"), await unpacked());
    charts.epochs = epochsChart(place("epochs"));
  }
  const redraw = () => Object.values(charts).forEach((chart) => chart.draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const folded = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    opened = [...folded()];
    opened.forEach((details) => (details.open = true));
    redraw();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    opened.forEach((details) => (details.open = false));
    redraw();
  });
  document.documentElement.dataset.ready = "";
}

start();
