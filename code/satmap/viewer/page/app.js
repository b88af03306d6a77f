"use strict";
// @ts-check
// The map, its panel, and routes on it. `window.satmap` is for scripts and tests.

/** @typedef {maplibregl.PointLike & {x: number, y: number}} Pixel */
/** @typedef {{layer: keyof typeof satmap.HOVERED, number: number, shapes: Shapes}} Hit a shape under the pointer */
/** @typedef {[zoom: number, width: number][]} Stops */
/** @typedef {Extract<maplibregl.LayerSpecification, {type: "line"}>} LineLayer */
/** @typedef {"inspect" | "route" | "reach"} Mode */
/** @typedef {"result" | "truth" | "swipe" | "compare"} Shown */
/** @typedef {"route" | "truth-route" | "hover"} Mark */
/** @typedef {(task: string, ...args: any[]) => Promise<any>} Ask asks a worker */
/**
 * @typedef {object} State
 * @property {Mode} mode
 * @property {string} roadColour
 * @property {string} buildingColour
 * @property {number} least confidence that is shown
 * @property {boolean} roads
 * @property {boolean} buildings
 * @property {boolean} imagery
 * @property {number} opacity of the imagery, percent
 * @property {Shown} truth
 * @property {number} swipe share of the width that shows the result
 * @property {"kmh" | "mph"} unit
 * @property {"light" | "dark"} theme
 * @property {Place[]} route
 * @property {Place | null} reach
 * @property {number} minutes number of the times of reach
 */

