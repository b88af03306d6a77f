"use strict";
// @ts-check
// Fastest routes and reachable roads, as satmap.routing computes them. Runs in a worker.
//
// The network is that of data.js.

/** @typedef {{edge: number, share: number, distance: number, at: Place}} Position on an edge */
/** @typedef {[edge: number, from: number, to: number]} Piece between two shares of an edge's length */
/** @typedef {{words: string, after: number, at: Place, edge: number}} Turn */
/** @typedef {{times: Float64Array, before: Int32Array, leftAt: Map<number, number>}} Reached */
/** @typedef {{start: Place, end: Place, distances: [number, number]}} Ends */
/** @typedef {Ends & {time: number, length: number, line: Place[], turns: Turn[], firstEdge: number}} FoundRoute */
/** @typedef {FoundRoute | (Ends & {time: null})} RouteResult */
/**
 * Parts of roads, which shorter times do not reach: the number of vertices of each, and the
 * differences of successive coordinates, in 1e-7 degrees; and the length of all that is reached.
 * @typedef {{minutes: number, length: number, sizes: Int32Array, x: Int32Array, y: Int32Array}} ReachedIn
 */
/** @typedef {{found: ReachedIn[], start: Place, distance: number}} ReachResult */
/** @typedef {{distance: number, edge: number, vertex: number, along: number}} Nearest */

const UNIT = 1e-7;
// Turns by fewer degrees are straight on; beyond the others they are sharp, or turn back.
const STRAIGHT = 30, SHARP = 120, BACK = 165;
// A place within this share of an edge's length from its end is at the node there.
const AT_END = 1e-9;
const MOST_CELLS = 1 << 20;

/** Smallest first; the same node may be in it several times. */
class Heap {
  /** @param {number} capacity */
  constructor(capacity) {
    this.keys = new Float64Array(capacity);
    this.nodes = new Int32Array(capacity);
    this.size = 0;
  }

  /** @param {number} key @param {number} node */
  push(key, node) {
    if (this.size === this.keys.length) {
      const keys = new Float64Array(2 * this.size), nodes = new Int32Array(2 * this.size);
      keys.set(this.keys);
      nodes.set(this.nodes);
      this.keys = keys;
      this.nodes = nodes;
    }
    let at = this.size++;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (this.keys[above] <= key) break;
      this.keys[at] = this.keys[above];
      this.nodes[at] = this.nodes[above];
      at = above;
    }
    this.keys[at] = key;
    this.nodes[at] = node;
  }

  pop() {
    const node = this.nodes[0];
    const size = --this.size;
    const key = this.keys[size], last = this.nodes[size];
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= size) break;
      if (below + 1 < size && this.keys[below + 1] < this.keys[below]) below++;
      if (this.keys[below] >= key) break;
      this.keys[at] = this.keys[below];
      this.nodes[at] = this.nodes[below];
      at = below;
    }
    this.keys[at] = key;
    this.nodes[at] = last;
    return node;
  }
}

/** Lines whose coordinates become differences. */
class Parts {
  constructor() {
    /** @type {number[]} */
    this.sizes = [];
    /** @type {number[]} */
    this.x = [];
    /** @type {number[]} */
    this.y = [];
  }

  /** @param {Place[]} line */
  add(line) {
    this.sizes.push(line.length);
    for (const [longitude, latitude] of line) {
      this.x.push(Math.round(longitude / UNIT));
      this.y.push(Math.round(latitude / UNIT));
    }
  }

  /** @param {Int32Array} x @param {Int32Array} y @param {number} start @param {number} size */
  addWhole(x, y, start, size) {
    this.sizes.push(size);
    for (let v = start; v < start + size; v++) {
      this.x.push(x[v]);
      this.y.push(y[v]);
    }
  }

  packed() {
    const differences = (/** @type {number[]} */ values) =>
      Int32Array.from(values, (value, k) => value - (k ? values[k - 1] : 0));
    return { sizes: Int32Array.from(this.sizes), x: differences(this.x), y: differences(this.y) };
  }
}

class Router {
  /** @param {Network} network */
  constructor(network) {
    this.x = network.x;
    this.y = network.y;
    this.starts = network.starts;
    this.sizes = network.sizes;
    this.ends = network.ends;
    this.lengths = network.lengths;
    this.times = network.times;
    this.directions = network.directions;
    this.nodes = network.nodes;
    this.scale = network.scale;
    this.count = this.sizes.length;
    this.scaleX = this.scale[0] * UNIT;
    this.scaleY = this.scale[1] * UNIT;
    this.first = new Int32Array(0);
    this.to = new Int32Array(0);
    this.edge = new Int32Array(0);
    this.link();
    this.west = 0;
    this.south = 0;
    this.cell = 1;
    this.columns = 1;
    this.rows = 1;
    this.cellFirst = new Int32Array(0);
    this.cellEdge = new Int32Array(0);
    this.cellVertex = new Int32Array(0);
    this.index();
  }

