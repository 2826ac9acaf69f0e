// The picture: frame, masks and names on one canvas (so that recording sees all), marks of an edit on another.

import { decodeInto } from "./rle.js";

const PALETTE = ["#ff4d5e", "#3fa7ff", "#ffc43d", "#37d67a", "#c77dff", "#ff8a3d", "#2fd6d0", "#ff6ec7",
  "#a8d432", "#7f8cff", "#e0a070", "#5ce1a6"];

export const defaultColor = (id) => PALETTE[(id - 1) % PALETTE.length];

export class Picture {
  constructor(box, canvas, marks, stage) {
    Object.assign(this, { box, canvas, marks, stage });
    this.context = canvas.getContext("2d");
    this.layer = document.createElement("canvas");
    this.width = this.height = 0;
    this.bitmap = null;
    this.labels = null; // Uint8Array, row by row
    this.objects = [];
    this.style = { opacity: 0.45, outline: true, names: true, color: defaultColor, selected: null };
    this.onlayout = () => {};
    new ResizeObserver(() => this.layout()).observe(stage);
  }

  /** Show a frame and its objects. */
  show(bitmap, size, objects) {
    if (this.bitmap && this.bitmap !== bitmap && this.bitmap !== this.kept) this.bitmap.close?.();
    this.bitmap = bitmap;
    if (size[0] !== this.height || size[1] !== this.width) {
      [this.height, this.width] = size;
      // names on a small picture would be coarse, so its canvas is a multiple of it
      this.zoom = Math.max(1, Math.round(800 / this.width));
      this.canvas.width = this.width * this.zoom;
      this.canvas.height = this.height * this.zoom;
      this.layer.width = this.width;
      this.layer.height = this.height;
      this.layout();
    }
    this.setObjects(objects);
  }

  /** Replace the objects, each with its `rle`, and draw. */
  setObjects(objects) {
    this.objects = objects;
    this.labels = labelsOf(objects, this.height, this.width);
    this.draw();
  }

  draw() {
    if (!this.bitmap) return;
    const { context, canvas } = this;
    context.drawImage(this.bitmap, 0, 0, canvas.width, canvas.height);
    if (this.labels) {
      this.paint();
      context.drawImage(this.layer, 0, 0, canvas.width, canvas.height);
    }
    if (this.style.names) this.drawNames();
  }

  /** Colors and outlines of the label map into the layer. */
  paint() {
    const { width, height, labels, style } = this;
    const target = this.layer.getContext("2d", { willReadFrequently: true });
    const image = target.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const fill = new Uint32Array(256), edge = new Uint32Array(256);
    for (const { id } of this.objects) {
      const [r, g, b] = rgb(style.color(id));
      const alpha = Math.round(255 * style.opacity);
      fill[id] = ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
      edge[id] = id === style.selected ? 0xffffffff : ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    }
    const thick = Math.max(1, Math.round(Math.max(width, height) / 640));
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const id = labels[at];
        if (!id) continue;
        const outside = style.outline && (
          (x >= thick && labels[at - thick] !== id) || (x < width - thick && labels[at + thick] !== id) ||
          (y >= thick && labels[at - thick * width] !== id) || (y < height - thick && labels[at + thick * width] !== id));
        pixels[at] = outside ? edge[id] : fill[id];
      }
    }
    target.putImageData(image, 0, 0);
  }

  drawNames() {
    const { context, zoom, canvas: { width } } = this;
    const size = Math.max(12, Math.round(width / 60));
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textBaseline = "top";
    for (const { id, name, box } of this.objects) {
      if (!box) continue;
      const text = name || `${id}`, wide = context.measureText(text).width + size * 0.7;
      const x = Math.min(Math.max(0, box[0] * zoom), width - wide), y = Math.max(0, box[1] * zoom - size * 1.5);
      context.fillStyle = this.style.color(id);
      context.fillRect(x, y, wide, size * 1.35);
      context.fillStyle = isBright(this.style.color(id)) ? "#111" : "#fff";
      context.fillText(text, x + size * 0.35, y + size * 0.2);
    }
  }

  /** Fit the canvas into the stage; on a phone the stage follows the picture. */
  layout() {
    if (!this.width) return;
    const narrow = matchMedia("(max-width: 820px)").matches;
    const room = this.stage.getBoundingClientRect();
    if (narrow) this.stage.style.height = `${Math.min(window.innerHeight * 0.62, (room.width * this.height) / this.width)}px`;
    else this.stage.style.height = "";
    const high = narrow ? parseFloat(this.stage.style.height) : room.height;
    const scale = Math.min(room.width / this.width, high / this.height);
    this.box.style.width = `${Math.floor(this.width * scale)}px`;
    this.box.style.height = `${Math.floor(this.height * scale)}px`;
    this.scale = scale;
    const dense = window.devicePixelRatio || 1;
    this.marks.width = Math.round(this.width * scale * dense);
    this.marks.height = Math.round(this.height * scale * dense);
    this.onlayout();
  }

  /** Pixel of the frame under a pointer. */
  at(event) {
    const place = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - place.left) / place.width) * this.width;
    const y = ((event.clientY - place.top) / place.height) * this.height;
    return [Math.min(Math.max(0, x), this.width - 0.01), Math.min(Math.max(0, y), this.height - 0.01)];
  }

  labelAt([x, y]) { return this.labels ? this.labels[Math.floor(y) * this.width + Math.floor(x)] : 0; }
}

export function labelsOf(objects, height, width) {
  const drawn = objects.filter((one) => one.rle);
  if (!drawn.length) return null;
  const labels = new Uint8Array(height * width);
  for (const { id, rle } of drawn) decodeInto(labels, rle.counts, height, width, id);
  return labels;
}

function rgb(color) {
  const value = parseInt(color.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

function isBright(color) {
  const [r, g, b] = rgb(color);
  return 0.3 * r + 0.59 * g + 0.11 * b > 140;
}
