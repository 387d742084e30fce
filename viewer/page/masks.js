// Objects marked by hand. The page keeps the marks of each photograph, in its pixels; the program that serves it answers
// with the mask that they mean.
(() => {
canvas.setAttribute("aria-label", "photographs: click or paint on the object of each, or draw around it");
const TOOLS = { object: ["object", "o", "#7dff9b"], background: ["not the object", "b", "#ff7d6e"], outline: ["outline", "l", "#ffd140"] };
const photos = scene.photos.map(({ name, size }) => ({ name, size, marks: [], picture: null, veil: null, asked: 0, busy: false }));
const state = { tool: "object", brush: 14, drawing: null, order: [], sent: false };
let rects = [], ready = false;

async function put(address, question) {
  const answer = await fetch(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}
const plain = mark => ({ kind: mark.kind, points: mark.points, width: mark.width });
async function refresh(number) {
  const photo = photos[number], ask = ++photo.asked;
  photo.busy = true;
  redraw();
  try {
    const veil = photo.marks.length ? await createImageBitmap(await (await put("/mask", { photo: number, marks: photo.marks.map(plain) })).blob()) : null;
    if (ask === photo.asked) photo.veil = veil;  // else a later mark has asked again
    say("");
  } catch (error) { say(error.message || String(error)); }
  if (ask === photo.asked) photo.busy = false;
  redraw();
}
function undo() {
  const number = state.order.pop();
  if (number === undefined || state.sent) return;
  photos[number].marks.pop();
  refresh(number);
}
function startAgain() {
  if (state.sent) return;
  state.order.length = 0;
  photos.forEach((photo, i) => { photo.marks.length = 0; refresh(i); });
}
async function done() {
  if (state.sent) return;
  const empty = photos.find(photo => !photo.marks.length);
  if (empty) { say(`Mark the object in ${empty.name}, too.`); setTimeout(() => say(""), 2500); return; }
  try {
    state.sent = true;
    say("…");
    await put("/done", { marks: photos.map(photo => photo.marks.map(plain)) });
    say("The masks are taken, and vision3d goes on. This page can be closed.");
  } catch (error) { state.sent = false; say(error.message || String(error)); }
}

// ---- drawing

page.draw = () => {
  wipe();
  if (!ready) return;
  rects = arrange(photos.map(photo => photo.size));
  photos.forEach((photo, i) => {
    const rect = rects[i];
    drawPhoto(photo.picture, rect);
    pen.save();
    pen.beginPath();
    pen.rect(rect.x, rect.y, rect.w, rect.h);
    pen.clip();
    if (photo.veil) pen.drawImage(photo.veil, rect.x, rect.y, rect.w, rect.h);
    for (const mark of photo.marks) drawMark(mark, photo, rect);
    if (state.drawing && state.drawing.number === i) drawMark(state.drawing.mark, photo, rect);
    pen.restore();
    drawTag(photo.name + (photo.busy ? " …" : ""), rect);
  });
};
function drawMark(mark, photo, rect) {
  const scale = rect.w / photo.size[1], places = mark.points.map(point => onScreen(rect, photo.size, point));
  const colour = TOOLS[mark.kind][2], outline = mark.kind === "outline";
  if (places.length === 1 && !outline) { disc(places[0], 4.5, colour); return; }
  pen.globalAlpha = outline ? 1 : .55;
  pen.strokeStyle = colour;
  pen.lineWidth = outline ? 2 : Math.max(2, mark.width * scale);
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  places.forEach(([x, y], i) => i ? pen.lineTo(x, y) : pen.moveTo(x, y));
  if (outline) { pen.closePath(); pen.setLineDash([6, 5]); }
  pen.stroke();
  pen.setLineDash([]);
  pen.globalAlpha = 1;
}

// ---- the panel

const tools = Object.entries(TOOLS).map(([kind, [text, key]]) => {
  const made = button(text, `key ${key.toUpperCase()}`, () => choose(kind));
  made.dataset.kind = kind;
  return made;
});
function choose(kind) {
  state.tool = kind;
  for (const made of tools) {
    made.classList.toggle("on", made.dataset.kind === kind);
    made.setAttribute("aria-pressed", made.dataset.kind === kind);
  }
}
function buildPanel() {
  section("Mark", ...tools.map(made => element("div", { className: "row" }, made)),
    slider("brush", state.brush, 4, 60, 1, value => value + " px", value => { state.brush = value; }));
  section("Masks", element("div", { className: "row" }, button("undo", "the last mark, Ctrl+Z", undo), button("start again", "remove all marks", startAgain)),
    element("div", { className: "row" }, button("Done", "take these masks and go on", done)));
  panel.append(element("p", { id: "hint", textContent: "Click or paint on the object; paint what is wrongly bright as not the object. Or draw a loop around it first: then it is sought inside. Bright is what is taken." }));
  choose("object");
}

// ---- mouse, touch, keys

const spot = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
canvas.addEventListener("contextmenu", event => event.preventDefault());
canvas.addEventListener("pointerdown", event => {
  if (!ready || state.sent) return;
  const number = rects.findIndex(rect => within(rect, spot(event)));
  if (number < 0) return;
  canvas.setPointerCapture(event.pointerId);
  const { size } = photos[number], kind = event.button === 2 ? "background" : state.tool;
  const width = kind === "outline" ? 0 : state.brush / rects[number].w * size[1];
  state.drawing = { number, mark: { kind, width, points: [inPhoto(rects[number], size, spot(event))] } };
  redraw();
});
canvas.addEventListener("pointermove", event => {
  if (!state.drawing) return;
  const { number, mark } = state.drawing, point = inPhoto(rects[number], photos[number].size, spot(event));
  const last = mark.points[mark.points.length - 1], near = 3 / rects[number].w * photos[number].size[1];
  if (Math.hypot(point[0] - last[0], point[1] - last[1]) >= near) mark.points.push(point);
  redraw();
});
canvas.addEventListener("pointerup", () => {
  if (!state.drawing) return;
  const { number, mark } = state.drawing;
  state.drawing = null;
  if (mark.kind === "outline" && mark.points.length < 3) { redraw(); return; }
  photos[number].marks.push(mark);
  state.order.push(number);
  refresh(number);
});
canvas.addEventListener("pointercancel", () => { state.drawing = null; redraw(); });
window.addEventListener("keydown", event => {
  if (!ready) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z") undo();
  else if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  else {
    const kind = Object.keys(TOOLS).find(name => TOOLS[name][1] === event.key);
    if (!kind) return;
    choose(kind);
  }
  event.preventDefault();
});

// ---- start

setBackground(background);
buildPanel();
say("loading …");
(async () => {
  for (const [i, photo] of photos.entries()) photo.picture = await readImage(scene.photos[i].picture);
  ready = true;
  say("");
  page.draw();
})().catch(error => say(`This page is damaged: ${error.message || error}`));

// For scripts and tests.
window.vision3d = {
  get ready() { return ready; },
  get busy() { return photos.some(photo => photo.busy); },
  get marks() { return photos.map(photo => photo.marks.length); },
  get sent() { return state.sent; },
  place: (number, point) => onScreen(rects[number], photos[number].size, point),
};
})();
