// Selecting in a frozen frame: clicks, a box, brush, eraser, polygon; undo and redo; a mask of one object.

import { ApiError, path, request } from "./api.js";
import { fill, stroke } from "./paint.js";
import { areaOf, decodeInto, encode } from "./rle.js";
import { labelsOf } from "./view.js";

const STEPS = 60; // that can be undone

export class Edit {
  /**
   * @param frozen what the server says of the frozen frame
   * @param target id of the object that is corrected, or a new one
   * @param isNew whether it is a new one
   * @param changed called after each change
   * @param report called with what went wrong
   */
  constructor(frozen, target, isNew, changed, report) {
    Object.assign(this, { frozen, target, isNew, changed, report });
    this.stream = frozen.stream;
    [this.height, this.width] = frozen.size;
    this.former = frozen.objects.find((one) => one.id === target) ?? null;
    this.others = frozen.objects.filter((one) => one.id !== target);
    this.around = labelsOf(this.others, this.height, this.width) ?? new Uint8Array(this.height * this.width);
    this.now = { points: [], box: null, corners: [], rle: this.former?.rle ?? null, score: null, isAsked: false };
    this.past = [];
    this.future = [];
    this.tool = "click";
    this.sign = 1;
    this.size = 12; // of the brush, in pixels
    this.dragged = null; // a box that is being drawn
    this.painted = null; // pixels, while the brush is down
    this.isAsking = false;
    this.isOpen = true;
  }

  /** Whether an answer is awaited. */
  get isBusy() { return this.now.isAsked; }

  get canConfirm() { return this.area > 0 && !this.isBusy && !this.painted; }

  get canUndo() { return this.past.length > 0 && !this.painted; }

  get canRedo() { return this.future.length > 0 && !this.painted; }

  get area() { return this.now.rle ? areaOf(this.now.rle.counts) : 0; }

  get score() { return this.now.score; }

  /** Change what is selected; the former can be undone. */
  change(fields) {
    this.past.push(this.now);
    if (this.past.length > STEPS) this.past.shift();
    this.future = [];
    this.now = { ...this.now, ...fields };
  }

  undo() { if (this.canUndo) this.restore(this.past, this.future); }

  redo() { if (this.canRedo) this.restore(this.future, this.past); }

  restore(from, to) {
    to.push(this.now);
    this.now = from.pop();
    if (this.now.isAsked) this.ask(); // its answer did not come in time
    this.changed();
  }

  click(x, y, sign) {
    const { points, rle, box } = this.now;
    if (sign < 0 && !rle && !box && !points.some((one) => one[2] > 0)) {
      return this.report("Begin with a click on the object; clicks beside it take away from its mask.");
    }
    this.change({ points: [...points, [round(x), round(y), sign]], isAsked: true });
    this.ask();
  }

  setBox(left, top, right, bottom) {
    if (right - left < 2 || bottom - top < 2) return this.changed();
    this.change({ box: [left, top, right, bottom].map(round), isAsked: true });
    this.ask();
  }

  /** Ask for the mask of all that has been pointed at; only the answer to the newest question counts. */
  async ask() {
    this.changed();
    if (this.isAsking) return; // asks again when the answer is there
    this.isAsking = true;
    while (this.isOpen && this.now.isAsked) {
      const asked = this.now;
      try {
        const body = { frame: this.frozen.frame, points: asked.points, box: asked.box };
        if (this.area) body.mask = asked.rle;
        const { rle, score } = await request("POST", path(this.stream, "/select"), body);
        Object.assign(asked, { rle, score, isAsked: false });
      } catch (error) {
        if (this.isOpen) this.report(error instanceof ApiError ? error.message : String(error));
        asked.isAsked = false;
        if (asked === this.now && this.past.length) this.now = this.past.pop();
      }
    }
    this.isAsking = false;
    if (this.isOpen) this.changed();
  }

  // ---- painting

  begin() { this.painted = this.pixels(); }

  paint(from, to, value) {
    stroke(this.painted, this.height, this.width, from, to, this.size, value);
    this.changed();
  }

  /** The brush is lifted. */
  end() {
    const pixels = this.painted;
    this.painted = null;
    this.change({ rle: encode(pixels, this.height, this.width), score: null, isAsked: false });
    this.changed();
  }

  /** The brush was no brush, but the first of two fingers. */
  abandon() { this.painted = this.dragged = null; this.changed(); }

  corner(place) {
    this.change({ corners: [...this.now.corners, place] });
    this.changed();
  }

  /** Fill the polygon, or cut it out. */
  polygon(value) {
    const { corners } = this.now;
    if (corners.length < 3) return;
    const pixels = this.pixels();
    fill(pixels, this.height, this.width, corners, value);
    this.change({ corners: [], rle: encode(pixels, this.height, this.width), score: null, isAsked: false });
    this.changed();
  }

  /** Use another tool; a polygon that is not closed goes. */
  use(tool) {
    this.tool = tool;
    if (this.now.corners.length) this.change({ corners: [] });
    this.changed();
  }

  pixels() {
    const pixels = new Uint8Array(this.height * this.width);
    if (this.now.rle) decodeInto(pixels, this.now.rle.counts, this.height, this.width, 1);
    return pixels;
  }

  /** What the picture shows: the other objects, and this one in front. */
  labels() {
    const labels = this.around.slice();
    if (this.painted) this.painted.forEach((one, at) => { if (one) labels[at] = this.target; });
    else if (this.now.rle) decodeInto(labels, this.now.rle.counts, this.height, this.width, this.target);
    return labels;
  }

  /** The other objects whose pixels this one takes. */
  covered() {
    const own = this.pixels(), ids = new Set();
    own.forEach((one, at) => { if (one && this.around[at]) ids.add(this.around[at]); });
    return this.others.filter((one) => ids.has(one.id));
  }

  confirm(name) {
    const object = { id: this.target, rle: this.now.rle };
    if (name !== null) object.name = name;
    return request("POST", path(this.stream, "/annotate"), { frame: this.frozen.frame, objects: [object] });
  }
}

const round = (value) => Math.round(value * 10) / 10;
