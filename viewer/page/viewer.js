// The viewer of exported pages: WebGL2, no library. The world has OpenCV axes (x right, y down, z forward).
(() => {
canvas.setAttribute("aria-label", "3D scene: drag to turn, wheel to zoom, right drag to move");
const gl = canvas.getContext("webgl2", { antialias: true, alpha: false, powerPreference: "high-performance" });

if (!gl) { say("This page needs WebGL 2, which this browser does not offer."); return; }

// ---- vectors and matrices (column-major, as WebGL takes them)

const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
const sub = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const scale = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const norm = a => Math.hypot(a[0], a[1], a[2]);
const unit = a => scale(a, 1 / (norm(a) || 1));

function multiply(a, b) {
  const out = new Float32Array(16);
  for (let c = 0; c < 4; c++) for (let r = 0; r < 4; r++) {
    let sum = 0;
    for (let k = 0; k < 4; k++) sum += a[k * 4 + r] * b[c * 4 + k];
    out[c * 4 + r] = sum;
  }
  return out;
}

// ---- shaders

const MESH_VERTEX = `#version 300 es
layout(location=0) in vec3 position; layout(location=1) in vec2 uv; layout(location=2) in vec3 colour;
uniform mat4 view, projection; out vec2 vUv; out vec3 vColour, vEye;
void main() { vec4 e = view * vec4(position, 1.); vEye = e.xyz; vUv = uv; vColour = colour; gl_Position = projection * e; }`;
const MESH_FRAGMENT = `#version 300 es
precision highp float;
in vec2 vUv; in vec3 vColour, vEye; out vec4 result;
uniform sampler2D base, over; uniform bool textured; uniform float strength, opacity;
void main() {
  vec3 c = textured ? texture(base, vUv).rgb : vColour;
  if (!textured) {  // no photograph with light in it: a lamp at the eye shows the shape
    vec3 n = normalize(cross(dFdx(vEye), dFdy(vEye)));
    c *= .3 + .7 * abs(dot(n, normalize(vEye)));
  }
  if (strength > 0.) c = mix(c, texture(over, vUv).rgb, strength);
  result = vec4(c, opacity);
}`;
const POINT_VERTEX = `#version 300 es
layout(location=0) in vec3 position; layout(location=1) in vec3 colour; layout(location=2) in vec3 look;
uniform mat4 view, projection; uniform float size, pixels, strength, opacity; uniform vec4 seen; out vec3 vColour;
float hash(uint n) { n = (n ^ 61u) ^ (n >> 16); n *= 9u; n ^= n >> 4; n *= 0x27d4eb2du; n ^= n >> 15; return float(n) / 4294967296.; }
void main() {
  vec4 e = view * vec4(position, 1.);
  gl_Position = projection * e;
  float own = seen.w > 0. ? size * distance(position, seen.xyz) : size;  // a camera's points lie the farther apart the farther they are
  gl_PointSize = clamp(own * pixels / max(-e.z, 1e-9), 1., 256.);
  vColour = mix(colour, look, strength);
  // Opacity thins the cloud: blending would need the points sorted.
  if (hash(uint(gl_VertexID)) > opacity) gl_Position = vec4(2., 2., 2., 1.);
}`;
const POINT_FRAGMENT = `#version 300 es
precision highp float;
in vec3 vColour; out vec4 result;
void main() { vec2 d = gl_PointCoord - .5; if (dot(d, d) > .25) discard; result = vec4(vColour, 1.); }`;
// Lines as quads of constant width on the screen, since WebGL draws lines one pixel wide.
const LINE_VERTEX = `#version 300 es
layout(location=0) in vec3 a; layout(location=1) in vec3 b;
uniform mat4 view, projection; uniform vec2 window; uniform float width;
void main() {
  vec4 ea = view * vec4(a, 1.), eb = view * vec4(b, 1.);
  float near = -1e-4;
  if (ea.z > near && eb.z > near) { gl_Position = vec4(2., 2., 2., 1.); return; }
  if (ea.z > near) ea = mix(ea, eb, (near - ea.z) / (eb.z - ea.z));
  if (eb.z > near) eb = mix(eb, ea, (near - eb.z) / (ea.z - eb.z));
  vec4 ca = projection * ea, cb = projection * eb;
  vec2 d = (cb.xy / cb.w - ca.xy / ca.w) * window; d = length(d) > 0. ? normalize(d) : vec2(1., 0.);
  bool end = (gl_VertexID & 1) == 1; float side = (gl_VertexID & 2) == 2 ? 1. : -1.;
  vec4 c = end ? cb : ca;
  c.xy += vec2(-d.y, d.x) * side * width / window * c.w;
  gl_Position = c;
}`;
const FLAT_FRAGMENT = `#version 300 es
precision highp float; uniform vec4 colour; out vec4 result; void main() { result = colour; }`;
const MARK_VERTEX = `#version 300 es
layout(location=0) in vec3 position; uniform mat4 view, projection; uniform float size;
void main() { gl_Position = projection * view * vec4(position, 1.); gl_PointSize = size; }`;
const MARK_FRAGMENT = `#version 300 es
precision highp float; uniform vec4 colour; out vec4 result;
void main() { float r = length(gl_PointCoord - .5); if (r > .5) discard; result = r > .36 ? vec4(0., 0., 0., 1.) : colour; }`;
const SKY_VERTEX = `#version 300 es
out float y; void main() { vec2 p = vec2(gl_VertexID == 1 ? 3. : -1., gl_VertexID == 2 ? 3. : -1.); y = p.y * .5 + .5; gl_Position = vec4(p, 1., 1.); }`;
const SKY_FRAGMENT = `#version 300 es
precision highp float; in float y; uniform vec3 low, high; out vec4 result;
void main() {  // a grain of less than one step, against bands
  float grain = fract(sin(dot(gl_FragCoord.xy, vec2(12.9898, 78.233))) * 43758.5453) - .5;
  result = vec4(mix(low, high, y) + grain / 255., 1.);
}`;

function program(vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const uniforms = {};
  const total = gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS);
  for (let i = 0; i < total; i++) {
    const name = gl.getActiveUniform(made, i).name;
    uniforms[name] = gl.getUniformLocation(made, name);
  }
  return { made, uniforms };
}
const programs = {
  mesh: program(MESH_VERTEX, MESH_FRAGMENT), point: program(POINT_VERTEX, POINT_FRAGMENT),
  line: program(LINE_VERTEX, FLAT_FRAGMENT), mark: program(MARK_VERTEX, MARK_FRAGMENT), sky: program(SKY_VERTEX, SKY_FRAGMENT),
};

function texture(image) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, image);
  gl.generateMipmap(gl.TEXTURE_2D);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  const sharp = gl.getExtension("EXT_texture_filter_anisotropic");
  if (sharp) gl.texParameterf(gl.TEXTURE_2D, sharp.TEXTURE_MAX_ANISOTROPY_EXT, 8);
  return made;
}
function attribute(location, data, size, type = gl.FLOAT, normalised = false) {
  const buffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
  gl.enableVertexAttribArray(location);
  gl.vertexAttribPointer(location, size, type, normalised, 0, 0);
  return buffer;
}