  /** Sort the ways out of each node: steps first[n] to first[n + 1] lead to `to` over `edge`. */
  link() {
    const { count, ends, directions, nodes } = this;
    const first = new Int32Array(nodes + 1);
    for (let e = 0; e < count; e++) {
      if (directions[e] >= 0) first[ends[2 * e] + 1]++;
      if (directions[e] <= 0) first[ends[2 * e + 1] + 1]++;
    }
    for (let n = 0; n < nodes; n++) first[n + 1] += first[n];
    const next = first.slice(0, nodes), total = first[nodes];
    this.first = first;
    this.to = new Int32Array(total);
    this.edge = new Int32Array(total);
    for (let e = 0; e < count; e++) {
      const a = ends[2 * e], b = ends[2 * e + 1];
      if (directions[e] >= 0) {
        this.to[next[a]] = b;
        this.edge[next[a]++] = e;
      }
      if (directions[e] <= 0) {
        this.to[next[b]] = a;
        this.edge[next[b]++] = e;
      }
    }
  }

  /** Sort the segments of all edges into the cells of a grid. */
  index() {
    const { x, y, starts, sizes, count } = this;
    let west = Infinity, south = Infinity, east = -Infinity, north = -Infinity, segments = 0;
    for (let e = 0; e < count; e++) {
      segments += sizes[e] - 1;
      for (let v = starts[e], end = v + sizes[e]; v < end; v++) {
        west = Math.min(west, x[v]);
        east = Math.max(east, x[v]);
        south = Math.min(south, y[v]);
        north = Math.max(north, y[v]);
      }
    }
    this.west = west * this.scaleX;
    this.south = south * this.scaleY;
    const width = (east - west) * this.scaleX, height = (north - south) * this.scaleY;
    const cells = Math.min(Math.max(segments, 1), MOST_CELLS);
    this.cell = Math.max(Math.sqrt((width * height) / cells), Math.max(width, height) / cells, 1);
    this.columns = Math.floor(width / this.cell) + 1;
    this.rows = Math.floor(height / this.cell) + 1;
    const fill = new Int32Array(this.columns * this.rows + 1);
    this.eachCell((cell) => fill[cell + 1]++);
    for (let c = 0; c + 1 < fill.length; c++) fill[c + 1] += fill[c];
    this.cellFirst = fill;
    const next = fill.slice(0, -1);
    this.cellEdge = new Int32Array(fill[fill.length - 1]);
    this.cellVertex = new Int32Array(fill[fill.length - 1]);
    this.eachCell((cell, e, v) => {
      this.cellEdge[next[cell]] = e;
      this.cellVertex[next[cell]++] = v;
    });
  }

  /**
   * Call a function with each cell that a segment touches, its edge and its first vertex.
   * @param {(cell: number, edge: number, vertex: number) => void} visit
   */
  eachCell(visit) {
    const { starts, sizes, count, columns, rows } = this;
    const column = (/** @type {number} */ value) => Math.min(Math.max(Math.floor(value), 0), columns - 1);
    const row = (/** @type {number} */ value) => Math.min(Math.max(Math.floor(value), 0), rows - 1);
    for (let e = 0; e < count; e++) {
      for (let v = starts[e], end = v + sizes[e] - 1; v < end; v++) {
        const [x0, y0] = this.inCells(v), [x1, y1] = this.inCells(v + 1);
        const low = row(Math.min(y0, y1)), high = row(Math.max(y0, y1));
        for (let r = low; r <= high; r++) {
          let a = x0, b = x1;
          if (low < high) {
            // The part of the segment within this row, with a margin for rounding.
            const s = (r - 1e-6 - y0) / (y1 - y0), t = (r + 1 + 1e-6 - y0) / (y1 - y0);
            const p = Math.min(Math.max(Math.min(s, t), 0), 1);
            const q = Math.min(Math.max(Math.max(s, t), 0), 1);
            a = x0 + p * (x1 - x0);
            b = x0 + q * (x1 - x0);
          }
          const last = column(Math.max(a, b) + 1e-6);
          for (let c = column(Math.min(a, b) - 1e-6); c <= last; c++) visit(r * columns + c, e, v);
        }
      }
    }
  }

