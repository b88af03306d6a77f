"use strict";
// Reads the data of the page (satmap.viewer.page.pack).

const satmapData = (() => {
  const TYPES = {
    int8: Int8Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
  };

  function bytesOf(id) {
    const text = atob(document.getElementById(id).textContent.trim());
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < bytes.length; k++) bytes[k] = text.charCodeAt(k);
    return bytes;
  }

  async function inflate(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** Return the header and a function that returns the array with a number. */
  async function read() {
    const bytes = await inflate(bytesOf("satmap-data"));
    const view = new DataView(bytes.buffer);
    const length = view.getInt32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
    let at = 4 + length;
    const arrays = header.arrays.map(([type, size]) => {
      const width = TYPES[type].BYTES_PER_ELEMENT;
      const sorted = new Uint8Array(size * width);
      for (let b = 0; b < width; b++) {
        for (let k = 0, from = at + b * size; k < size; k++) sorted[k * width + b] = bytes[from + k];
      }
      at += size * width;
      return new TYPES[type](sorted.buffer);
    });
    return { header, array: (number) => arrays[number] };
  }

  /** Add up differences, in place. */
  function summed(values) {
    for (let k = 1; k < values.length; k++) values[k] = (values[k] + values[k - 1]) | 0;
    return values;
  }

  /** Roads or buildings: coordinates, values and properties. */
  class Shapes {
    constructor(header, array) {
      this.count = header.count;
      this.rings = array(header.rings);
      this.sizes = array(header.sizes);
      this.x = summed(array(header.x));
      this.y = summed(array(header.y));
      for (const name of ["confidence", "speed", "time", "length", "direction", "area"]) {
        this[name] = name in header ? array(header[name]) : null;
      }
      this.columns = header.columns.map((column) => ({
        name: column.name,
        texts: column.texts,
        values: array(column.texts ? column.index : column.numbers),
      }));
      // The first ring of each shape, and the first vertex of each ring.
      this.firstRing = new Int32Array(this.count + 1);
      for (let k = 0; k < this.count; k++) this.firstRing[k + 1] = this.firstRing[k] + this.rings[k];
      this.firstVertex = new Int32Array(this.sizes.length + 1);
      for (let k = 0; k < this.sizes.length; k++) {
        this.firstVertex[k + 1] = this.firstVertex[k] + this.sizes[k];
      }
    }

    ring(number) {
      const first = this.firstVertex[number], size = this.sizes[number];
      const ring = new Array(size);
      for (let k = 0; k < size; k++) ring[k] = [this.x[first + k] / 1e7, this.y[first + k] / 1e7];
      return ring;
    }

    ringsOf(number) {
      const rings = [];
      for (let r = this.firstRing[number]; r < this.firstRing[number + 1]; r++) {
        rings.push(this.ring(r));
      }
      return rings;
    }

    /** Return the names and values of a shape's properties. */
    properties(number) {
      const found = [];
      for (const { name, texts, values } of this.columns) {
        const value = values[number];
        if (texts ? value >= 0 : !Number.isNaN(value)) {
          found.push([name, texts ? texts[value] : value]);
        }
      }
      return found;
    }

    /** Return a property's value as text, or null. */
    text(name, number) {
      const column = this.columns.find((each) => each.name === name && each.texts);
      return column && column.values[number] >= 0 ? column.texts[column.values[number]] : null;
    }

    /** Return whether any value of an array is known. */
    has(name) {
      return Boolean(this[name]) && this[name].some((value) => !Number.isNaN(value));
    }
  }

  /** Return the network for the routing worker, and the road of each edge. */
  function network(header, roads, array) {
    const sizes = array(header.sizes), count = sizes.length;
    const starts = new Int32Array(count), road = new Int32Array(count);
    let at = 0, of = 0;
    for (let e = 0; e < count; e++) {
      starts[e] = at;
      road[e] = of;
      at += sizes[e] - 1;
      if (at === roads.firstVertex[of + 1] - 1) {
        at++;
        of++;
      }
    }
    return {
      road,
      assumed: header.assumed,
      forWorker: {
        x: roads.x, y: roads.y, starts, sizes, ends: summed(array(header.ends)),
        lengths: array(header.lengths), times: array(header.times),
        directions: array(header.directions), nodes: header.nodes, scale: header.scale,
      },
    };
  }

  return { read, bytesOf, network, Shapes };
})();
