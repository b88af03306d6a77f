"use strict";
// Colours, classes and units.

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
  const SPEED_LIMITS_KMH = [30, 40, 50, 65, 85];
  const SPEED_LIMITS_MPH = [20, 25, 30, 40, 55];

  const number = (value, digits = 3) =>
    Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });

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

  function duration(seconds) {
    if (seconds < 59.5) return `${Math.round(seconds)} s`;
    const minutes = Math.floor(Math.round(seconds) / 60), rest = Math.round(seconds) % 60;
    if (minutes < 60) return rest ? `${minutes} min ${rest} s` : `${minutes} min`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }

  /** Return limits that divide values into five classes of about the same number. */
  function quantiles(values, classes = 5) {
    const step = Math.max(1, Math.floor(values.length / 20000));
    const sample = Array.from(values).filter((v, k) => k % step === 0 && Number.isFinite(v));
    sample.sort((a, b) => a - b);
    const limits = [];
    for (let k = 1; k < classes; k++) {
      const limit = Number((sample[Math.floor((k * sample.length) / classes)] || 0).toPrecision(2));
      if (limit > 0 && limit > (limits[limits.length - 1] || 0)) limits.push(limit);
    }
    return limits;
  }

  /** Return the limits, the colours and the labels of classes of a number. */
  function classes(limits, colours, text) {
    const labels = [`under ${text(limits[0])}`];
    for (let k = 1; k < limits.length; k++) labels.push(`${text(limits[k - 1])} – ${text(limits[k])}`);
    labels.push(`${text(limits[limits.length - 1])} and more`);
    return { limits, colours, labels };
  }

  function expression(property, limits, colours) {
    const step = ["step", ["get", property], colours[0]];
    limits.forEach((limit, k) => step.push(limit, colours[k + 1]));
    return ["case", ["has", property], step, UNKNOWN];
  }

  const percent = (share) => `${Math.round(100 * share)} %`;

  /** Return how roads can be coloured: {id: {label, paint, legend}}. */
  function roadColours(roads, unit) {
    const mph = unit === "mph";
    const found = {};
    const add = (id, label, property, limits, colours, text, convert = (v) => v) => {
      if (!limits.length) return;
      const shown = classes(limits, colours, text);
      found[id] = { label, paint: expression(property, limits.map(convert), colours), legend: shown };
    };
    if (roads.has("speed")) {
      const limits = mph ? SPEED_LIMITS_MPH : SPEED_LIMITS_KMH;
      add("speed", `Speed (${units[unit].label})`, "s", limits, SPEED, String,
        (v) => (mph ? v * KMH_PER_MPH : v));
      const times = quantiles(roads.time);
      add("time", "Travel time", "t", times, [...RAMP].reverse().slice(-times.length - 1), duration);
    }
    if (roads.has("confidence")) {
      add("confidence", "Confidence", "c", [0.2, 0.4, 0.6, 0.8], RAMP, percent);
    }
    const column = roads.columns.find((each) => each.name === "highway" && each.texts);
    if (column && column.texts.length > 1) {
      const names = column.texts.slice(0, CLASSES.length - 1);
      const other = column.texts.length > names.length;
      const match = ["match", ["get", "k"]];
      names.forEach((_, k) => match.push(k, CLASSES[k]));
      match.push(UNKNOWN);
      found.class = {
        label: "Class",
        paint: ["case", ["has", "k"], match, UNKNOWN],
        legend: {
          colours: [...CLASSES.slice(0, names.length), ...(other ? [UNKNOWN] : [])],
          labels: [...names.map((name) => name.slice(0, 40)), ...(other ? ["other"] : [])],
        },
      };
    }
    found.plain = { label: "One colour", paint: "#f2b632", legend: null };
    return found;
  }

  /** Return how buildings can be coloured. */
  function buildingColours(buildings, unit) {
    const found = {};
    if (buildings.has("confidence")) {
      const limits = [0.2, 0.4, 0.6, 0.8];
      found.confidence = {
        label: "Confidence",
        paint: expression("c", limits, RAMP),
        legend: classes(limits, RAMP, percent),
      };
    }
    const limits = quantiles(buildings.area || []);
    if (limits.length) {
      const colours = RAMP.slice(0, limits.length + 1);
      found.area = {
        label: "Area",
        paint: expression("a", limits, colours),
        legend: classes(limits, colours, units[unit].area),
      };
    }
    found.plain = { label: "One colour", paint: "#e8743b", legend: null };
    return found;
  }

  return { units, duration, number, percent, roadColours, buildingColours };
})();