// ---- layers: each kind knows how it is loaded, drawn, and hit by a ray

const state = { look: "", strength: 1, pointScale: 1, background: scene.background, measuring: false, view: null };

class MeshPart {
  async load(entry) {
    this.positions = await readArray(entry.positions);
    this.indices = await readArray(entry.indices);
    this.array = gl.createVertexArray();
    gl.bindVertexArray(this.array);
    attribute(0, this.positions, 3);
    if (entry.uv) attribute(1, await readArray(entry.uv), 2);
    if (entry.colours) attribute(2, await readArray(entry.colours), 3, gl.UNSIGNED_BYTE, true);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, this.indices, gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    this.base = entry.texture ? texture(await sharedImage(entry.texture)) : null;
    return this;
  }
  draw() { gl.bindVertexArray(this.array); gl.drawElements(gl.TRIANGLES, this.indices.length, gl.UNSIGNED_INT, 0); }
  // Möller and Trumbore 1997, from either side.
  hit(o, d) {
    const p = this.positions, f = this.indices;
    let best = Infinity;
    for (let i = 0; i < f.length; i += 3) {
      const a = f[i] * 3, b = f[i + 1] * 3, c = f[i + 2] * 3;
      const ax = p[a], ay = p[a + 1], az = p[a + 2];
      const ux = p[b] - ax, uy = p[b + 1] - ay, uz = p[b + 2] - az, vx = p[c] - ax, vy = p[c + 1] - ay, vz = p[c + 2] - az;
      const px = d[1] * vz - d[2] * vy, py = d[2] * vx - d[0] * vz, pz = d[0] * vy - d[1] * vx;
      const inverse = 1 / (ux * px + uy * py + uz * pz);
      const tx = o[0] - ax, ty = o[1] - ay, tz = o[2] - az;
      const u = (tx * px + ty * py + tz * pz) * inverse;
      if (!(u >= -1e-9 && u <= 1 + 1e-9)) continue;
      const qx = ty * uz - tz * uy, qy = tz * ux - tx * uz, qz = tx * uy - ty * ux;
      const v = (d[0] * qx + d[1] * qy + d[2] * qz) * inverse;
      if (!(v >= -1e-9 && u + v <= 1 + 1e-9)) continue;
      const t = (vx * qx + vy * qy + vz * qz) * inverse;
      if (t > 0 && t < best) best = t;
    }
    return best < Infinity ? { t: best, position: add(o, scale(d, best)) } : null;
  }
}

