"use strict";
/* Reads the data inside the page and fills its sections. */

const PAIRS_AT_ONCE = 12;
const MAX_CROSSES = 400; // more would hide the colours beneath

const data = JSON.parse(document.getElementById("data").textContent);
const { persons, embedded } = data;
nameAll(persons);
const byId = (id) => document.getElementById(id);

const context = {
  severalVideos: new Set(persons.map((person) => person.source)).size > 1,
  videoSeconds: persons.reduce((seconds, person) => seconds.set(person.source, Math.max(seconds.get(person.source) || 0, person.last_seconds)), new Map()),
};
const rows = data.similarities === null ? null : unpackSimilarities(data.similarities, embedded.length);
const rowOf = new Map(embedded.map((person, row) => [person, row]));
const keyOf = (a, b) => (a < b ? `${a} ${b}` : `${b} ${a}`);
const known = new Map([
  ...data.candidates.map(([a, b, similarity, , probability, band]) =>
    [keyOf(a, b), { status: "candidate", similarity, framesApart: null, probability, band }]),
  ...data.vetoed.map(([a, b, similarity, framesApart]) => [keyOf(a, b), { status: "vetoed", similarity, framesApart }]),
]);

function factsOf(a, b) {
  const pair = known.get(keyOf(a, b));
  if (pair) return pair;
  if (rows === null || !rowOf.has(a) || !rowOf.has(b)) return { status: "none", similarity: null, framesApart: null };
  const similarity = rows[rowOf.get(a)][rowOf.get(b)];
  return { status: similarity > data.threshold ? "above" : "below", similarity, framesApart: null };
}

function cardOf(a, b) {
  return pairCard({ a: persons[a], b: persons[b], ...factsOf(a, b), context });
}

function emptyState(title, text) {
  return element("p", { className: "empty" }, element("strong", {}, title), text);
}

function fillFacts() {
  const fact = (name, value, className) => {
    if (value === null) return;
    byId("facts").append(element("div", { className: className || "" }, element("dt", {}, name), element("dd", {}, value)));
  };
  const videos = [...new Set(persons.map((person) => person.video))];
  fact("Gallery", data.gallery, "wide");
  if (videos.length) fact(videos.length === 1 ? "Video" : "Videos", videos.length > 3 ? plural(videos.length, "video", "videos") : videos.join(", "), "wide");
  fact("Persons", persons.length.toLocaleString("en"));
  fact("Possible duplicates", data.has_similarity ? data.candidate_count.toLocaleString("en") : "not looked for");
  fact("Threshold", data.threshold.toFixed(2));
  if (data.model) {
    const hash = data.model.weights_sha256 ? `sha256 ${String(data.model.weights_sha256).slice(0, 12)}` : "";
    const name = element("span", {}, String(data.model.name || data.model.architecture || "unnamed"));
    const more = [data.model.architecture === data.model.name ? "" : data.model.architecture, hash].filter(Boolean).join(" · ");
    fact("Model", element("span", { title: String(data.model.weights_sha256 || "") }, name, element("small", {}, more)), "model wide");
  }
  byId("numbers-threshold").textContent = data.threshold.toFixed(2);
  byId("made").textContent = `Made ${data.timestamp.replace("T", " ").slice(0, 16)} UTC. The same numbers are in similarity_matrix.json and run.json.`;
  byId("notices").append(...data.notices.map((notice) => element("p", { className: "notice" }, notice)));
}

function fillCandidates() {
  const [list, more, lead] = [byId("candidates"), byId("candidates-more"), byId("duplicates-lead")];
  if (!data.candidates.length) {
    const compared = data.has_similarity && embedded.length > 1;
    list.replaceWith(compared
      ? emptyState("No possible duplicates", `No pair without a veto is above ${data.threshold.toFixed(2)} and likely enough.`)
      : emptyState("Nothing was compared", data.has_similarity ? "It takes two persons to compare." : "Similarity was skipped; the notice above says why."));
    return;
  }
  lead.textContent = `${plural(data.candidate_count, "pair is", "pairs are")} above ${data.threshold.toFixed(2)} and nothing rules ${data.candidate_count === 1 ? "it" : "them"} out. The ${data.candidates[0][4] === null ? "most similar" : "likeliest"} first.`;
  const showMore = () => {
    const from = list.children.length;
    const next = data.candidates.slice(from, from + PAIRS_AT_ONCE);
    list.append(...next.map(([a, b]) => cardOf(a, b)));
    const left = data.candidates.length - list.children.length;
    const beyond = data.candidate_count - data.candidates.length;
    more.replaceChildren();
    if (left) more.append(element("button", { type: "button", onclick: showMore }, `Show ${Math.min(left, PAIRS_AT_ONCE)} more of ${left.toLocaleString("en")}`));
    else if (beyond) more.append(`${beyond.toLocaleString("en")} less similar pairs are in similarity_matrix.json.`);
    if (from) list.children[from].querySelector("h3").scrollIntoView({ block: "nearest" });
  };
  showMore();
}

