// What was found, drawn where it was found: boxes over a picture or a video, segments along a sound.
import { el, percent, scoreColour, seconds, svg } from "./ui.js";

// The style sheet sets labels in the same font.
const pen = document.createElement("canvas").getContext("2d");
pen.font = '600 100px system-ui, "Liberation Sans", sans-serif';

/** Return boxes over a picture of the given size, and the function that shows others. */
export function overlay(width, height) {
  const layer = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "boxes", "aria-hidden": "true" });
  const unit = Math.max(width, height) / 100;
  function show(predictions) {
    const placed = [];
    for (const each of predictions) placed.push(place(each, placed, unit, width, height));
    layer.replaceChildren(...predictions.map((each, index) => box(each, index, unit)), ...placed.map(boxLabel));
  }
  function point(index) {
    for (const each of layer.children) each.classList.toggle("dim", index !== null && Number(each.dataset.index) !== index);
  }
  return { layer, show, point };
}

/** Place a label inside the picture, as near above its box as the labels placed before it leave room. */
function place({ box: [left, top, right, bottom], label, score }, placed, unit, width, height) {
  const text = `${label ?? "object"} ${Math.round((score ?? 1) * 100)}`;
  const size = unit * 2.3;
  const wide = Math.min(width, size * (pen.measureText(text).width / 100 + 0.7));
  const high = size * 1.45;
  const above = top - high;
  const rows = [above, top, bottom, ...placed.flatMap(({ y }) => [y - high * 1.1, y + high * 1.1])];
  rows.sort((one, other) => Math.abs(one - above) - Math.abs(other - above));
  const inside = (at, most) => Math.max(0, Math.min(at, most));
  const places = rows.flatMap((y) => [left, right - wide].map((x) => ({ x: inside(x, width - wide), y: inside(y, height - high), wide, high })));
  const free = places.find((each) => !placed.some((other) => overlap(each, other)));
  return { ...free ?? places[0], text, size, unit, colour: scoreColour(score ?? 1) };
}

const overlap = (one, other) => one.x < other.x + other.wide && other.x < one.x + one.wide && one.y < other.y + other.high && other.y < one.y + one.high;

function box({ box: [left, top, right, bottom], score }, index, unit) {
  return svg("rect", {
    x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top),
    class: "box", rx: unit * 0.4, stroke: scoreColour(score ?? 1), "data-index": index,
  });
}

function boxLabel({ x, y, wide, high, text, size, unit, colour }, index) {
  const words = svg("text", { x: x + size * 0.35, y: y + size * 1.06, "font-size": size });
  words.textContent = text;
  return svg("g", { "data-index": index }, svg("rect", { x, y, width: wide, height: high, fill: colour, rx: unit * 0.4 }), words);
}

/** The list beside the picture; what is pointed at stands out in it. */
export function boxList(predictions, point) {
  return el("ol.found", { "aria-label": "Objects, most certain first" }, predictions.map((each, index) => {
    const swatch = el("span.swatch");
    swatch.style.background = scoreColour(each.score ?? 1);
    const [left, top, right, bottom] = each.box.map(Math.round);
    return el("li", {}, el("button", {
      type: "button",
      pointerenter: () => point(index), pointerleave: () => point(null), focus: () => point(index), blur: () => point(null),
      "aria-label": `${each.label ?? "object"}, ${percent(each.score ?? 1)}, from ${left}, ${top} to ${right}, ${bottom}`,
    }, swatch, el("span.label", {}, each.label ?? "object"), el("span.number", {}, percent(each.score ?? 1))));
  }));
}

/** The peaks of a sound, at most `count`, and how long it is. */
export async function peaksOf(file, count = 480) {
  const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await file.arrayBuffer());
  const samples = sound.getChannelData(0);
  const step = Math.max(1, Math.floor(samples.length / count));
  const peaks = [];
  for (let first = 0; first < samples.length; first += step) {
    let most = 0;
    for (let at = first; at < Math.min(first + step, samples.length); at += 1) most = Math.max(most, Math.abs(samples[at]));
    peaks.push(most);
  }
  return { peaks, duration: sound.duration };
}

/** A sound's wave with the segments that were found in it; each can be heard. */
export function timeline(peaks, duration, segments, player) {
  const loudest = Math.max(...peaks, 0.01);
  const path = peaks.map((peak, at) => {
    const x = ((at + 0.5) / peaks.length) * 1000;
    const half = Math.max(0.6, (peak / loudest) * 46);
    return `M${x.toFixed(1)} ${(50 - half).toFixed(1)}V${(50 + half).toFixed(1)}`;
  }).join("");
  const cursor = svg("line", { x1: 0, x2: 0, y1: 0, y2: 100, class: "cursor" });
  const marks = segments.map((each) => svg("rect", {
    x: (each.start_seconds / duration) * 1000, y: 0, height: 100, class: "segment", rx: 4,
    width: Math.max(2, ((each.end_seconds - each.start_seconds) / duration) * 1000),
  }));
  const picture = svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", class: "wave", "aria-hidden": "true" }, ...marks, svg("path", { d: path }), cursor);
  picture.addEventListener("click", (event) => {
    const bounds = picture.getBoundingClientRect();
    player.currentTime = ((event.clientX - bounds.left) / bounds.width) * duration;
    player.play();
  });
  player.addEventListener("timeupdate", () => {
    const x = (player.currentTime / duration) * 1000;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  });
  const rows = segments.map((each) => el("li", {}, el("button", {
    type: "button", click: () => { player.currentTime = each.start_seconds; player.play(); },
  }, el("span.number", {}, `${seconds(each.start_seconds)} – ${seconds(each.end_seconds)}`), el("span.label", {}, each.text ?? each.label ?? ""),
  each.score === undefined ? null : el("span.number", {}, percent(each.score)))));
  return el("div.timeline", {}, picture, el("p.ends", { "aria-hidden": "true" }, el("span", {}, "0 s"), el("span", {}, seconds(duration))),
    el("ol.segments", { "aria-label": "Segments, in the order of time" }, rows));
}