class Layer {
  constructor(entry, item) { Object.assign(this, { entry, item, name: entry.name, visible: entry.visible, opacity: entry.opacity }); this.looks = {}; }
  get shown() { return this.item.visible && this.visible && this.opacity > 0; }
  hit() { return null; }
  draw() {}
}

function drawSurface(camera, parts, base, over, opacity) {
  const { made, uniforms } = programs.mesh;
  gl.useProgram(made);
  gl.uniformMatrix4fv(uniforms.view, false, camera.view);
  gl.uniformMatrix4fv(uniforms.projection, false, camera.projection);
  gl.uniform1i(uniforms.base, 0); gl.uniform1i(uniforms.over, 1);
  gl.uniform1f(uniforms.opacity, opacity);
  gl.uniform1f(uniforms.strength, over ? state.strength : 0);
  const each = () => parts.forEach(part => {
    const picture = base || part.base;
    gl.uniform1i(uniforms.textured, picture ? 1 : 0);
    gl.activeTexture(gl.TEXTURE0); gl.bindTexture(gl.TEXTURE_2D, picture || blank);
    gl.activeTexture(gl.TEXTURE1); gl.bindTexture(gl.TEXTURE_2D, over || blank);
    part.draw();
  });
  if (opacity < 1) {  // depth first, so that only the nearest sheet is blended and no order of triangles shows
    gl.colorMask(false, false, false, false); each(); gl.colorMask(true, true, true, true);
    gl.enable(gl.BLEND); gl.depthFunc(gl.LEQUAL); each(); gl.disable(gl.BLEND);
  } else each();
}

class MeshLayer extends Layer {
  async load() {
    this.parts = [];
    for (const part of this.entry.parts) this.parts.push(await new MeshPart().load(part));
    for (const [name, entry] of Object.entries(this.entry.looks)) this.looks[name] = texture(await sharedImage(entry));
  }
  draw(camera) { drawSurface(camera, this.parts, null, this.looks[state.look], this.opacity); }
  hit(o, d) { return this.parts.map(part => part.hit(o, d)).filter(Boolean).sort((a, b) => a.t - b.t)[0] || null; }
}

