"use strict";
// @ts-check
// Colours, classes and units.

/**
 * A way of colouring: colours, and the number of each shape's.
 * @typedef {object} Colouring
 * @property {string} label
 * @property {string[]} palette
 * @property {{colours: string[], labels: string[]} | null} legend
 * @property {(shapes: Shapes) => (k: number) => number} colourOf
 */

const satmapStyle = (() => {
  const KMH_PER_MPH = 1.609344;
  // Speeds as in satmap's pictures and QGIS styles.
  const SPEED = ["#305adc", "#1eaae6", "#3cc85a", "#e1cd32", "#f57d1e", "#d22814"];
  // From purple to yellow, readable with any colour vision.
  const RAMP = ["#5b3f9e", "#3b6fb0", "#2a9d8f", "#7cc350", "#f2d13b"];
  const CLASSES = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a500", "#7a7a7a",
  ];
  const UNKNOWN = "#8d939b";
  // Below ground, on it, and above.
  const DECKS = ["#7a5195", "#9aa3ad", "#ef8a17", "#d22814"];
  const DECK_LABELS = ["tunnel", "ground", "bridge", "second level and above"];
  // Numbers this little below a limit belong above it: speeds are computed from lengths and times.
  const ROUNDING = 1e-4;
  const SPEED_LIMITS_KMH = [30, 40, 50, 65, 85];
  const SPEED_LIMITS_MPH = [20, 25, 30, 40, 55];

  const number = (/** @type {number} */ value, digits = 3) =>
    Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });

  /**
   * @typedef {object} Unit
   * @property {string} label
   * @property {(kmh: number) => string} speed
   * @property {(m: number) => string} length
   * @property {(m2: number) => string} area
   * @property {"metric" | "imperial"} scale
   */
  /** @type {{kmh: Unit, mph: Unit}} */
  const units = {
    kmh: {
      label: "km/h",
      speed: (kmh) => `${Math.round(kmh)} km/h`,
      length: (m) => (m < 999.5 ? `${Math.round(m)} m` : `${number(m / 1000)} km`),
      area: (m2) => `${number(m2)} m²`,
      scale: "metric",
    },
    mph: {
      label: "mph",
      speed: (kmh) => `${Math.round(kmh / KMH_PER_MPH)} mph`,
      length: (m) =>
        m / 0.3048 < 999.5 ? `${Math.round(m / 0.3048)} ft` : `${number(m / 1609.344)} mi`,
      area: (m2) => `${number(m2 / 0.09290304)} ft²`,
      scale: "imperial",
    },
  };

  /** @param {number} seconds */
  function duration(seconds) {
    if (seconds < 59.5) return `${Math.round(seconds)} s`;
    const minutes = Math.floor(Math.round(seconds) / 60), rest = Math.round(seconds) % 60;
    if (minutes < 60) return rest ? `${minutes} min ${rest} s` : `${minutes} min`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }

  /**
   * Return limits that divide values into five classes of about the same number.
   * @param {Float32Array | null} values
   */
  function quantiles(values, classes = 5) {
    if (!values) return [];
    const step = Math.max(1, Math.floor(values.length / 20000));
    const sample = values.filter((v, k) => k % step === 0 && Number.isFinite(v)).sort();
    /** @type {number[]} */
    const limits = [];
    for (let k = 1; k < classes; k++) {
      const limit = Number((sample[Math.floor((k * sample.length) / classes)] || 0).toPrecision(2));
      if (limit > 0 && limit > (limits[limits.length - 1] || 0)) limits.push(limit);
    }
    return limits;
  }

  /**
   * Return the colours and the labels of classes of a number.
   * @param {number[]} limits @param {string[]} colours @param {(value: number) => string} text
   */
  function classes(limits, colours, text) {
    const labels = [`under ${text(limits[0])}`];
    for (let k = 1; k < limits.length; k++) labels.push(`${text(limits[k - 1])} – ${text(limits[k])}`);
    labels.push(`${text(limits[limits.length - 1])} and more`);
    return { colours, labels };
  }

  const percent = (/** @type {number} */ share) => `${Math.round(100 * share)} %`;

  /**
   * Return a colouring by the class of a number; shapes without it get the colour UNKNOWN.
   * @param {string} label
   * @param {"speed" | "time" | "confidence" | "width" | "area"} name
   * @param {number[]} limits
   * @param {string[]} colours
   * @param {(value: number) => string} text
   * @param {number} shownAs value of a shown unit
   * @returns {Colouring}
   */
  function byNumber(label, name, limits, colours, text, shownAs = 1) {
    const steps = limits.map((limit) => limit * shownAs - ROUNDING);
    return {
      label,
      palette: [...colours.slice(0, limits.length + 1), UNKNOWN],
      legend: classes(limits, colours, text),
      colourOf: (shapes) => {
        const values = shapes[name];
        return (k) => {
          const value = values ? values[k] : NaN;
          if (Number.isNaN(value)) return limits.length + 1;
          let number = 0;
          while (number < steps.length && value >= steps[number]) number++;
          return number;
        };
      },
    };
  }

  /**
   * Return a colouring by the text of a property, for its first values.
   * @param {string} label @param {string} name @param {Shapes} shapes
   * @returns {Colouring | null}
   */
  function byText(label, name, shapes) {
    const column = shapes.columns.find((each) => each.name === name);
    if (!column?.texts || column.texts.length < 2) return null;
    const names = column.texts.slice(0, CLASSES.length - 1);
    const other = column.texts.length > names.length;
    return {
      label,
      palette: [...CLASSES.slice(0, names.length), UNKNOWN],
      legend: {
        colours: [...CLASSES.slice(0, names.length), ...(other ? [UNKNOWN] : [])],
        labels: [...names.map((each) => each.slice(0, 40)), ...(other ? ["other"] : [])],
      },
      colourOf: (shown) => {
        // The truth has its own numbers of the same texts.
        const own = shown.columns.find((each) => each.name === name);
        const numbers = (own?.texts ?? []).map((each) => names.indexOf(each));
        return (k) => {
          const number = own?.texts && own.values[k] >= 0 ? numbers[own.values[k]] : -1;
          return number < 0 ? names.length : number;
        };
      },
    };
  }

  /** @param {string} colour @returns {Colouring} */
  const plain = (colour) => ({ label: "One colour", palette: [colour], legend: null, colourOf: () => () => 0 });

  /**
   * Return how roads can be coloured.
   * @param {Shapes} roads @param {"kmh" | "mph"} unit
   * @returns {Record<string, Colouring>}
   */
  function roadColours(roads, unit) {
    const isMph = unit === "mph";
    /** @type {Record<string, Colouring>} */
    const found = {};
    if (roads.has("speed")) {
      found.speed = byNumber(`Speed (${units[unit].label})`, "speed", isMph ? SPEED_LIMITS_MPH : SPEED_LIMITS_KMH,
        SPEED, String, isMph ? KMH_PER_MPH : 1);
      const times = quantiles(roads.time);
      if (times.length) found.time = byNumber("Travel time", "time", times, [...RAMP].reverse().slice(-times.length - 1), duration);
    }
    if (roads.has("confidence")) {
      found.confidence = byNumber(roads.confidenceName, "confidence", [0.2, 0.4, 0.6, 0.8], RAMP, percent);
    }
    const kind = byText("Class", "highway", roads) || byText("Class", "class", roads);
    if (kind) found.class = kind;
    if (roads.has("width")) {
      const metres = isMph ? 0.3048 : 1;
      found.width = byNumber("Width", "width", isMph ? [13, 20, 26, 40] : [4, 6, 8, 12], RAMP,
        (value) => `${value} ${isMph ? "ft" : "m"}`, metres);
    }
    if (roads.deck?.some((value) => value !== 0)) {
      const level = (/** @type {number} */ value) => Math.min(Math.max(value, -1), 2) + 1;
      const there = [...new Set(roads.deck)].map(level), shown = [0, 1, 2, 3].filter((each) => there.includes(each));
      found.deck = {
        label: "Deck",
        palette: DECKS,
        legend: { colours: shown.map((each) => DECKS[each]), labels: shown.map((each) => DECK_LABELS[each]) },
        colourOf: (shapes) => (k) => (shapes.deck ? level(shapes.deck[k]) : 1),
      };
    }
    found.plain = plain("#f2b632");
    return found;
  }

  /**
   * Return how buildings can be coloured.
   * @param {Shapes} buildings @param {"kmh" | "mph"} unit
   * @returns {Record<string, Colouring>}
   */
  function buildingColours(buildings, unit) {
    /** @type {Record<string, Colouring>} */
    const found = {};
    if (buildings.has("confidence")) {
      found.confidence = byNumber(buildings.confidenceName, "confidence", [0.2, 0.4, 0.6, 0.8], RAMP, percent);
    }
    const limits = quantiles(buildings.area);
    if (limits.length) found.area = byNumber("Area", "area", limits, RAMP, units[unit].area);
    found.plain = plain("#e8743b");
    return found;
  }

  return { units, duration, number, percent, roadColours, buildingColours };
})();