  /** @param {number} v */
  inCells(v) {
    return [
      (this.x[v] * this.scaleX - this.west) / this.cell,
      (this.y[v] * this.scaleY - this.south) / this.cell,
    ];
  }

  /** Return the nearest place on a road. @param {Place} place @returns {Position} */
  snap([longitude, latitude]) {
    const px = longitude * this.scale[0], py = latitude * this.scale[1];
    const { cell, columns, rows } = this;
    const column = Math.floor((px - this.west) / cell), row = Math.floor((py - this.south) / cell);
    const best = { distance: Infinity, edge: -1, vertex: -1, along: 0 };
    const look = (/** @type {number} */ c) => {
      for (let k = this.cellFirst[c]; k < this.cellFirst[c + 1]; k++) {
        this.nearer(px, py, this.cellEdge[k], this.cellVertex[k], best);
      }
    };
    if (column < -2 || row < -2 || column > columns + 1 || row > rows + 1) {
      // Far outside, all rings of cells would be empty.
      for (let c = 0; c < columns * rows; c++) look(c);
    } else {
      for (let ring = 0; ring <= columns + rows + 4; ring++) {
        if (best.distance < (ring - 1) * cell) break;
        for (let r = row - ring; r <= row + ring; r++) {
          if (r < 0 || r >= rows) continue;
          const step = Math.abs(r - row) === ring ? 1 : Math.max(2 * ring, 1);
          for (let c = column - ring; c <= column + ring; c += step) {
            if (c >= 0 && c < columns) look(r * columns + c);
          }
        }
      }
    }
    const along = this.along(best.edge);
    const at = best.vertex - this.starts[best.edge];
    const total = along[along.length - 1];
    const length = along[at] + best.along * (along[at + 1] - along[at]);
    let share = Math.min(length / Math.max(total, 1e-9), 1);
    share = share < AT_END ? 0 : share > 1 - AT_END ? 1 : share;
    const point = this.part(best.edge, share, share)[0];
    return { edge: best.edge, share, distance: best.distance, at: point };
  }

  /**
   * @param {number} px @param {number} py @param {number} edge @param {number} v
   * @param {Nearest} best
   */
  nearer(px, py, edge, v, best) {
    const ax = this.x[v] * this.scaleX, ay = this.y[v] * this.scaleY;
    const dx = this.x[v + 1] * this.scaleX - ax, dy = this.y[v + 1] * this.scaleY - ay;
    const length = dx * dx + dy * dy;
    let along = length > 0 ? ((px - ax) * dx + (py - ay) * dy) / length : 0;
    along = Math.min(Math.max(along, 0), 1);
    const distance = Math.hypot(px - ax - along * dx, py - ay - along * dy);
    if (distance < best.distance || (distance === best.distance && edge < best.edge)) {
      best.distance = distance;
      best.edge = edge;
      best.vertex = v;
      best.along = along;
    }
  }

  /** Return the metres from the start of an edge to each of its vertices. @param {number} edge */
  along(edge) {
    const start = this.starts[edge], size = this.sizes[edge];
    const along = new Float64Array(size);
    for (let k = 1; k < size; k++) {
      const v = start + k;
      along[k] = along[k - 1] + Math.hypot(
        (this.x[v] - this.x[v - 1]) * this.scaleX, (this.y[v] - this.y[v - 1]) * this.scaleY);
    }
    return along;
  }

  /**
   * Return the part of an edge between two shares of its length, in that direction.
   * @param {number} edge @param {number} from @param {number} to
   * @returns {Place[]}
   */
  part(edge, from, to) {
    if (from > to) return this.part(edge, to, from).reverse();
    const along = this.along(edge), size = along.length, start = this.starts[edge];
    const total = Math.max(along[size - 1], 1e-9);
    /** @param {number} share @returns {Place} */
    const at = (share) => {
      const length = share * total;
      let k = 1;
      while (k < size - 1 && along[k] < length) k++;
      const step = along[k] - along[k - 1];
      const t = step > 0 ? Math.min(Math.max((length - along[k - 1]) / step, 0), 1) : 0;
      const v = start + k;
      return [
        (this.x[v - 1] + t * (this.x[v] - this.x[v - 1])) * UNIT,
        (this.y[v - 1] + t * (this.y[v] - this.y[v - 1])) * UNIT,
      ];
    };
    const line = [at(from)];
    for (let k = 0; k < size; k++) {
      const share = along[k] / total;
      if (share > from && share < to) line.push([this.x[start + k] * UNIT, this.y[start + k] * UNIT]);
    }
    line.push(at(to));
    return line;
  }