class PointsLayer extends Layer {
  async load() {
    this.positions = await readArray(this.entry.positions);
    this.count = this.positions.length / 3;
    this.array = gl.createVertexArray();
    gl.bindVertexArray(this.array);
    attribute(0, this.positions, 3);
    this.base = attribute(1, await readArray(this.entry.colours), 3, gl.UNSIGNED_BYTE, true);
    for (const [name, entry] of Object.entries(this.entry.looks)) {
      this.looks[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, this.looks[name]);
      gl.bufferData(gl.ARRAY_BUFFER, await readArray(entry), gl.STATIC_DRAW);
    }
    gl.enableVertexAttribArray(2);
    gl.bindVertexArray(null);
  }
  get size() { return this.entry.size * state.pointScale; }
  draw(camera) {
    const { made, uniforms } = programs.point, over = this.looks[state.look];
    gl.useProgram(made);
    gl.bindVertexArray(this.array);
    gl.bindBuffer(gl.ARRAY_BUFFER, over || this.base);
    gl.vertexAttribPointer(2, 3, gl.UNSIGNED_BYTE, true, 0, 0);
    gl.uniformMatrix4fv(uniforms.view, false, camera.view);
    gl.uniformMatrix4fv(uniforms.projection, false, camera.projection);
    gl.uniform1f(uniforms.size, this.size);
    gl.uniform4f(uniforms.seen, ...(this.entry.seen_from || [0, 0, 0]), this.entry.seen_from ? 1 : 0);
    gl.uniform1f(uniforms.pixels, canvas.height / 2 / Math.tan(camera.fov / 2));
    gl.uniform1f(uniforms.strength, over ? state.strength : 0);
    gl.uniform1f(uniforms.opacity, this.opacity);
    gl.drawArrays(gl.POINTS, 0, this.count);
  }
  hit(o, d) {
    const p = this.positions, seen = this.entry.seen_from, angle = scene.tolerance, near = [];
    for (let i = 0; i < p.length; i += 3) {
      const x = p[i] - o[0], y = p[i + 1] - o[1], z = p[i + 2] - o[2], t = x * d[0] + y * d[1] + z * d[2];
      if (t <= 0) continue;
      const away = Math.sqrt(Math.max(0, x * x + y * y + z * z - t * t));
      const own = seen ? Math.hypot(p[i] - seen[0], p[i + 1] - seen[1], p[i + 2] - seen[2]) : 1;
      if (away > Math.max(own * this.size / 2, angle * t)) continue;
      near.push([t, away, i]);
    }
    // of the frontmost surface, however slanted, the point closest to the ray: it ends where there is a gap in depth
    near.sort((a, b) => a[0] - b[0]);
    let end = 1;
    while (end < near.length && near[end][0] - near[end - 1][0] <= 2 * angle * near[end - 1][0]) end++;
    const front = near.slice(0, end).sort((a, b) => a[1] - b[1])[0];
    return front ? { t: front[0], position: [p[front[2]], p[front[2] + 1], p[front[2] + 2]] } : null;
  }
}

class CameraLayer extends Layer {
  async load() {
    const e = this.entry;
    const [tl, tr, br, bl] = e.corners, o = e.centre;
    this.reach = norm(sub(tl, o));
    const middle = scale(add(tl, tr), .5), upwards = unit(sub(tl, bl)), half = norm(sub(tr, tl)) * .12;
    const peak = add(middle, scale(upwards, half));  // a roof on the upper edge says which way is up
    const left = add(middle, scale(unit(sub(tl, tr)), half)), right = add(middle, scale(unit(sub(tr, tl)), half));
    const pairs = [[o, tl], [o, tr], [o, br], [o, bl], [tl, tr], [tr, br], [br, bl], [bl, tl], [left, peak], [right, peak]];
    this.lines = lineArray(pairs);
    if (e.photo || Object.keys(e.looks).length) {
      this.array = gl.createVertexArray();
      gl.bindVertexArray(this.array);
      attribute(0, new Float32Array([tl, tr, br, bl].flat()), 3);
      attribute(1, new Float32Array([0, 0, 1, 0, 1, 1, 0, 1]), 2);
      gl.bindVertexArray(null);
      this.base = e.photo ? texture(await sharedImage(e.photo)) : blank;
      for (const [name, entry] of Object.entries(e.looks)) this.looks[name] = texture(await sharedImage(entry));
    }
  }
  draw(camera) {
    // Seen from where the photograph was taken, its picture would hide all else.
    if (norm(sub(camera.eye, this.entry.centre)) < this.reach) return;
    drawLines(camera, this.lines, [.36, .78, 1, 1], 1.25);
    if (!this.array) return;
    const part = { base: this.base, draw: () => { gl.bindVertexArray(this.array); gl.drawArrays(gl.TRIANGLE_FAN, 0, 4); } };
    drawSurface(camera, [part], this.base, this.looks[state.look], this.opacity);
  }
}

