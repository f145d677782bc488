"use strict";
// The patch map. Features are int8 components (eval/reporting/quantised.py); the products of their unit vectors are cosines.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const slicesOf = Array.from({ length: data.patients }, (_, patient) =>
  data.slices.flatMap((slice, row) => (slice.patient === patient ? [row] : [])));
const state = { row: slicesOf[0][slicesOf[0].length >> 1], x: 0.5, y: 0.5, readX: null, readY: null, channel: 0, view: 0,
  encoders: [0, Math.min(1, data.encoders.length - 1)] };
const images = data.images.map((channel) => channel.map((source) => {
  if (!source) return null;
  const image = new Image();
  image.onload = () => { image.ready = true; show(); };
  image.src = source;
  return image;
}));

function bytes(text) {
  return Int8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// Returns the unit vectors of a view, (slices, patches, components) in one row; 0 for features that were 0.
function vectors(encoder, view) {
  if (encoder.read[view]) return encoder.read[view];
  const codes = bytes(encoder.codes[view]), width = encoder.step.length, out = new Float32Array(codes.length);
  for (let start = 0; start < codes.length; start += width) {
    let length = 0;
    for (let k = 0; k < width; k++) {
      const value = encoder.middle[k] + encoder.step[k] * codes[start + k];
      out[start + k] = value;
      length += value * value;
    }
    length = Math.sqrt(length);
    for (let k = 0; k < width; k++) out[start + k] = length > 0.5 ? out[start + k] / length : 0;
  }
  return (encoder.read[view] = out);
}

// Returns the place of a slice among those that a view has, -1 where it lacks it.
const placeOf = (encoder, view, row) => encoder.places[view][row];
const patchAt = (grid, x, y) => Math.min(grid - 1, Math.floor(y * grid)) * grid + Math.min(grid - 1, Math.floor(x * grid));

for (const encoder of data.encoders) {
  encoder.read = [];
  encoder.patches = encoder.grid * encoder.grid;
  encoder.labels = bytes(encoder.labels);
  encoder.places = encoder.there.map((rows) => { let count = 0; return rows.map((there) => (there ? count++ : -1)); });
}

// Returns the similarities of all patches of a slice to the marked one, or null where either has no features.
function similarities(encoder, row) {
  const from = placeOf(encoder, state.view, state.row), to = placeOf(encoder, state.view, row);
  if (from < 0 || to < 0) return null;
  const all = vectors(encoder, state.view), width = encoder.step.length, count = encoder.patches;
  const query = (from * count + patchAt(encoder.grid, state.x, state.y)) * width, out = new Float32Array(count);
  for (let patch = 0, at = to * count * width; patch < count; patch++, at += width) {
    let sum = 0;
    for (let k = 0; k < width; k++) sum += all[query + k] * all[at + k];
    out[patch] = sum;
  }
  return out;
}

// Returns the most similar patch of every other patient, best first.
function matches(encoder) {
  const best = new Map(), mine = data.slices[state.row].patient;
  data.slices.forEach((slice, row) => {
    if (slice.patient === mine) return;
    const found = similarities(encoder, row);
    if (!found) return;
    let patch = 0;
    for (let k = 1; k < found.length; k++) if (found[k] > found[patch]) patch = k;
    const before = best.get(slice.patient);
    if (!before || found[patch] > before.value) best.set(slice.patient, { row, patch, value: found[patch] });
  });
  return [...best.values()].sort((one, other) => other.value - one.value).slice(0, data.shown);
}

function label(encoder, row, patch) {
  const value = encoder.labels[row * encoder.patches + patch] & 255;
  return value ? data.names[value - 1] : "";
}

function paint(canvas, encoder, row, found, range) {
  const context = canvas.getContext("2d"), side = canvas.width, image = images[state.channel][row];
  context.fillStyle = "#000";
  context.fillRect(0, 0, side, side);
  context.imageSmoothingEnabled = true;
  if (image && image.ready) context.drawImage(image, 0, 0, side, side);
  if (!image) {
    context.fillStyle = "#ccc";
    context.font = `${side / 12}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText("absent", side / 2, side / 2);
  }
  if (!found || !byId("heat").checked) return;
  const heat = new ImageData(encoder.grid, encoder.grid), last = data.colours.length - 1;
  found.forEach((value, patch) => {
    const share = Math.min(1, Math.max(0, (value - range[0]) / (range[1] - range[0])));
    heat.data.set([...data.colours[Math.round(share * last)], 150], 4 * patch);
  });
  const small = new OffscreenCanvas(encoder.grid, encoder.grid);
  small.getContext("2d").putImageData(heat, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, side, side);
}

function outline(canvas, grid, patch, colour, dashed) {
  const context = canvas.getContext("2d"), cell = canvas.width / grid, width = canvas.width / 130;
  const x = (patch % grid) * cell, y = Math.floor(patch / grid) * cell;
  for (const [ink, line] of [["#000", 2 * width], [colour, width]]) {
    context.strokeStyle = ink;
    context.lineWidth = line;
    context.setLineDash(dashed && ink !== "#000" ? [cell / 4, cell / 6] : []);
    context.strokeRect(x - 0.5, y - 0.5, cell + 1, cell + 1);
  }
  context.setLineDash([]);
}

function rangeOf(found) {
  if (!found || !byId("stretch").checked) return [0, 1];
  const low = Math.min(...found), high = Math.max(...found);
  return high > low ? [low, high] : [low, low + 1e-6];
}

const sliceName = (row) => `slice ${slicesOf[data.slices[row].patient].indexOf(row) + 1}`;
const offset = (row) => data.slices[row].mm === null || data.slices[state.row].mm === null ? "" :
  `, ${(data.slices[row].mm - data.slices[state.row].mm > 0 ? "+" : "−")}${Math.abs(data.slices[row].mm - data.slices[state.row].mm).toFixed(1)} mm`;

function tile(place, encoder, row, found, range, patch, text) {
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  const caption = document.createElement("span");
  button.type = "button";
  canvas.width = canvas.height = 192;
  canvas.setAttribute("aria-hidden", "true");
  paint(canvas, encoder, row, found, range);
  if (patch !== null) outline(canvas, encoder.grid, patch, "#fff", false);
  caption.textContent = text;
  button.append(canvas, caption);
  button.addEventListener("click", () => {
    if (patch !== null) {
      state.x = ((patch % encoder.grid) + 0.5) / encoder.grid;
      state.y = (Math.floor(patch / encoder.grid) + 0.5) / encoder.grid;
    }
    go(row);
    panels[0].canvas.focus({ preventScroll: true });
  });
  place.append(button);
}

const panels = [...document.querySelectorAll(".panel")].map((section, side) => {
  section.append(byId("panel").content.cloneNode(true));
  const part = (name) => section.querySelector(name), canvas = part("canvas.main"), select = part("select");
  data.encoders.forEach((encoder, number) => select.add(new Option(encoder.name, number)));
  select.addEventListener("change", () => { state.encoders[side] = Number(select.value); show(); });
  const place = (event) => {
    const box = canvas.getBoundingClientRect(), inside = (value) => Math.min(0.9999, Math.max(0, value));
    return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
  };
  canvas.addEventListener("pointerdown", (event) => { [state.x, state.y] = place(event); show(); });
  canvas.addEventListener("pointermove", (event) => {
    [state.readX, state.readY] = place(event);
    if (event.buttons & 1) [state.x, state.y] = [state.readX, state.readY];
    show(Boolean(event.buttons & 1));
  });
  canvas.addEventListener("pointerleave", () => { state.readX = state.readY = null; show(false); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const grid = data.encoders[state.encoders[side]].grid;
    const moved = (value, by) => (Math.min(grid - 1, Math.max(0, Math.floor(value * grid) + by)) + 0.5) / grid;
    if (event.shiftKey) {
      state.readX = moved(state.readX ?? state.x, step[0]);
      state.readY = moved(state.readY ?? state.y, step[1]);
    } else {
      state.readX = state.readY = null;
      state.x = moved(state.x, step[0]);
      state.y = moved(state.y, step[1]);
    }
    show(!event.shiftKey);
  });
  return { canvas, select, output: part("output"), scale: part(".scale canvas"), low: part(".low"), high: part(".high"),
    neighbours: part(".neighbours"), matches: part(".matches") };
});

function showPanel(panel, encoder, tiles) {
  const { canvas } = panel, patch = patchAt(encoder.grid, state.x, state.y);
  const found = similarities(encoder, state.row), range = rangeOf(found);
  paint(canvas, encoder, state.row, found, range);
  outline(canvas, encoder.grid, patch, "#fff", false);
  const named = label(encoder, state.row, patch), at = `row ${Math.floor(patch / encoder.grid) + 1}, column ${patch % encoder.grid + 1}`;
  const lines = [`Marked: ${at} of ${encoder.grid}${named ? `, ${named}` : ""}.`];
  if (!found) lines.push("No features: this encoder has none of the sequence here.");
  else if (state.readX !== null) {
    const read = patchAt(encoder.grid, state.readX, state.readY), what = label(encoder, state.row, read);
    outline(canvas, encoder.grid, read, "#ffd54f", true);
    lines.push(`Row ${Math.floor(read / encoder.grid) + 1}, column ${read % encoder.grid + 1}` +
      `${what ? `, ${what}` : ""}: similarity ${found[read].toFixed(3)}.`);
  }
  panel.output.textContent = lines.join(" ");
  canvas.setAttribute("aria-label", `${encoder.name}: slice with the similarity of each patch to the marked one, ${at}`);
  [panel.low.textContent, panel.high.textContent] = range.map((value) => value.toFixed(2));
  data.colours.forEach((colour, number) => {
    const context = panel.scale.getContext("2d"), width = panel.scale.width / data.colours.length;
    context.fillStyle = `rgb(${colour})`;
    context.fillRect(number * width, 0, width + 1, 1);
  });
  if (!tiles) return;
  panel.neighbours.replaceChildren();
  const mine = slicesOf[data.slices[state.row].patient], here = mine.indexOf(state.row);
  for (const by of [-2, -1, 1, 2]) {
    const row = mine[here + by];
    if (row === undefined) continue;
    const values = similarities(encoder, row);
    const most = values ? `, highest ${Math.max(...values).toFixed(3)}` : "";
    tile(panel.neighbours, encoder, row, values, range, null, `${sliceName(row)}${offset(row)}${most}`);
  }
  panel.matches.replaceChildren();
  for (const { row, patch: best, value } of matches(encoder)) {
    const what = label(encoder, row, best);
    const text = `patient ${data.slices[row].patient + 1}, ${sliceName(row)}: ${value.toFixed(3)}${what ? `, ${what}` : ""}`;
    tile(panel.matches, encoder, row, similarities(encoder, row), range, best, text);
  }
}

function show(tiles = true) {
  const slice = data.slices[state.row], mine = slicesOf[slice.patient], here = mine.indexOf(state.row);
  byId("patient").value = slice.patient;
  byId("slice").max = mine.length - 1;
  byId("slice").value = here;
  const mm = slice.mm === null ? "" : `, ${(slice.mm - data.slices[mine[0]].mm).toFixed(1)} mm from the first`;
  byId("slice-text").textContent = `Slice ${here + 1} of ${mine.length}${mm}`;
  byId("slice").setAttribute("aria-valuetext", byId("slice-text").textContent);
  panels.forEach((panel, side) => {
    panel.select.value = state.encoders[side];
    showPanel(panel, data.encoders[state.encoders[side]], tiles);
  });
  if (tiles) byId("said").textContent = `Patient ${slice.patient + 1}, slice ${here + 1} of ${mine.length}.`;
}

function go(row) {
  state.row = row;
  state.readX = state.readY = null;
  show();
}

for (let patient = 0; patient < data.patients; patient++) byId("patient").add(new Option(`patient ${patient + 1}`, patient));
data.channels.forEach((name, number) => byId("channel").add(new Option(name, number)));
data.views.forEach((name, number) => byId("view").add(new Option(name || "all sequences together", number)));
byId("channel-label").hidden = byId("view-label").hidden = data.channels.length < 2;
byId("patient").addEventListener("change", (event) => {
  const mine = slicesOf[Number(event.target.value)], before = slicesOf[data.slices[state.row].patient];
  const share = before.indexOf(state.row) / Math.max(1, before.length - 1);
  go(mine[Math.round(share * (mine.length - 1))]);
});
byId("slice").addEventListener("input", (event) => go(slicesOf[data.slices[state.row].patient][Number(event.target.value)]));
byId("channel").addEventListener("change", (event) => { state.channel = Number(event.target.value); show(); });
byId("view").addEventListener("change", (event) => { state.view = Number(event.target.value); show(); });
for (const id of ["heat", "stretch"]) byId(id).addEventListener("change", () => show());
document.addEventListener("keydown", (event) => {
  if (event.target.matches("select, input[type=range]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const mine = slicesOf[data.slices[state.row].patient], here = mine.indexOf(state.row);
  const to = { PageUp: here - 1, PageDown: here + 1, Home: 0, End: mine.length - 1 }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    go(mine[Math.min(mine.length - 1, Math.max(0, to))]);
  } else if (event.key === "h" || event.key === "H") {
    byId("heat").checked = !byId("heat").checked;
    show();
  }
});
show();
