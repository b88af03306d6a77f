"use strict";
// The map, its panel, and routes on it. `window.satmap` is for scripts and tests.

const satmap = (() => {
  const { units, duration, percent, roadColours, buildingColours } = satmapStyle;
  const element = (id) => document.getElementById(id);
  const CASING = { light: "#2b2f36", dark: "#000000" };
  const GROUND = { light: "#eceae4", dark: "#12151a" };
  const REACH = ["#fff3b0", "#fdae61", "#d7301f"];
  const MINUTES = [[1, 2, 3], [5, 10, 15], [10, 20, 30]];
  const FOUND = "#56b4e9", MISSED = "#cc79a7", FALSE = "#d55e00";
  const ROAD_WIDTH = ["interpolate", ["exponential", 1.35], ["zoom"], 9, 0.8, 13, 2, 16, 4.5, 19, 11];
  const CASING_WIDTH = ["interpolate", ["exponential", 1.35], ["zoom"], 9, 1.2, 13, 3.4, 16, 7, 19, 15];
  const ROUTE_WIDTH = ["interpolate", ["exponential", 1.35], ["zoom"], 9, 3, 13, 5, 16, 9, 19, 18];
  const ROUTE_CASING = ["interpolate", ["exponential", 1.35], ["zoom"], 9, 5, 13, 9, 16, 14, 19, 25];
  // From this zoom level on, lines have casings and areas have outlines.
  const DETAIL_ZOOM = 12;
  const EMPTY = { type: "FeatureCollection", features: [] };

  const state = {
    mode: "inspect", roadColour: "", buildingColour: "", least: 0, roads: true, buildings: true,
    imagery: true, opacity: 100, truth: "result", unit: "kmh", theme: "light",
    route: [], reach: null, minutes: 1,
  };
  let planned = null;
  let map, header, roads, buildings, network, truth = null, hovered = "";
  let roadChoices = {}, buildingChoices = {}, markers = [], scale;
  const routers = {};

  // --- small helpers ------------------------------------------------------------------------------

  /** Make an element; all text is set as text. */
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

  const collection = (features) => ({ type: "FeatureCollection", features });
  const feature = (geometry, properties = {}, id = undefined) =>
    ({ type: "Feature", id, properties, geometry });
  const lineOf = (line) => feature({ type: "LineString", coordinates: line });
  const say = (text) => { element("status").textContent = text; };
  const unit = () => units[state.unit];
  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

  // --- routing in a worker ------------------------------------------------------------------------

  function startRouter(forWorker) {
    const source = element("satmap-routing").textContent;
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    const waiting = new Map();
    let last = 0;
    worker.onmessage = ({ data }) => {
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      if (data.error) reject(new Error(data.error));
      else resolve(data.result);
    };
    const ask = (task, ...args) => new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject });
      worker.postMessage({ id: last, task, args });
    });
    ask("network", forWorker);
    return ask;
  }

  // --- features -----------------------------------------------------------------------------------

  function roadFeatures(shapes) {
    const classes = shapes.columns.find((each) => each.name === "highway" && each.texts);
    const features = new Array(shapes.count);
    for (let k = 0; k < shapes.count; k++) {
      const properties = {};
      if (shapes.speed) {
        properties.s = Math.round(shapes.speed[k] * 10) / 10;
        properties.t = Math.round(shapes.time[k] * 10) / 10;
        if (shapes.direction[k]) properties.d = shapes.direction[k];
      }
      if (!Number.isNaN(shapes.confidence[k])) properties.c = Math.round(shapes.confidence[k] * 1e4) / 1e4;
      if (classes && classes.values[k] >= 0) properties.k = classes.values[k];
      features[k] = feature({ type: "LineString", coordinates: shapes.ring(k) }, properties, k);
    }
    return collection(features);
  }

  function buildingFeatures(shapes, kinds = null) {
    const features = new Array(shapes.count);
    for (let k = 0; k < shapes.count; k++) {
      const properties = {};
      if (shapes.area) properties.a = Math.round(shapes.area[k] * 10) / 10;
      if (!Number.isNaN(shapes.confidence[k])) properties.c = Math.round(shapes.confidence[k] * 1e4) / 1e4;
      if (kinds) properties.f = kinds[k];
      features[k] = feature({ type: "Polygon", coordinates: shapes.ringsOf(k) }, properties, k);
    }
    return collection(features);
  }

  // --- the map ------------------------------------------------------------------------------------

  function sources() {
    const geojson = (data) => ({ type: "geojson", data, tolerance: 0.4, buffer: 32, maxzoom: 15 });
    const found = {
      hover: geojson(EMPTY), route: geojson(EMPTY), "truth-route": geojson(EMPTY), reach: geojson(EMPTY),
    };
    if (roads.count) found.roads = geojson(roadFeatures(roads));
    if (buildings.count) found.buildings = geojson(buildingFeatures(buildings));
    if (truth) {
      if (truth.roads.count) found["truth-roads"] = geojson(roadFeatures(truth.roads));
      if (truth.buildings.count) {
        found["truth-buildings"] = geojson(buildingFeatures(truth.buildings));
      }
      const lines = (shapes) => collection(Array.from({ length: shapes.count }, (_, k) => lineOf(shapes.ring(k))));
      found.missed = geojson(lines(truth.missedRoads));
      found.false = geojson(lines(truth.falseRoads));
      found.compared = geojson(buildingFeatures(truth.compared, truth.kinds));
    }
    if (header.tiles) {
      found.imagery = {
        type: "raster", tileSize: 256, ...header.tiles,
        tiles: [`${location.origin}/tiles/{z}/{x}/{y}.webp`],
      };
    } else if (header.corners) {
      const image = new Blob([satmapData.bytesOf("satmap-image")], { type: "image/webp" });
      found.imagery = {
        type: "image", url: URL.createObjectURL(image), coordinates: header.corners,
      };
    }
    return found;
  }

  function layers(given) {
    // Round corners need several times the triangles, and cannot be seen from far away.
    const round = {
      "line-cap": ["step", ["zoom"], "butt", DETAIL_ZOOM, "round"],
      "line-join": ["step", ["zoom"], "bevel", DETAIL_ZOOM, "round"],
    };
    const all = [
      { id: "ground", type: "background", paint: { "background-color": GROUND[state.theme] } },
      { id: "imagery", type: "raster", source: "imagery", paint: { "raster-fade-duration": 150 } },
    ];
    for (const prefix of ["", "truth-"]) {
      all.push(
        { id: `${prefix}buildings`, type: "fill", source: `${prefix}buildings`,
          paint: { "fill-opacity": 0.5, "fill-color": "#e8743b", "fill-antialias": false } },
        { id: `${prefix}buildings-line`, type: "line", source: `${prefix}buildings`, minzoom: DETAIL_ZOOM,
          paint: { "line-width": ["interpolate", ["linear"], ["zoom"], 12, 0.4, 17, 1.6], "line-color": "#e8743b" } },
        { id: `${prefix}roads-casing`, type: "line", source: `${prefix}roads`, layout: round, minzoom: DETAIL_ZOOM,
          paint: { "line-color": CASING[state.theme], "line-width": CASING_WIDTH, "line-opacity": 0.75 } },
        { id: `${prefix}roads`, type: "line", source: `${prefix}roads`, layout: round,
          paint: { "line-width": ROAD_WIDTH, "line-color": "#f2b632" } },
        { id: `${prefix}roads-arrows`, type: "symbol", source: `${prefix}roads`, minzoom: 14, filter: ["has", "d"],
          layout: {
            "symbol-placement": "line", "symbol-spacing": 90, "icon-image": "arrow",
            "icon-rotate": ["case", ["<", ["get", "d"], 0], 180, 0],
            "icon-allow-overlap": true, "icon-rotation-alignment": "map",
          },
          paint: {} },
      );
    }
    const kindPaint = ["match", ["get", "f"], 0, FOUND, 1, MISSED, FALSE];
    all.push(
      { id: "compared", type: "fill", source: "compared", layout: { visibility: "none" },
        paint: { "fill-opacity": 0.5, "fill-color": kindPaint } },
      { id: "compared-line", type: "line", source: "compared", layout: { visibility: "none" },
        paint: { "line-width": 1.6, "line-color": kindPaint } },
    );
    for (const [id, colour] of [["missed", MISSED], ["false", FALSE]]) {
      all.push({ id, type: "line", source: id, layout: { ...round, visibility: "none" },
        paint: { "line-width": ROAD_WIDTH, "line-color": colour } });
    }
    all.push(
      { id: "reach", type: "line", source: "reach", layout: round,
        paint: { "line-color": ["get", "colour"], "line-width": CASING_WIDTH } },
      { id: "truth-route", type: "line", source: "truth-route",
        layout: { "line-join": "round" },
        paint: { "line-color": "#ffffff", "line-width": ROAD_WIDTH, "line-dasharray": [2, 1.2] } },
      { id: "route-casing", type: "line", source: "route", layout: round,
        paint: { "line-color": "#ffffff", "line-width": ROUTE_CASING } },
      { id: "route", type: "line", source: "route", layout: round,
        paint: { "line-color": "#1463b8", "line-width": ROUTE_WIDTH } },
      { id: "hover", type: "line", source: "hover", layout: round,
        paint: { "line-color": "#ffffff", "line-width": ["interpolate", ["linear"], ["zoom"], 10, 2, 18, 5] } },
    );
    return all.filter((layer) => !layer.source || layer.source in given);
  }

  function startMap(view) {
    const given = sources(), drawn = layers(given);
    // What is set before the map exists need not be laid out again.
    planned = new Map(drawn.map((layer) => [layer.id, layer]));
    apply();
    planned = null;
    map = new maplibregl.Map({
      container: "map",
      style: { version: 8, sources: given, layers: drawn },
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
    map.on("styleimagemissing", ({ id }) => {
      if (id === "arrow") addArrow();
    });
    map.on("mousemove", hover);
    map.on("mouseout", () => showTip(null));
    map.on("click", ({ lngLat, point }) => act(lngLat.toArray(), point));
    map.on("moveend", savePermalink);
  }

  /** Add the picture of the arrows on one-way roads. */
  function addArrow() {
    const size = 24, canvas = document.createElement("canvas");
    canvas.width = canvas.height = size;
    const pen = canvas.getContext("2d");
    pen.lineCap = pen.lineJoin = "round";
    for (const [colour, width] of [["#000000", 8], ["#ffffff", 4]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.stroke(new Path2D("M8 6 L15 12 L8 18"));
    }
    map.addImage("arrow", pen.getImageData(0, 0, size, size), { pixelRatio: 2 });
  }

  const padding = () => (innerWidth > 600
    ? { top: 30, bottom: 40, left: 310, right: 60 }
    : { top: 30, bottom: innerHeight * 0.5, left: 20, right: 50 });

  const HOVERED = { roads: "road", buildings: "building", "truth-roads": "true road", "truth-buildings": "true building" };

  /** Return the shape under the pointer: {layer, number, shapes}. */
  function under(point) {
    const box = [[point.x - 4, point.y - 4], [point.x + 4, point.y + 4]];
    const there = Object.keys(HOVERED).filter((id) => map.getLayer(id)
      && map.getLayoutProperty(id, "visibility") !== "none");
    const hits = there.length ? map.queryRenderedFeatures(box, { layers: there }) : [];
    const hit = hits.find((each) => each.layer.id.endsWith("roads")) || hits[0];
    if (!hit) return null;
    const layer = hit.layer.id, base = layer.replace("truth-", "");
    const from = layer === base ? { roads, buildings } : truth;
    return { layer, number: hit.id, shapes: from[base] };
  }

  function hover({ point }) {
    const hit = under(point);
    map.getCanvas().style.cursor = state.mode !== "inspect" ? "crosshair" : hit ? "pointer" : "";
    const key = hit ? `${hit.layer} ${hit.number}` : "";
    if (key !== hovered) {
      hovered = key;
      map.getSource("hover").setData(hit ? collection([outline(hit)]) : EMPTY);
    }
    showTip(hit, point);
    const { lng, lat } = map.unproject(point);
    element("place").textContent = `${lat.toFixed(5)}, ${lng.toFixed(5)}`;
  }

  const outline = ({ number, shapes }) =>
    feature({ type: "MultiLineString", coordinates: shapes.ringsOf(number) });

  function showTip(hit, point = null) {
    const tip = element("tip");
    tip.hidden = !hit;
    if (!hit) {
      if (hovered) map.getSource("hover").setData(EMPTY);
      hovered = "";
      return;
    }
    tip.textContent = facts(hit).map(([, value]) => value).join(" · ");
    const right = point.x > innerWidth - 280;
    tip.style.left = right ? "auto" : `${point.x + 14}px`;
    tip.style.right = right ? `${innerWidth - point.x + 14}px` : "auto";
    tip.style.top = `${Math.min(point.y + 14, innerHeight - 40)}px`;
  }

  /** Return what satmap knows of a shape: names and values. */
  function facts({ number, shapes }) {
    const found = [];
    if (shapes.speed) {
      found.push(["Speed", unit().speed(shapes.speed[number])]);
      found.push(["Length", unit().length(shapes.length[number])]);
      found.push(["Travel time", duration(shapes.time[number])]);
      if (shapes.direction[number]) found.push(["Direction", "one way"]);
    } else if (shapes.area) {
      found.push(["Area", unit().area(shapes.area[number])]);
    }
    const confidence = shapes.confidence[number];
    if (!Number.isNaN(confidence)) found.push(["Confidence", percent(confidence)]);
    return found;
  }

  function showDetails(hit) {
    const box = element("details");
    box.hidden = !hit;
    if (!hit) return;
    const list = (pairs) => {
      const dl = make("dl");
      for (const [name, value] of pairs) dl.append(make("dt", {}, name), make("dd", {}, value));
      return dl;
    };
    const shown = (value) => (typeof value === "number" ? valueText(value) : value);
    const kind = HOVERED[hit.layer];
    const title = hit.shapes.text("name", hit.number) || kind[0].toUpperCase() + kind.slice(1);
    const own = hit.shapes.properties(hit.number).map(([name, value]) => [name, shown(value)]);
    box.replaceChildren(
      make("header", {}, make("h2", {}, title),
        make("button", { class: "plain", "aria-label": "Close", onclick: () => showDetails(null) }, "✕")),
      list(facts(hit)),
    );
    if (own.length) box.append(make("section", {}, list(own)));
    say(`${title}. ${facts(hit).map((pair) => pair.join(" ")).join(", ")}`);
  }

  const valueText = (value) =>
    Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));

  // --- clicks, routes, reach ----------------------------------------------------------------------

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

  function pin(place, label, moved, isEnd = false) {
    const body = make("div", { class: isEnd ? "pin end" : "pin" }, label);
    const marker = new maplibregl.Marker({ element: body, draggable: true }).setLngLat(place).addTo(map);
    marker.on("dragend", () => {
      moved(marker.getLngLat().toArray());
      showTravel();
    });
    markers.push(marker);
    return marker;
  }

  function clearTravel() {
    if (!markers.length) return;
    for (const marker of markers) marker.remove();
    markers = [];
    for (const id of ["route", "truth-route", "reach"]) map.getSource(id).setData(EMPTY);
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
      const found = await routers.result("route", from, to);
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
      const found = await routers.result("reach", state.reach, MINUTES[state.minutes]);
      if (number !== asked) return;
      marker.setLngLat(found.start);
      showReach(found);
    }
  }

  function hint(text) {
    element("travel").replaceChildren(make("p", { class: "hint" }, text));
    say(text);
  }

  const ICONS = { left: "↰", right: "↱", "sharp left": "↲", "sharp right": "↳", "turn back": "↶" };

  function figures(time, length) {
    return make("div", { class: "figures" }, make("b", {}, duration(time)), make("span", {}, unit().length(length)));
  }

  function roadName(edge) {
    return roads.text("name", network.road[edge]);
  }

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
      map.getSource("route").setData(collection([lineOf(found.line)]));
      say(`Route: ${duration(found.time)}, ${unit().length(found.length)}, ${plural(found.turns.length, "turn")}.`);
    }
    map.getSource("truth-route").setData(other && other.time !== null ? collection([lineOf(other.line)]) : EMPTY);
  }

  /** Return the text that compares a route with that in the truth. */
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
        onchange: (event) => { state.minutes = Number(event.target.value); showTravel(); },
      });
      MINUTES.forEach((minutes, k) => {
        const option = make("option", { value: k }, `${minutes.join(", ")} min`);
        option.selected = k === state.minutes;
        choice.append(option);
      });
      buttons.push(choice);
    }
    return make("div", { class: "buttons" }, ...buttons);
  }

  function showReach(result) {
    const longest = [...result.found].reverse();
    map.getSource("reach").setData(collection(longest.map(({ lines, minutes }) => feature(
      { type: "MultiLineString", coordinates: lines },
      { colour: REACH[MINUTES[state.minutes].indexOf(minutes)] },
    ))));
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

  function setMode(mode) {
    if (mode !== "inspect" && !network) return Promise.resolve();
    state.mode = mode;
    document.body.dataset.mode = mode;
    for (const button of element("modes").children) {
      button.setAttribute("aria-checked", String(button.dataset.mode === mode));
    }
    if (mode !== "inspect") showDetails(null);
    return showTravel();
  }

  // --- appearance ---------------------------------------------------------------------------------

  function setVisible(id, visible) {
    const value = visible ? "visible" : "none";
    if (planned) {
      const layer = planned.get(id);
      if (layer) layer.layout = { ...layer.layout, visibility: value };
    } else if (map.getLayer(id)) {
      map.setLayoutProperty(id, "visibility", value);
    }
  }

  function setPaint(id, name, value) {
    if (planned) {
      const layer = planned.get(id);
      if (layer) layer.paint[name] = value;
    } else if (map.getLayer(id)) {
      map.setPaintProperty(id, name, value);
    }
  }

  function setFilter(id, filter) {
    if (planned) {
      const layer = planned.get(id);
      if (layer && filter) layer.filter = filter;
    } else if (map.getLayer(id)) {
      map.setFilter(id, filter);
    }
  }

  function applyTheme() {
    document.documentElement.dataset.theme = state.theme;
    element("theme").textContent = state.theme === "dark" ? "Light" : "Dark";
    setPaint("ground", "background-color", GROUND[state.theme]);
    for (const id of ["roads-casing", "truth-roads-casing"]) setPaint(id, "line-color", CASING[state.theme]);
  }

  function fillChoices(select, choices, chosen) {
    select.replaceChildren(...Object.entries(choices).map(([id, { label }]) => {
      const option = make("option", { value: id }, label);
      option.selected = id === chosen;
      return option;
    }));
  }

  function showLegend(box, legend) {
    box.replaceChildren();
    if (!legend) return;
    legend.labels.forEach((label, k) => {
      const swatch = make("i");
      swatch.style.background = legend.colours[k];
      box.append(make("div", {}, swatch, label));
    });
  }

  /** Bring the map and the panel in line with the state. */
  function apply() {
    roadChoices = roadColours(roads, state.unit);
    buildingChoices = buildingColours(buildings, state.unit);
    if (!(state.roadColour in roadChoices)) [state.roadColour] = Object.keys(roadChoices);
    if (!(state.buildingColour in buildingChoices)) [state.buildingColour] = Object.keys(buildingChoices);
    fillChoices(element("road-colour"), roadChoices, state.roadColour);
    fillChoices(element("building-colour"), buildingChoices, state.buildingColour);
    const comparing = state.truth === "compare", isTruth = state.truth === "truth";
    showLegend(element("road-legend"), state.roads && !comparing ? roadChoices[state.roadColour].legend : null);
    showLegend(element("building-legend"), state.buildings && !comparing ? buildingChoices[state.buildingColour].legend : null);
    element("road-colour").disabled = element("building-colour").disabled = comparing;

    const roadPaint = comparing ? FOUND : roadChoices[state.roadColour].paint;
    const housePaint = buildingChoices[state.buildingColour].paint;
    for (const prefix of ["", "truth-"]) {
      setPaint(`${prefix}buildings`, "fill-color", housePaint);
      setPaint(`${prefix}buildings-line`, "line-color", housePaint);
      setPaint(`${prefix}roads`, "line-color", roadPaint);
    }
    for (const part of ["roads", "roads-casing", "roads-arrows"]) {
      setVisible(part, state.roads && !isTruth);
      setVisible(`truth-${part}`, state.roads && isTruth);
    }
    for (const part of ["buildings", "buildings-line"]) {
      setVisible(part, state.buildings && state.truth === "result");
      setVisible(`truth-${part}`, state.buildings && isTruth);
      setVisible(part.replace("buildings", "compared"), state.buildings && comparing);
    }
    for (const part of ["missed", "false"]) setVisible(part, state.roads && comparing);
    setVisible("imagery", state.imagery);
    setPaint("imagery", "raster-opacity", state.opacity / 100);
    element("show-roads").checked = state.roads;
    element("show-buildings").checked = state.buildings;
    element("show-imagery").checked = state.imagery;
    element("opacity").value = state.opacity;
    element("unit").textContent = unit().label;
    if (scale) scale.setUnit(unit().scale);
    for (const button of element("truth").children) {
      button.setAttribute("aria-checked", String(button.dataset.truth === state.truth));
    }
    element("compare").hidden = !comparing;
    element("least").disabled = comparing;
    applyTheme();
    applyLeast();
    savePermalink();
  }

  function applyLeast() {
    element("least").value = Math.round(100 * state.least);
    element("least-text").textContent = percent(state.least);
    const filter = state.least > 0
      ? ["any", ["!", ["has", "c"]], [">=", ["get", "c"], state.least]]
      : null;
    for (const id of ["roads", "roads-casing", "buildings", "buildings-line"]) setFilter(id, filter);
    setFilter("roads-arrows", filter ? ["all", ["has", "d"], filter] : ["has", "d"]);
  }

  function showComparison() {
    const { compare } = header;
    const box = element("compare");
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

  function flyTo(bounds, lines, text) {
    map.fitBounds(bounds, { padding: padding(), maxZoom: 18, animate: !matchMedia("(prefers-reduced-motion: reduce)").matches });
    map.getSource("hover").setData(lines.length
      ? collection([feature({ type: "MultiLineString", coordinates: lines })]) : EMPTY);
    say(text);
  }

  // --- permalink ----------------------------------------------------------------------------------

  const places = (list) => list.map((place) => place.map((v) => v.toFixed(6)).join(",")).join(";");

  function savePermalink() {
    if (!map || !satmap.started) return;
    const { lng, lat } = map.getCenter();
    const parts = {
      map: `${map.getZoom().toFixed(2)}/${lat.toFixed(6)}/${lng.toFixed(6)}`,
      mode: state.mode, road: state.roadColour, building: state.buildingColour,
      least: state.least.toFixed(2), unit: state.unit, theme: state.theme, show: state.truth,
      hide: ["roads", "buildings", "imagery"].filter((name) => !state[name]).join("."),
      route: places(state.route), reach: state.reach ? places([state.reach]) : "",
      minutes: state.reach ? String(state.minutes) : "",
    };
    const text = Object.entries(parts).filter(([, value]) => value !== "")
      .map(([name, value]) => `${name}=${value}`).join("&");
    history.replaceState(null, "", `#${text}`);
  }

  /** Read the state from the fragment; return the view of the map. Wrong entries are ignored. */
  function readPermalink() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const choose = (name, key, allowed) => {
      if (allowed.includes(parts.get(name))) state[key] = parts.get(name);
    };
    choose("mode", "mode", ["inspect", "route", "reach"]);
    choose("unit", "unit", ["kmh", "mph"]);
    choose("theme", "theme", ["light", "dark"]);
    choose("show", "truth", header.compare ? ["result", "truth", "compare"] : ["result"]);
    choose("road", "roadColour", ["speed", "time", "confidence", "class", "plain"]);
    choose("building", "buildingColour", ["confidence", "area", "plain"]);
    if (MINUTES[parts.get("minutes")]) state.minutes = Number(parts.get("minutes"));
    const least = Number(parts.get("least"));
    if (least > 0 && least <= 1) state.least = least;
    for (const name of (parts.get("hide") || "").split(".")) {
      if (["roads", "buildings", "imagery"].includes(name)) state[name] = false;
    }
    const isPlace = (place) => place.length === 2 && Math.abs(place[0]) <= 180 && Math.abs(place[1]) <= 85;
    const read = (name) => (parts.get(name) || "").split(";").map((text) => text.split(",").map(Number)).filter(isPlace);
    state.route = read("route").slice(0, 2);
    [state.reach = null] = read("reach");
    if (!network) state.mode = "inspect";
    const [zoom, lat, lng] = (parts.get("map") || "").split("/").map(Number);
    return zoom >= 0 && zoom <= 22 && isPlace([lng, lat]) ? { zoom, center: [lng, lat], bounds: undefined } : {};
  }

  // --- start --------------------------------------------------------------------------------------

  function connect() {
    const on = (id, event, run) => element(id).addEventListener(event, run);
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
    for (const button of element("modes").children) {
      button.addEventListener("click", () => setMode(button.dataset.mode));
    }
    for (const button of element("truth").children) {
      button.addEventListener("click", () => setTruth(button.dataset.truth));
    }
    for (const group of [element("modes"), element("truth")]) group.addEventListener("keydown", moveInGroup);
    document.addEventListener("keydown", onKey);
    document.addEventListener("pointerdown", () => document.body.classList.remove("keyboard"));
  }

  /** Arrows choose the next button of a group, as radio buttons do. */
  function moveInGroup(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...event.currentTarget.children].filter((each) => !each.disabled);
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  }

  const setTruth = (shown) => { state.truth = shown; apply(); };
  const nextUnit = () => { state.unit = state.unit === "kmh" ? "mph" : "kmh"; apply(); showTravel(); showDetails(null); };
  const nextTheme = () => { state.theme = state.theme === "dark" ? "light" : "dark"; applyTheme(); savePermalink(); };
  const home = () => map.fitBounds(header.bounds, { padding: padding(), maxZoom: 18 });
  const toggleKeys = () => {
    const shown = element("key-list").hidden;
    element("key-list").hidden = !shown;
    element("keys").setAttribute("aria-expanded", String(shown));
  };

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const { target } = event;
    if (target.matches("input[type=text], select")) return;
    const center = () => map.getCenter().toArray();
    const keys = {
      i: () => setMode("inspect"), r: () => setMode("route"), t: () => setMode("reach"),
      u: nextUnit, d: nextTheme, h: home, "?": toggleKeys, Escape: clear,
      b: () => { state.imagery = !state.imagery; apply(); },
      c: () => {
        const all = ["result", "truth", "compare"];
        if (header.compare) setTruth(all[(all.indexOf(state.truth) + 1) % all.length]);
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
    element("confidence-box").hidden = !(roads.has("confidence") || buildings.has("confidence"));
    element("imagery-box").hidden = !(header.tiles || header.corners);
    element("truth-box").hidden = !header.compare;
    element("modes").hidden = !network;
    if (network && network.assumed) {
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
    if (header.truth) {
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
    startMap(view);
    await new Promise((resolve) => { map.once("load", resolve); });
    connect();
    apply();
    satmap.started = true;
    Object.assign(satmap, { map, header, state, roads, buildings });
    await setMode(state.mode);
    await new Promise((resolve) => {
      map.once("idle", resolve);
      map.triggerRepaint();
    });
  }

  const ready = start();
  ready.catch((error) => {
    element("summary").textContent =
      `The map cannot be shown (${error.message}). It needs a current browser with WebGL 2.`;
    throw error;
  });
  return {
    ready, started: false,
    route: (from, to) => routers.result("route", from, to),
    reach: (from, minutes) => routers.result("reach", from, minutes),
    act, setMode, apply,
  };
})();
