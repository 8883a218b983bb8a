"use strict";
/* Builds what shows persons and pairs. Everything that comes from a file name or an id goes in as text, never as HTML. */

function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function plural(count, one, many) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** "1:02.5" for 62.5 seconds, "1:00:02" from an hour on. */
function clock(seconds) {
  const hours = Math.floor(seconds / 3600);
  if (hours) {
    const whole = Math.round(seconds);
    return [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60]
      .map((part, i) => (i ? String(part).padStart(2, "0") : part)).join(":");
  }
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

function decimal(similarity) {
  return similarity.toFixed(3).replace("-", "−");
}

/**
 * Give each person `number`, the tracker's id, and `name`, by which lists and axes call them: the number alone for one
 * video; with the video's file name before it for several, or its id where two files have one name.
 */
function nameAll(persons) {
  const sources = new Set(persons.map((person) => person.source)).size;
  const fileNames = new Set(persons.map((person) => person.video)).size;
  for (const person of persons) {
    person.number = person.label.slice(person.label.lastIndexOf("/") + 1);
    person.name = sources === 1 ? person.number : `${fileNames === sources ? person.video : person.source} · ${person.number}`;
  }
}

/* Motion: a paused animation is covered by a still of its first picture. */
const motion = { paused: matchMedia("(prefers-reduced-motion: reduce)").matches };

function applyMotion(image) {
  const still = image.parentElement.querySelector("canvas");
  if (still) still.remove();
  image.style.visibility = "";
  if (!motion.paused || !image.complete || !image.naturalWidth) return;
  const canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight, role: "img", "aria-label": image.alt });
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.after(canvas);
  image.style.visibility = "hidden";
}

function noAnimation(reason) {
  return element("div", { className: "shot none" }, element("span", {}, reason));
}

function animation(person) {
  if (!person.webp) return noAnimation(`No animation: ${person.webp_error || "it was not made"}`);
  const image = element("img", {
    loading: "lazy", decoding: "async", width: 256, height: 256,
    alt: `Person ${person.name}: ${plural(person.crops, "picture", "pictures")} from ${clock(person.first_seconds)} to ${clock(person.last_seconds)}`,
  });
  const shot = element("div", { className: "shot" }, image);
  image.addEventListener("load", () => applyMotion(image));
  image.addEventListener("error", () => shot.replaceWith(noAnimation(`No animation: ${person.webp} cannot be read`)));
  image.src = person.webp.split("/").map(encodeURIComponent).join("/");
  return shot;
}

/** One person: the animation, who, when, how much; the video and the full id only where a gallery has several; `more` is one more line. */
function personFigure(person, severalVideos, more) {
  return element("figure", { className: "person" },
    animation(person),
    element("figcaption", {},
      element("span", { className: "name" }, `Person ${person.number}`),
      element("span", {}, `${clock(person.first_seconds)} – ${clock(person.last_seconds)}`),
      element("span", { title: `frames ${person.first_frame} to ${person.last_frame}` }, plural(person.frames, "frame", "frames")),
      more ? element("span", {}, more) : null,
      severalVideos ? element("span", {}, person.video) : null,
      severalVideos ? element("span", { className: "id" }, person.label) : null));
}

/** Why a pair is listed, or what speaks against it, from when the two were seen. */
function relation(a, b, status, framesApart) {
  if (status === "vetoed") {
    const much = framesApart ? plural(framesApart, "frame", "frames") : "the same frames";
    return `Ruled out: seen apart in ${much}${framesApart ? " at once" : ""}.`;
  }
  if (a.source !== b.source) return "Seen in different videos, so nothing rules the pair out.";
  const [early, late] = a.first_seconds <= b.first_seconds ? [a, b] : [b, a];
  const gap = late.first_seconds - early.last_seconds;
  if (gap >= 0) return `Not seen together: ${late.number} appears ${gap.toFixed(1)} s after ${early.number} was last seen.`;
  const overlap = Math.min(a.last_seconds, b.last_seconds) - late.first_seconds;
  return `Their times overlap by ${overlap.toFixed(1)} s, but they were not seen apart often enough to rule the pair out.`;
}

/** When both were seen, as two bars over their video; the caption beside each animation says the same in numbers. */
function timeline(a, b, videoSeconds) {
  if (a.source !== b.source) return null;
  const total = videoSeconds.get(a.source) || 1;
  const track = (person) => {
    const seen = element("div", { className: "seen" });
    const left = Math.min(99, (100 * person.first_seconds) / total);
    seen.style.left = `${left}%`;
    seen.style.width = `${Math.min(100 - left, (100 * (person.last_seconds - person.first_seconds)) / total)}%`;
    return element("div", { className: "track" }, seen);
  };
  const scale = element("div", { className: "scale" }, element("span", {}, clock(0)), element("span", {}, clock(total)));
  return element("div", { className: "timeline", "aria-hidden": "true" }, track(a), track(b), scale);
}

/** A pair with its evidence side by side. status: "candidate", "vetoed", "below", "above" or "none". */
function pairCard({ a, b, similarity, status, framesApart, probability = null, band = null, context }) {
  const verdicts = { below: "Below the threshold.", above: "Above the threshold, but less likely than those listed.", none: "Not compared: one of them has no embedding." };
  const value = similarity === null ? null : element("p", { className: "value" },
    element("b", {}, decimal(similarity)), element("small", {}, "cosine similarity"));
  const chance = probability === null ? null : element("p", { className: "value" },
    element("b", {}, `${Math.round(100 * probability)} %`), element("small", {}, `one person: ${band}`));
  return element("article", { className: "pair" },
    element("header", {}, element("h3", {}, `${a.number} and ${b.number}`), chance, value),
    element("div", { className: "sides" },
      personFigure(a, context.severalVideos), personFigure(b, context.severalVideos)),
    timeline(a, b, context.videoSeconds),
    element("p", { className: "why" }, verdicts[status] || relation(a, b, status, framesApart)));
}
