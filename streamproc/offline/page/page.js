"use strict";
/* Reads the data inside the page and fills its sections. */

const PAIRS_AT_ONCE = 12;
const MAX_CROSSES = 400; // more would hide the colours beneath

const data = JSON.parse(document.getElementById("data").textContent);
const { persons, embedded } = data;
nameAll(persons);

function byId(id) {
  return document.getElementById(id);
}

/** When each video's last person was last seen, by the video's source. */
function videoLengths() {
  const seconds = new Map();
  for (const person of persons) {
    const known = seconds.get(person.source) || 0;
    seconds.set(person.source, Math.max(known, person.last_seconds));
  }
  return seconds;
}

const context = {
  severalVideos: new Set(persons.map((person) => person.source)).size > 1,
  videoSeconds: videoLengths(),
};

// Persons are known by their place in the list; rows of the matrix are those of `embedded`.
const rows = data.similarities && unpackSimilarities(data.similarities, embedded.length);
const rowOf = new Map(embedded.map((place, row) => [place, row]));
const placeOf = new Map(persons.map((person, place) => [person.person_key, place]));

/** The places of a pair's two persons, the smaller first. A pair is a candidate as on the wire, or
 * a vetoed pair in the same form. */
function placesOf(pair) {
  return pair.persons.map((person) => placeOf.get(person.person_key)).sort((a, b) => a - b);
}

function placesKey(a, b) {
  return a < b ? `${a} ${b}` : `${b} ${a}`;
}

const known = new Map();
for (const pair of data.candidates) {
  known.set(placesKey(...placesOf(pair)), { status: "candidate", pair });
}
for (const pair of data.vetoed) known.set(placesKey(...placesOf(pair)), { status: "vetoed", pair });

/** What is known of any two persons: a status as in `pairCard`, and the pair if compared. */
function factsOf(a, b) {
  const listed = known.get(placesKey(a, b));
  if (listed) return listed;
  if (rows === null || !rowOf.has(a) || !rowOf.has(b)) return { status: "none", pair: null };
  const similarity = rows[rowOf.get(a)][rowOf.get(b)];
  return { status: similarity > data.threshold ? "above" : "below", pair: { similarity } };
}

const review = new Review({
  gallery: data.gallery,
  run: data.run,
  vetoes: data.seen_apart.flatMap((others, place) => others.map(
    (other) => [persons[place].person_key, persons[other].person_key])),
  onFilter: () => {
    byId("groups").replaceChildren();
    byId("candidates").replaceChildren();
    fillGroups();
    showMoreCandidates();
  },
});

function cardOf(a, b) {
  const facts = factsOf(a, b);
  const card = pairCard({ a: persons[a], b: persons[b], ...facts, context });
  if (facts.status !== "vetoed") {
    review.attach(card, persons[a].person_key, persons[b].person_key, facts.pair);
  }
  return card;
}

function candidateCard(candidate) {
  const card = cardOf(...placesOf(candidate));
  card.dataset.candidate = candidate.candidate_id;
  return card;
}

/** The candidates that the filter lets through. */
function listedCandidates() {
  return data.candidates.filter((candidate) => {
    const keys = candidate.persons.map((person) => person.person_key);
    return !groupOfPair(candidate) && review.isListed(keys);
  });
}

/* Groups of three and more have a card each, with their pairs inside. A group of two is a pair. */
const groups = data.groups.filter((group) => group.person_keys.length > 2);
const groupOf = new Map(groups.flatMap(
  (group) => group.person_keys.map((key) => [placeOf.get(key), group])));

/** The group in whose card a candidate is, undefined where it has a card of its own. */
function groupOfPair(candidate) {
  const [one, other] = placesOf(candidate).map((place) => groupOf.get(place));
  return one === other ? one : undefined;
}

function fillGroups() {
  const shown = groups.filter((group) => review.isListed(group.person_keys));
  byId("groups").append(...shown.map(cardOfGroup));
}

function cardOfGroup(group) {
  const pairs = data.candidates.filter((candidate) => groupOfPair(candidate) === group);
  const members = group.person_keys.map((key) => persons[placeOf.get(key)])
    .sort((a, b) => a.first_seconds - b.first_seconds);
  const figures = new Map(members.map(
    (person) => [person.person_key, personFigure(person, context.severalVideos)]));
  const card = groupCard({
    group, members, figures, pairCount: pairs.length, pairCards: () => pairs.map(candidateCard),
  });
  review.attachGroup(card, figures);
  return card;
}