function fillVetoed() {
  if (!data.vetoed_count) return;
  const [details, list] = [byId("vetoed"), byId("vetoed-list")];
  details.hidden = false;
  byId("vetoed-summary").textContent = `${plural(data.vetoed_count, "pair", "pairs")} above ${data.threshold.toFixed(2)} ruled out by a veto`;
  details.addEventListener("toggle", () => {
    if (list.children.length) return;
    list.append(...data.vetoed.map(([a, b, similarity, framesApart]) => element("li", {},
      element("span", {}, `${persons[a].name} and ${persons[b].name}`,
        framesApart ? element("small", {}, `apart in ${plural(framesApart, "frame", "frames")}`) : null),
      element("b", {}, decimal(similarity)),
      rows && element("button", { type: "button", onclick: () => compare(a, b, true), "aria-label": `Compare ${persons[a].name} and ${persons[b].name}` }, "Compare"))));
    const beyond = data.vetoed_count - data.vetoed.length;
    if (beyond) list.append(element("li", { className: "rest" }, `${beyond.toLocaleString("en")} less similar pairs are in similarity_matrix.json.`));
  });
}

function compare(a, b, show) {
  byId("compare-a").value = a;
  byId("compare-b").value = b;
  byId("compare-result").replaceChildren(a === b
    ? element("p", { className: "why" }, "Choose two different persons.")
    : cardOf(a, b));
  if (!show) return;
  byId("compare").focus({ preventScroll: true });
  byId("compare").scrollIntoView({ block: "nearest" });
}

function fillHeatmap() {
  const lead = byId("similarity-lead");
  if (rows === null) {
    lead.remove();
    let text = "Similarity was skipped; the notice above says why.";
    if (data.has_similarity) text = embedded.length < 2 ? "It takes two persons to compare." : `${embedded.length.toLocaleString("en")} persons are too many to draw here; all similarities are in similarity_matrix.npy.`;
    byId("similarity").append(emptyState("No heatmap", text));
    return;
  }
  lead.textContent = "Warm cells are above the threshold. Choose a cell, or two persons beside it, to see them together.";
  byId("matrix").hidden = false;
  const labels = embedded.map((person) => persons[person].name);
  const allVetoesKnown = data.vetoed.length === data.vetoed_count;
  const vetoed = allVetoesKnown && data.vetoed.length <= MAX_CROSSES ? data.vetoed.map(([a, b]) => [rowOf.get(a), rowOf.get(b)]) : [];
  byId("heatmap").setAttribute("aria-label", `Heatmap of the cosine similarities of ${labels.length} persons; the two lists beside it show the same by choice of persons.`);
  byId("heatmap-hint").textContent = vetoed.length ? "× ruled out: seen apart in the same frames." : "";
  for (const id of ["compare-a", "compare-b"]) {
    byId(id).append(...embedded.map((person) => element("option", { value: person }, persons[person].name)));
    byId(id).addEventListener("change", () => compare(Number(byId("compare-a").value), Number(byId("compare-b").value), false));
  }
  const [first] = [...data.candidates, ...data.vetoed, embedded];
  compare(first[0], first[1], false);
  drawHeatmap(byId("heatmap"), { rows, labels, threshold: data.threshold, vetoed, onPick: (i, j) => compare(embedded[i], embedded[j], true) });
}

const SORTS = {
  given: (a, b) => a.place - b.place,
  time: (a, b) => a.person.first_seconds - b.person.first_seconds || a.place - b.place,
  frames: (a, b) => b.person.frames - a.person.frames || a.place - b.place,
  quality: (a, b) => b.person.quality - a.person.quality || a.place - b.place,
};

function fillPersons() {
  const grid = byId("persons-grid");
  if (!persons.length) {
    grid.replaceWith(emptyState("No persons", "No track was long enough; run.json says what was left out."));
    return;
  }
  byId("persons-tools").hidden = persons.length < 2;
  const cards = persons.map((person, place) => ({
    person, place, text: `${person.label} ${person.video}`.toLowerCase(),
    card: element("div", { className: "card" }, personFigure(person, context.severalVideos, `best crop ${person.quality.toFixed(2)}`)),
  }));
  const show = () => {
    const wanted = byId("persons-find").value.trim().toLowerCase();
    const shown = cards.filter(({ text }) => text.includes(wanted)).sort(SORTS[byId("persons-sort").value]);
    grid.replaceChildren(...shown.map(({ card }) => card));
    byId("persons-count").textContent = wanted ? `${shown.length} of ${plural(persons.length, "person", "persons")}` : plural(persons.length, "person", "persons");
  };
  byId("persons-find").addEventListener("input", show);
  byId("persons-sort").addEventListener("change", show);
  show();
}

function wireMotion() {
  const button = byId("motion");
  const label = () => { button.textContent = motion.paused ? "Play" : "Pause"; button.setAttribute("aria-label", `${button.textContent} the animations`); };
  button.hidden = !persons.some((person) => person.webp);
  button.addEventListener("click", () => {
    motion.paused = !motion.paused;
    document.querySelectorAll(".shot img").forEach(applyMotion);
    label();
  });
  label();
}

fillFacts();
fillCandidates();
fillVetoed();
fillHeatmap();
fillPersons();
wireMotion();