  /**
   * Return shortest times from a position to all nodes, up to a limit, and the edges to them. If
   * goals are given, only their times and those on the way to them are final.
   * @param {Position} start @param {number} limit @param {number[]} goals
   * @returns {Reached}
   */
  timesFrom(start, limit, goals = []) {
    const times = new Float64Array(this.nodes).fill(Infinity);
    const before = new Int32Array(this.nodes).fill(-1);
    const leftAt = new Map();
    const heap = new Heap(1024);
    const { edge, share } = start, a = this.ends[2 * edge], b = this.ends[2 * edge + 1];
    /** @param {number} node @param {number} seconds @param {number} end */
    const leave = (node, seconds, end) => {
      seconds = Math.max(seconds, 1e-9);
      if (seconds >= times[node] || seconds > limit) return;
      times[node] = seconds;
      leftAt.set(node, end);
      heap.push(seconds, node);
    };
    if (this.directions[edge] >= 0 || share === 1) leave(b, (1 - share) * this.times[edge], 1);
    if (this.directions[edge] <= 0 || share === 0) leave(a, share * this.times[edge], 0);
    const done = new Uint8Array(this.nodes);
    let open = new Set(goals).size || Infinity;
    while (heap.size) {
      const node = heap.pop();
      if (done[node]) continue;
      done[node] = 1;
      if (goals.includes(node) && --open === 0) break;
      for (let k = this.first[node]; k < this.first[node + 1]; k++) {
        const next = this.to[k];
        const seconds = times[node] + Math.max(this.times[this.edge[k]], 1e-9);
        if (seconds < times[next] && seconds <= limit) {
          times[next] = seconds;
          before[next] = k;
          leftAt.delete(next);
          heap.push(seconds, next);
        }
      }
    }
    return { times, before, leftAt };
  }

  /**
   * Return the fastest route between two places; `time` is null if there is none.
   * @param {Place} from @param {Place} to
   * @returns {RouteResult}
   */
  route(from, to) {
    const start = this.snap(from), end = this.snap(to);
    /** @type {Ends} */
    const ends = { start: start.at, end: end.at, distances: [start.distance, end.distance] };
    const { edge, share } = end, whole = this.times[edge], direction = this.directions[edge];
    const a = this.ends[2 * edge], b = this.ends[2 * edge + 1];
    const fromA = direction >= 0 || share === 0, fromB = direction <= 0 || share === 1;
    const reached = this.timesFrom(start, Infinity, [...(fromA ? [a] : []), ...(fromB ? [b] : [])]);
    let best = { time: Infinity, node: -1, entered: 0 };
    /** @param {number} time @param {number} node @param {number} entered */
    const offer = (time, node, entered) => {
      if (time < best.time) best = { time, node, entered };
    };
    if (start.edge === edge && direction * (share - start.share) >= 0) {
      offer(Math.abs(share - start.share) * whole, -1, 0);
    }
    if (fromA) offer(reached.times[a] + share * whole, a, 0);
    if (fromB) offer(reached.times[b] + (1 - share) * whole, b, 1);
    if (!Number.isFinite(best.time)) return { time: null, ...ends };
    /** @type {Piece[]} */
    const pieces = best.node < 0
      ? [[edge, start.share, share]]
      : this.pieces(reached, start, end, best);
    const parts = pieces.map((piece) => this.part(...piece));
    const lengths = pieces.map(([e, s, t]) => Math.abs(t - s) * this.lengths[e]);
    const line = [...parts[0]];
    for (const part of parts.slice(1)) for (const place of part.slice(1)) line.push(place);
    return {
      time: best.time,
      length: lengths.reduce((sum, each) => sum + each, 0),
      line,
      turns: this.turns(pieces, parts, lengths),
      firstEdge: pieces[0][0],
      ...ends,
    };
  }

