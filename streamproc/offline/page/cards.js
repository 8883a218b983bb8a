"use strict";
/* Builds what shows persons and pairs.
 * Everything that comes from a file name or an id goes in as text, never as HTML. */

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

function twoDigits(number) {
  return String(number).padStart(2, "0");
}

/** "1:02.5" for 62.5 seconds, "1:00:02" from an hour on. */
function clock(seconds) {
  if (seconds >= 3600) {
    const whole = Math.round(seconds);
    const minutes = Math.floor(whole / 60);
    return `${Math.floor(minutes / 60)}:${twoDigits(minutes % 60)}:${twoDigits(whole % 60)}`;
  }
  const tenths = Math.round(seconds * 10);
  const rest = ((tenths % 600) / 10).toFixed(1);
  return `${Math.floor(tenths / 600)}:${rest.padStart(4, "0")}`;
}

function decimal(similarity) {
  return similarity.toFixed(3).replace("-", "−");
}

/**
 * Give each person `number`, the tracker's id, and `name`, which lists and axes show: the number
 * alone for one video; with the video's file name before it for several, or with the video's id
 * where two files have one name.
 */
function nameAll(persons) {
  const sources = new Set(persons.map((person) => person.source)).size;
  const fileNames = new Set(persons.map((person) => person.video)).size;
  for (const person of persons) {
    const video = fileNames === sources ? person.video : person.source;
    person.number = person.label.slice(person.label.lastIndexOf("/") + 1);
    person.name = sources === 1 ? person.number : `${video} · ${person.number}`;
  }
}

/* Motion: a paused animation is covered by a still of its first picture. */
const motion = { paused: matchMedia("(prefers-reduced-motion: reduce)").matches };

function applyMotion(image) {
  const still = image.parentElement.querySelector("canvas");
  if (still) still.remove();
  image.style.visibility = "";
  if (!motion.paused || !image.complete || !image.naturalWidth) return;
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const canvas = element("canvas", { width, height, role: "img", "aria-label": image.alt });
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.after(canvas);
  image.style.visibility = "hidden";
}

function noAnimation(reason) {
  return element("div", { className: "shot none" },
    element("span", {}, `No animation: ${reason}`));
}

function animation(person) {
  if (!person.webp) return noAnimation(person.webp_error || "it was not made");
  const pictures = plural(person.crops, "picture", "pictures");
  const time = `from ${clock(person.first_seconds)} to ${clock(person.last_seconds)}`;
  const image = element("img", {
    loading: "lazy", decoding: "async", width: 256, height: 256,
    alt: `Person ${person.name}: ${pictures} ${time}`,
  });
  const shot = element("div", { className: "shot" }, image);
  image.addEventListener("load", () => applyMotion(image));
  image.addEventListener("error",
    () => shot.replaceWith(noAnimation(`${person.webp} cannot be read`)));
  image.src = addressOf(person.webp);
  return shot;
}

/** The address of a file beside the page. */
function addressOf(path) {
  return path.split("/").map(encodeURIComponent).join("/");
}

/** A person's best crops in one row, null where there are none. */
function cropStrip(person) {
  if (!person.crops_webp) return null;
  const image = element("img", {
    loading: "lazy", decoding: "async", alt: `The best crops of person ${person.name}`,
  });
  const strip = element("div", { className: "strip" }, image);
  image.addEventListener("error", () => strip.remove());
  image.src = addressOf(person.crops_webp);
  return strip;
}

/** One person: the animation, who, when and how much. The video and the full id are shown only
 * where a gallery has several videos; `more` is one more line. */
function personFigure(person, severalVideos, more, shot = animation(person)) {
  const time = `${clock(person.first_seconds)} – ${clock(person.last_seconds)}`;
  // Of somebody who has just come the live page does not know it yet.
  const frames = person.frames ? plural(person.frames, "frame", "frames") : null;
  const span = `frames ${person.first_frame} to ${person.last_frame}`;
  const figure = element("figure", { className: "person" },
    shot,
    element("figcaption", {},
      element("span", { className: "name" }, `Person ${person.number}`),
      element("span", {}, time),
      frames ? element("span", { title: span }, frames) : null,
      more ? element("span", {}, more) : null,
      severalVideos ? element("span", {}, person.video) : null,
      severalVideos ? element("span", { className: "id" }, person.label) : null,
      element("span", { className: "marks" })));
  figure.dataset.key = person.person_key;
  return figure;
}

