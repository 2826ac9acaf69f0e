// Which part of the picture is seen: zoom and pan. All places are in CSS pixels from the stage's corner.

const MOST = 40; // CSS pixels for a pixel of the frame

export class Viewport {
  constructor() {
    this.zoom = 1; // times the size that fits
    this.left = this.top = 0; // of the picture
    this.room = [1, 1];
    this.size = [0, 0]; // of the frame
  }

  get fit() { return Math.min(this.room[0] / this.size[0], this.room[1] / this.size[1]); }

  /** CSS pixels for a pixel of the frame. */
  get scale() { return this.fit * this.zoom; }

  get most() { return Math.max(8, MOST / this.fit); }

  /** The stage or the frame has another size. */
  resize(room, size) {
    const same = size[0] === this.size[0] && size[1] === this.size[1];
    this.room = room;
    this.size = size;
    if (!same) this.zoom = 1;
    this.hold();
  }

  /** Zoom by a factor; the place stays where it is. */
  zoomBy(factor, [x, y] = [this.room[0] / 2, this.room[1] / 2]) {
    const before = this.zoom;
    this.zoom = Math.min(this.most, Math.max(1, before * factor));
    if (this.zoom < 1.02) this.zoom = 1;
    this.left = x - ((x - this.left) * this.zoom) / before;
    this.top = y - ((y - this.top) * this.zoom) / before;
    this.hold();
  }

  panBy(x, y) {
    this.left += x;
    this.top += y;
    this.hold();
  }

  all() { this.zoom = 1; this.hold(); }

  /** Pan so far that a pixel of the frame is seen. */
  follow([x, y], margin = 24) {
    const [left, top] = this.toStage([x, y]);
    this.panBy(step(left, this.room[0], margin), step(top, this.room[1], margin));
  }

  /** Keep the picture in the stage: centered, or without a gap at its edges. */
  hold() {
    const wide = this.size[0] * this.scale, high = this.size[1] * this.scale;
    this.left = wide <= this.room[0] ? (this.room[0] - wide) / 2 : Math.min(0, Math.max(this.room[0] - wide, this.left));
    this.top = high <= this.room[1] ? (this.room[1] - high) / 2 : Math.min(0, Math.max(this.room[1] - high, this.top));
  }

  toStage([x, y]) { return [this.left + x * this.scale, this.top + y * this.scale]; }

  /** The place in the frame, which may be outside. */
  toFrame([x, y]) { return [(x - this.left) / this.scale, (y - this.top) / this.scale]; }
}

function step(at, room, margin) {
  if (at < margin) return margin - at;
  return at > room - margin ? room - margin - at : 0;
}