function lineArray(pairs) {
  const made = gl.createVertexArray();
  gl.bindVertexArray(made);
  const corners = [], others = [], index = [];
  pairs.forEach(([a, b], i) => {
    for (let k = 0; k < 4; k++) { corners.push(...a); others.push(...b); }
    index.push(...[0, 1, 2, 2, 1, 3].map(k => i * 4 + k));
  });
  attribute(0, new Float32Array(corners), 3);
  attribute(1, new Float32Array(others), 3);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, new Uint16Array(index), gl.STATIC_DRAW);
  gl.bindVertexArray(null);
  return { array: made, count: index.length };
}
function drawLines(camera, lines, colour, width) {
  const { made, uniforms } = programs.line;
  gl.useProgram(made);
  gl.uniformMatrix4fv(uniforms.view, false, camera.view);
  gl.uniformMatrix4fv(uniforms.projection, false, camera.projection);
  gl.uniform2f(uniforms.window, canvas.width, canvas.height);
  gl.uniform1f(uniforms.width, width * 2 * (window.devicePixelRatio || 1));
  gl.uniform4fv(uniforms.colour, colour);
  gl.bindVertexArray(lines.array);
  gl.drawElements(gl.TRIANGLES, lines.count, gl.UNSIGNED_SHORT, 0);
}

const decoded = new Map();  // a photograph or a look is stored once, however many layers show it
function sharedImage(entry) {
  if (!decoded.has(entry.blob)) decoded.set(entry.blob, readImage(entry));
  return decoded.get(entry.blob);
}
const blank = (() => {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, 1, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, new Uint8Array([40, 46, 54]));
  return made;
})();

const KINDS = { mesh: MeshLayer, points: PointsLayer, camera: CameraLayer };  // a new kind of layer is added here
const items = scene.items.map(entry => {
  const item = { entry, name: entry.name, visible: entry.visible };
  item.layers = entry.layers.map(layer => new KINDS[layer.kind](layer, item));
  return item;
});
const layers = items.flatMap(item => item.layers);

// ---- the eye: it turns about a target

const eye = { position: [0, 0, -1], target: [0, 0, 0], up: [0, -1, 0], fovX: .8, fovY: .8 };
// The panel covers the right side; what is looked at stands in the middle of what is left of it.
function covered() {
  const width = canvas.clientWidth, wide = panel.offsetWidth + 32;
  return width > 2.2 * wide ? wide / width : 0;
}
function fov() {
  const aspect = canvas.clientWidth * (1 - covered()) / Math.max(1, canvas.clientHeight);
  return 2 * Math.atan(Math.max(Math.tan(eye.fovY / 2), Math.tan(eye.fovX / 2) / aspect));
}
function axes() {
  const forward = unit(sub(eye.target, eye.position));
  let right = cross(forward, eye.up);
  if (norm(right) < 1e-6) right = cross(forward, [1, 0, 0]);
  right = unit(right);
  return { forward, right, up: cross(right, forward) };
}
function camera() {
  const { forward: f, right: r, up: u } = axes(), p = eye.position, angle = fov();
  const view = new Float32Array([r[0], u[0], -f[0], 0, r[1], u[1], -f[1], 0, r[2], u[2], -f[2], 0, -dot(r, p), -dot(u, p), dot(f, p), 1]);
  const distance = norm(sub(eye.target, p)), away = norm(sub(scene.centre, p));
  const near = Math.max(Math.min(distance, away) * .01, scene.radius * 1e-4), far = (away + scene.radius) * 20 + distance * 4;
  const s = 1 / Math.tan(angle / 2), aspect = canvas.width / canvas.height;
  const projection = new Float32Array([s / aspect, 0, 0, 0, 0, s, 0, 0, covered(), 0, (far + near) / (near - far), -1, 0, 0, 2 * far * near / (near - far), 0]);
  return { eye: p, view, projection, fov: angle };
}
function look(view) {
  Object.assign(eye, { position: view.eye.slice(), target: view.target.slice(), up: view.up.slice(), fovX: view.fov_x, fovY: view.fov_y });
  redraw();
}
function orbit(dx, dy) {
  const offset = sub(eye.position, eye.target), up = unit(eye.up);
  const turned = rotate(offset, up, -dx);
  const side = unit(cross(up, turned));
  const angle = Math.acos(Math.max(-1, Math.min(1, dot(unit(turned), up))));
  const change = Math.max(.02 - angle, Math.min(Math.PI - .02 - angle, -dy));  // never over the pole
  eye.position = add(eye.target, rotate(turned, side, change));
  redraw();
}
function rotate(v, axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle);
  return add(add(scale(v, c), scale(cross(axis, v), s)), scale(axis, dot(axis, v) * (1 - c)));
}
function pan(dx, dy) {
  const { right, up } = axes();
  const step = norm(sub(eye.target, eye.position)) * 2 * Math.tan(fov() / 2) / canvas.clientHeight;
  const shift = add(scale(right, -dx * step), scale(up, dy * step));
  eye.position = add(eye.position, shift);
  eye.target = add(eye.target, shift);
  redraw();
}
function zoom(factor) {
  eye.position = add(eye.target, scale(sub(eye.position, eye.target), factor));
  redraw();
}
function ray(x, y) {
  const { forward, right, up } = axes(), t = Math.tan(fov() / 2), w = canvas.clientWidth, h = canvas.clientHeight;
  const across = (2 * x / w - 1 + covered()) * t * w / h, down = (2 * y / h - 1) * t;
  return unit(add(forward, sub(scale(right, across), scale(up, down))));
}
function project(point, cam) {
  const at = multiply(cam.projection, cam.view), v = [...point, 1];
  const clip = [0, 1, 3].map(r => at[r] * v[0] + at[4 + r] * v[1] + at[8 + r] * v[2] + at[12 + r]);
  return clip[2] > 0 ? [(clip[0] / clip[2] + 1) / 2 * canvas.clientWidth, (1 - clip[1] / clip[2]) / 2 * canvas.clientHeight] : null;
}
function pick(x, y) {
  const direction = ray(x, y);
  let best = null;
  for (const layer of layers) {
    const hit = layer.shown && layer.hit(eye.position, direction);
    if (hit && (!best || hit.t < best.t)) best = { ...hit, layer };
  }
  return best;
}

