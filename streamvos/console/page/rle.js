// COCO's compressed run lengths: columns first, runs of 0 and 1 in turn (docs/protocol.md, 9).

/** Write the pixels of a mask into a label map (row by row). */
export function decodeInto(labels, counts, height, width, value) {
  const runs = unpack(counts);
  let at = 0;
  for (let n = 0; n < runs.length; n++) {
    const end = at + runs[n];
    if (n & 1) {
      let column = Math.floor(at / height), row = at - column * height;
      for (let k = at; k < end; k++) {
        labels[row * width + column] = value;
        if (++row === height) { row = 0; column++; }
      }
    }
    at = end;
  }
}

/** The run lengths of the pixels of a label map that have a value. */
export function encode(labels, height, width, value = 1) {
  const runs = [];
  let current = false, length = 0;
  for (let column = 0; column < width; column++) {
    for (let row = 0, at = column; row < height; row++, at += width) {
      const own = labels[at] === value;
      if (own !== current) { runs.push(length); length = 0; current = own; }
      length++;
    }
  }
  runs.push(length);
  return { size: [height, width], counts: pack(runs) };
}

/** Pixels that run lengths cover. */
export const areaOf = (counts) => unpack(counts).reduce((sum, one, n) => (n & 1 ? sum + one : sum), 0);

function unpack(text) {
  const runs = [];
  for (let at = 0; at < text.length;) {
    let value = 0, place = 1, group;
    do {
      group = text.charCodeAt(at++) - 48;
      value += (group & 31) * place;
      place *= 32;
    } while (group & 32);
    if (group & 16) value -= place;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

function pack(runs) {
  let text = "";
  for (let n = 0; n < runs.length; n++) {
    let value = n > 2 ? runs[n] - runs[n - 2] : runs[n], more = true;
    while (more) {
      const low = value & 31;
      value >>= 5;
      more = low & 16 ? value !== -1 : value !== 0;
      text += String.fromCharCode(low + (more ? 32 : 0) + 48);
    }
  }
  return text;
}
