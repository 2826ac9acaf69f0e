// Selecting in a frozen frame: clicks, a box, brush, eraser, polygon; undo and redo; a mask of one object.

import { ApiError, path, request } from "./api.js";
import { decodeInto, encode } from "./rle.js";

const STEPS = 60; // that can be undone

export class Edit {
  /**
   * @param frozen what the server says of the frozen frame
   * @param target id of the object that is corrected, or a new one
   * @param isNew whether it is a new one
   * @param changed called after each change
   */
  constructor(frozen, target, isNew, changed, report) {
    Object.assign(this, { frozen, target, isNew, changed, report });
    this.stream = frozen.stream;
    [this.height, this.width] = frozen.size;
    this.others = frozen.objects.filter((one) => one.id !== target);
    this.points = [];
    this.box = null;
    this.rle = frozen.objects.find((one) => one.id === target)?.rle ?? null;
    this.score = null;
    this.past = [];
    this.future = [];
    this.tool = "click";
    this.sign = 1;
    this.size = 12;
    this.corners = []; // of a polygon that is being drawn
    this.dragged = null; // a box that is being drawn
    this.stroke = null; // pixels, while the brush is down
    this.waiting = false;
    this.open = true;
  }

  get busy() { return this.waiting; }

  get canConfirm() { return this.rle !== null && this.area > 0 && !this.waiting; }

  get area() { return this.rle ? pixelsOf(this).reduce((sum, one) => sum + one, 0) : 0; }

  state() { return { points: this.points, box: this.box, rle: this.rle, score: this.score }; }

  remember() {
    this.past.push(this.state());
    if (this.past.length > STEPS) this.past.shift();
    this.future = [];
  }

  undo() {
    if (this.corners.length) { this.corners = this.corners.slice(0, -1); return this.changed(); }
    if (!this.past.length) return;
    this.future.push(this.state());
    Object.assign(this, this.past.pop());
    this.version = {}; // an answer that is still to come no longer counts
    this.waiting = false;
    this.changed();
  }

  redo() {
    if (!this.future.length) return;
    this.past.push(this.state());
    Object.assign(this, this.future.pop());
    this.changed();
  }

  click(x, y, sign) {
    if (sign < 0 && !this.rle && !this.points.some((one) => one[2] > 0) && !this.box) {
      return this.report("Begin with a click on the object; clicks beside it take away from its mask.");
    }
    this.remember();
    this.points = [...this.points, [round(x), round(y), sign]];
    this.refine();
  }

  setBox(left, top, right, bottom) {
    if (right - left < 2 || bottom - top < 2) return this.changed();
    this.remember();
    this.box = [left, top, right, bottom].map(round);
    this.refine();
  }

  /** Ask for the mask of all that has been pointed at; only the answer to the newest question counts. */
  async refine() {
    const version = (this.version = {});
    this.waiting = true;
    this.changed();
    if (this.asking) return; // asks again when the answer is there
    this.asking = true;
    try {
      let asked;
      do {
        asked = this.version;
        const body = { frame: this.frozen.frame, points: this.points, box: this.box };
        if (this.rle && this.area) body.mask = this.rle;
        const answer = await request("POST", path(this.stream, "/select"), body);
        if (asked === this.version) {
          this.rle = answer.rle;
          this.score = answer.score;
        }
      } while (asked !== this.version && this.waiting);
    } catch (error) {
      if (this.open) this.report(error instanceof ApiError ? error.message : String(error));
      if (version === this.version && this.past.length) Object.assign(this, this.past.pop());
    } finally {
      this.asking = this.waiting = false;
      if (this.open) this.changed();
    }
  }

  // ---- painting

  begin() { this.remember(); this.stroke = pixelsOf(this); }