function emptyState(title, text) {
  return element("p", { className: "empty" }, element("strong", {}, title), text);
}

/** "3 less similar pairs are in similarity_matrix.json." for pairs that the page leaves out. */
function leftOut(count) {
  return `${count.toLocaleString("en")} less similar pairs are in similarity_matrix.json.`;
}

function fact(name, value, className) {
  const entry = element("div", { className: className || "" },
    element("dt", {}, name), element("dd", {}, value));
  byId("facts").append(entry);
}

function fillFacts() {
  fact("Gallery", data.gallery, "wide");
  const videos = [...new Set(persons.map((person) => person.video))];
  if (videos.length) {
    const names = videos.length > 3 ? plural(videos.length, "video", "videos") : videos.join(", ");
    fact(videos.length === 1 ? "Video" : "Videos", names, "wide");
  }
  fact("Persons", persons.length.toLocaleString("en"));
  const count = data.candidate_count.toLocaleString("en");
  fact("Possible duplicates", data.has_similarity ? count : "not looked for");
  fact("Threshold", data.threshold.toFixed(2));
  if (data.model) fact("Model", modelName(data.model), "model wide");
  const made = data.timestamp.replace("T", " ").slice(0, 16);
  byId("numbers-threshold").textContent = data.threshold.toFixed(2);
  byId("made").textContent = `Made ${made} UTC. `
    + "The same numbers are in similarity_matrix.json and run.json.";
  const notices = data.notices.map((notice) => element("p", { className: "notice" }, notice));
  byId("notices").append(...notices);
}

function modelName(model) {
  const sha256 = String(model.weights_sha256 || "");
  const name = String(model.name || model.architecture || "unnamed");
  const details = [];
  if (model.architecture && model.architecture !== model.name) details.push(model.architecture);
  if (sha256) details.push(`sha256 ${sha256.slice(0, 12)}`);
  return element("span", { title: sha256 },
    element("span", {}, name), element("small", {}, details.join(" · ")));
}

function nothingListed() {
  if (data.has_similarity && embedded.length > 1) {
    const text = `No pair without a veto is above ${data.threshold.toFixed(2)} and likely enough.`;
    return emptyState("No possible duplicates", text);
  }
  return emptyState("Nothing was compared", data.has_similarity
    ? "It takes two persons to compare."
    : "Similarity was skipped; the notice above says why.");
}

function fillCandidates() {
  const list = byId("candidates");
  if (!data.candidates.length) {
    list.replaceWith(nothingListed());
    return;
  }
  const count = plural(data.candidate_count, "pair is", "pairs are");
  const them = data.candidate_count === 1 ? "it" : "them";
  const first = data.candidates[0].probability === undefined ? "most similar" : "likeliest";
  byId("duplicates-lead").textContent = `${count} above ${data.threshold.toFixed(2)} `
    + `and nothing rules ${them} out. The ${first} first.`;
  showMoreCandidates();
  review.start(byId("review"));
}

function showMoreCandidates() {
  const [list, more] = [byId("candidates"), byId("candidates-more")];
  const from = list.children.length;
  const shown = new Set([...list.children].map((card) => card.dataset.candidate));
  const candidates = listedCandidates().filter((pair) => !shown.has(pair.candidate_id));
  const next = candidates.slice(0, PAIRS_AT_ONCE);
  list.append(...next.map(candidateCard));
  const left = candidates.length - next.length;
  const beyond = data.candidate_count - data.candidates.length;
  more.replaceChildren();
  if (left) {
    const text = `Show ${Math.min(left, PAIRS_AT_ONCE)} more of ${left.toLocaleString("en")}`;
    more.append(element("button", { type: "button", onclick: showMoreCandidates }, text));
  } else if (beyond) {
    more.append(leftOut(beyond));
  }
  if (from) list.children[from].querySelector("h3").scrollIntoView({ block: "nearest" });
}

function fillVetoed() {
  if (!data.vetoed_count) return;
  const [details, list] = [byId("vetoed"), byId("vetoed-list")];
  const count = plural(data.vetoed_count, "pair", "pairs");
  details.hidden = false;
  byId("vetoed-summary").textContent =
    `${count} above ${data.threshold.toFixed(2)} ruled out by a veto`;
  details.addEventListener("toggle", () => {
    if (list.children.length) return;
    list.append(...data.vetoed.map(vetoedRow));
    const beyond = data.vetoed_count - data.vetoed.length;
    if (beyond) list.append(element("li", { className: "rest" }, leftOut(beyond)));
  });
}