// ---- measuring: two clicks are a length

const marks = [];  // {points: [a, b?], unit}
const lengths = document.createElement("ul");
lengths.id = "lengths";
const labels = document.getElementById("labels");
// Four digits that mean something, never an exponent: 0.01234, 1.234, 1234.
const format = (value, unitName) => {
  const digits = value > 0 ? Math.max(0, 3 - Math.floor(Math.log10(value))) : 0;
  return `${String(Number(value.toFixed(Math.min(digits, 12))))} ${unitName || "(not metric)"}`;
};
const lengthOf = mark => norm(sub(mark.points[1], mark.points[0]));

function measure(x, y) {
  const hit = pick(x, y);
  if (!hit) return;
  const open = marks.find(mark => mark.points.length === 1);
  if (open) {
    open.points.push(hit.position);
    open.lines = lineArray([open.points]);
    if (open.unit !== hit.layer.item.entry.unit) open.unit = null;
  } else marks.push({ points: [hit.position], unit: hit.layer.item.entry.unit });
  listLengths();
}
function listLengths() {
  lengths.replaceChildren(...marks.filter(mark => mark.points.length === 2).map(mark => {
    const line = document.createElement("li");
    line.textContent = format(lengthOf(mark), mark.unit);
    return line;
  }));
  redraw();
}
function drawMarks(cam) {
  gl.disable(gl.DEPTH_TEST);
  labels.replaceChildren();
  for (const mark of marks) {
    if (mark.lines) drawLines(cam, mark.lines, [1, .82, .25, 1], 1.5);
    const { made, uniforms } = programs.mark;
    gl.useProgram(made);
    gl.uniformMatrix4fv(uniforms.view, false, cam.view);
    gl.uniformMatrix4fv(uniforms.projection, false, cam.projection);
    gl.uniform1f(uniforms.size, 11 * (window.devicePixelRatio || 1));
    gl.uniform4f(uniforms.colour, 1, .82, .25, 1);
    if (mark.drawn !== mark.points.length) {
      mark.drawn = mark.points.length;
      mark.array = gl.createVertexArray();
      gl.bindVertexArray(mark.array);
      attribute(0, new Float32Array(mark.points.flat()), 3);
    }
    gl.bindVertexArray(mark.array);
    gl.drawArrays(gl.POINTS, 0, mark.drawn);
    if (mark.points.length < 2) continue;
    const at = project(scale(add(...mark.points), .5), cam);
    if (!at) continue;
    const label = document.createElement("span");
    label.textContent = format(lengthOf(mark), mark.unit);
    label.style.left = at[0] + "px";
    label.style.top = at[1] + "px";
    labels.append(label);
  }
  gl.enable(gl.DEPTH_TEST);
}

// ---- drawing, only when something has changed

