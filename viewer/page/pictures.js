// Photographs beside each other on a canvas, with the panel at the right: for pages of pairs and of masks.
const pen = canvas.getContext("2d");
const SKIES = { night: ["#252e3a", "#0e1218"], day: ["#f2f5f7", "#ccd4db"], black: ["#000", "#000"], white: ["#fff", "#fff"] };
let background = scene.background;
function setBackground(name) {
  background = name;
  document.documentElement.classList.toggle("light", name === "day" || name === "white");
}

// Where photographs of these sizes ([height, width] each) are drawn: beside each other, or below where they get much larger.
function arrange(sizes) {
  const gap = 18, header = document.querySelector("header");
  const covered = panel.offsetWidth + 32, wide = canvas.clientWidth > 2.2 * covered;
  const left = 16, top = header.offsetTop + header.offsetHeight + 14;
  const width = Math.max(40, (wide ? canvas.clientWidth - covered : canvas.clientWidth - 16) - left);
  const height = Math.max(40, canvas.clientHeight - 16 - top);
  const count = sizes.length, ratios = sizes.map(([h, w]) => w / h), sum = values => values.reduce((a, b) => a + b, 0);
  const high = Math.min(height, (width - gap * (count - 1)) / sum(ratios));
  const broad = Math.min(width, (height - gap * (count - 1)) / sum(ratios.map(r => 1 / r)));
  const beside = 1.6 * high * high * sum(ratios) >= broad * broad * sum(ratios.map(r => 1 / r));
  let at = 0;
  return ratios.map(ratio => {
    const [w, h] = beside ? [high * ratio, high] : [broad, broad / ratio];
    const x = beside ? left + (width - high * sum(ratios) - gap * (count - 1)) / 2 + at : left + (width - w) / 2;
    const y = beside ? top + (height - h) / 2 : top + (height - broad * sum(ratios.map(r => 1 / r)) - gap * (count - 1)) / 2 + at;
    at += (beside ? w : h) + gap;
    return { x, y, w, h };
  });
}
const onScreen = (rect, [height, width], [x, y]) => [rect.x + x / width * rect.w, rect.y + y / height * rect.h];
const inPhoto = (rect, [height, width], [x, y]) => [(x - rect.x) / rect.w * width, (y - rect.y) / rect.h * height];
const within = (rect, [x, y]) => x >= rect.x && y >= rect.y && x <= rect.x + rect.w && y <= rect.y + rect.h;

// An empty canvas of the window's size, in CSS pixels.
function wipe() {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const w = Math.max(1, Math.round(canvas.clientWidth * ratio)), h = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const sky = pen.createLinearGradient(0, 0, 0, canvas.clientHeight);
  SKIES[background].forEach((colour, i) => sky.addColorStop(i, colour));
  pen.fillStyle = sky;
  pen.fillRect(0, 0, canvas.clientWidth, canvas.clientHeight);
}
function drawPhoto(photo, rect) {
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "#606060";
  if (photo) pen.drawImage(photo, rect.x, rect.y, rect.w, rect.h);
  else pen.fillRect(rect.x, rect.y, rect.w, rect.h);
}
function drawTag(name, rect) {
  pen.font = "600 12px system-ui, sans-serif";
  pen.fillStyle = "rgba(8, 12, 16, .72)";
  pen.fillRect(rect.x, rect.y, pen.measureText(name).width + 14, 20);
  pen.fillStyle = "#fff";
  pen.fillText(name, rect.x + 7, rect.y + 14.5);
}
function disc([x, y], radius, fill, edge = "#000", thickness = 1.25) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  if (fill) { pen.fillStyle = fill; pen.fill(); }
  pen.strokeStyle = edge;
  pen.lineWidth = thickness;
  pen.stroke();
}
canvas.style.cursor = "crosshair";
window.addEventListener("resize", redraw);
