"use strict";
// The page of `attnseg view`. The program draws the slices; the page asks for them and shows them.
// Text enters the page through textContent only, so that names cannot become code.
(async () => {
  const byId = (id) => document.getElementById(id);
  const make = (name, options = {}, ...children) => {
    const node = Object.assign(document.createElement(name), options);
    node.append(...children);
    return node;
  };
  const say = (text) => { byId("status").textContent = text; };
  const end = (text) => {
    byId("ended").textContent = text;
    byId("ended").hidden = false;
    byId("drop").hidden = true;
    say("");
  };
  const PLANES = ["Axial", "Coronal", "Sagittal"];
  const COLOURS = 8, TALLEST = 34; // pictures, in rem

  // The token in the address is exchanged, once, for a secret that lasts as long as this tab.
  if (location.hash.length > 1) {
    const token = location.hash.slice(1);
    history.replaceState(null, "", "/");
    const answer = await fetch("/open", { method: "POST", body: token });
    if (answer.ok) sessionStorage.setItem("secret", await answer.text());
  }
  const secret = sessionStorage.getItem("secret") ?? "";
  const ask = async (path, values = {}, options = {}) => {
    const query = new URLSearchParams(values).toString();
    const answer = await fetch(query ? `${path}?${query}` : path, { ...options, headers: { "X-Attnseg-Secret": secret } });
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  };
  let about;
  try {
    about = await (await ask("/about")).json();
  } catch {
    end("This address was used before, or belongs to a program that has ended. Start attnseg view again, and open the address that it prints.");
    return;
  }
  // The program sees by this connection that the page is open, and the page that the program runs.
  (async () => {
    try {
      const reader = (await ask("/alive")).body.getReader();
      while (!(await reader.read()).done);
    } catch { /* The connection broke off. */ }
    end("The program has ended, and all that was dropped is removed. Start attnseg view again to go on.");
  })();

  const state = { cases: [], at: 0, facts: null, position: [0, 0, 0], window: [0, 1], hidden: new Set() };
  byId("sides").replaceChildren(...about.sides.map((side) =>
    make("li", {}, make("strong", { textContent: side.title }), `: ${side.about}`)));
  byId("drop").hidden = !about.drops;

  // Dropped files and folders.
  const entries = async (entry, within = "") => {
    if (entry.isFile) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      return [[within + entry.name, file]];
    }
    const reader = entry.createReader(), found = [];
    for (;;) { // A reader gives some entries at a time.
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (some.length === 0) break;
      for (const each of some) found.push(...await entries(each, `${within}${entry.name}/`));
    }
    return found;
  };
  const segment = async (files) => {
    byId("result").hidden = true;
    byId("lines").replaceChildren();
    const size = files.reduce((total, [, file]) => total + file.size, 0);
    if (size > about.most) {
      say(`${(size / 1e6).toFixed(0)} MB, more than the ${about.most / 1e6} MB that upload_mb allows.`);
      return;
    }
    try {
      await ask("/upload", {}, { method: "POST" });
      for (const [at, [name, file]] of files.entries()) {
        say(`Reading ${at + 1} of ${files.length} files`);
        await ask("/file", { name }, { method: "PUT", body: file });
      }
      say("Segmenting");
      const type = byId("output-type").value;
      show(await (await ask("/segment", { output_type: type }, { method: "POST" })).json());
    } catch (error) {
      say(error.message);
    }
  };
  addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
  addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  addEventListener("drop", async (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    if (!about.drops) return;
    const dropped = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry);
    segment((await Promise.all(dropped.map((entry) => entries(entry)))).flat());
  });
  for (const kind of ["files", "folder"]) {
    byId(`choose-${kind}`).addEventListener("click", () => byId(kind).click());
    byId(kind).addEventListener("change", () => {
      const files = [...byId(kind).files].map((file) => [file.webkitRelativePath || file.name, file]);
      byId(kind).value = "";
      if (files.length) segment(files);
    });
  }

  // Results.
  const show = (found) => {
    state.cases = found.cases;
    say(found.cases.length ? "" : about.drops ? "Nothing was segmented." : "No image was segmented.");
    byId("lines").replaceChildren(...found.lines.map((line) => make("li", { textContent: line })));
    byId("case").replaceChildren(...found.cases.map((each, at) => make("option", { value: at, textContent: each.name })));
    byId("result").hidden = found.cases.length === 0;
    if (found.cases.length) choose(0);
  };
  const choose = async (at) => {
    state.at = at;
    state.facts = null;
    try {
      state.facts = await (await ask("/case", { case: at })).json();
    } catch (error) {
      byId("pictures").replaceChildren();
      say(error.message);
      return;
    }
    say("");
    state.position = state.facts.shape.map((count) => count >> 1);
    state.window = [0, 1];
    if (!state.facts.uncertainty && layer() === "uncertainty") document.querySelector("[value=masks]").checked = true;
    document.querySelector("[value=uncertainty]").disabled = !state.facts.uncertainty;
    build();
    tabulate();
    draw();
  };
  const layer = () => document.querySelector("[name=layer]:checked").value;
  byId("case").addEventListener("change", (event) => choose(+event.target.value));

  // One row of pictures for each side, one picture for each plane.
  let pictures = [], ranges = [];
  const build = () => {
    const { shape } = state.facts, planes = shape[0] > 1 ? [0, 1, 2] : [0];
    pictures = [];
    ranges = [];
    const rows = about.sides.flatMap((side, number) => {
      if (!state.cases[state.at].sides[number]) return [make("p", { textContent: `${side.title}: no masks` })];
      const figures = planes.map((axis) => {
        const image = make("img", { alt: `${PLANES[axis]} slice`, draggable: false });
        const across = make("i", { className: "across" }), down = make("i", { className: "down" });
        const frame = make("div", { className: "frame" }, image, ...(planes.length > 1 ? [across, down] : []));
        const range = make("input", { type: "range", min: 0, max: shape[axis] - 1, step: 1, ariaLabel: `${PLANES[axis]} slice` });
        const label = make("span");
        range.addEventListener("input", () => move(axis, +range.value));
        frame.addEventListener("wheel", (event) => {
          event.preventDefault();
          move(axis, state.position[axis] + Math.sign(event.deltaY));
        }, { passive: false });
        const point = (event) => {
          const box = frame.getBoundingClientRect();
          aim(axis, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
        };
        frame.addEventListener("pointerdown", (event) => { frame.setPointerCapture(event.pointerId); point(event); });
        frame.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
        pictures.push({ number, axis, image, across, down, busy: false, again: false });
        ranges.push({ axis, range, label });
        return make("figure", {}, frame, ...(planes.length > 1 ? [make("figcaption", {}, PLANES[axis], range, label)] : []));
      });
      const row = make("div", { className: planes.length > 1 ? "planes" : "planes single" }, ...figures);
      return about.sides.length > 1 ? [make("h2", { textContent: side.title }), row] : [row];
    });
    byId("pictures").replaceChildren(...rows);
    byId("help").textContent = planes.length > 1
      ? "Click or drag in a slice to move the others, turn the wheel or use the sliders and arrow keys to go through slices. "
        + (state.facts.oriented ? "The patient's right is at the left; the head, or else the front, is above." : "The files do not say how the patient lies.")
      : "";
  };
  // Rows and columns of a picture are slices of the other planes; heads are above, so rows run down.
  const OTHERS = [[1, 2, false], [0, 2, true], [0, 1, true]];
  const aim = (axis, right, below) => {
    if (!state.facts) return;
    const [row, column, up] = OTHERS[axis], { shape } = state.facts;
    const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    state.position[row] = at(up ? 1 - below : below, shape[row]);
    state.position[column] = at(right, shape[column]);
    draw();
  };
  const move = (axis, to) => {
    if (!state.facts) return;
    state.position[axis] = Math.min(state.facts.shape[axis] - 1, Math.max(0, to));
    draw();
  };
  const draw = () => {
    if (!state.facts) return;
    const { shape, windows } = state.facts;
    for (const { axis, range, label } of ranges) {
      range.value = state.position[axis];
      label.textContent = `${state.position[axis] + 1} of ${shape[axis]}`;
    }
    ["black", "white"].forEach((name, at) => {
      byId(name).value = state.window[at];
      // Each network has its own window, so that one place of a slider may be two intensities.
      const values = windows.map(([low, high]) => +(low + state.window[at] * (high - low)).toPrecision(4));
      byId(`${name}-value`).textContent = [...new Set(values)].join(" and ");
    });
    pictures.forEach(fetchSlice);
  };
  // One request of a picture at a time; the last position wins.
  const fetchSlice = async (picture) => {
    if (!state.facts || !picture.image.isConnected) return;
    if (picture.busy) { picture.again = true; return; }
    picture.busy = true;
    picture.image.ariaBusy = "true";
    const { axis, image, across, down } = picture, at = state.position[axis];
    const [row, column, up] = OTHERS[axis], { shape } = state.facts;
    const middle = (index, count) => (index + 0.5) / count;
    const below = middle(state.position[row], shape[row]);
    across.style.top = `${100 * (up ? 1 - below : below)}%`;
    down.style.left = `${100 * middle(state.position[column], shape[column])}%`;
    try {
      const answer = await ask("/slice", {
        side: picture.number, case: state.at, axis, at, black: state.window[0], white: state.window[1],
        layer: layer(), hidden: hiddenOf(picture.number).join(" "),
      });
      const before = image.src;
      image.src = URL.createObjectURL(await answer.blob());
      await image.decode();
      image.parentElement.style.width = `min(100%, ${(TALLEST * image.naturalWidth) / image.naturalHeight}rem)`;
      image.dataset.at = at;
      if (before) URL.revokeObjectURL(before);
    } catch (error) {
      if (byId("ended").hidden && picture.image.isConnected) say(error.message);
    }
    picture.busy = false;
    picture.image.ariaBusy = "false";
    if (picture.again) { picture.again = false; fetchSlice(picture); }
  };
  for (const name of ["black", "white"]) {
    byId(name).addEventListener("input", () => {
      const black = +byId("black").value, white = +byId("white").value;
      // The one that is moved pushes the other.
      state.window = name === "black" ? [Math.min(black, 1.99), Math.max(white, black + 0.01)] : [Math.min(black, white - 0.01), white];
      draw();
    });
  }
  byId("reset").textContent = about.sides.length > 1 ? "As each network sees it" : "As the network sees it";
  byId("reset").addEventListener("click", () => { state.window = [0, 1]; draw(); });
  byId("layers").addEventListener("change", draw);

  // Volumes, agreement, warnings and files.
  const hiddenOf = (number) => about.sides[number].classes.flatMap((name, at) => (state.hidden.has(name) ? [at] : []));
  const tabulate = () => {
    const sides = state.cases[state.at].sides, several = sides.length > 1;
    const known = sides.find((side) => side);
    byId("caption").textContent = known.ml ? "Volumes in ml" : "Pixels, of unknown size";
    byId("heads").replaceChildren(make("th", { textContent: "class" }),
      ...about.sides.map((side) => make("th", { textContent: several ? side.title : known.ml ? "ml" : "pixels" })),
      ...(several ? [make("th", { textContent: "Dice between the two" })] : []));
    const names = [...new Set(about.sides.flatMap((side) => side.classes))];
    byId("rows").replaceChildren(...names.map((name) => {
      const box = make("input", { type: "checkbox", checked: !state.hidden.has(name) });
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(name); else state.hidden.add(name);
        draw();
      });
      const swatches = [...new Set(about.sides.map((side) => side.classes.indexOf(name)).filter((at) => at >= 0).map((at) => at % COLOURS))]
        .map((colour) => make("span", { className: `swatch c${colour}` }));
      const value = (side) => {
        const found = side && (side.ml ?? side.voxels)[name];
        return found === null || found === undefined ? "–" : side.ml ? found.toFixed(found < 10 ? 2 : 1) : String(found);
      };
      const agreement = state.facts.agreement[name];
      return make("tr", {}, make("th", { scope: "row" }, make("label", {}, box, ...swatches, name)),
        ...sides.map((side) => make("td", { textContent: value(side) })),
        ...(several ? [make("td", { textContent: agreement === undefined || agreement === null ? "–" : agreement.toFixed(3) })] : []));
    }));
    byId("warnings").replaceChildren(...[...new Set(sides.flatMap((side) => (side ? side.warnings : [])))]
      .map((line) => make("li", { textContent: line })));
    byId("saves").replaceChildren(...sides.flatMap((side, number) => {
      if (!side || !side.file) return [];
      const button = make("button", { type: "button", textContent: several ? `Save the masks of ${about.sides[number].title}` : "Save the masks" });
      button.addEventListener("click", () => save(number, side.file));
      return [button];
    }));
  };
  const save = async (number, file) => {
    try {
      const blob = await (await ask("/masks", { side: number, case: state.at })).blob();
      const link = make("a", { href: URL.createObjectURL(blob), download: file });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      say(`Saved as ${file}, where this browser keeps downloads.`);
    } catch (error) {
      say(error.message);
    }
  };

  show(await (await ask("/cases")).json());
  if (about.drops) say("");
  document.documentElement.dataset.ready = "1";
})();