const BACKGROUNDS = {
  night: [[.055, .071, .094], [.145, .18, .227]], day: [[.80, .83, .86], [.95, .96, .97]],
  black: [[0, 0, 0], [0, 0, 0]], white: [[1, 1, 1], [1, 1, 1]],
};
let ready = false;
page.draw = draw;
function draw() {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const w = Math.max(1, Math.round(canvas.clientWidth * ratio)), h = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  gl.viewport(0, 0, w, h);
  gl.clear(gl.DEPTH_BUFFER_BIT);
  gl.disable(gl.DEPTH_TEST);
  const [low, high] = BACKGROUNDS[state.background];
  gl.useProgram(programs.sky.made);
  gl.uniform3fv(programs.sky.uniforms.low, low);
  gl.uniform3fv(programs.sky.uniforms.high, high);
  gl.bindVertexArray(emptyArray);
  gl.drawArrays(gl.TRIANGLES, 0, 3);
  gl.enable(gl.DEPTH_TEST);
  gl.depthFunc(gl.LEQUAL);
  gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
  const cam = camera();
  const shown = ready ? layers.filter(layer => layer.shown) : [];
  // What one sees through is drawn after what is behind it.
  const seeThrough = layer => layer.opacity < 1 && !(layer instanceof PointsLayer);
  for (const layer of [...shown.filter(l => !seeThrough(l)), ...shown.filter(seeThrough)]) layer.draw(cam);
  drawMarks(cam);
}
const emptyArray = gl.createVertexArray();

function screenshot() {
  draw();
  const picture = document.createElement("canvas");
  picture.width = canvas.width;
  picture.height = canvas.height;
  const paint = picture.getContext("2d"), ratio = canvas.width / canvas.clientWidth;
  paint.drawImage(canvas, 0, 0);
  paint.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  paint.textAlign = "center";
  for (const label of labels.children) {
    const x = parseFloat(label.style.left) * ratio, y = parseFloat(label.style.top) * ratio - 16 * ratio;
    const wide = paint.measureText(label.textContent).width + 16 * ratio;
    paint.fillStyle = "rgba(8, 12, 16, .86)";
    paint.fillRect(x - wide / 2, y - 16 * ratio, wide, 22 * ratio);
    paint.fillStyle = "#fff";
    paint.fillText(label.textContent, x, y);
  }
  savePicture(picture);
}

// ---- the panel

let measureButton = null;
function setMeasuring(on) {
  state.measuring = on;
  measureButton.classList.toggle("on", on);
  measureButton.setAttribute("aria-pressed", on);
  canvas.classList.toggle("measuring", on);
}
function viewsOf(item) { return item.entry.views; }
function goTo(name) {
  const item = items.find(i => i.visible && viewsOf(i).some(v => v.name === name)) || items.find(i => viewsOf(i).some(v => v.name === name));
  if (item) look(viewsOf(item).find(v => v.name === name));
}
function buildPanel() {
  const rows = [];
  for (const item of items) {
    if (items.length > 1) rows.push(element("h3", {}, tick(item.name, item.visible, on => { item.visible = on; describe(); })));
    for (const layer of item.layers) {
      const input = element("input", { type: "range", min: 0, max: 1, step: .01, value: layer.opacity, ariaLabel: `opacity of ${layer.name}`, title: "opacity" });
      input.addEventListener("input", () => { layer.opacity = +input.value; redraw(); });
      rows.push(element("div", { className: "row" }, tick(layer.name, layer.visible, on => { layer.visible = on; }), input));
    }
  }
  section("Layers", ...rows);
  const looks = [...new Set(items.flatMap(item => item.entry.layers.flatMap(layer => Object.keys(layer.looks || {}))))];
  if (looks.length) section("Overlay",
    choice("lay over", [["", "nothing"], ...looks.map(name => [name, name])], state.look, value => { state.look = value; }),
    slider("strength", state.strength, 0, 1, .01, percent, value => { state.strength = value; }));
  if (layers.some(layer => layer instanceof PointsLayer)) section("Points",
    slider("size", 0, -2, 3, .05, v => (2 ** v).toFixed(2) + "×", value => { state.pointScale = 2 ** value; }));
  const jumps = [button("overview", "key 1", () => goTo("overview"))];
  if (items.some(item => viewsOf(item).some(v => v.name === "photograph"))) jumps.push(button("photograph", "the photograph's own view, key 2", () => goTo("photograph")));
  section("View", element("div", { className: "row" }, ...jumps),
    choice("background", Object.keys(BACKGROUNDS).map(name => [name, name]), state.background, setBackground),
    element("div", { className: "row" }, button("screenshot", "save a PNG, key S", screenshot)));
  measureButton = button("measure", "click two points, key M", () => setMeasuring(!state.measuring));
  section("Measure", element("div", { className: "row" }, measureButton, button("clear", "remove all lengths", () => { marks.length = 0; listLengths(); })), lengths);
  panel.append(element("p", { id: "hint", textContent: "drag: turn · right drag: move · wheel: zoom · double click: turn about that point" }));
}
function setBackground(name) {
  state.background = name;
  document.documentElement.classList.toggle("light", name === "day" || name === "white");
}
function describe() {
  const shown = items.filter(item => item.visible);
  if (items.length > 1) document.getElementById("note").textContent = shown.length === 1 ? `${shown[0].name}: ${shown[0].entry.note}` : scene.note;
}

