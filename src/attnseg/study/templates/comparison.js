"use strict";
// The case browser. Text enters the page through textContent only, so that names cannot become code.
// Masks arrive as run lengths and are coloured here, because some browsers refuse or blur pixels that
// are read back from a canvas.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const make = (name, options = {}, ...children) => {
    const node = Object.assign(document.createElement(name), options);
    node.append(...children);
    return node;
  };
  if (data.cases.length === 0) return;

  const list = byId("list"), pictures = byId("pictures");
  const modes = [...document.getElementsByName("mode")];
  const state = { order: "spread", cases: [], at: 0, slice: 0, hidden: new Set() };
  const palette = new Map();
  const colour = (name) => {
    if (!palette.has(name)) {
      const text = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
      palette.set(name, [1, 3, 5].map((from) => parseInt(text.slice(from, from + 2), 16)));
    }
    return palette.get(name);
  };
  const number = (value) => (value === null ? "–" : value.toFixed(data.digits));
  const collator = new Intl.Collator(undefined, { numeric: true });

  // Cases with unknown values come last, and equal cases are sorted by name.
  const sorts = {
    spread: (one, two) => (two.spread ?? -Infinity) - (one.spread ?? -Infinity),
    worst: (one, two) => (data.up ? 1 : -1) * ((one.worst ?? Infinity * (data.up ? 1 : -1)) - (two.worst ?? Infinity * (data.up ? 1 : -1))),
    name: () => 0,
  };
  const compare = (one, two) => sorts[state.order](one, two) || collator.compare(one.case, two.case);

  const every = data.cases.flatMap((entry) => entry.scores.map((row) => row[0])).filter((value) => value !== null);
  const low = Math.min(...every), high = Math.max(...every);
  const place = (value) => (high > low ? 4 + (92 * (value - low)) / (high - low) : 50);

  function strip(entry) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("class", "strip");
    svg.setAttribute("aria-hidden", "true");
    const add = (name, attributes) => {
      const node = document.createElementNS(space, name);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      svg.append(node);
    };
    add("line", { x1: "4%", x2: "96%", y1: 6, y2: 6 });
    entry.scores.forEach((row, at) => {
      if (row[0] !== null) add("circle", { cx: `${place(row[0])}%`, cy: 6, r: 3.5, class: `f${at % data.colours}` });
    });
    return svg;
  }

  // The disagreement or the worst score among the runs whose masks are shown.
  function shown(entry, key) {
    const scores = entry.shown.filter((run) => run !== null && run.score !== null).map((run) => run.score);
    if (scores.length === 0) return null;
    const worst = data.up ? Math.min(...scores) : Math.max(...scores);
    return key === "worst" ? worst : Math.max(...scores) - Math.min(...scores);
  }

  function fill() {
    const current = state.cases[state.at];
    state.cases = [...data.cases].sort(compare);
    state.at = Math.max(0, state.cases.indexOf(current));
    byId("list-head").replaceChildren(...[state.order === "worst" ? "worst score of" : "disagreement of", "all runs", "runs shown"]
      .map((textContent) => make("span", { textContent })));
    list.replaceChildren(...state.cases.map((entry, at) => {
      const key = state.order === "worst" ? "worst" : "spread";
      const item = make("li", { id: `case-${at}` },
        make("span", { className: "case-title", textContent: entry.case }),
        make("span", { className: "value", textContent: number(entry[key]) }),
        make("span", { className: "value", textContent: number(shown(entry, key)) }),
        strip(entry));
      item.setAttribute("role", "option");
      item.addEventListener("click", () => choose(at));
      return item;
    }));
  }

  function choose(at) {
    const wanted = Math.min(Math.max(at, 0), state.cases.length - 1);
    if (wanted !== state.at) state.slice = 0;
    state.at = wanted;
    [...list.children].forEach((item, index) => item.setAttribute("aria-selected", String(index === wanted)));
    list.setAttribute("aria-activedescendant", `case-${wanted}`);
    // scrollIntoView would move the whole page.
    const item = list.children[wanted];
    if (item.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop;
    const below = item.offsetTop + item.offsetHeight - list.clientHeight;
    if (below > list.scrollTop) list.scrollTop = below;
    showCase();
  }

  function showCase() {
    const entry = state.cases[state.at];
    byId("case-name").textContent = `${entry.case}, patient ${entry.patient}`;
    const slices = byId("slices");
    slices.hidden = entry.slices.length === 0;
    slices.replaceChildren(make("legend", { textContent: "Slice" }), ...entry.slices.map((slice, at) => {
      const input = make("input", { type: "radio", name: "slice", checked: at === state.slice });
      input.addEventListener("change", () => { state.slice = at; showSlice(); });
      return make("label", {}, input, `${slice.slice} of ${slice.of}`);
    }));
    showScores(entry);
    showSlice();
  }

  function showScores(entry) {
    const head = make("tr", {}, ...["variant", "all runs", "run shown", ...data.classes].map((name, at) => {
      const cell = make("th", { textContent: name, scope: "col" });
      if (at === 0) cell.className = "word";
      return cell;
    }));
    const rows = entry.scores.map((row, at) => make("tr", {},
      make("th", { scope: "row" }, make("span", { className: `dot f${at % data.colours}` }), data.variants[at]),
      make("td", { textContent: number(row[0]) }),
      make("td", { textContent: number(entry.shown[at] === null ? null : entry.shown[at].score) }),
      ...row.slice(1).map((value) => make("td", { textContent: number(value) }))));
    byId("scores").replaceChildren(
      make("caption", { textContent: `${data.label} of this case. All runs and classes: means over each variant's runs. Run shown: the run whose masks are above.` }),
      make("thead", {}, head), make("tbody", {}, ...rows));
  }

  const mode = () => modes.find((input) => input.checked).value;

  function showSlice() {
    const entry = state.cases[state.at], slice = entry.slices[state.slice];
    const errors = mode() === "errors";
    byId("tools").hidden = !slice;
    pictures.hidden = !slice;
    const note = byId("picture-note");
    note.replaceChildren();
    if (!slice) {
      note.textContent = "No pictures of this case were kept.";
      pictures.replaceChildren();
      return;
    }
    if (errors) {
      const sign = (name) => make("span", { className: `swatch ${name}` });
      note.append(make("span", {}, sign("missed"), "missed"), make("span", {}, sign("spurious"), "predicted, but not there"));
      note.className = "note keys";
    } else {
      note.className = "note";
      note.textContent = "Slices are chosen by the true masks alone: the fullest of each third of the labelled slices.";
    }
    const truth = unpack(slice.truth, slice.width * slice.height);
    const panels = [panel("truth", null, "", "", slice, truth, truth)];
    slice.masks.forEach((mask, at) => {
      const shown = entry.shown[at];
      const origin = shown === null ? "" : `seed ${shown.seed}, run ${shown.run}`;
      const score = shown === null ? "" : number(shown.score);
      panels.push(panel(data.variants[at], at, score, origin, slice, truth, mask === null ? null : unpack(mask, truth.length)));
    });
    pictures.replaceChildren(...panels);
  }

  function panel(name, variant, score, origin, slice, truth, mask) {
    const title = make("span", {}, name);
    if (variant !== null) title.prepend(make("span", { className: `dot f${variant % data.colours}` }));
    const caption = make("figcaption", {}, title, make("span", { textContent: score }));
    if (origin) caption.append(make("small", { textContent: origin }));
    if (mask === null) return make("figure", {}, make("div", { className: "missing", textContent: "no picture kept" }), caption);
    // Small pictures are enlarged by a whole number, so that outlines are thin and sharp.
    const scale = Math.max(1, Math.ceil(384 / Math.max(slice.width, slice.height)));
    const canvas = make("canvas", { width: slice.width * scale, height: slice.height * scale });
    canvas.setAttribute("role", "img");
    const entry = state.cases[state.at];
    canvas.setAttribute("aria-label", `${name}, ${entry.case}, slice ${slice.slice}${score ? `, ${data.label} of the case ${score}` : ""}`);
    const image = make("img", { src: `data:image/jpeg;base64,${slice.image}` });
    const draw = () => {
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.dataset.mode = mode();
      if (mode() === "none") return;
      const layer = make("canvas", { width: canvas.width, height: canvas.height });
      layer.getContext("2d").putImageData(coloured(slice, scale, truth, mask, variant === null), 0, 0);
      context.drawImage(layer, 0, 0);
    };
    image.decode().then(draw, () => { canvas.dataset.mode = "broken"; });
    return make("figure", {}, canvas, caption);
  }

  function unpack(text, length) {
    const bytes = atob(text), mask = new Uint8Array(length);
    for (let at = 0, from = 0; at < bytes.length; at += 2) {
      const count = bytes.charCodeAt(at + 1);
      mask.fill(bytes.charCodeAt(at), from, from + count);
      from += count;
    }
    return mask;
  }

  const holds = (value, k) => (data.overlapping ? (value >> k) & 1 : value === k + 1);

  function coloured(slice, scale, truth, mask, isTruth) {
    const { width, height } = slice, wide = width * scale, high = height * scale;
    const result = new ImageData(wide, high), pixels = result.data;
    const paint = (at, [red, green, blue], alpha) => {
      const to = 4 * at, before = pixels[to + 3], all = alpha + before * (1 - alpha / 255);
      [red, green, blue].forEach((value, i) => {
        pixels[to + i] = (value * alpha + pixels[to + i] * before * (1 - alpha / 255)) / all;
      });
      pixels[to + 3] = all;
    };
    const kind = mode();
    data.classes.forEach((_, k) => {
      if (state.hidden.has(k)) return;
      if (kind === "errors" && !isTruth) {
        for (let y = 0; y < high; y++) for (let x = 0; x < wide; x++) {
          const at = ((y / scale) | 0) * width + ((x / scale) | 0);
          const present = holds(truth[at], k), predicted = holds(mask[at], k);
          if (present && !predicted) paint(y * wide + x, colour("missed"), 190);
          if (predicted && !present) paint(y * wide + x, colour("spurious"), 190);
        }
        return;
      }
      const own = colour(kind === "errors" ? "white" : `c${k % data.hues}`), line = Math.max(1, Math.round(wide / 200));
      const inside = (x, y) => x >= 0 && y >= 0 && x < wide && y < high && holds(mask[((y / scale) | 0) * width + ((x / scale) | 0)], k);
      for (let y = 0; y < high; y++) for (let x = 0; x < wide; x++) {
        if (!inside(x, y)) continue;
        const edge = !(inside(x - line, y) && inside(x + line, y) && inside(x, y - line) && inside(x, y + line));
        if (edge) paint(y * wide + x, own, 255);
        else if (kind === "overlay") paint(y * wide + x, own, 95);
      }
    });
    return result;
  }

  function legend() {
    byId("classes-shown").append(...data.classes.map((name, k) => {
      const input = make("input", { type: "checkbox", checked: true });
      input.addEventListener("change", () => {
        if (input.checked) state.hidden.delete(k); else state.hidden.add(k);
        showSlice();
      });
      return make("label", {}, input, make("span", { className: `swatch c${k % data.hues}` }), name);
    }));
  }

  const inView = () => {
    const box = byId("browser").getBoundingClientRect();
    return box.top < window.innerHeight && box.bottom > 0;
  };
  const next = (inputs) => {
    const chosen = inputs[(inputs.findIndex((input) => input.checked) + 1) % inputs.length];
    if (chosen) chosen.click();
  };

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const onList = event.target === list;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ...(onList ? { ArrowUp: -1, ArrowDown: 1 } : {}) };
    if (event.target.closest("input, select, summary, .box")) return;
    if (!byId("browser").contains(event.target) && !inView()) return;
    if (event.key in steps) choose(state.at + steps[event.key]);
    else if (onList && event.key === "Home") choose(0);
    else if (onList && event.key === "End") choose(state.cases.length - 1);
    else if (event.key === "o") next(modes);
    else if (event.key === "s") next([...document.getElementsByName("slice")]);
    else return;
    event.preventDefault();
  });
  modes.forEach((input) => input.addEventListener("change", showSlice));
  byId("large").addEventListener("change", (event) => pictures.classList.toggle("large", event.target.checked));
  byId("order").addEventListener("change", (event) => {
    state.order = event.target.value;
    fill();
    choose(0);
  });

  byId("strip-note").textContent = `Dots: the variants' scores, from ${number(low)} to ${number(high)}; ${data.up ? "right" : "left"} is better.`;
  legend();
  byId("browser").hidden = false;
  fill();
  choose(0);
})();