/** Whether both are parts of one track, which was taken apart. */
function areOfOneTrack(a, b) {
  const [one, other] = [a, b].map((person) => person.label.replace(/#\d+$/, ""));
  return one === other;
}

/** Why a pair is listed, or what rules it out, from when the two were seen. */
function relation(a, b, status) {
  if (status === "vetoed" && areOfOneTrack(a, b)) {
    return "Ruled out: parts of one track, which seemed to go from one person to another.";
  }
  if (status === "vetoed") return "Ruled out: seen apart in the same frames.";
  if (a.source !== b.source) return "Seen in different videos, so nothing rules the pair out.";
  const [early, late] = a.first_seconds <= b.first_seconds ? [a, b] : [b, a];
  const gap = late.first_seconds - early.last_seconds;
  if (gap >= 0) {
    return `Not seen together: ${late.number} appears ${gap.toFixed(1)} s `
      + `after ${early.number} was last seen.`;
  }
  const overlap = Math.min(a.last_seconds, b.last_seconds) - late.first_seconds;
  return `Their times overlap by ${overlap.toFixed(1)} s, `
    + "but they were not seen apart often enough to rule the pair out.";
}

/** When both were seen, as two bars over their video; the captions say the same in numbers. */
function timeline(a, b, videoSeconds) {
  if (a.source !== b.source) return null;
  const total = videoSeconds.get(a.source) || 1;
  const track = (person) => {
    const seen = element("div", { className: "seen" });
    const left = Math.min(99, (100 * person.first_seconds) / total);
    const width = (100 * (person.last_seconds - person.first_seconds)) / total;
    seen.style.left = `${left}%`;
    seen.style.width = `${Math.min(100 - left, width)}%`;
    return element("div", { className: "track" }, seen);
  };
  const scale = element("div", { className: "scale" },
    element("span", {}, clock(0)), element("span", {}, clock(total)));
  return element("div", { className: "timeline", "aria-hidden": "true" },
    track(a), track(b), scale);
}

const VERDICTS = {
  below: "Below the threshold.",
  above: "Above the threshold, but less likely than those listed.",
  none: "Not compared: one of them has no embedding.",
};

function figureOf(value, unit) {
  return element("p", { className: "value" }, element("b", {}, value), element("small", {}, unit));
}

/** The numbers of a pair, given in the form of `DuplicateCandidate` on the wire. */
function pairFigures(pair) {
  const figures = [];
  if (pair.probability !== undefined) {
    const percent = `${Math.round(100 * pair.probability)} %`;
    figures.push(figureOf(percent, `one person: ${pair.band}`));
  }
  figures.push(figureOf(decimal(pair.similarity), "cosine similarity"));
  return figures;
}

/** One person in all their pieces, given in the form of `DuplicateGroup` on the wire. `pairCards`
 * makes the cards of its pairs, once they are asked for. */
function groupCard({ group, members, figures, pairCount, pairCards }) {
  const percent = `${Math.round(100 * group.probability)} %`;
  const pairs = element("div", { className: "pairs" });
  const details = element("details", {},
    element("summary", {}, plural(pairCount, "pair", "pairs")), pairs);
  details.addEventListener("toggle", () => {
    if (!pairs.children.length) pairs.append(...pairCards());
  });
  const numbers = members.map((person) => person.number).join(", ");
  return element("article", { className: "pair group" },
    element("header", {}, element("h3", {}, `${members.length} pieces: ${numbers}`),
      figureOf(percent, `one person: ${group.band}`)),
    element("div", { className: "grid" }, ...figures.values()),
    details);
}

/** Both parts of a track that seems to hold two people, side by side, with their best pictures: the
 * animation is of the whole track. */
function suspectCard({ parts, suspect, context }) {
  const [track] = parts[0].number.split("#");
  const figures = parts.map((person, place) => {
    const src = suspect.pictures[place];
    const alt = `Person ${person.name}: the best picture`;
    const shot = src
      ? element("div", { className: "shot" },
        element("img", { src, alt, width: 256, height: 256 }))
      : noAnimation("its picture was not kept");
    return personFigure(person, context.severalVideos, null, shot);
  });
  const percent = `${Math.round(100 * suspect.probability)} %`;
  return element("article", { className: "pair suspect" },
    element("header", {}, element("h3", {}, `Track ${track}`), figureOf(percent, "two people")),
    element("div", { className: "sides" }, ...figures),
    element("p", { className: "why" },
      `From frame ${suspect.frame_index} on it looks like somebody else.`));
}

/** Two persons side by side. `status` is "candidate", "vetoed", "above", "below" or "none";
 * `pair` is null where they were not compared. */
function pairCard({ a, b, status, pair, context }) {
  const figures = pair === null ? [] : pairFigures(pair);
  return element("article", { className: "pair" },
    element("header", {}, element("h3", {}, `${a.number} and ${b.number}`), ...figures),
    element("div", { className: "sides" },
      personFigure(a, context.severalVideos), personFigure(b, context.severalVideos)),
    element("div", { className: "strips" }, cropStrip(a), cropStrip(b)),
    timeline(a, b, context.videoSeconds),
    element("p", { className: "why" }, VERDICTS[status] || relation(a, b, status)));
}
