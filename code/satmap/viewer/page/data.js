"use strict";
// @ts-check
// Reads the data of the page (satmap.viewer.page.pack).

/** @typedef {InstanceType<typeof satmapData.Shapes>} Shapes */
/** @typedef {[number, number]} Place longitude and latitude */
/** @typedef {"speed" | "time" | "length" | "area" | "width"} Measure */
/** @typedef {Int8Array | Int32Array | Float32Array | Float64Array} Numbers */
/**
 * A property of all shapes: numbers, or the numbers of texts.
 * @typedef {object} Column
 * @property {string} name
 * @property {string[] | undefined} texts
 * @property {Numbers} values
 */
/**
 * A network for the router: the vertices of edge e are starts[e] to starts[e] + sizes[e] - 1, in
 * whole numbers of 1e-7 degrees, and its nodes ends[2e] and ends[2e + 1]; scale is in metres per
 * degree.
 * @typedef {object} Network
 * @property {Int32Array} x
 * @property {Int32Array} y
 * @property {Int32Array} starts
 * @property {Int32Array} sizes
 * @property {Int32Array} ends
 * @property {Float32Array} lengths
 * @property {Float32Array} times
 * @property {Int8Array} directions
 * @property {number} nodes
 * @property {Place} scale
 */
/** @typedef {{text: string, detail: string, bounds: [number, number, number, number], lines: Place[][]}} Spot */
/** @typedef {Record<string, number> & {confidenceName?: string, columns: {name: string, texts?: string[], index: number, numbers: number}[]}} ShapesHeader */
/** @typedef {Record<string, number> & {scale: Place}} NetworkHeader */
/** @typedef {{roads: ShapesHeader, buildings: ShapesHeader, network?: NetworkHeader}} Contents */
/**
 * @typedef {object} Comparison
 * @property {string} score
 * @property {string} found
 * @property {string} missed
 * @property {string} false
 * @property {ShapesHeader} missedRoads
 * @property {ShapesHeader} falseRoads
 * @property {ShapesHeader} buildings
 * @property {number} kinds
 * @property {Spot[]} spots
 */
/**
 * What the page says about its data; numbers are those of arrays.
 * @typedef {object} PageHeader
 * @property {string} name
 * @property {[number, number, number, number]} bounds
 * @property {[keyof typeof satmapData.TYPES, number][]} arrays
 * @property {{maxzoom: number, bounds: [number, number, number, number]} | null} tiles
 * @property {[Place, Place, Place, Place]} [corners]
 * @property {Contents} [truth]
 * @property {Comparison} [compare]
 */
/** @typedef {PageHeader & Contents} Header */

const satmapData = (() => {
  const TYPES = {
    int8: Int8Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
  };

  /** @param {string} id of an element with base64 text */
  function bytesOf(id) {
    const text = atob(document.getElementById(id)?.textContent?.trim() ?? "");
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < bytes.length; k++) bytes[k] = text.charCodeAt(k);
    return bytes;
  }

  /** @param {Uint8Array<ArrayBuffer>} bytes */
  async function inflate(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** Return the header and a function that returns the array with a number. */
  async function read() {
    const bytes = await inflate(bytesOf("satmap-data"));
    const view = new DataView(bytes.buffer);
    const length = view.getInt32(0, true);
    /** @type {Header} */
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
    // The header says which types arrays have.
    const array = (/** @type {number} */ number) => /** @type {any} */ (arrays[number]);
    return { header, array };
  }

  /** Add up differences, in place. @param {Int32Array} values */
  function summed(values) {
    for (let k = 1; k < values.length; k++) values[k] = (values[k] + values[k - 1]) | 0;
    return values;
  }

  /** Roads or buildings: coordinates, values and properties. */
  class Shapes {
    /** @param {ShapesHeader} header @param {(number: number) => any} array */
    constructor(header, array) {
      this.count = header.count;
      /** @type {Int32Array} */
      this.rings = array(header.rings);
      /** @type {Int32Array} */
      this.sizes = array(header.sizes);
      this.x = summed(array(header.x));
      this.y = summed(array(header.y));
      /** @type {Float32Array} */
      this.confidence = array(header.confidence);
      // What the confidence is: a calibrated probability, or something else that is called so.
      this.confidenceName = header.confidenceName || "Confidence";
      const known = (/** @type {string} */ name) => (name in header ? array(header[name]) : null);
      /** @type {Float32Array | null} km/h, seconds, metres */
      this.speed = known("speed");
      /** @type {Float32Array | null} */
      this.time = known("time");
      /** @type {Float32Array | null} */
      this.length = known("length");
      /** @type {Float32Array | null} */
      this.width = known("width");
      /** @type {Float32Array | null} square metres */
      this.area = known("area");
      /** @type {Int8Array | null} 1 or -1 for one-way roads */
      this.direction = known("direction");
      /** @type {Int8Array | null} level above the ground */
      this.deck = known("deck");
      /** @type {Column[]} */
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

    /** @param {number} number of a ring @returns {Place[]} */
    ring(number) {
      const first = this.firstVertex[number], size = this.sizes[number];
      /** @type {Place[]} */
      const ring = new Array(size);
      for (let k = 0; k < size; k++) ring[k] = [this.x[first + k] / 1e7, this.y[first + k] / 1e7];
      return ring;
    }

    /** @param {number} number of a shape */
    ringsOf(number) {
      const rings = [];
      for (let r = this.firstRing[number]; r < this.firstRing[number + 1]; r++) {
        rings.push(this.ring(r));
      }
      return rings;
    }

    /** Return the names and values of a shape's properties. @param {number} number */
    properties(number) {
      /** @type {[string, string | number][]} */
      const found = [];
      for (const { name, texts, values } of this.columns) {
        const value = values[number];
        if (texts ? value >= 0 : !Number.isNaN(value)) {
          found.push([name, texts ? texts[value] : value]);
        }
      }
      return found;
    }

    /** Return a property's value as text, or null. @param {string} name @param {number} number */
    text(name, number) {
      const column = this.columns.find((each) => each.name === name && each.texts);
      return column?.texts && column.values[number] >= 0 ? column.texts[column.values[number]] : null;
    }

    /** Return whether any value of an array is known. @param {Measure | "confidence"} name */
    has(name) {
      return this[name]?.some((value) => !Number.isNaN(value)) ?? false;
    }
  }

  /**
   * Return the network for the routing worker, and the road of each edge.
   * @param {NetworkHeader} header @param {Shapes} roads @param {(number: number) => any} array
   */
  function network(header, roads, array) {
    /** @type {Int32Array} */
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
    /** @type {Network} */
    const forWorker = {
      x: roads.x, y: roads.y, starts, sizes, ends: summed(array(header.ends)),
      lengths: array(header.lengths), times: array(header.times),
      directions: array(header.directions), nodes: header.nodes, scale: header.scale,
    };
    return { road, assumed: header.assumed, forWorker };
  }

  return { TYPES, read, bytesOf, network, Shapes };
})();