  /**
   * @param {Reached} reached @param {Position} start @param {Position} end
   * @param {{node: number, entered: number}} best
   */
  pieces(reached, start, end, best) {
    /** @type {Piece[]} */
    const steps = [];
    let node = best.node;
    while (!reached.leftAt.has(node)) {
      const k = reached.before[node], edge = this.edge[k];
      // A step belongs to the node whose range of steps holds it.
      const isForward = this.ends[2 * edge + 1] === node && this.directions[edge] >= 0
        && k >= this.first[this.ends[2 * edge]] && k < this.first[this.ends[2 * edge] + 1];
      steps.push(isForward ? [edge, 0, 1] : [edge, 1, 0]);
      node = this.ends[2 * edge + (isForward ? 0 : 1)];
    }
    steps.push([start.edge, start.share, /** @type {number} */ (reached.leftAt.get(node))]);
    steps.reverse();
    steps.push([end.edge, best.entered, end.share]);
    const moved = steps.filter(([, s, t]) => s !== t);
    return moved.length ? moved : steps.slice(0, 1);
  }

  /** @param {Piece[]} pieces @param {Place[][]} parts @param {number[]} lengths */
  turns(pieces, parts, lengths) {
    /** @type {Turn[]} */
    const turns = [];
    let after = 0;
    for (let k = 0; k + 1 < parts.length; k++) {
      after += lengths[k];
      const part = parts[k], next = parts[k + 1], n = part.length;
      const x = (part[n - 1][0] - part[n - 2][0]) * this.scale[0];
      const y = (part[n - 1][1] - part[n - 2][1]) * this.scale[1];
      const u = (next[1][0] - next[0][0]) * this.scale[0];
      const v = (next[1][1] - next[0][1]) * this.scale[1];
      const angle = (Math.atan2(x * v - y * u, x * u + y * v) * 180) / Math.PI;
      const size = Math.abs(angle);
      if (size < STRAIGHT) continue;
      const side = angle > 0 ? "left" : "right";
      const words = size > BACK ? "turn back" : size > SHARP ? `sharp ${side}` : side;
      turns.push({ words, after, at: next[0], edge: pieces[k + 1][0] });
    }
    return turns;
  }

  /**
   * Return the parts of roads that can be reached in each of several times, the shortest first.
   * @param {Place} from @param {number[]} minutes
   * @returns {ReachResult}
   */
  reach(from, minutes) {
    const start = this.snap(from);
    const { times } = this.timesFrom(start, 60 * Math.max(...minutes));
    const results = minutes.map((each) => ({ minutes: each, length: 0, parts: new Parts() }));
    for (let e = 0; e < this.count; e++) {
      let isWhole = false;
      for (const result of results) {
        if (isWhole) {
          result.length += this.lengths[e];
          continue;
        }
        for (const [low, high] of this.reached(e, times, start, 60 * result.minutes)) {
          result.length += (high - low) * this.lengths[e];
          isWhole = low === 0 && high === 1;
          if (isWhole) result.parts.addWhole(this.x, this.y, this.starts[e], this.sizes[e]);
          else result.parts.add(this.part(e, low, high));
        }
      }
    }
    const found = results.map(({ minutes: each, length, parts }) => ({ minutes: each, length, ...parts.packed() }));
    return { found, start: start.at, distance: start.distance };
  }

  /** @param {number} e @param {Float64Array} times @param {Position} start @param {number} seconds */
  reached(e, times, start, seconds) {
    const a = seconds - times[this.ends[2 * e]], b = seconds - times[this.ends[2 * e + 1]];
    const direction = this.directions[e];
    const isStart = e === start.edge;
    if (!isStart && !(a > 0) && !(b > 0)) return [];
    const whole = Math.max(this.times[e], 1e-9);
    /** @type {[number, number][]} */
    const spans = [];
    if (direction >= 0 && a > 0) spans.push([0, Math.min(a / whole, 1)]);
    if (direction <= 0 && b > 0) spans.push([Math.max(1 - b / whole, 0), 1]);
    if (isStart) {
      const share = seconds / whole;
      spans.push([
        direction > 0 ? start.share : Math.max(start.share - share, 0),
        direction < 0 ? start.share : Math.min(start.share + share, 1),
      ]);
    }
    /** @type {[number, number][]} */
    const united = [];
    for (const [low, high] of spans.filter(([s, t]) => t > s).sort((s, t) => s[0] - t[0])) {
      const last = united[united.length - 1];
      if (last && low <= last[1]) last[1] = Math.max(last[1], high);
      else united.push([low, high]);
    }
    return united;
  }
}

/** @type {Router | null} */
let router = null;
self.onmessage = ({ data: { id, task, args } }) => {
  try {
    if (task === "network") router = new Router(args[0]);
    else if (!router) throw new Error("no network");
    const result = task === "route" ? router?.route(args[0], args[1])
      : task === "reach" ? router?.reach(args[0], args[1]) : null;
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: String(error) });
  }
};
