// Pairs of photographs: their matches, and where a clicked point goes. Points are x, y in pixels of their own photograph.
(() => {
canvas.setAttribute("aria-label", "two photographs: click a point of one to see where it goes in the other");
const COLUMNS = 7;  // of the matches: x and y in A, x and y in B, similarity, confidence, cycle error
const MARK = "#ffd140";
const state = { lines: true, count: 0, strength: .8, pair: null, answer: null, near: -1, number: scene.shown };
let heatColours = null, ready = false;

// ---- where a point goes

// The cell in which a point lies, or the nearest one, as [column, row].
function cellOf(side, [x, y]) {
  const { shape: [h, w], first, step } = side;
  const clamp = (v, high) => Math.max(0, Math.min(high, v));
  return [clamp(Math.floor((x - first[0]) / step[0] + .5), w - 1), clamp(Math.floor((y - first[1]) / step[1] + .5), h - 1)];
}
// Similarities of one cell to all cells of the other photograph; -Infinity where nothing may be matched to.
function similarities(kept, from, cell, to) {
  const n = to.allowed.length, c = from.values.length / from.allowed.length, a = from.values, b = to.values;
  const out = new Float64Array(n).fill(-Infinity), start = cell * c, { measure, scale } = kept;
  for (let i = 0; i < n; i++) {
    if (!to.allowed[i]) continue;
    let sum = 0;
    const at = i * c;
    if (measure === "dot") for (let k = 0; k < c; k++) sum += a[start + k] * b[at + k];
    else if (measure === "l2") for (let k = 0; k < c; k++) { const d = a[start + k] - b[at + k]; sum += d * d; }
    else for (let k = 0; k < c; k++) sum += Math.abs(a[start + k] - b[at + k]);
    out[i] = measure === "dot" ? scale * scale * sum : -scale * (measure === "l2" ? Math.sqrt(sum) : sum);
  }
  return out;
}
const best = values => values.reduce((found, value, i) => value > values[found] ? i : found, 0);
// On the scale of a cosine, so that one temperature fits; -Infinity stays.
function asCosine(measure, values, length) {
  if (measure === "dot") return values;
  if (measure === "l2") return values.map(v => v === -Infinity ? v : 1 - v * v / Math.max(2 * length, 1e-12));
  const finite = values.filter(v => v !== -Infinity), mean = finite.reduce((a, b) => a + Math.abs(b), 0) / finite.length || 1;
  return values.map(v => v / mean);
}
// Sum of the softmax's weights within some cells of the best one, and the weighted mean of their middles, in cells.
function around(values, index, [h, w], reach, temperature) {
  const x0 = index % w, y0 = Math.floor(index / w);
  let sum = 0, x = 0, y = 0;
  for (let row = Math.max(0, y0 - reach); row <= Math.min(h - 1, y0 + reach); row++)
    for (let column = Math.max(0, x0 - reach); column <= Math.min(w - 1, x0 + reach); column++) {
      const weight = Math.exp((values[row * w + column] - values[index]) / temperature);
      sum += weight; x += weight * column; y += weight * row;
    }
  return { sum, column: x / sum, row: y / sum };
}
function followDescriptors(kept, which, point) {
  const from = kept.sides[which], to = kept.sides[1 - which], size = state.pair.sizes[1 - which], [h, w] = to.shape;
  const [column, row] = cellOf(from, point), cell = row * from.shape[1] + column;
  const values = similarities(kept, from, cell, to), index = best(values), scaled = asCosine(kept.measure, values, kept.lengths[1 - which]);
  const between = around(scaled, index, to.shape, kept.reach, kept.temperature);
  const place = (side, c, r) => [side.first[0] + c * side.step[0], side.first[1] + r * side.step[1]];
  const limit = ([x, y]) => [Math.max(0, Math.min(size[1], x)), Math.max(0, Math.min(size[0], y))];
  const returned = best(similarities(kept, to, index, from)), wide = from.shape[1];
  const away = [returned % wide - column, Math.floor(returned / wide) - row];
  const total = scaled.reduce((sum, v) => sum + Math.exp((v - scaled[index]) / kept.temperature), 0);
  const share = around(scaled, index, to.shape, 1, kept.temperature).sum / total;
  return {
    how: "descriptors", to: limit(place(to, between.column, between.row)), cell: [index % w, Math.floor(index / w)],
    similarity: values[index], confidence: share * Math.exp(-(away[0] ** 2 + away[1] ** 2) / 8),
    back: place(from, returned % wide, Math.floor(returned / wide)),
    cycle: Math.hypot(away[0] * from.step[0], away[1] * from.step[1]), heat: heatOf(values, h, w),
  };
}
function heatOf(values, h, w) {
  const high = values.reduce((a, b) => Math.max(a, b)), low = values.reduce((a, b) => b === -Infinity ? a : Math.min(a, b), high);
  const picture = new ImageData(w, h), share = new Float32Array(values.length);
  values.forEach((v, i) => {
    share[i] = v === -Infinity ? NaN : (v - low) / (high - low || 1);
    if (v === -Infinity) return;
    const colour = Math.round(255 * share[i]) * 3;
    for (let k = 0; k < 3; k++) picture.data[4 * i + k] = heatColours[colour + k];
    picture.data[4 * i + 3] = 255 * (.3 + .7 * share[i] ** 2);  // what is unlike lets the photograph through
  });
  const layer = element("canvas", { width: w, height: h });
  layer.getContext("2d").putImageData(picture, 0, 0);
  return { share, low, high, layer };
}
// Flow between the places at which the page knows it.
function followFlow(flow, which, [x, y]) {
  const [height, width] = state.pair.sizes[which], [h, w] = flow.shape;
  const u = Math.max(0, Math.min(w - 1, x / width * w - .5)), v = Math.max(0, Math.min(h - 1, y / height * h - .5));
  const c = Math.min(w - 2, Math.floor(u)), r = Math.min(h - 2, Math.floor(v)), fx = u - c, fy = v - r;
  const at = (row, column, k) => flow.values[(Math.max(0, row) * w + Math.max(0, column)) * 2 + k];
  const mixed = k => (1 - fy) * ((1 - fx) * at(r, c, k) + fx * at(r, c + 1, k)) + fy * ((1 - fx) * at(r + 1, c, k) + fx * at(r + 1, c + 1, k));
  const to = [x + mixed(0), y + mixed(1)];
  return to.every(Number.isFinite) ? { how: "flow", to } : null;
}
function matchAt(i) {
  const m = state.pair.matches.subarray(i * COLUMNS, (i + 1) * COLUMNS);
  return { points: [[m[0], m[1]], [m[2], m[3]]], similarity: m[4], confidence: m[5], cycle: m[6] };
}
function followMatch(which, [x, y]) {
  let found = -1, least = Infinity;
  for (let i = 0; i < state.pair.count; i++) {
    const [px, py] = matchAt(i).points[which], away = Math.hypot(px - x, py - y);
    if (away < least) [found, least] = [i, away];
  }
  if (found < 0) return null;
  const match = matchAt(found);
  return { ...match, how: "match", from: match.points[which], to: match.points[1 - which] };
}
function ask(which, point) {
  const { descriptors, flows } = state.pair;
  const found = descriptors ? followDescriptors(descriptors, which, point)
    : flows && flows[which] ? followFlow(flows[which], which, point) : followMatch(which, point);
  state.answer = found && { which, from: point, ...found };
  tell();
  redraw();
}

// ---- drawing

let rects = [];
const screenPlace = (which, point) => onScreen(rects[which], state.pair.sizes[which], point);
page.draw = () => {
  wipe();
  if (!ready) return;
  const { pair, answer } = state;
  rects = arrange(pair.sizes);
  rects.forEach((rect, i) => drawPhoto(pair.photos[i], rect));
  if (answer && answer.heat) drawHeat(answer);
  rects.forEach((rect, i) => drawTag("AB"[i], rect));
  if (state.lines) drawMatches(answer ? .22 : .9);
  if (state.near >= 0) drawMatch(state.near, 1, 2.5);
  if (answer) drawAnswer(answer);
};
function drawHeat({ which, heat }) {
  const other = 1 - which, rect = rects[other], { first, step, shape: [h, w] } = state.pair.descriptors.sides[other];
  const [x, y] = screenPlace(other, [first[0] - step[0] / 2, first[1] - step[1] / 2]);
  const [right, bottom] = screenPlace(other, [first[0] + (w - .5) * step[0], first[1] + (h - .5) * step[1]]);
  pen.save();
  pen.beginPath();
  pen.rect(rect.x, rect.y, rect.w, rect.h);
  pen.clip();
  pen.globalAlpha = state.strength;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(heat.layer, x, y, right - x, bottom - y);
  pen.restore();
}
function drawMatch(i, alpha, thickness) {
  const ends = matchAt(i).points.map((point, which) => screenPlace(which, point));
  const colour = `rgb(${state.pair.colours.subarray(3 * i, 3 * i + 3).join(" ")})`;
  pen.globalAlpha = alpha * .8;
  pen.strokeStyle = colour;
  pen.lineWidth = thickness;
  pen.beginPath();
  pen.moveTo(...ends[0]);
  pen.lineTo(...ends[1]);
  pen.stroke();
  pen.globalAlpha = alpha;
  ends.forEach(end => disc(end, 2.2 + thickness, colour));
  pen.globalAlpha = 1;
}
function drawMatches(alpha) {
  for (let i = state.count - 1; i >= 0; i--) drawMatch(i, alpha, 1.1);
}
function drawAnswer({ which, from, to, back }) {
  const start = screenPlace(which, from), end = screenPlace(1 - which, to);
  const length = Math.hypot(end[0] - start[0], end[1] - start[1]) || 1, ux = (end[0] - start[0]) / length, uy = (end[1] - start[1]) / length;
  const tip = [end[0] - 9 * ux, end[1] - 9 * uy];
  for (const [colour, width] of [["rgba(0, 0, 0, .65)", 4.5], [MARK, 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(start[0] + 7 * ux, start[1] + 7 * uy);
    pen.lineTo(...tip);
    for (const turn of [1, -1]) {
      pen.moveTo(tip[0] - 11 * ux - turn * 6 * uy, tip[1] - 11 * uy + turn * 6 * ux);
      pen.lineTo(...tip);
    }
    pen.stroke();
  }
  for (const place of [start, end]) { disc(place, 7, null, "rgba(0, 0, 0, .65)", 4.5); disc(place, 7, null, MARK, 2); }
  disc(end, 2, MARK);
  if (back) {
    pen.setLineDash([3, 3]);
    disc(screenPlace(which, back), 11, null, "#fff", 1.75);
    pen.setLineDash([]);
  }
}

// ---- the panel

const readout = element("dl", { id: "readout" });
const number = value => Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
const share = value => String(Number(value.toFixed(4)));
const pixels = ([x, y]) => `${x.toFixed(1)}, ${y.toFixed(1)}`;
function tell() {
  const { answer, pair } = state, rows = [];
  const put = (name, value, title = "") => rows.push(element("dt", { textContent: name }), element("dd", { textContent: value, title }));
  if (answer) {
    put(`in ${"AB"[answer.which]}`, pixels(answer.from), "x, y in pixels");
    put(`in ${"BA"[answer.which]}`, pixels(answer.to), "x, y in pixels");
    if (answer.similarity !== undefined) put("similarity", number(answer.similarity) + (pair.descriptors ? ` (${pair.descriptors.metric})` : ""), "as in matches.csv; larger is nearer");
    if (answer.confidence !== undefined) put("confidence", share(answer.confidence), "0 to 1, orders matches; no probability");
    if (Number.isFinite(answer.cycle)) put("leads back", answer.cycle ? `${number(answer.cycle)} px away` : "to where it came from", "the match's own match: the dashed circle");
  }
  readout.replaceChildren(...rows);
  legend.hidden = !(answer && answer.heat);
  if (answer && answer.heat) [legend.firstChild.textContent, legend.lastChild.textContent] = [number(answer.heat.low), number(answer.heat.high)];
}
const legend = element("div", { id: "legend", hidden: true }, element("span"), element("i"), element("span"));
const clear = () => { state.answer = null; tell(); redraw(); };

function buildPanel() {
  panel.replaceChildren();
  const { pair } = state;
  if (scene.pairs.length > 1) {
    const pick = choice("pair", scene.pairs.map((entry, i) => [i, entry.name]), state.number, value => show(+value).catch(damaged));
    pick.querySelector("select").value = state.number;
    section("Pair", pick);
  }
  section("Matches", element("div", { className: "row" }, tick("lines", state.lines, on => { state.lines = on; })),
    slider("how many", state.count, 0, pair.count, 1, String, value => { state.count = value; }));
  const means = pair.descriptors ? "Click a point of either photograph: where it goes, and how similar all else is to it."
    : pair.flows ? "Click a point of either photograph: where the flow takes it. This result holds no descriptors, so there is no map of similarities."
    : "Click a point of either photograph: its nearest match. This result holds no descriptors and no flow (match with --descriptors keep).";
  const parts = [element("p", { className: "soft", textContent: means }), readout];
  if (pair.descriptors) parts.push(legend, slider("heat map", state.strength, 0, 1, .01, percent, value => { state.strength = value; }));
  parts.push(element("div", { className: "row" }, button("clear", "forget the point, key Esc", clear)));
  section("A point", ...parts);
  section("View", choice("background", Object.keys(SKIES).map(name => [name, name]), background, setBackground),
    element("div", { className: "row" }, button("screenshot", "save a PNG, key S", screenshot)));
  const missing = pair.photos.some(photo => !photo) ? "This result does not hold its photographs. " : "";
  panel.append(element("p", { id: "hint", textContent: missing + "click or drag: ask · arrow keys: move the point · hover a match: its scores" }));
}
function screenshot() {
  page.draw();
  const ratio = canvas.width / canvas.clientWidth;
  const left = Math.min(...rects.map(r => r.x)) - 8, top = Math.min(...rects.map(r => r.y)) - 8;
  const right = Math.max(...rects.map(r => r.x + r.w)) + 8, bottom = Math.max(...rects.map(r => r.y + r.h)) + 8;
  const picture = element("canvas", { width: Math.round((right - left) * ratio), height: Math.round((bottom - top) * ratio) });
  picture.getContext("2d").drawImage(canvas, -left * ratio, -top * ratio);
  savePicture(picture);
}

// ---- the pairs

const damaged = error => say(`This page is damaged: ${error.message || error}`);
const read = new Map();
async function readPair(entry) {
  const list = await readArray(entry.matches), colours = await readArray(entry.colours);
  const photos = [];
  for (const photo of entry.photos) photos.push(photo && await readImage(photo));
  const pair = { sizes: entry.sizes, photos, matches: list, colours, count: list.length / COLUMNS, descriptors: null, flows: null };
  if (entry.descriptors) {
    pair.descriptors = { ...entry.descriptors, sides: [] };
    for (const side of entry.descriptors.sides)
      pair.descriptors.sides.push({ ...side, values: await readArray(side.values), allowed: await readArray(side.allowed) });
  }
  if (entry.flows) {
    pair.flows = [];
    for (const flow of entry.flows) pair.flows.push(flow && { shape: flow.shape.slice(0, 2), values: await readArray(flow) });
  }
  return pair;
}
async function show(index) {
  const entry = scene.pairs[index];
  if (entry.address) { location.href = entry.address; return; }
  ready = false;
  if (!read.has(index)) { say("loading …"); read.set(index, readPair(entry)); }
  const pair = await read.get(index);
  Object.assign(state, { pair, number: index, answer: null, near: -1, count: Math.min(scene.drawn, pair.count) });
  if (scene.pairs.length > 1) document.getElementById("note").textContent = `${entry.name}: ${entry.note}`;
  buildPanel();
  tell();
  ready = true;
  say("");
  page.draw();
}

// ---- mouse, touch, keys

const labels = document.getElementById("labels");
const spot = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
let held = -1;  // the photograph in which a button was pressed
canvas.addEventListener("pointerdown", event => {
  if (!ready || event.button !== 0) return;
  held = rects.findIndex(rect => within(rect, spot(event)));
  if (held < 0) return;
  canvas.setPointerCapture(event.pointerId);
  follow(event);
});
function follow(event) {
  const [height, width] = state.pair.sizes[held], [x, y] = inPhoto(rects[held], [height, width], spot(event));
  ask(held, [Math.max(0, Math.min(width, x)), Math.max(0, Math.min(height, y))]);
}
canvas.addEventListener("pointermove", event => {
  if (!ready) return;
  if (held >= 0) follow(event); else hover(spot(event));
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { held = -1; });
function hover([x, y]) {
  let near = -1, least = 9;
  for (let i = 0; state.lines && i < state.count; i++) for (const which of [0, 1]) {
    const [px, py] = screenPlace(which, matchAt(i).points[which]), away = Math.hypot(px - x, py - y);
    if (away < least) [near, least] = [i, away];
  }
  if (near === state.near) return;
  state.near = near;
  labels.replaceChildren();
  if (near >= 0) {
    const { similarity, confidence, cycle } = matchAt(near), label = element("span");
    label.textContent = `similarity ${number(similarity)} · confidence ${share(confidence)}` + (Number.isFinite(cycle) ? ` · back ${number(cycle)} px away` : "");
    label.style.left = Math.max(150, x) + "px";
    label.style.top = y + "px";
    labels.append(label);
  }
  redraw();
}
window.addEventListener("keydown", event => {
  if (!ready || event.target.closest("input, select, button") || event.ctrlKey || event.metaKey || event.altKey) return;
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (move && state.answer) {
    const { which, from } = state.answer, [height, width] = state.pair.sizes[which];
    const step = state.pair.descriptors ? state.pair.descriptors.sides[which].step : [width / 60, width / 60];
    ask(which, [Math.max(0, Math.min(width, from[0] + move[0] * step[0])), Math.max(0, Math.min(height, from[1] + move[1] * step[1]))]);
  } else if (event.key === "s") screenshot();
  else if (event.key === "Escape") clear();
  else return;
  event.preventDefault();
});

// ---- start

setBackground(background);
say("loading …");
(async () => {
  heatColours = await readArray(scene.heat);
  await show(scene.shown);
})().catch(damaged);

// For scripts and tests: what is shown, where it stands in the window, and what was answered.
window.vision3d = {
  get ready() { return ready; },
  get answer() { return state.answer; },
  get count() { return state.count; },
  place: (which, point) => screenPlace(which, point),
  show, ask, redraw,
};
})();
