"use strict";
// @ts-check
// Draws roads and buildings with WebGL 2, as one custom layer of MapLibre.
//
// MapLibre's own layers need features, tiles and triangles for every line, which takes most of the
// time of a large map. Here all vertices are in one texture, once for each level of detail. The
// vertex shader makes the corners of each segment from it. Colours are numbers of a palette, so
// another colouring writes one byte a vertex, and the slider of confidence sets one number.
//
// Places are in Web Mercator, 0 to 1 around the world, relative to the middle of the map's data.

/** @typedef {InstanceType<typeof satmapDraw.Drawing>} Drawing */
/** @typedef {InstanceType<typeof satmapDraw.Layer>} ShapesLayer */
/** @typedef {[number, number, number, number]} Box west, north, east and south, relative places */

const satmapDraw = (() => {
  /** @type {{default: (xy: Float32Array, holes: number[], size: number) => number[]}} */
  const { default: triangulated } = /** @type {any} */ (globalThis).earcut;
  const TEXTURE_WIDTH = 2048;
  const MOST_COLOURS = 16;
  // Vertices of a chunk. Chunks out of sight are not drawn.
  const CHUNK = 2048;
  // Zoom levels up to which lines are simplified, to half a pixel there.
  const LEVELS = [9, 11, 13.5];
  const TILE_PX = 512;

  // Bits of the fourth byte of a vertex: the last of its line; on a bridge or an upper level.
  const LAST = 1, UPPER = 2;
  // A byte of confidence that says it is unknown.
  const UNKNOWN = 255;

  const COMMON = `#version 300 es
    precision highp float;
    precision highp usampler2D;
    uniform highp sampler2D places;
    uniform usampler2D looks;
    uniform mat2 turn;
    uniform vec2 shift, halfSize;
    uniform uint least, needed;
    uniform vec4 palette[${MOST_COLOURS}];
    ivec2 cell(int n) { return ivec2(n % ${TEXTURE_WIDTH}, n / ${TEXTURE_WIDTH}); }
    vec2 pixel(int n) { return turn * texelFetch(places, cell(n), 0).xy + shift; }
    bool isHidden(uvec4 look) {
      return look.y < least || (look.w & needed) != needed;
    }
    const vec4 NOWHERE = vec4(2.0, 2.0, 2.0, 1.0);
  `;

  const LINE_VERTEX = `${COMMON}
    uniform float halfWidth;
    uniform vec4 only;
    out vec2 at;
    flat out float size;
    flat out vec4 colour;
    void main() {
      int n = gl_VertexID / 6, corner = gl_VertexID % 6;
      uvec4 look = texelFetch(looks, cell(n), 0);
      gl_Position = NOWHERE;
      if ((look.w & ${LAST}u) != 0u || isHidden(look)) return;
      vec2 a = pixel(n), d = pixel(n + 1) - a;
      size = length(d);
      vec2 along = size > 0.0 ? d / size : vec2(1.0, 0.0);
      float reach = halfWidth + 0.5;
      // Corners 0 1 2 and 2 1 3.
      int k = corner < 3 ? corner : corner == 3 ? 2 : corner == 4 ? 1 : 3;
      at = vec2((k & 1) == 0 ? -reach : size + reach, (k & 2) == 0 ? -reach : reach);
      vec2 place = a + along * at.x + vec2(-along.y, along.x) * at.y;
      gl_Position = vec4(place / halfSize, 0.0, 1.0);
      colour = only.a > 0.0 ? only : palette[look.x];
    }`;

  const LINE_FRAGMENT = `#version 300 es
    precision highp float;
    uniform float halfWidth;
    in vec2 at;
    flat in float size;
    flat in vec4 colour;
    out vec4 shown;
    void main() {
      float away = length(at - vec2(clamp(at.x, 0.0, size), 0.0));
      shown = colour * clamp(halfWidth + 0.5 - away, 0.0, min(1.0, 2.0 * halfWidth));
    }`;

  const AREA_VERTEX = `${COMMON}
    uniform float opacity;
    flat out vec4 colour;
    void main() {
      uvec4 look = texelFetch(looks, cell(gl_VertexID), 0);
      colour = palette[look.x] * opacity;
      gl_Position = isHidden(look) ? NOWHERE : vec4(pixel(gl_VertexID) / halfSize, 0.0, 1.0);
    }`;

  const AREA_FRAGMENT = `#version 300 es
    precision highp float;
    flat in vec4 colour;
    out vec4 shown;
    void main() { shown = colour; }`;

  // Arrows: a chevron with a dark rim. Each has six vertices of x, y, and its direction.
  const ARROW_VERTEX = `${COMMON}
    layout(location = 0) in vec3 arrow;
    uniform float reach;
    out vec2 at;
    void main() {
      int corner = gl_VertexID % 6;
      int k = corner < 3 ? corner : corner == 3 ? 2 : corner == 4 ? 1 : 3;
      at = vec2((k & 1) == 0 ? -1.0 : 1.0, (k & 2) == 0 ? -1.0 : 1.0);
      vec2 along = normalize(turn * vec2(cos(arrow.z), sin(arrow.z)));
      vec2 place = turn * arrow.xy + shift
        + reach * (along * at.x + vec2(-along.y, along.x) * at.y);
      gl_Position = vec4(place / halfSize, 0.0, 1.0);
    }`;

  const ARROW_FRAGMENT = `#version 300 es
    precision highp float;
    uniform float reach;
    in vec2 at;
    out vec4 shown;
    float away(vec2 p, vec2 a, vec2 b) {
      vec2 d = b - a;
      return length(p - a - d * clamp(dot(p - a, d) / dot(d, d), 0.0, 1.0));
    }
    void main() {
      vec2 p = vec2(at.x, abs(at.y));
      float d = away(p, vec2(0.4, 0.0), vec2(-0.25, 0.55)) * reach;
      float rim = clamp(0.34 * reach + 0.5 - d, 0.0, 1.0);
      float core = clamp(0.17 * reach + 0.5 - d, 0.0, 1.0);
      shown = vec4(vec3(core), rim);
    }`;

  // --- places -------------------------------------------------------------------------------------

  /** @param {number} latitude */
  const mercatorY = (latitude) => 0.5 - Math.log(Math.tan(Math.PI / 4 + (latitude * Math.PI) / 360)) / (2 * Math.PI);
  /** @param {number} longitude */
  const mercatorX = (longitude) => longitude / 360 + 0.5;

  /** @param {string} css @returns {[number, number, number, number]} */
  function rgba(css) {
    const value = parseInt(css.slice(1), 16);
    return [(value >> 16) / 255, ((value >> 8) & 255) / 255, (value & 255) / 255, 1];
  }

  /**
   * Mark the vertices of a line that simplifying keeps (Douglas and Peucker).
   * @param {Float32Array} xy @param {number} first @param {number} last @param {number} tolerance
   * @param {Uint8Array} keep
   */
  function simplify(xy, first, last, tolerance, keep) {
    keep[first] = keep[last] = 1;
    const limit = tolerance * tolerance, open = [first, last];
    while (open.length) {
      const b = /** @type {number} */ (open.pop()), a = /** @type {number} */ (open.pop());
      const ax = xy[2 * a], ay = xy[2 * a + 1], dx = xy[2 * b] - ax, dy = xy[2 * b + 1] - ay;
      const squared = dx * dx + dy * dy;
      let farthest = limit, at = -1;
      for (let k = a + 1; k < b; k++) {
        const px = xy[2 * k] - ax, py = xy[2 * k + 1] - ay;
        const t = squared > 0 ? Math.min(Math.max((px * dx + py * dy) / squared, 0), 1) : 0;
        const distance = (px - t * dx) ** 2 + (py - t * dy) ** 2;
        if (distance > farthest) {
          farthest = distance;
          at = k;
        }
      }
      if (at >= 0) {
        keep[at] = 1;
        open.push(a, at, at, b);
      }
    }
  }

  /** Vertices at a level of detail, and their textures. */
  class Level {
    /**
     * @param {Float32Array} xy places @param {Uint8Array} looks four bytes of each vertex
     * @param {Int32Array} starts first vertex of each shape, in their order, and the end
     */
    constructor(xy, looks, starts) {
      this.xy = xy;
      this.looks = looks;
      this.starts = starts;
      /** @type {WebGLTexture | null} */
      this.places = null;
      /** @type {WebGLTexture | null} */
      this.looksTexture = null;
      this.isChanged = true;
    }

    /** @param {number} count @param {number} perVertex */
    static room(count, perVertex) {
      return Math.max(Math.ceil(count / TEXTURE_WIDTH), 1) * TEXTURE_WIDTH * perVertex;
    }

    get rows() {
      return this.looks.length / 4 / TEXTURE_WIDTH;
    }
  }

  /** Roads or buildings that are drawn and found in the same way. */
  class Drawing {
    /**
     * @param {Shapes} shapes
     * @param {boolean} isArea
     * @param {Place} middle that places are relative to
     */
    constructor(shapes, isArea, middle) {
      this.shapes = shapes;
      this.isArea = isArea;
      this.middle = middle;
      /** @type {string[]} */
      this.palette = ["#888888"];
      this.hasUpper = false;
      /** @type {WebGLBuffer | null} */
      this.triangleBuffer = null;
      this.order = this.sorted();
      this.full = this.placed();
      /** First shape of each chunk, in their order, and the end. */
      this.chunks = this.chunked();
      this.boxes = this.measured();
      /** @type {Map<number, Level>} */
      this.simplified = new Map();
      this.firstTriangle = new Int32Array(this.chunks.length);
      this.triangles = isArea ? this.triangulate() : new Uint32Array(0);
    }

    /** Return the numbers of the shapes, sorted by place. */
    sorted() {
      const { count, firstRing, firstVertex, x, y } = this.shapes;
      let west = Infinity, south = Infinity, east = -Infinity, north = -Infinity;
      for (let k = 0; k < x.length; k++) {
        if (x[k] < west) west = x[k];
        if (x[k] > east) east = x[k];
        if (y[k] < south) south = y[k];
        if (y[k] > north) north = y[k];
      }
      const span = Math.max(east - west, north - south, 1);
      /** @param {number} v */
      const spread = (v) => {
        v = (v | (v << 8)) & 0x00ff00ff;
        v = (v | (v << 4)) & 0x0f0f0f0f;
        v = (v | (v << 2)) & 0x33333333;
        return (v | (v << 1)) & 0x55555555;
      };
      const keys = new Float64Array(count);
      for (let k = 0; k < count; k++) {
        const v = firstVertex[firstRing[k]];
        const column = ((x[v] - west) / span) * 1023, row = ((y[v] - south) / span) * 1023;
        keys[k] = (spread(column | 0) | (spread(row | 0) << 1)) * 2 ** 30 + k;
      }
      keys.sort();
      return Int32Array.from(keys, (key) => key % 2 ** 30);
    }

    /** Return the vertices in the order of the shapes. */
    placed() {
      const { shapes } = this, { count, firstRing, firstVertex, x, y } = shapes;
      const xy = new Float32Array(Level.room(x.length, 2)), looks = new Uint8Array(Level.room(x.length, 4));
      const starts = new Int32Array(count + 1);
      const x0 = mercatorX(this.middle[0]), y0 = mercatorY(this.middle[1]);
      let at = 0;
      for (let i = 0; i < count; i++) {
        const k = this.order[i];
        starts[i] = at;
        const confidence = shapes.confidence[k];
        const byte = Number.isNaN(confidence) ? UNKNOWN : Math.floor(confidence * 100 + 1e-4);
        const isUpper = shapes.deck !== null && shapes.deck[k] > 0;
        if (isUpper) this.hasUpper = true;
        for (let r = firstRing[k]; r < firstRing[k + 1]; r++) {
          for (let v = firstVertex[r]; v < firstVertex[r + 1]; v++, at++) {
            xy[2 * at] = mercatorX(x[v] / 1e7) - x0;
            xy[2 * at + 1] = mercatorY(y[v] / 1e7) - y0;
            looks[4 * at + 1] = byte;
            looks[4 * at + 3] = isUpper ? UPPER : 0;
          }
          if (at > starts[i]) looks[4 * at - 1] |= LAST;
        }
      }
      starts[count] = at;
      return new Level(xy, looks, starts);
    }

    chunked() {
      const { starts } = this.full, count = this.shapes.count;
      /** @type {number[]} */
      const chunks = [];
      for (let i = 0, last = -Infinity; i < count; i++) {
        if (starts[i] >= last + CHUNK) {
          chunks.push(i);
          last = starts[i];
        }
      }
      return [...chunks, count];
    }

    /** Return west, north, east and south of each chunk. */
    measured() {
      const { starts, xy } = this.full, boxes = new Float32Array(4 * this.chunks.length);
      for (let c = 0; c + 1 < this.chunks.length; c++) {
        let west = Infinity, north = Infinity, east = -Infinity, south = -Infinity;
        for (let v = starts[this.chunks[c]]; v < starts[this.chunks[c + 1]]; v++) {
          west = Math.min(west, xy[2 * v]);
          east = Math.max(east, xy[2 * v]);
          north = Math.min(north, xy[2 * v + 1]);
          south = Math.max(south, xy[2 * v + 1]);
        }
        boxes.set([west, north, east, south], 4 * c);
      }
      return boxes;
    }

    /**
     * Return successive chunks that touch a box, as pairs of chunk numbers.
     * @param {Box} box
     * @returns {[number, number][]}
     */
    seen(box) {
      /** @type {[number, number][]} */
      const runs = [];
      for (let c = 0; c + 1 < this.chunks.length; c++) {
        const [west, north, east, south] = this.boxes.subarray(4 * c, 4 * c + 4);
        if (west > box[2] || east < box[0] || north > box[3] || south < box[1]) continue;
        const last = runs[runs.length - 1];
        if (last && last[1] === c) last[1] = c + 1;
        else runs.push([c, c + 1]);
      }
      return runs;
    }

    /** Cut the areas into triangles, and note the first of each chunk. */
    triangulate() {
      const { shapes, full, order } = this, { xy, starts } = full;
      /** @type {number[]} */
      const found = [];
      for (let i = 0, c = 0; i < shapes.count; i++) {
        if (i === this.chunks[c]) this.firstTriangle[c++] = found.length;
        const k = order[i];
        let at = starts[i];
        /** @type {[number, number][]} the outer ring and the holes of a part */
        let rings = [];
        const cut = () => {
          if (!rings.length) return;
          const [first] = rings[0], end = rings[rings.length - 1][1];
          const holes = rings.slice(1).map(([start]) => start - first);
          for (const v of triangulated(xy.subarray(2 * first, 2 * end), holes, 2)) found.push(first + v);
        };
        for (let r = shapes.firstRing[k]; r < shapes.firstRing[k + 1]; r++) {
          const end = at + shapes.sizes[r];
          // A ring outside the first is another part of the same building.
          if (rings.length && !isWithin(xy, rings[0][0], rings[0][1], xy[2 * at], xy[2 * at + 1])) {
            cut();
            rings = [];
          }
          rings.push([at, end]);
          at = end;
        }
        cut();
      }
      this.firstTriangle[this.chunks.length - 1] = found.length;
      return Uint32Array.from(found);
    }

    /** Return the vertices for a zoom level. @param {number} zoom @returns {Level} */
    level(zoom) {
      const top = LEVELS.find((each) => zoom <= each);
      if (top === undefined || this.isArea) return this.full;
      let found = this.simplified.get(top);
      if (!found) {
        found = this.simpler(0.5 / (TILE_PX * 2 ** top));
        this.simplified.set(top, found);
      }
      return found;
    }

    /** @param {number} tolerance @returns {Level} */
    simpler(tolerance) {
      const { xy, looks, starts } = this.full, keep = new Uint8Array(looks.length / 4);
      for (let v = 0, first = 0; v < starts[starts.length - 1]; v++) {
        if (looks[4 * v + 3] & LAST) {
          simplify(xy, first, v, tolerance, keep);
          first = v + 1;
        }
      }
      let count = 0;
      for (let v = 0; v < keep.length; v++) count += keep[v];
      const places = new Float32Array(Level.room(count, 2)), fewer = new Uint8Array(Level.room(count, 4));
      const from = new Int32Array(starts.length), source = new Uint32Array(looks.buffer);
      const target = new Uint32Array(fewer.buffer);
      let at = 0;
      for (let i = 0; i + 1 < starts.length; i++) {
        from[i] = at;
        for (let v = starts[i]; v < starts[i + 1]; v++) {
          if (!keep[v]) continue;
          places[2 * at] = xy[2 * v];
          places[2 * at + 1] = xy[2 * v + 1];
          target[at++] = source[v];
        }
      }
      from[starts.length - 1] = at;
      return new Level(places, fewer, from);
    }

    /**
     * Colour the shapes.
     * @param {(k: number) => number} colourOf number of the colour of a shape
     * @param {string[]} palette
     */
    colour(colourOf, palette) {
      this.palette = palette;
      const numbers = new Uint8Array(this.shapes.count);
      for (let k = 0; k < numbers.length; k++) numbers[k] = colourOf(k);
      for (const level of [this.full, ...this.simplified.values()]) {
        for (let i = 0; i < numbers.length; i++) {
          const number = numbers[this.order[i]];
          for (let v = level.starts[i]; v < level.starts[i + 1]; v++) level.looks[4 * v] = number;
        }
        level.isChanged = true;
      }
    }

    /** Forget textures and buffers of a lost WebGL context. */
    forget() {
      this.triangleBuffer = null;
      for (const level of [this.full, ...this.simplified.values()]) level.places = null;
    }

    /** Return a place relative to the middle. @param {Place} place */
    relative([longitude, latitude]) {
      const x = mercatorX(longitude) - mercatorX(this.middle[0]);
      return [x - Math.round(x), mercatorY(latitude) - mercatorY(this.middle[1])];
    }

    /**
     * Return the number of the shape at a place, or -1.
     * @param {Place} place
     * @param {number} reach how far a line may be away, in Web Mercator
     * @param {number} least confidence in percent
     */
    find(place, reach, least) {
      const [px, py] = this.relative(place);
      const { xy, looks, starts } = this.full;
      let nearest = reach * reach, found = -1;
      for (const [from, to] of this.seen([px - reach, py - reach, px + reach, py + reach])) {
        for (let i = this.chunks[from]; i < this.chunks[to]; i++) {
          if (looks[4 * starts[i] + 1] < least) continue;
          if (this.isArea) {
            if (isWithin(xy, starts[i], starts[i + 1], px, py, looks)) found = this.order[i];
            continue;
          }
          for (let v = starts[i]; v + 1 < starts[i + 1]; v++) {
            const x = xy[2 * v], y = xy[2 * v + 1], dx = xy[2 * v + 2] - x, dy = xy[2 * v + 3] - y;
            const squared = dx * dx + dy * dy;
            const t = squared > 0 ? Math.min(Math.max(((px - x) * dx + (py - y) * dy) / squared, 0), 1) : 0;
            const distance = (px - x - t * dx) ** 2 + (py - y - t * dy) ** 2;
            if (distance < nearest) {
              nearest = distance;
              found = this.order[i];
            }
          }
        }
      }
      return found;
    }

    /**
     * Return arrows along one-way roads in a box, six equal triples of x, y and direction for each.
     * @param {Box} box @param {number} spacing in Web Mercator @param {number} least
     */
    arrows(box, spacing, least) {
      const { shapes, full, order } = this, { xy, starts, looks } = full;
      /** @type {number[]} */
      const found = [];
      const direction = shapes.direction;
      if (!direction) return new Float32Array(0);
      for (const [from, to] of this.seen(box)) {
        for (let i = this.chunks[from]; i < this.chunks[to]; i++) {
          const way = direction[order[i]];
          if (!way || looks[4 * starts[i] + 1] < least) continue;
          let total = 0;
          for (let v = starts[i]; v + 1 < starts[i + 1]; v++) total += Math.hypot(xy[2 * v + 2] - xy[2 * v], xy[2 * v + 3] - xy[2 * v + 1]);
          const count = Math.round(total / spacing) || (total > spacing / 3 ? 1 : 0);
          let at = 0, next = total / count / 2;
          for (let v = starts[i]; v + 1 < starts[i + 1]; v++) {
            const x = xy[2 * v], y = xy[2 * v + 1], dx = xy[2 * v + 2] - x, dy = xy[2 * v + 3] - y;
            const size = Math.hypot(dx, dy);
            for (; count && next <= at + size; next += total / count) {
              const t = (next - at) / size, ax = x + t * dx, ay = y + t * dy;
              if (ax < box[0] || ax > box[2] || ay < box[1] || ay > box[3]) continue;
              const angle = Math.atan2(way * dy, way * dx);
              for (let corner = 0; corner < 6; corner++) found.push(ax, ay, angle);
            }
            at += size;
          }
        }
      }
      return Float32Array.from(found);
    }
  }

  /**
   * Whether a place is in an area of one or more rings, by the even-odd rule.
   * @param {Float32Array} xy @param {number} first @param {number} end
   * @param {number} px @param {number} py @param {Uint8Array | null} looks says where rings end
   */
  function isWithin(xy, first, end, px, py, looks = null) {
    let inside = false;
    for (let v = first; v + 1 < end; v++) {
      if (looks && looks[4 * v + 3] & LAST) continue;
      const y = xy[2 * v + 1], other = xy[2 * v + 3];
      if (y > py !== other > py && px < xy[2 * v] + ((py - y) / (other - y)) * (xy[2 * v + 2] - xy[2 * v])) {
        inside = !inside;
      }
    }
    return inside;
  }

  // --- drawing ------------------------------------------------------------------------------------

  /** The custom layer. `draw` is called for each frame with the layer. */
  class Layer {
    /** @param {maplibregl.Map} map @param {(layer: Layer) => void} draw */
    constructor(map, draw) {
      this.id = "shapes";
      /** @type {"custom"} */
      this.type = "custom";
      /** @type {"2d"} */
      this.renderingMode = "2d";
      this.draw = draw;
      this.map = map;
      const gl = map.getCanvas().getContext("webgl2");
      if (!gl) throw new Error("no WebGL 2");
      this.gl = gl;
      this.lines = new Program(gl, LINE_VERTEX, LINE_FRAGMENT);
      this.areas = new Program(gl, AREA_VERTEX, AREA_FRAGMENT);
      this.arrowProgram = new Program(gl, ARROW_VERTEX, ARROW_FRAGMENT);
      this.array = gl.createVertexArray();
      this.arrowArray = gl.createVertexArray();
      this.arrowBuffer = gl.createBuffer();
      // The frame: pixels of the canvas for each of the page, its size and middle, and the width of
      // the world in its pixels.
      this.ratio = 1;
      this.size = [0, 0];
      this.zoom = 0;
      /** @type {Place} */
      this.middle = [0, 0];
      this.world = 1;
    }

    render() {
      const { gl, map } = this;
      const canvas = map.getCanvas(), { lng, lat } = map.getCenter();
      this.ratio = canvas.width / Math.max(canvas.clientWidth, 1);
      this.size = [canvas.width, canvas.height];
      this.zoom = map.getZoom();
      this.middle = [lng, lat];
      this.world = TILE_PX * 2 ** this.zoom * this.ratio;
      gl.disable(gl.DEPTH_TEST);
      gl.disable(gl.STENCIL_TEST);
      gl.disable(gl.CULL_FACE);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.bindVertexArray(this.array);
      this.draw(this);
      gl.bindVertexArray(null);
      gl.disable(gl.SCISSOR_TEST);
    }

    /** Delete what a drawing has on the graphics card. @param {Drawing} drawing */
    free(drawing) {
      for (const level of [drawing.full, ...drawing.simplified.values()]) {
        this.gl.deleteTexture(level.places);
        this.gl.deleteTexture(level.looksTexture);
      }
      this.gl.deleteBuffer(drawing.triangleBuffer);
      drawing.forget();
    }

    /** Draw only between two shares of the width. @param {number} from @param {number} to */
    clip(from, to) {
      const { gl, size: [width, height] } = this;
      const left = Math.round(from * width);
      gl.enable(gl.SCISSOR_TEST);
      gl.scissor(left, 0, Math.max(Math.round(to * width) - left, 0), height);
    }

    /**
     * Return the visible box, relative to a drawing's middle.
     * @param {Drawing} drawing @param {number} more pixels around it
     * @returns {Box}
     */
    box(drawing, more) {
      const [x, y] = drawing.relative(this.middle), [width, height] = this.size;
      // A turned map needs its diagonal.
      const isTurned = this.map.getBearing() !== 0, diagonal = Math.hypot(width, height);
      const across = ((isTurned ? diagonal : width) / 2 + more * this.ratio) / this.world;
      const down = ((isTurned ? diagonal : height) / 2 + more * this.ratio) / this.world;
      return [x - across, y - down, x + across, y + down];
    }

    /**
     * Use a program for a drawing.
     * @param {Program} program @param {Drawing} drawing @param {number} least @param {number} needed
     */
    begin(program, drawing, least, needed) {
      const { gl, world, size: [width, height] } = this;
      const [x, y] = drawing.relative(this.middle);
      const angle = (-this.map.getBearing() * Math.PI) / 180, c = Math.cos(angle) * world, s = Math.sin(angle) * world;
      gl.useProgram(program.program);
      // Upwards on the screen is positive, in Web Mercator negative.
      gl.uniformMatrix2fv(program.at("turn"), false, [c, -s, -s, -c]);
      gl.uniform2f(program.at("shift"), -(c * x - s * y), s * x + c * y);
      gl.uniform2f(program.at("halfSize"), width / 2, height / 2);
      gl.uniform1ui(program.at("least"), least);
      gl.uniform1ui(program.at("needed"), needed);
      const palette = new Float32Array(4 * MOST_COLOURS);
      for (const [k, css] of drawing.palette.slice(0, MOST_COLOURS).entries()) palette.set(rgba(css), 4 * k);
      gl.uniform4fv(program.at("palette"), palette);
    }

    /** @param {Level} level @param {Program} program */
    bind(level, program) {
      const { gl } = this;
      const isNew = level.places === null;
      if (isNew || level.isChanged) {
        gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
        gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, false);
        gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
      }
      /** @type {[number, number, 0]} */
      const size = [TEXTURE_WIDTH, level.rows, 0];
      const texture = () => {
        const made = gl.createTexture();
        gl.bindTexture(gl.TEXTURE_2D, made);
        for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
        return made;
      };
      gl.activeTexture(gl.TEXTURE0);
      if (isNew) {
        level.places = texture();
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RG32F, ...size, gl.RG, gl.FLOAT, level.xy);
      } else {
        gl.bindTexture(gl.TEXTURE_2D, level.places);
      }
      gl.activeTexture(gl.TEXTURE1);
      if (isNew) level.looksTexture = texture();
      else gl.bindTexture(gl.TEXTURE_2D, level.looksTexture);
      if (isNew || level.isChanged) {
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8UI, ...size, gl.RGBA_INTEGER, gl.UNSIGNED_BYTE, level.looks);
        level.isChanged = false;
      }
      gl.uniform1i(program.at("places"), 0);
      gl.uniform1i(program.at("looks"), 1);
    }

    /**
     * Draw lines, or the outlines of areas.
     * @param {Drawing} drawing
     * @param {{width: number, colour?: string, least?: number, upper?: boolean}} how width in pixels
     */
    drawLines(drawing, { width, colour, least = 0, upper = false }) {
      const { gl, lines } = this;
      if (!drawing.shapes.count) return;
      this.begin(lines, drawing, least, upper ? UPPER : 0);
      gl.uniform1f(lines.at("halfWidth"), (width * this.ratio) / 2);
      gl.uniform4fv(lines.at("only"), colour ? rgba(colour) : [0, 0, 0, 0]);
      const level = drawing.level(this.zoom);
      this.bind(level, lines);
      for (const [from, to] of drawing.seen(this.box(drawing, width))) {
        const first = level.starts[drawing.chunks[from]], end = level.starts[drawing.chunks[to]];
        gl.drawArrays(gl.TRIANGLES, 6 * first, 6 * (end - first - 1));
      }
    }

    /** @param {Drawing} drawing @param {{opacity: number, least?: number}} how */
    drawAreas(drawing, { opacity, least = 0 }) {
      const { gl, areas } = this;
      if (!drawing.shapes.count) return;
      this.begin(areas, drawing, least, 0);
      gl.uniform1f(areas.at("opacity"), opacity);
      this.bind(drawing.full, areas);
      if (drawing.triangleBuffer === null) {
        drawing.triangleBuffer = gl.createBuffer();
        gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, drawing.triangleBuffer);
        gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, drawing.triangles, gl.STATIC_DRAW);
      } else {
        gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, drawing.triangleBuffer);
      }
      for (const [from, to] of drawing.seen(this.box(drawing, 0))) {
        const first = drawing.firstTriangle[from], end = drawing.firstTriangle[to];
        gl.drawElements(gl.TRIANGLES, end - first, gl.UNSIGNED_INT, 4 * first);
      }
    }

    /** Draw arrows along one-way roads. @param {Drawing} drawing @param {{reach: number, spacing: number, least?: number}} how pixels */
    drawArrows(drawing, { reach, spacing, least = 0 }) {
      const { gl, arrowProgram: program } = this;
      // Arrows keep their places while the map moves, until the zoom level is another.
      const step = spacing / (TILE_PX * 2 ** Math.round(this.zoom));
      const arrows = drawing.arrows(this.box(drawing, reach), step, least);
      if (!arrows.length) return;
      this.begin(program, drawing, 0, 0);
      gl.uniform1f(program.at("reach"), reach * this.ratio);
      gl.bindVertexArray(this.arrowArray);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.arrowBuffer);
      gl.bufferData(gl.ARRAY_BUFFER, arrows, gl.STREAM_DRAW);
      gl.enableVertexAttribArray(0);
      gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
      gl.drawArrays(gl.TRIANGLES, 0, arrows.length / 3);
      gl.bindVertexArray(this.array);
    }
  }

  class Program {
    /** @param {WebGL2RenderingContext} gl @param {string} vertex @param {string} fragment */
    constructor(gl, vertex, fragment) {
      this.gl = gl;
      this.program = gl.createProgram();
      /** @type {Map<string, WebGLUniformLocation | null>} */
      this.places = new Map();
      for (const [type, source] of /** @type {[number, string][]} */ ([[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]])) {
        const shader = /** @type {WebGLShader} */ (gl.createShader(type));
        gl.shaderSource(shader, source);
        gl.compileShader(shader);
        gl.attachShader(this.program, shader);
      }
      gl.linkProgram(this.program);
    }

    /** Return the place of a uniform. @param {string} name */
    at(name) {
      let found = this.places.get(name);
      if (found === undefined) {
        if (!this.places.size && !this.gl.getProgramParameter(this.program, this.gl.LINK_STATUS)) {
          throw new Error(`a shader does not compile: ${this.gl.getProgramInfoLog(this.program)}`);
        }
        found = this.gl.getUniformLocation(this.program, name);
        this.places.set(name, found);
      }
      return found;
    }
  }

  return { Drawing, Layer, mercatorX, mercatorY };
})();