const satmap = (() => {
  const { units, duration, percent, roadColours, buildingColours } = satmapStyle;
  const element = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));
  const input = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (document.getElementById(id));
  /** The buttons of a group. */
  const buttonsOf = (/** @type {string} */ id) =>
    /** @type {HTMLButtonElement[]} */ ([...element(id).children]);
  const CASING = { light: "#2b2f36", dark: "#000000" };
  const GROUND = { light: "#eceae4", dark: "#12151a" };
  const REACH = ["#fff3b0", "#fdae61", "#d7301f"];
  const MINUTES = [[1, 2, 3], [5, 10, 15], [10, 20, 30]];
  const FOUND = "#56b4e9", MISSED = "#cc79a7", FALSE = "#d55e00";
  // Widths in pixels at zoom levels.
  /** @type {Stops} */
  const ROAD_WIDTH = [[9, 0.8], [13, 2], [16, 4.5], [19, 11]];
  /** @type {Stops} */
  const CASING_WIDTH = [[9, 1.2], [13, 3.4], [16, 7], [19, 15]];
  /** @type {Stops} */
  const OUTLINE_WIDTH = [[12, 0.4], [17, 1.6]];
  /** @type {Stops} */
  const ROUTE_WIDTH = [[9, 3], [13, 5], [16, 9], [19, 18]];
  /** @type {Stops} */
  const ROUTE_CASING = [[9, 5], [13, 9], [16, 14], [19, 25]];
  /** @type {Stops} */
  const HOVER_WIDTH = [[10, 2], [18, 5]];
  const BASE = 1.35;
  /** @type {Shown[]} */
  const SHOWN = ["result", "truth", "swipe", "compare"];
  // From this zoom level on, lines have casings and areas have outlines.
  const DETAIL_ZOOM = 12, ARROW_ZOOM = 14;
  // How far the pointer may be from a road, in pixels.
  const REACH_PX = 6;
  /** @type {("roads" | "buildings")[]} */
  const KINDS = ["roads", "buildings"];

  /** @type {State} */
  const state = {
    mode: "inspect", roadColour: "", buildingColour: "", least: 0, roads: true, buildings: true,
    imagery: true, opacity: 100, truth: "result", swipe: 0.5, unit: "kmh", theme: "light",
    route: [], reach: null, minutes: 1,
  };
  /** @type {maplibregl.Map} */
  let map;
  /** @type {maplibregl.ScaleControl} */
  let scale;
  /** @type {Header} */
  let header;
  /** @type {Shapes} */
  let roads;
  /** @type {Shapes} */
  let buildings;
  /** @type {ReturnType<typeof satmapData.network> | undefined} */
  let network;
  /** @type {{roads: Shapes, buildings: Shapes, missedRoads: Shapes, falseRoads: Shapes, compared: Shapes, kinds: Int8Array} | undefined} */
  let truth;
  /** @type {Record<string, Drawing>} what is drawn, by name */
  const drawings = {};
  /** @type {Drawing[]} the roads that can be reached, for each time */
  let reached = [];
  /** @type {ShapesLayer | undefined} */
  let shapesLayer;
  /** @type {Record<string, Colouring>} */
  let roadChoices = {};
  /** @type {Record<string, Colouring>} */
  let buildingChoices = {};
  /** @type {maplibregl.Marker[]} */
  let markers = [];
  let hovered = "";
  /** @type {{result?: Ask, truth?: Ask}} */
  const routers = {};

  // --- small helpers ------------------------------------------------------------------------------

  /**
   * Make an element; all text is set as text.
   * @param {string} tag @param {Record<string, any>} properties @param {(string | Node)[]} children
   */
  function make(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "class") made.className = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  /** @typedef {{type: "Feature", properties: Record<string, any>, geometry: any}} Feature */
  /** @param {Feature[]} features @returns {{type: "FeatureCollection", features: Feature[]}} */
  const collection = (features) => ({ type: "FeatureCollection", features });
  /** @param {Place[]} line @returns {Feature} */
  const lineOf = (line) => ({ type: "Feature", properties: {}, geometry: { type: "LineString", coordinates: line } });
  /** @param {Place[][]} lines @param {Record<string, any>} properties @returns {Feature} */
  const linesOf = (lines, properties = {}) =>
    ({ type: "Feature", properties, geometry: { type: "MultiLineString", coordinates: lines } });
  const say = (/** @type {string} */ text) => { element("status").textContent = text; };
  const unit = () => units[state.unit];
  /** @param {number} count @param {string} noun */
  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  /** @param {maplibregl.LngLat} at @returns {Place} */
  const placeOf = ({ lng, lat }) => [lng, lat];

  // --- routing in a worker ------------------------------------------------------------------------

  /** @param {Network} forWorker @returns {Ask} */
  function startRouter(forWorker) {
    const source = element("satmap-routing").textContent ?? "";
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    /** @type {Map<number, {resolve: (result: any) => void, reject: (error: Error) => void}>} */
    const waiting = new Map();
    let last = 0;
    worker.onmessage = ({ data }) => {
      const asked = waiting.get(data.id);
      waiting.delete(data.id);
      if (data.error) asked?.reject(new Error(data.error));
      else asked?.resolve(data.result);
    };
    /** @type {Ask} */
    const ask = (task, ...args) => new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject });
      worker.postMessage({ id: last, task, args });
    });
    ask("network", forWorker);
    return ask;
  }

  // --- the map ------------------------------------------------------------------------------------

  /** Return the source of the imagery, if there is any. @returns {maplibregl.SourceSpecification | null} */
  function imagerySource() {
    if (header.tiles) {
      return {
        type: "raster", tileSize: 256, ...header.tiles,
        tiles: [`${location.origin}/tiles/{z}/{x}/{y}.webp`],
      };
    }
    if (!header.corners) return null;
    const image = new Blob([satmapData.bytesOf("satmap-image")], { type: "image/webp" });
    return { type: "image", url: URL.createObjectURL(image), coordinates: header.corners };
  }

  /** @param {Stops} stops @returns {any} an expression of MapLibre */
  const byZoom = (stops) => ["interpolate", ["exponential", BASE], ["zoom"], ...stops.flat()];

  /** Return the number at a zoom level between stops, as MapLibre interpolates it. @param {Stops} stops @param {number} zoom */
  function atZoom(stops, zoom) {
    const next = stops.findIndex(([each]) => each > zoom);
    if (next === 0) return stops[0][1];
    if (next < 0) return stops[stops.length - 1][1];
    const [low, from] = stops[next - 1], [high, to] = stops[next];
    return from + ((to - from) * (BASE ** (zoom - low) - 1)) / (BASE ** (high - low) - 1);
  }

  /** Return the layers of routes and other marks, the lowest first. */
  function markLayers() {
    /**
     * @param {string} id @param {Mark} source @param {string} colour
     * @param {Stops} stops @returns {LineLayer}
     */
    const line = (id, source, colour, stops) => ({
      id, source, type: "line", layout: { "line-cap": "round", "line-join": "round" },
      paint: { "line-color": colour, "line-width": byZoom(stops) },
    });
    /** @type {LineLayer} */
    const dashed = {
      ...line("truth-route", "truth-route", "#ffffff", ROAD_WIDTH), layout: { "line-join": "round" },
    };
    dashed.paint = { ...dashed.paint, "line-dasharray": [2, 1.2] };
    return [
      line("route-casing", "route", "#ffffff", ROUTE_CASING),
      line("route", "route", "#1463b8", ROUTE_WIDTH),
      dashed,
      line("hover", "hover", "#ffffff", HOVER_WIDTH),
    ];
  }

  /**
   * Show lines as a route or another mark. Sources are made when they are first used.
   * @param {Mark} id @param {Feature[]} features
   */
  function mark(id, features) {
    const source = /** @type {maplibregl.GeoJSONSource | undefined} */ (map.getSource(id));
    if (source) {
      source.setData(collection(features));
    } else if (features.length) {
      map.addSource(id, { type: "geojson", data: collection(features), tolerance: 0.4 });
      const all = markLayers();
      all.forEach((layer, k) => {
        if (layer.source !== id) return;
        const above = all.slice(k + 1).find((each) => map.getLayer(each.id));
        map.addLayer(layer, above?.id);
      });
    }
  }

  /** Draw roads, buildings and what can be reached; called for each frame. @param {ShapesLayer} layer */
  function drawShapes(layer) {
    drawSides(layer);
    layer.clip(0, 1);
    // The shortest times are on top.
    for (const drawing of [...reached].reverse()) layer.drawLines(drawing, { width: atZoom(CASING_WIDTH, layer.zoom) });
  }

  /** @param {ShapesLayer} layer */
  function drawSides(layer) {
    if (state.truth === "compare") {
      if (state.buildings && drawings.compared) drawBuildings(layer, drawings.compared, 0);
      if (!state.roads) return;
      drawRoads(layer, drawings.roads, 0, FOUND);
      for (const [name, colour] of [["missed", MISSED], ["false", FALSE]]) {
        drawRoads(layer, drawings[name], 0, colour);
      }
      return;
    }
    const isSwipe = state.truth === "swipe";
    if (state.truth !== "truth") {
      if (isSwipe) layer.clip(0, state.swipe);
      drawSide(layer, "", Math.round(100 * state.least));
    }
    if (state.truth !== "result") {
      if (isSwipe) layer.clip(state.swipe, 1);
      drawSide(layer, "truth-", 0);
    }
  }

  /** @param {ShapesLayer} layer @param {"" | "truth-"} prefix @param {number} least percent */
  function drawSide(layer, prefix, least) {
    if (state.buildings) drawBuildings(layer, drawings[`${prefix}buildings`], least);
    if (state.roads) drawRoads(layer, drawings[`${prefix}roads`], least);
  }

  /** @param {ShapesLayer} layer @param {Drawing | undefined} drawing @param {number} least percent */
  function drawBuildings(layer, drawing, least) {
    if (!drawing) return;
    layer.drawAreas(drawing, { opacity: 0.5, least });
    if (layer.zoom >= DETAIL_ZOOM) layer.drawLines(drawing, { width: atZoom(OUTLINE_WIDTH, layer.zoom), least });
  }

  /**
   * @param {ShapesLayer} layer @param {Drawing | undefined} drawing @param {number} least percent
   * @param {string} [colour] instead of those of the roads
   */
  function drawRoads(layer, drawing, least, colour) {
    if (!drawing) return;
    const width = atZoom(ROAD_WIDTH, layer.zoom), casing = atZoom(CASING_WIDTH, layer.zoom);
    // Upper levels are drawn once more, above the others.
    for (const upper of drawing.hasUpper ? [false, true] : [false]) {
      if (layer.zoom >= DETAIL_ZOOM) layer.drawLines(drawing, { width: casing, colour: CASING[state.theme], least, upper });
      layer.drawLines(drawing, { width, colour, least, upper });
    }
    if (layer.zoom >= ARROW_ZOOM) {
      layer.drawArrows(drawing, { reach: atZoom([[14, 4], [16, 5.5], [19, 9]], layer.zoom), spacing: 90, least });
    }
  }

  /** Return the place that drawings are relative to. @returns {Place} */
  function middle() {
    const [west, south, east, north] = header.bounds;
    return [(west + east) / 2, (south + north) / 2];
  }

  /** Prepare what is drawn. */
  function makeDrawings() {
    /** @param {string} name @param {Shapes} shapes @param {boolean} isArea */
    const add = (name, shapes, isArea) => {
      if (shapes.count) drawings[name] = new satmapDraw.Drawing(shapes, isArea, middle());
    };
    add("roads", roads, false);
    add("buildings", buildings, true);
    if (!truth) return;
    add("truth-roads", truth.roads, false);
    add("truth-buildings", truth.buildings, true);
    add("missed", truth.missedRoads, false);
    add("false", truth.falseRoads, false);
    add("compared", truth.compared, true);
    const { kinds } = truth;
    drawings.compared?.colour((k) => kinds[k], [FOUND, MISSED, FALSE]);
  }

  /** Put roads and buildings below routes. */
  function addShapes() {
    const above = markLayers().find((each) => map.getLayer(each.id));
    shapesLayer = new satmapDraw.Layer(map, drawShapes);
    map.addLayer(shapesLayer, above?.id);
  }

  /** @param {Partial<maplibregl.MapOptions>} view */
  function startMap(view) {
    const imagery = imagerySource();
    /** @type {maplibregl.LayerSpecification} */
    const ground = { id: "ground", type: "background", paint: { "background-color": GROUND[state.theme] } };
    /** @type {maplibregl.LayerSpecification} */
    const photo = { id: "imagery", type: "raster", source: "imagery", paint: { "raster-fade-duration": 150 } };
    map = new maplibregl.Map({
      container: "map",
      style: {
        version: 8, sources: imagery ? { imagery } : {}, layers: imagery ? [ground, photo] : [ground],
      },
      bounds: header.bounds,
      fitBoundsOptions: { padding: padding(), maxZoom: 18 },
      ...view,
      attributionControl: false,
      maxZoom: 22,
      maxPitch: 0,
      fadeDuration: 0,
      canvasContextAttributes: { preserveDrawingBuffer: true },
    });
    map.addControl(new maplibregl.NavigationControl({ visualizePitch: false }), "top-right");
    scale = new maplibregl.ScaleControl({ maxWidth: 120, unit: unit().scale });
    map.addControl(scale, "bottom-left");
    map.getCanvas().setAttribute("aria-label", "Map. Arrows move it, plus and minus zoom.");
    map.once("style.load", addShapes);
    map.on("webglcontextrestored", () => {
      for (const drawing of [...Object.values(drawings), ...reached]) drawing.forget();
      map.once("style.load", addShapes);
    });
    map.on("mousemove", hover);
    map.on("mouseout", () => showTip(null));
    map.on("click", ({ lngLat, point }) => act(placeOf(lngLat), point));
    map.on("moveend", savePermalink);
  }

  const padding = () => (innerWidth > 600
    ? { top: 30, bottom: 40, left: 310, right: 60 }
    : { top: 30, bottom: innerHeight * 0.5, left: 20, right: 50 });

  const HOVERED = { roads: "road", buildings: "building", "truth-roads": "true road", "truth-buildings": "true building" };

  /** Return the shape under the pointer. @param {Pixel} point @returns {Hit | null} */
  function under(point) {
    if (state.truth === "compare") {
      // Only the result has attributes there.
      return state.roads ? foundIn("", ["roads"], point) : null;
    }
    const isTruth = state.truth === "truth" || (state.truth === "swipe" && point.x > state.swipe * map.getCanvas().clientWidth);
    return foundIn(isTruth ? "truth-" : "", KINDS.filter((name) => state[name]), point);
  }

  /** @param {"" | "truth-"} prefix @param {("roads" | "buildings")[]} names @param {Pixel} point @returns {Hit | null} */
  function foundIn(prefix, names, point) {
    const place = placeOf(map.unproject(point));
    const reach = REACH_PX / (512 * 2 ** map.getZoom());
    for (const name of names) {
      const drawing = drawings[prefix + name];
      const number = drawing ? drawing.find(place, reach, prefix ? 0 : Math.round(100 * state.least)) : -1;
      if (number >= 0) return { layer: `${prefix}${name}`, number, shapes: drawing.shapes };
    }
    return null;
  }

  /** @param {{point: Pixel}} event */
  function hover({ point }) {
    const hit = under(point);
    map.getCanvas().style.cursor = state.mode !== "inspect" ? "crosshair" : hit ? "pointer" : "";
    const key = hit ? `${hit.layer} ${hit.number}` : "";
    if (key !== hovered) {
      hovered = key;
      mark("hover", hit ? [outline(hit)] : []);
    }
    showTip(hit, point);
    const { lng, lat } = map.unproject(point);
    element("place").textContent = `${lat.toFixed(5)}, ${lng.toFixed(5)}`;
  }

  /** @param {Hit} hit */
  const outline = ({ number, shapes }) => linesOf(shapes.ringsOf(number));

  /** @param {Hit | null} hit @param {Pixel} [point] */
  function showTip(hit, point) {
    const tip = element("tip");
    tip.hidden = !hit;
    if (!hit || !point) {
      if (hovered) mark("hover", []);
      hovered = "";
      return;
    }
    tip.textContent = facts(hit).map(([, value]) => value).join(" · ");
    const right = point.x > innerWidth - 280;
    tip.style.left = right ? "auto" : `${point.x + 14}px`;
    tip.style.right = right ? `${innerWidth - point.x + 14}px` : "auto";
    tip.style.top = `${Math.min(point.y + 14, innerHeight - 40)}px`;
  }

  /** Return what satmap knows of a shape: names and values. @param {Hit} hit */
  function facts({ number, shapes }) {
    /** @type {[string, string][]} */
    const found = [];
    if (shapes.speed && shapes.length && shapes.time && shapes.direction) {
      found.push(["Speed", unit().speed(shapes.speed[number])]);
      found.push(["Length", unit().length(shapes.length[number])]);
      found.push(["Travel time", duration(shapes.time[number])]);
      if (shapes.direction[number]) found.push(["Direction", "one way"]);
      if (shapes.width && !Number.isNaN(shapes.width[number])) found.push(["Width", unit().length(shapes.width[number])]);
      if (shapes.deck?.[number]) found.push(["Deck", shapes.deck[number] > 0 ? "bridge or above" : "tunnel or below"]);
    } else if (shapes.area) {
      found.push(["Area", unit().area(shapes.area[number])]);
    }
    const confidence = shapes.confidence[number];
    if (!Number.isNaN(confidence)) found.push([shapes.confidenceName, percent(confidence)]);
    return found;
  }

  /** @param {Hit | null} hit */
  function showDetails(hit) {
    const box = element("details");
    box.hidden = !hit;
    if (!hit) return;
    /** @param {[string, string][]} pairs */
    const list = (pairs) => {
      const dl = make("dl");
      for (const [name, value] of pairs) dl.append(make("dt", {}, name), make("dd", {}, value));
      return dl;
    };
    const shown = (/** @type {string | number} */ value) => (typeof value === "number" ? valueText(value) : value);
    const kind = HOVERED[hit.layer];
    const title = hit.shapes.text("name", hit.number) || kind[0].toUpperCase() + kind.slice(1);
    /** @type {[string, string][]} */
    const own = hit.shapes.properties(hit.number).map(([name, value]) => [name, shown(value)]);
    box.replaceChildren(
      make("header", {}, make("h2", {}, title),
        make("button", { class: "plain", "aria-label": "Close", onclick: () => showDetails(null) }, "✕")),
      list(facts(hit)),
    );
    if (own.length) box.append(make("section", {}, list(own)));
    say(`${title}. ${facts(hit).map((pair) => pair.join(" ")).join(", ")}`);
  }

  const valueText = (/** @type {number} */ value) =>
    Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));

  // --- clicks, routes, reach ----------------------------------------------------------------------

  /** @param {Place} place @param {Pixel} point */
  function act(place, point) {
    if (state.mode === "route") {
      state.route = state.route.length === 1 ? [...state.route, place] : [place];
      return showTravel();
    }
    if (state.mode === "reach") {
      state.reach = place;
      return showTravel();
    }
    showDetails(under(point));
    return Promise.resolve();
  }

  /** @param {Place} place @param {string} label @param {(place: Place) => void} moved */
  function pin(place, label, moved, isEnd = false) {
    const body = make("div", { class: isEnd ? "pin end" : "pin" }, label);
    const marker = new maplibregl.Marker({ element: body, draggable: true }).setLngLat(place).addTo(map);
    marker.on("dragend", () => {
      moved(placeOf(marker.getLngLat()));
      showTravel();
    });
    markers.push(marker);
    return marker;
  }

  function clearTravel() {
    if (!markers.length) return;
    for (const marker of markers) marker.remove();
    markers = [];
    mark("route", []);
    mark("truth-route", []);
    setReached([]);
  }

  let asked = 0;

  /** Compute and show the route or the reach of the current mode. */
  async function showTravel() {
    const number = ++asked;
    clearTravel();
    savePermalink();
    const box = element("travel");
    box.hidden = state.mode === "inspect";
    if (state.mode === "route") {
      const [from, to] = state.route;
      const pins = state.route.map((place, k) => pin(place, "AB"[k], (moved) => { state.route[k] = moved; }, k === 1));
      if (!to) {
        hint(from ? "Click where the route ends." : "Click where the route starts.");
        return;
      }
      /** @type {RouteResult} */
      const found = await routers.result?.("route", from, to);
      /** @type {RouteResult | null} */
      const other = routers.truth ? await routers.truth("route", from, to) : null;
      if (number !== asked) return;
      pins[0].setLngLat(found.start);
      pins[1].setLngLat(found.end);
      showRoute(found, other);
    } else if (state.mode === "reach") {
      if (!state.reach) {
        hint(`Click a place to see what can be reached in ${MINUTES[state.minutes].join(", ")} minutes.`);
        return;
      }
      const marker = pin(state.reach, "●", (moved) => { state.reach = moved; });
      /** @type {ReachResult} */
      const found = await routers.result?.("reach", state.reach, MINUTES[state.minutes]);
      if (number !== asked) return;
      marker.setLngLat(found.start);
      showReach(found);
    }
  }

  /** @param {string} text */
  function hint(text) {
    element("travel").replaceChildren(make("p", { class: "hint" }, text));
    say(text);
  }

  /** @type {Record<string, string>} */
  const ICONS = { left: "↰", right: "↱", "sharp left": "↲", "sharp right": "↳", "turn back": "↶" };

  /** @param {number} time @param {number} length */
  function figures(time, length) {
    return make("div", { class: "figures" }, make("b", {}, duration(time)), make("span", {}, unit().length(length)));
  }

  /** @param {number} edge */
  function roadName(edge) {
    return network ? roads.text("name", network.road[edge]) : null;
  }

  /** @param {RouteResult} found @param {RouteResult | null} other */
  function showRoute(found, other) {
    const box = element("travel");
    const far = Math.max(...found.distances) > 100
      ? [make("p", { class: "hint" }, `A point was moved ${unit().length(Math.max(...found.distances))} to the nearest road.`)]
      : [];
    if (found.time === null) {
      box.replaceChildren(make("p", {}, "There is no route: the roads are not connected, or one-way."), ...far, travelButtons());
      say("There is no route.");
    } else {
      const list = make("ol");
      /** @param {string} icon @param {string} words @param {string} after @param {Place} at */
      const item = (icon, words, after, at) => list.append(make("li", {}, make("button",
        { onclick: () => map.easeTo({ center: at, zoom: Math.max(map.getZoom(), 17) }) },
        make("span", { class: "icon" }, icon), make("span", { class: "words" }, words),
        make("span", { class: "after" }, after))));
      const name = roadName(found.firstEdge);
      item("●", name ? `Start on ${name}` : "Start", "", found.start);
      let before = 0;
      for (const turn of found.turns) {
        const onto = roadName(turn.edge);
        const words = turn.words === "turn back" ? "Turn back" : `Turn ${turn.words}`;
        item(ICONS[turn.words], onto ? `${words} onto ${onto}` : words, unit().length(turn.after - before), turn.at);
        before = turn.after;
      }
      item("■", "Arrive", unit().length(found.length - before), found.end);
      box.replaceChildren(figures(found.time, found.length), ...compared(found, other), ...far, list, travelButtons());
      mark("route", [lineOf(found.line)]);
      say(`Route: ${duration(found.time)}, ${unit().length(found.length)}, ${plural(found.turns.length, "turn")}.`);
    }
    mark("truth-route", other && other.time !== null ? [lineOf(other.line)] : []);
  }

  /** Return the text that compares a route with that in the truth. @param {FoundRoute} found @param {RouteResult | null} other */
  function compared(found, other) {
    if (!other) return [];
    if (other.time === null) return [make("p", { class: "hint" }, "The truth has no such route.")];
    const share = Math.round((100 * (found.time - other.time)) / Math.max(other.time, 1e-9));
    const words = share === 0 ? "the same" : `${Math.abs(share)} % ${share > 0 ? "slower" : "faster"} here`;
    return [make("p", { class: "hint" },
      `In the truth: ${duration(other.time)}, ${unit().length(other.length)} (${words}).`)];
  }

  function travelButtons() {
    const buttons = [make("button", { onclick: clear }, "Clear")];
    if (state.mode === "route") {
      buttons.unshift(make("button", { onclick: () => { state.route.reverse(); showTravel(); } }, "Reverse"));
    }
    if (state.mode === "reach") {
      const choice = make("select", {
        "aria-label": "Times",
        onchange: (/** @type {any} */ event) => { state.minutes = Number(event.target.value); showTravel(); },
      });
      MINUTES.forEach((minutes, k) => {
        const option = /** @type {HTMLOptionElement} */ (make("option", { value: k }, `${minutes.join(", ")} min`));
        option.selected = k === state.minutes;
        choice.append(option);
      });
      buttons.push(choice);
    }
    return make("div", { class: "buttons" }, ...buttons);
  }

  /** Show the roads that are reached in each of several times. @param {ReachedIn[]} found */
  function setReached(found) {
    for (const drawing of reached) shapesLayer?.free(drawing);
    reached = found.filter(({ sizes }) => sizes.length).map(({ sizes, x, y, minutes }) => {
      const count = sizes.length, unknown = new Float32Array(count).fill(NaN);
      const arrays = [new Int32Array(count).fill(1), sizes, x, y, unknown];
      const header = { count, rings: 0, sizes: 1, x: 2, y: 3, confidence: 4, columns: [] };
      const shapes = new satmapData.Shapes(/** @type {any} */ (header), (k) => arrays[k]);
      const drawing = new satmapDraw.Drawing(shapes, false, middle());
      drawing.colour(() => 0, [REACH[MINUTES[state.minutes].indexOf(minutes)]]);
      return drawing;
    });
    map.triggerRepaint();
  }

  /** @param {ReachResult} result */
  function showReach(result) {
    setReached(result.found);
    const legend = make("div", { class: "legend" });
    result.found.forEach(({ minutes, length }, k) => {
      const swatch = make("i");
      swatch.style.background = REACH[k];
      legend.append(make("div", {}, swatch, `${plural(minutes, "minute")}: ${unit().length(length)} of roads`));
    });
    element("travel").replaceChildren(legend, travelButtons());
    say(result.found.map((each) => `${plural(each.minutes, "minute")}: ${unit().length(each.length)}`).join(", "));
  }

  function clear() {
    state.route = [];
    state.reach = null;
    showDetails(null);
    return showTravel();
  }

  /** @param {Mode} mode */
  function setMode(mode) {
    if (mode !== "inspect" && !network) return Promise.resolve();
    state.mode = mode;
    document.body.dataset.mode = mode;
    for (const button of buttonsOf("modes")) {
      button.setAttribute("aria-checked", String(button.dataset.mode === mode));
    }
    if (mode !== "inspect") showDetails(null);
    return showTravel();
  }

  // --- appearance ---------------------------------------------------------------------------------

  function applyTheme() {
    document.documentElement.dataset.theme = state.theme;
    element("theme").textContent = state.theme === "dark" ? "Light" : "Dark";
    element("theme").setAttribute("aria-label", state.theme === "dark" ? "Use light colours" : "Use dark colours");
    if (map) map.setPaintProperty("ground", "background-color", GROUND[state.theme]);
  }

  /** @param {HTMLElement} select @param {Record<string, Colouring>} choices @param {string} chosen */
  function fillChoices(select, choices, chosen) {
    select.replaceChildren(...Object.entries(choices).map(([id, { label }]) => {
      const option = /** @type {HTMLOptionElement} */ (make("option", { value: id }, label));
      option.selected = id === chosen;
      return option;
    }));
  }

  /** @param {HTMLElement} box @param {Colouring["legend"]} legend */
  function showLegend(box, legend) {
    box.replaceChildren();
    if (!legend) return;
    legend.labels.forEach((label, k) => {
      const swatch = make("i");
      swatch.style.background = legend.colours[k];
      box.append(make("div", {}, swatch, label));
    });
  }

  /**
   * Return the first colouring that gives the shapes more than one colour, or the first.
   * @param {Record<string, Colouring>} choices @param {Shapes} shapes
   */
  function telling(choices, shapes) {
    const found = ["speed", "confidence", "class", "width", "area", "time"].find((id) => {
      if (!(id in choices)) return false;
      const colourOf = choices[id].colourOf(shapes), first = colourOf(0);
      for (let k = 1; k < shapes.count; k++) if (colourOf(k) !== first) return true;
      return false;
    });
    return found ?? Object.keys(choices)[0];
  }

  /** Bring the map and the panel in line with the state. */
  function apply() {
    roadChoices = roadColours(roads, state.unit);
    buildingChoices = buildingColours(buildings, state.unit);
    if (!(state.roadColour in roadChoices)) state.roadColour = telling(roadChoices, roads);
    if (!(state.buildingColour in buildingChoices)) state.buildingColour = telling(buildingChoices, buildings);
    fillChoices(element("road-colour"), roadChoices, state.roadColour);
    fillChoices(element("building-colour"), buildingChoices, state.buildingColour);
    const comparing = state.truth === "compare";
    showLegend(element("road-legend"), state.roads && !comparing ? roadChoices[state.roadColour].legend : null);
    showLegend(element("building-legend"), state.buildings && !comparing ? buildingChoices[state.buildingColour].legend : null);
    input("road-colour").disabled = input("building-colour").disabled = comparing;

    colour("roads", roadChoices, state.roadColour);
    colour("buildings", buildingChoices, state.buildingColour);
    if (map) {
      if (map.getLayer("imagery")) {
        map.setLayoutProperty("imagery", "visibility", state.imagery ? "visible" : "none");
        map.setPaintProperty("imagery", "raster-opacity", state.opacity / 100);
      }
      map.triggerRepaint();
    }
    input("show-roads").checked = state.roads;
    input("show-buildings").checked = state.buildings;
    input("show-imagery").checked = state.imagery;
    input("opacity").value = String(state.opacity);
    element("unit").textContent = unit().label;
    element("unit").setAttribute("aria-label", `Units: ${unit().label}`);
    if (scale) scale.setUnit(unit().scale);
    for (const button of buttonsOf("truth")) {
      button.setAttribute("aria-checked", String(button.dataset.truth === state.truth));
    }
    element("compare").hidden = !comparing;
    element("divider").hidden = state.truth !== "swipe";
    moveDivider(state.swipe);
    input("least").disabled = comparing;
    applyTheme();
    applyLeast();
    savePermalink();
  }

  function applyLeast() {
    input("least").value = String(Math.round(100 * state.least));
    element("least-text").textContent = percent(state.least);
    if (map) map.triggerRepaint();
  }

  /** Move the border between result and truth to a share of the width. @param {number} share */
  function moveDivider(share) {
    state.swipe = Math.min(Math.max(share, 0), 1);
    const divider = element("divider"), side = Math.round(100 * state.swipe);
    divider.style.left = `${100 * state.swipe}%`;
    divider.setAttribute("aria-valuenow", String(side));
    divider.setAttribute("aria-valuetext", `result on the left ${side} %, truth on the right`);
    if (map) map.triggerRepaint();
  }

  /** Let pointers and keys move the divider. */
  function connectDivider() {
    const divider = element("divider");
    divider.addEventListener("pointerdown", (event) => {
      divider.setPointerCapture(event.pointerId);
      event.preventDefault();
      divider.focus();
    });
    divider.addEventListener("pointermove", (event) => {
      if (divider.hasPointerCapture(event.pointerId)) moveDivider(event.clientX / innerWidth);
    });
    divider.addEventListener("lostpointercapture", savePermalink);
    divider.addEventListener("keydown", (event) => {
      const { swipe } = state;
      const step = event.shiftKey ? 0.1 : 0.02;
      /** @type {Record<string, number>} */
      const places = {
        ArrowLeft: swipe - step, ArrowDown: swipe - step, ArrowRight: swipe + step, ArrowUp: swipe + step,
        Home: 0, End: 1,
      };
      if (!Object.hasOwn(places, event.key)) return;
      event.preventDefault();
      moveDivider(places[event.key]);
      savePermalink();
    });
  }

  /** @type {Record<string, string>} */
  const coloured = {};

  /**
   * Colour a kind of shapes, unless it has these colours already.
   * @param {"roads" | "buildings"} kind @param {Record<string, Colouring>} choices @param {string} chosen
   */
  function colour(kind, choices, chosen) {
    const key = `${chosen} ${state.unit}`;
    if (coloured[kind] === key) return;
    coloured[kind] = key;
    for (const name of [kind, `truth-${kind}`]) {
      const drawing = drawings[name];
      if (!drawing) continue;
      // A truth states no confidence.
      const { colourOf, palette } = chosen === "confidence" && !drawing.shapes.has(chosen) ? choices.plain : choices[chosen];
      drawing.colour(colourOf(drawing.shapes), palette);
    }
  }

  function showComparison() {
    const { compare } = header, box = element("compare");
    if (!compare) return;
    const legend = make("div", { class: "legend" });
    for (const [colour, label] of [
      [FOUND, `found${compare.found ? `: ${compare.found}` : ""}`],
      [MISSED, `missed: ${compare.missed}`],
      [FALSE, `false: ${compare.false}`],
    ]) {
      const swatch = make("i");
      swatch.style.background = colour;
      legend.append(make("div", {}, swatch, label));
    }
    box.append(legend, make("p", { class: "hint" }, compare.score));
    const list = make("ol", { "aria-label": "Worst places" });
    for (const { text, detail, bounds, lines } of compare.spots) {
      list.append(make("li", {}, make("button", { onclick: () => flyTo(bounds, lines, text) },
        make("span", { class: "words" }, text), make("span", { class: "after" }, detail))));
    }
    if (compare.spots.length) box.append(list);
  }

  /** @param {Spot["bounds"]} bounds @param {Place[][]} lines @param {string} text */
  function flyTo(bounds, lines, text) {
    map.fitBounds(bounds, { padding: padding(), maxZoom: 18, animate: !matchMedia("(prefers-reduced-motion: reduce)").matches });
    mark("hover", lines.length ? [linesOf(lines)] : []);
    say(text);
  }

  // --- permalink ----------------------------------------------------------------------------------

  /** @param {Place[]} list */
  const places = (list) => list.map((place) => place.map((v) => v.toFixed(6)).join(",")).join(";");

  /** @type {("roads" | "buildings" | "imagery")[]} */
  const HIDEABLE = ["roads", "buildings", "imagery"];

  function savePermalink() {
    if (!map || !satmap.started) return;
    const { lng, lat } = map.getCenter();
    const parts = {
      map: `${map.getZoom().toFixed(2)}/${lat.toFixed(6)}/${lng.toFixed(6)}`,
      mode: state.mode, road: state.roadColour, building: state.buildingColour,
      least: state.least.toFixed(2), unit: state.unit, theme: state.theme, show: state.truth,
      swipe: state.truth === "swipe" ? state.swipe.toFixed(3) : "",
      hide: HIDEABLE.filter((name) => !state[name]).join("."),
      route: places(state.route), reach: state.reach ? places([state.reach]) : "",
      minutes: state.reach ? String(state.minutes) : "",
    };
    const text = Object.entries(parts).filter(([, value]) => value !== "")
      .map(([name, value]) => `${name}=${value}`).join("&");
    history.replaceState(null, "", `#${text}`);
  }

  /** Read the state from the fragment; return the view of the map. Wrong entries are ignored. @returns {Partial<maplibregl.MapOptions>} */
  function readPermalink() {
    const parts = new URLSearchParams(location.hash.slice(1));
    /**
     * @template {"mode" | "unit" | "theme" | "truth" | "roadColour" | "buildingColour"} Key
     * @param {string} name @param {Key} key @param {State[Key][]} allowed
     */
    const choose = (name, key, allowed) => {
      const value = allowed.find((each) => each === parts.get(name));
      if (value !== undefined) state[key] = value;
    };
    choose("mode", "mode", ["inspect", "route", "reach"]);
    choose("unit", "unit", ["kmh", "mph"]);
    choose("theme", "theme", ["light", "dark"]);
    choose("show", "truth", header.compare ? SHOWN : ["result"]);
    const swipe = Number(parts.get("swipe"));
    if (parts.get("swipe") && swipe >= 0 && swipe <= 1) state.swipe = swipe;
    choose("road", "roadColour", ["speed", "time", "confidence", "class", "width", "deck", "plain"]);
    choose("building", "buildingColour", ["confidence", "area", "plain"]);
    if (MINUTES[Number(parts.get("minutes") || -1)]) state.minutes = Number(parts.get("minutes"));
    const least = Number(parts.get("least"));
    if (least > 0 && least <= 1) state.least = least;
    for (const name of (parts.get("hide") || "").split(".")) {
      const hidden = HIDEABLE.find((each) => each === name);
      if (hidden) state[hidden] = false;
    }
    const isPlace = (/** @type {number[]} */ place) => place.length === 2 && Math.abs(place[0]) <= 180 && Math.abs(place[1]) <= 85;
    /** @param {string} name @returns {Place[]} */
    const read = (name) => /** @type {Place[]} */ ((parts.get(name) || "").split(";").map((text) => text.split(",").map(Number)).filter(isPlace));
    state.route = read("route").slice(0, 2);
    [state.reach = null] = read("reach");
    if (!network) state.mode = "inspect";
    const [zoom, lat, lng] = (parts.get("map") || "").split("/").map(Number);
    return zoom >= 0 && zoom <= 22 && isPlace([lng, lat]) ? { zoom, center: [lng, lat], bounds: undefined } : {};
  }

  // --- start --------------------------------------------------------------------------------------

  function connect() {
    /** @param {string} id @param {string} event @param {(event: any) => void} run */
    const on = (id, event, run) => element(id).addEventListener(event, run);
    /** @param {string} id @param {"roads" | "buildings" | "imagery"} name */
    const toggle = (id, name) => on(id, "change", (event) => { state[name] = event.target.checked; apply(); });
    toggle("show-roads", "roads");
    toggle("show-buildings", "buildings");
    toggle("show-imagery", "imagery");
    on("road-colour", "change", (event) => { state.roadColour = event.target.value; apply(); });
    on("building-colour", "change", (event) => { state.buildingColour = event.target.value; apply(); });
    on("least", "input", (event) => { state.least = event.target.value / 100; applyLeast(); });
    on("least", "change", savePermalink);
    on("opacity", "input", (event) => { state.opacity = Number(event.target.value); apply(); });
    on("unit", "click", nextUnit);
    on("theme", "click", nextTheme);
    on("home", "click", home);
    on("keys", "click", toggleKeys);
    on("fold", "click", () => {
      const folded = !element("settings").hidden;
      element("settings").hidden = folded;
      element("fold").textContent = folded ? "+" : "–";
      element("fold").setAttribute("aria-expanded", String(!folded));
    });
    for (const button of buttonsOf("modes")) {
      button.addEventListener("click", () => setMode(/** @type {Mode} */ (button.dataset.mode)));
    }
    for (const button of buttonsOf("truth")) {
      button.addEventListener("click", () => setTruth(/** @type {Shown} */ (button.dataset.truth)));
    }
    for (const group of ["modes", "truth"]) {
      element(group).addEventListener("keydown", (event) => moveInGroup(event, buttonsOf(group)));
    }
    connectDivider();
    document.addEventListener("keydown", onKey);
    document.addEventListener("pointerdown", () => document.body.classList.remove("keyboard"));
  }

  /**
   * Arrows choose the next button of a group, as radio buttons do.
   * @param {KeyboardEvent} event @param {HTMLButtonElement[]} buttons
   */
  function moveInGroup(event, buttons) {
    const step = new Map([["ArrowRight", 1], ["ArrowDown", 1], ["ArrowLeft", -1], ["ArrowUp", -1]]).get(event.key);
    if (!step) return;
    event.preventDefault();
    const next = buttons[(buttons.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement)) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  }

  const setTruth = (/** @type {Shown} */ shown) => { state.truth = shown; apply(); };
  const nextUnit = () => { state.unit = state.unit === "kmh" ? "mph" : "kmh"; apply(); showTravel(); showDetails(null); };
  const nextTheme = () => { state.theme = state.theme === "dark" ? "light" : "dark"; applyTheme(); savePermalink(); };
  const home = () => map.fitBounds(header.bounds, { padding: padding(), maxZoom: 18 });
  const toggleKeys = () => {
    const shown = element("key-list").hidden;
    element("key-list").hidden = !shown;
    element("keys").setAttribute("aria-expanded", String(shown));
  };

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const target = /** @type {Element} */ (event.target);
    if (target.matches("input[type=text], select")) return;
    const center = () => placeOf(map.getCenter());
    /** @type {Record<string, () => void>} */
    const keys = {
      i: () => setMode("inspect"), r: () => setMode("route"), t: () => setMode("reach"),
      u: nextUnit, d: nextTheme, h: home, "?": toggleKeys, Escape: clear,
      b: () => { state.imagery = !state.imagery; apply(); },
      c: () => {
        if (header.compare) setTruth(SHOWN[(SHOWN.indexOf(state.truth) + 1) % SHOWN.length]);
      },
    };
    if (event.key === "Enter" && !target.matches("button, summary, a")) {
      document.body.classList.add("keyboard");
      act(center(), map.project(center()));
    } else if (Object.hasOwn(keys, event.key)) {
      document.body.classList.add("keyboard");
      keys[event.key]();
    }
  }

  function fillPanel() {
    element("name").textContent = header.name;
    const counts = [];
    if (roads.count) counts.push(plural(roads.count, "road"));
    if (buildings.count) counts.push(plural(buildings.count, "building"));
    if (roads.length) counts.push(unit().length(roads.length.reduce((sum, each) => sum + each, 0)));
    element("summary").textContent = counts.join(" · ");
    element("roads-box").hidden = !roads.count;
    element("buildings-box").hidden = !buildings.count;
    const rated = [roads, buildings].filter((shapes) => shapes.has("confidence"));
    element("confidence-box").hidden = !rated.length;
    element("least-name").textContent = `Least ${[...new Set(rated.map((shapes) => shapes.confidenceName.toLowerCase()))].join(" or ")}`;
    element("imagery-box").hidden = !(header.tiles || header.corners);
    element("truth-box").hidden = !header.compare;
    element("modes").hidden = !network;
    if (network?.assumed) {
      element("summary").append(make("br"),
        `${plural(network.assumed, "road")} without a speed: that of the class, or ${unit().speed(32.2)}`);
    }
    if (header.compare) showComparison();
  }

  async function start() {
    const data = await satmapData.read();
    header = data.header;
    roads = new satmapData.Shapes(header.roads, data.array);
    buildings = new satmapData.Shapes(header.buildings, data.array);
    if (header.network) {
      network = satmapData.network(header.network, roads, data.array);
      routers.result = startRouter(network.forWorker);
    }
    if (header.truth && header.compare) {
      truth = {
        roads: new satmapData.Shapes(header.truth.roads, data.array),
        buildings: new satmapData.Shapes(header.truth.buildings, data.array),
        missedRoads: new satmapData.Shapes(header.compare.missedRoads, data.array),
        falseRoads: new satmapData.Shapes(header.compare.falseRoads, data.array),
        compared: new satmapData.Shapes(header.compare.buildings, data.array),
        kinds: data.array(header.compare.kinds),
      };
      if (header.truth.network && network) {
        routers.truth = startRouter(satmapData.network(header.truth.network, truth.roads, data.array).forWorker);
      }
    }
    state.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const view = readPermalink();
    document.documentElement.dataset.theme = state.theme;
    fillPanel();
    makeDrawings();
    apply();
    startMap(view);
    const idle = new Promise((resolve) => { map.once("idle", resolve); });
    await new Promise((resolve) => { map.once("load", resolve); });
    connect();
    satmap.started = true;
    Object.assign(satmap, { map, header, roads, buildings });
    await setMode(state.mode);
    await idle;
    satmap.seconds = performance.now() / 1000;
  }

  const ready = start();
  ready.catch((error) => {
    element("summary").textContent =
      `The map cannot be shown (${error.message}). It needs a current browser with WebGL 2.`;
    throw error;
  });
  /** @param {Place} from @param {Place} to @returns {Promise<RouteResult>} */
  const route = (from, to) => /** @type {Ask} */ (routers.result)("route", from, to);
  /** @param {Place} from @param {number[]} minutes @returns {Promise<ReachResult>} */
  const reach = (from, minutes) => /** @type {Ask} */ (routers.result)("reach", from, minutes);
  return {
    HOVERED, ready, route, reach, act, setMode, apply, under, state, drawings, started: false,
    /** Seconds from the request to the finished map. */
    seconds: NaN,
    /** @type {maplibregl.Map | null} */
    map: null,
    /** @type {Header | null} */
    header: null,
    /** @type {Shapes | null} */
    roads: null,
    /** @type {Shapes | null} */
    buildings: null,
  };
})();
