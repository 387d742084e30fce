// What the pages share: the data in them, and the panel. scene.json in the page says what there is, and the blobs beside
// it hold arrays (see pages.py) and pictures. A page's own script follows.
"use strict";
const scene = JSON.parse(document.getElementById("scene").textContent);
const canvas = document.getElementById("canvas");
const panel = document.getElementById("panel");
const message = document.getElementById("message");

const say = text => { message.textContent = text; message.hidden = !text; };
document.getElementById("title").textContent = scene.title;
document.getElementById("note").textContent = scene.note;

// ---- the page's data

async function inflate(id) {
  const node = document.getElementById("blob" + id);
  const text = atob(node.textContent.trim());
  node.remove();  // its text is not needed twice
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Arrays are stored as planes of equally significant bytes, deflated; indices as differences, zigzag coded.
async function readArray(entry) {
  const packed = await inflate(entry.blob);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = entry.shape.reduce((a, b) => a * b, 1), size = { u1: 1, f2: 2 }[entry.dtype] || 4;
  const bytes = new Uint8Array(count * size);
  for (let p = 0; p < size; p++) for (let i = 0, at = p * count; i < count; i++) bytes[i * size + p] = planes[at + i];
  if (entry.dtype === "u1") return bytes;
  if (entry.dtype === "f2") return fromHalf(new Uint16Array(bytes.buffer));
  if (entry.dtype === "f4") return new Float32Array(bytes.buffer);
  const values = new Uint32Array(bytes.buffer);
  let last = 0;
  for (let i = 0; i < count; i++) {
    const z = values[i];
    last += (z >>> 1) ^ -(z & 1);
    values[i] = last;
  }
  return values;
}

async function readImage(entry) {
  const bytes = await inflate(entry.blob);
  const url = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
  const image = new Image();
  image.src = url;
  await image.decode();
  URL.revokeObjectURL(url);
  return image;
}

// Half precision as single, by a table of all of its values.
let halves = null;
function fromHalf(bits) {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let i = 0; i < 65536; i++) {
      const exponent = i >> 10 & 31, rest = i & 1023;
      const size = exponent === 31 ? (rest ? NaN : Infinity) : exponent ? (1 + rest / 1024) * 2 ** (exponent - 15) : rest * 2 ** -24;
      halves[i] = i & 32768 ? -size : size;
    }
  }
  return Float32Array.from(bits, value => halves[value]);
}

// ---- drawing, only when something has changed

const page = { draw() {} };  // its own script says how
let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; page.draw(); });
}
function savePicture(picture) {
  picture.toBlob(blob => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${scene.title.replace(/[^\p{L}\p{N}._-]+/gu, "_") || "view"}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

// ---- the panel

const percent = value => Math.round(value * 100) + " %";
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
function section(title, ...children) {
  panel.append(element("section", {}, element("h2", { textContent: title }), ...children));
}
function slider(text, value, low, high, step, show, change) {
  const input = element("input", { type: "range", min: low, max: high, step, value, ariaLabel: text });
  const output = element("output", { textContent: show(value) });
  input.addEventListener("input", () => { output.textContent = show(+input.value); change(+input.value); redraw(); });
  return element("div", { className: "row" }, element("label", { textContent: text }), input, output);
}
function choice(text, options, value, change) {
  const select = element("select", { ariaLabel: text });
  for (const [key, label] of options) select.append(element("option", { value: key, textContent: label, selected: key === value }));
  select.addEventListener("change", () => { change(select.value); redraw(); });
  return element("div", { className: "row" }, element("label", { textContent: text }), select);
}
function tick(text, value, change) {
  const input = element("input", { type: "checkbox", checked: value });
  input.addEventListener("change", () => { change(input.checked); redraw(); });
  return element("label", { title: text }, input, text);
}
function button(text, title, press) {
  const made = element("button", { type: "button", textContent: text, title });
  made.addEventListener("click", () => press(made));
  return made;
}