  paint([x0, y0], [x1, y1], radius, value) {
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(1, radius / 2)));
    for (let n = 0; n <= steps; n++) this.disk(x0 + ((x1 - x0) * n) / steps, y0 + ((y1 - y0) * n) / steps, radius, value);
    this.keep();
  }

  disk(x, y, radius, value) {
    const top = Math.max(0, Math.ceil(y - radius - 0.5)), bottom = Math.min(this.height - 1, Math.floor(y + radius - 0.5));
    for (let row = top; row <= bottom; row++) {
      const half = Math.sqrt(Math.max(0, radius * radius - (row + 0.5 - y) ** 2));
      const left = Math.max(0, Math.ceil(x - half - 0.5)), right = Math.min(this.width - 1, Math.floor(x + half - 0.5));
      if (right >= left) this.stroke.fill(value, row * this.width + left, row * this.width + right + 1);
    }
  }

  /** Fill a polygon (even-odd), or cut it out. */
  polygon(value) {
    const corners = this.corners;
    this.corners = [];
    if (corners.length < 3) return this.changed();
    this.begin();
    for (let row = 0; row < this.height; row++) {
      const y = row + 0.5, crossings = [];
      for (let n = 0; n < corners.length; n++) {
        const [x0, y0] = corners[n], [x1, y1] = corners[(n + 1) % corners.length];
        if (y0 <= y !== y1 <= y) crossings.push(x0 + ((y - y0) / (y1 - y0)) * (x1 - x0));
      }
      crossings.sort((a, b) => a - b);
      for (let n = 0; n + 1 < crossings.length; n += 2) {
        const left = Math.max(0, Math.ceil(crossings[n] - 0.5)), right = Math.min(this.width, Math.ceil(crossings[n + 1] - 0.5));
        if (right > left) this.stroke.fill(value, row * this.width + left, row * this.width + right);
      }
    }
    this.keep();
    this.stroke = null;
    this.changed();
  }

  keep() {
    this.rle = encode(this.stroke, this.height, this.width);
    this.score = null;
    this.changed();
  }

  end() { this.stroke = null; this.changed(); }

  /** What the picture shows: the other objects, and this one in front. */
  objects(name) {
    const own = this.rle ? [{ id: this.target, name, rle: this.rle, box: null }] : [];
    return [...this.others, ...own];
  }

  confirm(name) {
    const object = { id: this.target, rle: this.rle };
    if (name !== null) object.name = name;
    return request("POST", path(this.stream, "/annotate"), { frame: this.frozen.frame, objects: [object] });
  }

  close() {
    this.open = false;
    this.version = {};
    request("DELETE", path(this.stream, `/frames/${this.frozen.frame}`), undefined, { keepalive: true }).catch(() => {});
  }

  // ---- marks

  draw(canvas, scale, cross, pointer) {
    const context = canvas.getContext("2d"), dense = window.devicePixelRatio || 1;
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const box = this.dragged ?? this.box;
    if (box) {
      context.setLineDash([6, 4]);
      context.lineWidth = 1.5;
      context.strokeStyle = "#fff";
      context.strokeRect(box[0] * scale, box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
      context.setLineDash([]);
    }
    for (const [x, y, sign] of this.points) {
      context.beginPath();
      context.arc(x * scale, y * scale, 6, 0, 7);
      context.fillStyle = sign > 0 ? "#12a150" : "#d3222a";
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = "#fff";
      context.stroke();
      context.beginPath();
      context.moveTo(x * scale - 3, y * scale);
      context.lineTo(x * scale + 3, y * scale);
      if (sign > 0) { context.moveTo(x * scale, y * scale - 3); context.lineTo(x * scale, y * scale + 3); }
      context.stroke();
    }
    if (this.corners.length) {
      context.beginPath();
      this.corners.forEach(([x, y], n) => (n ? context.lineTo(x * scale, y * scale) : context.moveTo(x * scale, y * scale)));
      if (pointer) context.lineTo(pointer[0] * scale, pointer[1] * scale);
      context.lineWidth = 1.5;
      context.strokeStyle = "#fff";
      context.stroke();
      for (const [x, y] of this.corners) { context.fillStyle = "#fff"; context.fillRect(x * scale - 3, y * scale - 3, 6, 6); }
    }
    if (pointer && (this.tool === "brush" || this.tool === "eraser")) {
      context.beginPath();
      context.arc(pointer[0] * scale, pointer[1] * scale, this.size * scale, 0, 7);
      context.lineWidth = 1.5;
      context.strokeStyle = this.tool === "brush" ? "#fff" : "#ff8a80";
      context.stroke();
    }
    if (cross) drawCross(context, cross[0] * scale, cross[1] * scale);
  }
}

export function drawCross(context, x, y) {
  for (const [color, width] of [["#000", 3.5], ["#fff", 1.5]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x - 12, y); context.lineTo(x - 3, y); context.moveTo(x + 3, y); context.lineTo(x + 12, y);
    context.moveTo(x, y - 12); context.lineTo(x, y - 3); context.moveTo(x, y + 3); context.lineTo(x, y + 12);
    context.stroke();
  }
}

function pixelsOf(edit) {
  const pixels = new Uint8Array(edit.height * edit.width);
  if (edit.rle) decodeInto(pixels, edit.rle.counts, edit.height, edit.width, 1);
  return pixels;
}

const round = (value) => Math.round(value * 10) / 10;