// ---- mouse, touch, keys

const pointers = new Map();
let moved = 0, gesture = null;
canvas.addEventListener("contextmenu", event => event.preventDefault());
canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (pointers.size === 1) { moved = 0; gesture = event.button === 0 && !event.shiftKey ? "turn" : "move"; canvas.classList.add("turning"); }
});
canvas.addEventListener("pointermove", event => {
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const now = [event.clientX, event.clientY], dx = now[0] - last[0], dy = now[1] - last[1];
  if (pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    zoom(Math.hypot(last[0] - other[0], last[1] - other[1]) / Math.max(1, Math.hypot(now[0] - other[0], now[1] - other[1])));
    pan(dx / 2, dy / 2);
    moved = 99;
  } else {
    moved += Math.hypot(dx, dy);
    if (moved > 3) gesture === "turn" ? orbit(dx * .006, dy * .006) : pan(dx, dy);
  }
  pointers.set(event.pointerId, now);
});
const release = event => {
  const was = pointers.delete(event.pointerId);
  if (pointers.size === 0) canvas.classList.remove("turning");
  if (was && event.type === "pointerup" && event.button === 0 && moved <= 3 && state.measuring && ready) {
    const box = canvas.getBoundingClientRect();
    measure(event.clientX - box.left, event.clientY - box.top);
  }
};
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY * (event.deltaMode ? .05 : .0015)))));
}, { passive: false });
canvas.addEventListener("dblclick", event => {
  if (state.measuring) return;
  const hit = pick(event.offsetX, event.offsetY);
  if (!hit) return;
  // The target comes under the pointer's point without a jump: the eye moves along, the direction stays.
  const shift = sub(hit.position, eye.target), { forward } = axes();
  const sideways = sub(shift, scale(forward, dot(shift, forward)));
  eye.target = hit.position;
  eye.position = add(eye.position, sideways);
  redraw();
});
window.addEventListener("keydown", event => {
  if (event.target.closest("input, select, button") || event.ctrlKey || event.metaKey || event.altKey) return;
  const turn = { ArrowLeft: [-.06, 0], ArrowRight: [.06, 0], ArrowUp: [0, -.06], ArrowDown: [0, .06] }[event.key];
  if (turn) orbit(...turn);
  else if (event.key === "+" || event.key === "=") zoom(.9);
  else if (event.key === "-") zoom(1 / .9);
  else if (event.key === "m") setMeasuring(!state.measuring);
  else if (event.key === "s") screenshot();
  else if (event.key === "1") goTo("overview");
  else if (event.key === "2") goTo("photograph");
  else if (event.key === "Escape") setMeasuring(false);
  else return;
  event.preventDefault();
});
window.addEventListener("resize", redraw);
canvas.addEventListener("webglcontextlost", () => say("The graphics card gave up this page; load it again."));

// ---- start

buildPanel();
setBackground(state.background);
goTo("overview");
describe();
say("loading …");
(async () => {
  for (const layer of layers) await layer.load();
  ready = true;
  say("");
  draw();
})().catch(error => say(`This page is damaged: ${error.message || error}`));

// For scripts and tests: what is shown, from where, and what was measured.
window.vision3d = {
  get ready() { return ready; },
  get lengths() { return marks.filter(mark => mark.points.length === 2).map(lengthOf); },
  camera: () => ({ position: eye.position.slice(), target: eye.target.slice(), up: eye.up.slice(), fov: fov(), centre: [canvas.clientWidth * (1 - covered()) / 2, canvas.clientHeight / 2] }),
  layers, goTo, redraw,
};
})();