function vetoedRow(pair) {
  const [a, b] = placesOf(pair);
  const names = `${persons[a].name} and ${persons[b].name}`;
  const button = rows && element("button", {
    type: "button", onclick: () => compare(a, b, true), "aria-label": `Compare ${names}`,
  }, "Compare");
  return element("li", {},
    element("span", {}, names), element("b", {}, decimal(pair.similarity)), button);
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

function noHeatmap() {
  let text = "Similarity was skipped; the notice above says why.";
  if (data.has_similarity) {
    text = embedded.length < 2
      ? "It takes two persons to compare."
      : `${embedded.length.toLocaleString("en")} persons are too many to draw here; `
        + "all similarities are in similarity_matrix.npy.";
  }
  return emptyState("No heatmap", text);
}

/** The rows of vetoed pairs to cross out; none where not all are known, or too many to see. */
function crosses() {
  if (data.vetoed.length < data.vetoed_count || data.vetoed.length > MAX_CROSSES) return [];
  return data.vetoed.map((pair) => placesOf(pair).map((place) => rowOf.get(place)));
}

function fillHeatmap() {
  const lead = byId("similarity-lead");
  if (rows === null) {
    lead.remove();
    byId("similarity").append(noHeatmap());
    return;
  }
  lead.textContent = "Warm cells are above the threshold. "
    + "Choose a cell, or two persons beside it, to see them together.";
  byId("matrix").hidden = false;
  const labels = embedded.map((place) => persons[place].name);
  const vetoed = crosses();
  byId("heatmap").setAttribute("aria-label",
    `Heatmap of the cosine similarities of ${labels.length} persons; `
    + "the two lists beside it show the same by choice of persons.");
  byId("heatmap-hint").textContent =
    vetoed.length ? "× ruled out: seen apart in the same frames." : "";
  fillComparison();
  const pairs = [...data.candidates, ...data.vetoed];
  const [a, b] = pairs.length ? placesOf(pairs[0]) : embedded;
  compare(a, b, false);
  const onPick = (i, j) => compare(embedded[i], embedded[j], true);
  drawHeatmap(byId("heatmap"), { rows, labels, threshold: data.threshold, vetoed, onPick });
}

function fillComparison() {
  const [first, second] = [byId("compare-a"), byId("compare-b")];
  for (const list of [first, second]) {
    list.append(...embedded.map(
      (place) => element("option", { value: place }, persons[place].name)));
    list.addEventListener("change",
      () => compare(Number(first.value), Number(second.value), false));
  }
}

const SORTS = {
  given: (a, b) => a.place - b.place,
  time: (a, b) => a.person.first_seconds - b.person.first_seconds || a.place - b.place,
  frames: (a, b) => b.person.frames - a.person.frames || a.place - b.place,
  quality: (a, b) => b.person.quality - a.person.quality || a.place - b.place,
};

function personCard(person, place) {
  const quality = `best crop ${person.quality.toFixed(2)}`;
  const figure = personFigure(person, context.severalVideos, quality);
  return {
    person,
    place,
    text: `${person.label} ${person.video}`.toLowerCase(),
    card: element("div", { className: "card" }, figure),
  };
}

function fillPersons() {
  const grid = byId("persons-grid");
  if (!persons.length) {
    const text = "No track was long enough; run.json says what was left out.";
    grid.replaceWith(emptyState("No persons", text));
    return;
  }
  byId("persons-tools").hidden = persons.length < 2;
  const cards = persons.map(personCard);
  const count = plural(persons.length, "person", "persons");
  const show = () => {
    const wanted = byId("persons-find").value.trim().toLowerCase();
    const shown = cards.filter(({ text }) => text.includes(wanted));
    shown.sort(SORTS[byId("persons-sort").value]);
    grid.replaceChildren(...shown.map(({ card }) => card));
    byId("persons-count").textContent = wanted ? `${shown.length} of ${count}` : count;
  };
  byId("persons-find").addEventListener("input", show);
  byId("persons-sort").addEventListener("change", show);
  show();
}

function wireMotion() {
  const button = byId("motion");
  const label = () => {
    button.textContent = motion.paused ? "Play" : "Pause";
    button.setAttribute("aria-label", `${button.textContent} the animations`);
  };
  button.hidden = !persons.some((person) => person.webp);
  button.addEventListener("click", () => {
    motion.paused = !motion.paused;
    document.querySelectorAll(".shot img").forEach(applyMotion);
    label();
  });
  label();
}

fillFacts();
fillGroups();
fillCandidates();
fillVetoed();
fillHeatmap();
fillPersons();
wireMotion();
